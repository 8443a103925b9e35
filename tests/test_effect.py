"""r_pareto on the reward has no effect in GRPO and REINFORCE++; dynamic weightings have one (slow tests)."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from compare import read_metrics


@pytest.mark.parametrize("r_pareto", [0.5, 2.0])
def test_r_pareto_on_the_reward_cancels_in_grpo_and_reinforce(script, r_pareto):
    """Both divide by a standard deviation of the rewards, which r_pareto multiplies, too. RLOO does not."""
    torch.manual_seed(0)
    reward, lengths = torch.rand(128, dtype=torch.float64), torch.randint(1, 100, (128,))
    args = SimpleNamespace(num_generations=16, baseline="whiten")
    A = script.advantage(reward, lengths, args)
    A_of_product = script.advantage(r_pareto * reward, lengths, args)
    expected = r_pareto * A if script.ALGORITHM == "rloo" else A
    torch.testing.assert_close(A_of_product, expected, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["gradient", "hypervolume"])
def test_with_the_default_flags_weights_and_meta_reward_move(tmp_path, weighting):
    command = [sys.executable, ROOT / "grpo_dynw.py", "--weighting", weighting]
    subprocess.run([*command, "--output-dir", tmp_path / "run"], check=True)
    metrics = read_metrics(tmp_path / "run")[1:]
    weights = [metrics[-1][f"weights/{name}"] for name in ("accuracy", "conciseness", "clarity")]
    low, high = np.quantile([line["r_pareto"] for line in metrics], [0.25, 0.75])
    if weighting == "gradient":
        assert max(weights) >= 0.45 and min(weights) >= 0.05 and low == high == 1
    else:
        assert weights == pytest.approx([1 / 3] * 3) and high - low >= 0.3
