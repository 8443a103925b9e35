"""
Times steps of grpo_dynw.py with fixed weights and of TRL's GRPOTrainer, without vLLM.

    pip install -r benchmarks/requirements.txt
    python benchmarks/trl_speed.py                               the embedded model
    python benchmarks/trl_speed.py --device cuda --shape 0.6B    a random model in the shape of Qwen3-0.6B
    python benchmarks/trl_speed.py --shape toy --rounds 1        the smallest setting

Both have the same model, problems, rewards, KL term, group size, limit and number of responses in a step.
With a learning rate of 1e-9, the lengths of the responses stay the same. On CUDA, TRL runs with float32
weights under autocast to bfloat16, as grpo_dynw.py, and with bfloat16 weights, which lose small updates.

Each run is a new process. A round has one run of each kind, because the speed of a machine changes within
minutes. A step of TRL takes the time between the ends of two steps. A step of grpo_dynw.py is the sum of the
phases in its metrics. The table has the median and the quartiles over all steps except the first of each run.
"""

import argparse
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import transformers
from step_cost import GROUP, ROOT, SIZES, clock, flags_of, machine, make_model, markdown, rewards, run_steps

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
PHASES = ["rollout", "reward", "probe", "update"]


class StepTimer(transformers.TrainerCallback):
    """Records the times at which steps end, and the mean lengths that TRL logs."""

    def __init__(self):
        self.ends, self.lengths = [], []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(clock())

    def on_log(self, args, state, control, logs, **kwargs):
        self.lengths += [logs[key] for key in logs if key == "completions/mean_length"]


def make_reward(name):
    """Returns an objective of rewards.py as a reward function of TRL."""

    def reward(completions, completion_ids, answer, **_):
        texts, lengths = [turns[0]["content"] for turns in completions], list(map(len, completion_ids))
        problems, mean_length = [{"answer": text} for text in answer], sum(lengths) / len(lengths)
        return [value for [value] in rewards.score([name], texts, problems, lengths, mean_length)]

    reward.__name__ = name
    return reward


def time_trl(model, shape, device, steps, micro_batch, dtype):
    """Trains with TRL. Returns seconds and mean length of `steps` steps after the first."""
    import datasets
    import trl

    num_problems, limit, _ = SIZES[shape]
    data = datasets.load_dataset(str(ROOT / "tiny/data"), split="train").map(
        lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]}, remove_columns=["problem"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.GRPOConfig(
            output_dir=scratch,
            max_steps=steps + 1,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=num_problems * GROUP // micro_batch,
            num_generations=GROUP,
            max_completion_length=limit,
            beta=0.001,
            learning_rate=1e-9,
            reward_weights=[1 / 3] * 3,
            model_init_kwargs={"dtype": dtype},
            use_cpu=device == "cpu",
            bf16=device == "cuda",
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        functions, timer = [make_reward(name) for name in OBJECTIVES], StepTimer()
        trl.GRPOTrainer(str(model), functions, config, train_dataset=data, callbacks=[timer]).train()
    return np.diff(timer.ends).tolist(), timer.lengths[1:]


def time_script(model, shape, device, steps, *flags):
    """Trains with grpo_dynw.py. Returns seconds and mean length of `steps` steps after the first."""
    metrics = run_steps(ROOT, [*flags_of(shape, model, device), *flags], steps)
    seconds = [sum(line[f"time/{phase}"] for phase in PHASES) for line in metrics]
    return seconds, [line["completions/mean_length"] for line in metrics]


def kinds_of_runs(shape, device):
    """The runs to time: {name: (function, its last arguments)}."""
    num_problems, _, micro_batch = SIZES[shape]
    if device == "cpu":
        sizes = [num_problems * GROUP, micro_batch]
        trl = {f"TRL, micro-batches of {size}": (time_trl, size, "float32") for size in sizes}
        return trl | {"grpo_dynw.py": (time_script,)}
    dtypes = ["float32", "bfloat16"]
    trl = {f"TRL, {dtype} weights": (time_trl, micro_batch, dtype) for dtype in dtypes}
    return trl | {"grpo_dynw.py": (time_script,), "grpo_dynw.py --compile": (time_script, "--compile")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="embedded", choices=SIZES, help="of the model")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="steps that count in a run (default: 6)")
    args = parser.parse_args()
    kinds, context = kinds_of_runs(args.shape, args.device), multiprocessing.get_context("spawn")
    results = {name: ([], []) for name in kinds}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool,  # a new process for each run
    ):
        model = make_model(args.shape, scratch)
        for _ in range(args.rounds):
            for name, (function, *options) in kinds.items():
                run = pool.submit(function, model, args.shape, args.device, args.steps, *options)
                for values, new in zip(results[name], run.result()):
                    values += new

    rows, num_responses = (
        [["", "mean length", "seconds a step", "responses a second"]],
        SIZES[args.shape][0] * GROUP,
    )
    for name, (seconds, lengths) in results.items():
        low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
        cells = [f"{median:.2f} ({low:.2f} to {high:.2f})", f"{num_responses / median:.1f}"]
        rows.append([name, f"{np.mean(lengths):.1f}", *cells])
    print(machine(args.device) + "\n\n" + markdown(rows))


if __name__ == "__main__":
    main()
