"""
A step of grpo_dynw.py with fixed weights against one of TRL's GRPOTrainer, on the embedded model.

    pip install -r benchmarks/requirements.txt
    python benchmarks/trl_speed.py

The same model, problems, rewards, group size, limit, KL term (so both run a reference model) and precision. A learning
rate of 1e-9 keeps both at the same policy, hence at responses of the same lengths. TRL gets the faster of two
micro-batch sizes. A step's time is from the end of the one before it to its own; medians.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
import transformers
import trl
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned, read_metrics  # noqa: E402

LIMIT, PROMPTS, GROUP = 96, 16, 8


class Clock(TrainerCallback):
    """Times the ends of steps, and keeps what TRL logs of the lengths."""

    def __init__(self):
        self.ends, self.lengths = [], []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())

    def on_log(self, _, __, ___, logs, **____):
        if "completions/mean_length" in logs:
            self.lengths.append(logs["completions/mean_length"])


def reward(name):
    """An objective of rewards.py in TRL's form."""

    def function(completions, completion_ids, answer, **_):
        texts, lengths = [c[0]["content"] for c in completions], [len(ids) for ids in completion_ids]
        scores = rewards.score([name], texts, [{"answer": a} for a in answer], lengths, sum(lengths) / len(lengths))
        return [value for (value,) in scores]

    function.__name__ = name
    return function


def time_trl(steps, micro_batch, folder):
    """Seconds between the ends of steps, and mean lengths."""
    data = datasets.load_dataset(str(ROOT / "tiny/data"), split="train").map(
        lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]}, remove_columns=["problem"]
    )
    names, clock = ["accuracy", "conciseness", "clarity"], Clock()
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
    trainer = trl.GRPOTrainer(
        str(ROOT / "tiny/model"), [reward(name) for name in names], config, train_dataset=data, callbacks=[clock]
    )
    trainer.train()
    return [b - a for a, b in zip(clock.ends, clock.ends[1:])], clock.lengths


def time_ours(steps, folder):
    """The same of grpo_dynw.py, as it times its phases itself."""
    sys.argv = ["grpo_dynw.py", "--steps", str(steps), "--learning-rate", "1e-9", "--eval-every", "1000"]
    sys.argv += ["--output-dir", str(folder)]
    grpo_dynw.main()
    metrics = read_metrics(folder)[2:]  # the first step does not count
    times = [sum(line[f"time/{phase}"] for phase in ("rollout", "probe", "update")) for line in metrics]
    return times, [line["completions/mean_length"] for line in metrics]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--steps", type=int, default=9, help="steps to time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            "TRL, micro-batches of 128": time_trl(args.steps + 1, 128, Path(scratch) / "128"),
            "TRL, micro-batches of 32": time_trl(args.steps + 1, 32, Path(scratch) / "32"),
            "grpo_dynw.py": time_ours(args.steps + 2, Path(scratch) / "ours"),
        }
    print(
        f"TRL {trl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads, float32\n"
    )
    rows = [["", "mean length", "seconds a step", "responses a second"]]
    for name, (times, lengths) in runs.items():
        median = statistics.median(times)
        rows.append([name, f"{statistics.mean(lengths):.1f}", f"{median:.2f}", f"{PROMPTS * GROUP / median:.1f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
