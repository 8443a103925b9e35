"""The effect of the dynamic weightings with the default flags. Slow: pytest -m slow tests/test_effect.py"""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from compare import read_metrics

NAMES = ["accuracy", "conciseness", "clarity"]


def default_run(weighting, folder):
    """Returns the metrics of the training steps and what the run prints to stdout."""
    command = [sys.executable, ROOT / "grpo_dynw.py", "--weighting", weighting, "--output-dir", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return read_metrics(folder)[1:], result.stdout


@pytest.mark.slow
def test_gradient_based_weighting_moves_the_weights(tmp_path):
    metrics, output = default_run("gradient", tmp_path / "run")
    weights = [metrics[-1][f"weights/{name}"] for name in NAMES]
    assert max(weights) >= 0.45 and min(weights) >= 0.05
    assert f"Final weights: accuracy {weights[0]:.2f}, " in output
    assert (tmp_path / "run/curves.png").stat().st_size > 10000


@pytest.mark.slow
def test_hypervolume_guided_weighting_moves_the_meta_reward(tmp_path):
    metrics, output = default_run("hypervolume", tmp_path / "run")
    low, high = np.quantile([line["r_pareto"] for line in metrics], [0.25, 0.75])
    assert high - low >= 0.3
    assert "Quartiles of the meta reward r_pareto: " in output
