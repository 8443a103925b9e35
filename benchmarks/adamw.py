"""
Measures how much of a factor on the gradient, such as the meta reward r_pareto, is left in AdamW's update.

    python benchmarks/adamw.py runs/hypervolume

One run with fixed weights gives the gradients. For each of three schedules of factors, another AdamW gets
the same gradients times the factor of the step. The schedules are: 2 from step 10 on, 0.5 from step 10 on,
and r_pareto of a run with hypervolume-guided weighting, which the argument names. The ratio is the length of
the update with the factor, divided by the length of the update without it.

Prints a table and draws benchmarks/adamw.png.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
from compare import COLOURS, STYLE, aligned, read_metrics  # noqa: E402

TITLES = ["factor", "mean", "mean ratio", "correlation", "at step 10", "at step 30", "at the end", "maximum"]


def make_recorder(schedules, ratios):
    """
    Returns a replacement for AdamW.step, which also updates copies of the parameters, one for each schedule.

    A copy starts from the current parameters and gets their gradients times the factor of the step. The ratio
    of the two lengths is appended to the schedule's list in `ratios`.
    """
    adamw_step, copies = torch.optim.AdamW.step, []

    def update_length(optimizer):
        parameters = optimizer.param_groups[0]["params"]
        previous = [p.detach().clone() for p in parameters]
        adamw_step(optimizer)
        squares = [(p.detach() - q).square().sum() for p, q in zip(parameters, previous)]
        return sum(squares).sqrt().item()

    def step(optimizer):
        [group] = optimizer.param_groups
        if not copies:
            for _ in schedules:
                parameters = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]
                copies.append(torch.optim.AdamW(parameters, lr=group["lr"]))

        lengths, index = [], len(ratios[0])
        for schedule, copy in zip(schedules, copies):
            for source, target in zip(group["params"], copy.param_groups[0]["params"]):
                target.data.copy_(source)
                target.grad = source.grad * schedule[index]
            lengths.append(update_length(copy))

        length_without = update_length(optimizer)
        for ratio, length in zip(ratios, lengths):
            ratio.append(length / length_without)

    return step


def measure(schedules):
    """Returns the ratios of each schedule, a list with one number a step. schedules: lists of factors."""
    ratios = [[] for _ in schedules]
    with tempfile.TemporaryDirectory() as scratch:
        command = ["grpo_dynw.py", "--steps", str(len(schedules[0])), "--eval-every", "1000"]
        command += ["--max-eval-problems", "1", "--output-dir", f"{scratch}/run"]
        with (
            patch.object(torch.optim.AdamW, "step", make_recorder(schedules, ratios)),
            patch.object(sys, "argv", command),
        ):
            grpo_dynw.main()
    return ratios


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("run", type=Path, help="folder of a run with hypervolume-guided weighting")
    args = parser.parse_args()
    r_pareto = [line["r_pareto"] for line in read_metrics(args.run)[1:]]
    if len(r_pareto) < 30:
        parser.error(f"{args.run} has {len(r_pareto)} steps, but the table needs at least 30")

    late = len(r_pareto) - 9
    schedules = {"2 from step 10 on": [1.0] * 9 + [2.0] * late}
    schedules |= {"0.5 from step 10 on": [1.0] * 9 + [0.5] * late, "r_pareto of a run": r_pareto}
    ratios = measure(list(schedules.values()))

    figure, rows = Figure(figsize=(14, 3.4), layout="constrained"), [TITLES]
    for axes, (name, schedule), ratio in zip(figure.subplots(1, 3), schedules.items(), ratios):
        axes.plot(range(1, len(schedule) + 1), schedule, color="0.6", label="factor on the gradient")
        axes.plot(range(1, len(ratio) + 1), ratio, color=COLOURS[0], label="factor on AdamW's update")
        axes.set(title=name, xlabel="step", ylim=(0, 2.2))
        axes.legend()
        correlation = np.corrcoef(schedule, ratio)[0, 1]
        numbers = [np.mean(schedule), np.mean(ratio), correlation, ratio[9], ratio[29], ratio[-1], max(ratio)]
        rows.append([name, *(f"{number:.2f}" for number in numbers)])
    figure.savefig(ROOT / "benchmarks/adamw.png", dpi=150)
    print(aligned(rows))


if __name__ == "__main__":
    main()
