"""
Times steps of grpo_dynw.py with fixed weights and of TRL's GRPOTrainer, both on the embedded model.

    pip install -r benchmarks/requirements.txt
    python benchmarks/trl_speed.py

Both have the same model, problems, rewards, group size, limit, precision and KL term, so both run a
reference model. With a learning rate of 1e-9, the policy and so the lengths of its responses stay the same.
TRL runs with two micro-batch sizes. For TRL, the time of a step is the time between the ends of two steps.
For grpo_dynw.py, it is the sum of the times of the phases in its metrics. The table has medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import datasets
import torch
import transformers
import trl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned, read_metrics  # noqa: E402

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
LIMIT, PROMPTS, GROUP = 96, 16, 8
PHASES = ["rollout", "reward", "probe", "update"]


class StepTimer(transformers.TrainerCallback):
    """Records when each step ends, and the mean lengths that TRL logs."""

    def __init__(self):
        self.ends, self.lengths = [], []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())

    def on_log(self, _, __, ___, logs, **____):
        if "completions/mean_length" in logs:
            self.lengths.append(logs["completions/mean_length"])


def make_reward(name):
    """Returns an objective of rewards.py as a reward function of TRL."""

    def reward(completions, completion_ids, answer, **_):
        texts, lengths = [turns[0]["content"] for turns in completions], [len(ids) for ids in completion_ids]
        problems, mean_length = [{"answer": text} for text in answer], sum(lengths) / len(lengths)
        return [value for (value,) in rewards.score([name], texts, problems, lengths, mean_length)]

    reward.__name__ = name
    return reward


def time_trl(steps, micro_batch, folder):
    """Trains with TRL. Returns the seconds between the ends of steps, and the mean length of each step."""
    data = datasets.load_dataset(str(ROOT / "tiny/data"), split="train").map(
        lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]}, remove_columns=["problem"]
    )
    config = trl.GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=PROMPTS * GROUP // micro_batch,
        num_generations=GROUP,
        max_completion_length=LIMIT,
        beta=0.001,
        learning_rate=1e-9,
        reward_weights=[1 / 3] * 3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    functions, timer = [make_reward(name) for name in OBJECTIVES], StepTimer()
    model = str(ROOT / "tiny/model")
    trl.GRPOTrainer(model, functions, config, train_dataset=data, callbacks=[timer]).train()
    return [end - began for began, end in zip(timer.ends, timer.ends[1:])], timer.lengths


def time_grpo(steps, folder):
    """Trains with grpo_dynw.py. Returns seconds and mean length of each step except the first."""
    command = ["grpo_dynw.py", "--steps", str(steps), "--learning-rate", "1e-9", "--eval-every", "1000"]
    with patch.object(sys, "argv", [*command, "--output-dir", str(folder)]):
        grpo_dynw.main()
    metrics = read_metrics(folder)[2:]  # without the initial evaluation and the first step
    times = [sum(line[f"time/{phase}"] for phase in PHASES) for line in metrics]
    return times, [line["completions/mean_length"] for line in metrics]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--steps", type=int, default=9, help="number of steps to time (default: 9)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            "TRL, micro-batches of 128": time_trl(args.steps + 1, 128, Path(scratch) / "128"),
            "TRL, micro-batches of 32": time_trl(args.steps + 1, 32, Path(scratch) / "32"),
            "grpo_dynw.py": time_grpo(args.steps + 2, Path(scratch) / "grpo"),
        }
    versions = f"TRL {trl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads, float32\n")
    rows = [["", "mean length", "seconds a step", "responses a second"]]
    for name, (times, lengths) in runs.items():
        median = statistics.median(times)
        rate = PROMPTS * GROUP / median
        rows.append([name, f"{statistics.mean(lengths):.1f}", f"{median:.2f}", f"{rate:.1f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
