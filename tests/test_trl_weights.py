"""Tests of examples/trl_weights.py, which are skipped without TRL."""

import sys

import pytest
import torch
from conftest import ROOT

pytest.importorskip("trl")
sys.path.insert(0, str(ROOT / "examples"))
import trl_weights  # noqa: E402

import grpo_dynw  # noqa: E402


def test_the_weights_of_three_steps_are_those_of_the_logged_rewards(tmp_path):
    sizes = dict(per_device_train_batch_size=8, num_generations=8, max_steps=3, use_cpu=True, bf16=False)
    options = dict(reward_weights=[0.75, 0.25], save_strategy="no", disable_tqdm=True, seed=1)
    trainer = trl_weights.main(output_dir=str(tmp_path), **sizes, **options)
    lines = [line for line in trainer.state.log_history if "rewards/accuracy/mean" in line]
    assert len(lines) == 3
    weights = torch.tensor([0.75, 0.25])
    for line in lines:
        p = torch.tensor([line["rewards/accuracy/mean"], line["rewards/clarity/mean"]])
        # The weights of this step were set after the step before.
        assert line["reward"] == pytest.approx((weights @ p).item(), abs=1e-5)
        weights = grpo_dynw.nash_weights(torch.tensor([0.75, 0.25]), p)
    assert torch.equal(trainer.reward_weights, weights)
    assert not torch.allclose(weights, torch.tensor([0.75, 0.25]))
