"""
What AdamW makes of r_pareto, a factor on the gradient: the length of its update with the factor, over that without.

    python benchmarks/adamw.py runs/hypervolume

Beside a run with fixed weights, AdamW gets each of its gradients times a factor: 2 from step 10 on, a half from step 10
on, and the r_pareto of a run with hypervolume-guided weighting (a folder with as many steps). Draws
benchmarks/adamw.png; 3 minutes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
from compare import COLOURS, STYLE, aligned, read_metrics  # noqa: E402

step_of_adamw = torch.optim.AdamW.step


def update_length(parameters, optimizer):
    """The length of the update that `optimizer` makes of the gradients of `parameters`."""
    before = [p.detach().clone() for p in parameters]
    step_of_adamw(optimizer)
    return sum((p.detach() - b).square().sum() for p, b in zip(parameters, before)).sqrt().item()


def ratios(schedules):
    """For each schedule, a factor a step, the lengths of AdamW's updates over those without a factor: lists."""
    found, others = [[] for _ in schedules], []

    def step(optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not others:  # copies of parameters and optimiser, which see the same gradients but for the factor
            for _ in schedules:
                copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
                others.append((copies, torch.optim.AdamW(copies, lr=optimizer.defaults["lr"], weight_decay=0)))
        lengths = []
        for schedule, (copies, other) in zip(schedules, others):
            for p, copy in zip(parameters, copies):
                copy.data.copy_(p)
                copy.grad = p.grad * schedule[len(found[0])]
            lengths.append(update_length(copies, other))
        own = update_length(parameters, optimizer)
        for ratio, length in zip(found, lengths):
            ratio.append(length / own)

    torch.optim.AdamW.step = step
    with tempfile.TemporaryDirectory() as scratch:
        steps = ["--steps", str(len(schedules[0])), "--eval-every", "1000", "--weight-decay", "0"]
        sys.argv = ["grpo_dynw.py", *steps, "--output-dir", f"{scratch}/run"]
        grpo_dynw.main()
    return found


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("run", type=Path, help="folder of a run with hypervolume-guided weighting")
    args = parser.parse_args()
    r_pareto = [line["r_pareto"] for line in read_metrics(args.run)[1:]]
    late = len(r_pareto) - 9
    schedules = {"2 from step 10 on": [1.0] * 9 + [2.0] * late, "0.5 from step 10 on": [1.0] * 9 + [0.5] * late}
    schedules["r_pareto of a run"] = r_pareto
    found = ratios(list(schedules.values()))
    figure = Figure(figsize=(14, 3.4), layout="constrained")
    rows = [["factor", "its mean", "of the update's length", "correlation", "step 10", "step 30", "last", "most"]]
    for axes, (name, schedule), ratio in zip(figure.subplots(1, 3), schedules.items(), found):
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
