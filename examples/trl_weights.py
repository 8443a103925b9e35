"""
Nash weighting for TRL's GRPOTrainer: `pip install "trl>=1.16"`, then `python examples/trl_weights.py`.

The callback reads the logged mean rewards and sets the weights of the next step. Two weightings do not carry
over. The meta reward, Eq. (1), is a common factor on all weights, which `scale_rewards="group"` cancels.
Gradient-based weighting, Eq. (3), needs the policy gradient of each objective, which TRL does not compute.
"""

import math
import sys
from pathlib import Path

import datasets
import torch
import transformers
import trl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import rewards  # noqa: E402


def nash_weights(initial, performance):
    """The weights (K,) w0_k / p_k, normalized, as in grpo_dynw.py. initial: w0 (K,). performance: p (K,)."""
    weights = initial / performance.clamp(min=0.02)  # A performance of 0 must not take all the weight.
    return weights / weights.sum()


class NashWeights(transformers.TrainerCallback):
    """Sets trainer.reward_weights whenever mean rewards are logged. Set `trainer` after its construction."""

    def on_log(self, args, state, control, logs, **_):
        means = [logs.get(f"rewards/{name}/mean") for name in self.trainer.reward_func_names]
        # Lines about evaluations have no means. A mean is None or NaN if no sample has this reward.
        if None not in means and math.isfinite(sum(means)):
            initial = torch.tensor(args.reward_weights or [1.0] * len(means))
            self.trainer.reward_weights = nash_weights(initial, torch.tensor(means))


def accuracy(completions, answer, **_):
    return [rewards.accuracy(turns[0]["content"], truth) for turns, truth in zip(completions, answer)]


def clarity(completions, **_):
    return [rewards.clarity(turns[0]["content"]) for turns in completions]


def main(**options):
    """Trains the embedded model. Returns the trainer. options: of trl.GRPOConfig."""
    data = datasets.load_dataset("json", data_files=str(ROOT / "tiny/data/train.jsonl"), split="train")
    data = data.map(lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]})
    defaults = dict(max_completion_length=96, logging_steps=1, report_to="none", output_dir="runs/trl")
    config, callback = trl.GRPOConfig(**{**defaults, **options}), NashWeights()
    objectives, model = [accuracy, clarity], str(ROOT / "tiny/model")
    callback.trainer = trainer = trl.GRPOTrainer(model, objectives, config, data, callbacks=[callback])
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(max_steps=60, learning_rate=2e-5, bf16=torch.cuda.is_available())
