"""What the two dynamic weightings do at the defaults. Slow: pytest -m slow tests/test_effect.py"""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from compare import read_metrics

NAMES = ["accuracy", "conciseness", "clarity"]


def default_run(weighting, folder):
    """The metrics of the steps, and what is printed at the end."""
    line = [sys.executable, ROOT / "grpo_dynw.py", "--weighting", weighting, "--output-dir", folder]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return read_metrics(folder)[1:], done.stdout


@pytest.mark.slow
def test_gradient_based_weighting_moves_the_weights(tmp_path):
    metrics, said = default_run("gradient", tmp_path / "run")
    w = [metrics[-1][f"weights/{name}"] for name in NAMES]
    assert max(w) >= 0.45 and min(w) >= 0.05
    assert "Weights went to" in said and (tmp_path / "run/curves.png").stat().st_size > 10000


@pytest.mark.slow
def test_hypervolume_guided_weighting_moves_r_pareto(tmp_path):
    metrics, said = default_run("hypervolume", tmp_path / "run")
    low, high = np.quantile([line["r_pareto"] for line in metrics], [0.25, 0.75])
    assert high - low >= 0.3
    assert "r_pareto had quartiles" in said
