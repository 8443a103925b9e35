"""Protects examples/trl_weights.py: its weights are the Nash weights of the rewards that TRL logs."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT

import grpo_dynw

HAS_TRL = importlib.util.find_spec("trl") is not None


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    if not HAS_TRL:
        monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))  # Its callback does not use TRL.
    return importlib.import_module("trl_weights")


@pytest.mark.skipif(not HAS_TRL, reason="TRL is not installed")
def test_the_weights_of_three_steps_are_those_of_the_logged_rewards(example, tmp_path):
    sizes = dict(per_device_train_batch_size=8, num_generations=8, max_steps=3, use_cpu=True, bf16=False)
    options = dict(reward_weights=[0.75, 0.25], save_strategy="no", disable_tqdm=True, seed=1)
    trainer = example.main(output_dir=str(tmp_path), **sizes, **options)
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


@pytest.mark.parametrize(
    "mean, expected", [(None, [0.5, 0.5]), (float("nan"), [0.5, 0.5]), (0.1, [1 / 6, 5 / 6])]
)
def test_a_step_without_a_reward_keeps_the_weights(example, mean, expected):
    """TRL logs None, and older versions NaN, if no sample of the step has a reward in this objective."""
    callback = example.NashWeights()
    callback.trainer = SimpleNamespace(
        reward_func_names=["accuracy", "clarity"], reward_weights=torch.tensor([0.5, 0.5])
    )
    logs = {"rewards/accuracy/mean": 0.5, "rewards/clarity/mean": mean}
    callback.on_log(SimpleNamespace(reward_weights=None), None, None, logs=logs)
    assert callback.trainer.reward_weights.tolist() == pytest.approx(expected)
