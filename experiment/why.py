"""
Measures in which groups weights have an effect, and the gradients that gradient-based weighting compares.

    python experiment/why.py           trains 6 models with grpo_dynw.py, two at a time, in about 25 minutes,
                                       and writes experiment/why.csv and experiment/why.png
    python experiment/why.py --draw    only draws experiment/why.png from experiment/why.csv

Balanced weights and gradient-based weighting are run with three seeds each. Both use `--weighting gradient`,
so that the gradients of the objectives are known. For balanced weights, --mu is so large that they do not
move.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiment")]
from headline import smooth  # noqa: E402

from compare import COLOURS, STYLE  # noqa: E402

RESULTS, STEPS = ROOT / "experiment/why.csv", 120
OBJECTIVES = ["accuracy", "conciseness", "clarity"]
PAIRS = list(combinations(range(3), 2))
PAIR_NAMES = [f"{OBJECTIVES[i]}_{OBJECTIVES[j]}" for i, j in PAIRS]
WEIGHTINGS = {"balanced": ["--mu", "1e9"], "gradient": []}
COLUMNS = ["weighting", "seed", "step"]
COLUMNS += [f"{prefix}_{name}" for prefix in ("varies", "weight", "share", "norm") for name in OBJECTIVES]
COLUMNS += [f"{prefix}_{pair}" for prefix in ("both", "disagree") for pair in PAIR_NAMES]


def group_statistics(rewards, weights):
    """
    Statistics of the groups of a step, from rewards (K, prompts, G) and weights (K,). Returns four arrays:

    - varies (K,): the share of groups in which an objective has a positive variance.
    - share (K,): an objective's share of the advantage, w_k cov(r_k, r) / var(r), where r is the weighted
      sum. This is a mean over groups. Groups in which the weighted rewards nearly cancel are left out: var(r)
      must exceed 1% of the sum of the variances of w_k r_k.
    - both (pairs,): the share of groups in which both objectives of a pair vary.
    - disagree (pairs,): the share of groups in which both vary and their covariance is negative.
    """
    centred = rewards - rewards.mean(-1, keepdims=True)
    covariance = np.einsum("kpg,lpg->pkl", centred, centred)
    varies = np.einsum("pkk->kp", covariance) > 0
    contributions = weights[:, None] * np.einsum("pkl,l->kp", covariance, weights)
    variance = contributions.sum(0)
    counts = variance > 0.01 * np.einsum("k,pkk->p", weights**2, covariance)
    share = contributions[:, counts] / variance[counts]
    both = np.array([varies[i] & varies[j] for i, j in PAIRS])
    disagree = np.array([both[n] & (covariance[:, i, j] < 0) for n, (i, j) in enumerate(PAIRS)])
    return varies.mean(1), share.mean(1), both.mean(1), disagree.mean(1)


def run_script(flags):
    """Runs grpo_dynw.py in this process. Returns rewards (K, N), norms and weights (K,) for each step."""
    import torch

    import grpo_dynw

    torch.set_num_threads(1)
    score, gram_matrix, steps, latest = grpo_dynw.rewards.score, grpo_dynw.gram_matrix, [], {}

    def recording_score(*args, **kwargs):
        table = score(*args, **kwargs)
        latest["rewards"] = np.array(table).T
        return table

    def recording_gram_matrix(*args, **kwargs):
        # Evaluations call score() too. Only training calls this function, right after score().
        gram, logprobs = gram_matrix(*args, **kwargs)
        steps.append({"rewards": latest["rewards"], "norms": gram.diagonal().sqrt().tolist()})
        return gram, logprobs

    grpo_dynw.rewards.score, grpo_dynw.gram_matrix = recording_score, recording_gram_matrix
    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as null:
        sys.argv = ["grpo_dynw.py", *flags, "--output-dir", f"{scratch}/run"]
        with contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
            grpo_dynw.main()
        metrics = pandas.read_json(f"{scratch}/run/metrics.jsonl", lines=True).set_index("step")
    for number, step in enumerate(steps, 1):
        step["weights"] = metrics.loc[number, [f"weights/{name}" for name in OBJECTIVES]].to_numpy(float)
    return steps


def train(case):
    """Trains a case ((weighting, flags), seed) in this process. Returns a row of the CSV for each step."""
    (weighting, flags), seed = case
    flags = [
        "--weighting",
        "gradient",
        *flags,
        "--seed",
        str(seed),
        "--steps",
        str(STEPS),
        "--eval-every",
        "1000",
    ]
    rows = []
    for number, step in enumerate(run_script(flags), 1):
        groups = step["rewards"].reshape(3, -1, 8)
        varies, share, both, disagree = group_statistics(groups, step["weights"])
        numbers = [*varies, *step["weights"], *share, *step["norms"], *both, *disagree]
        rows.append([weighting, seed, number, *(round(float(x), 5) for x in numbers)])
    return rows


def plot_mean(axes, table, column, **style):
    """Plots the mean over seeds of a column over the steps, smoothed."""
    values = table.pivot(index="seed", columns="step", values=column)
    axes.plot(values.columns, smooth(values.to_numpy().mean(0), 2), **style)


def draw(table):
    """One row of panels for each weighting. Colours stand for objectives, in the second panel for pairs."""
    figure = Figure(figsize=(15, 6.8), layout="constrained")
    for row, weighting in zip(figure.subplots(len(WEIGHTINGS), 4), WEIGHTINGS):
        runs = table[table["weighting"] == weighting]
        for name, colour in zip(OBJECTIVES, COLOURS[3:]):
            plot_mean(row[0], runs, f"varies_{name}", color=colour, label=name)
            plot_mean(row[2], runs, f"share_{name}", color=colour)
            plot_mean(row[2], runs, f"weight_{name}", color=colour, linestyle=":")
            plot_mean(row[3], runs, f"norm_{name}", color=colour)
        for pair, colour in zip(PAIR_NAMES, COLOURS):
            plot_mean(row[1], runs, f"both_{pair}", color=colour, linestyle=":")
            plot_mean(row[1], runs, f"disagree_{pair}", color=colour, label=pair.replace("_", " and "))
        row[0].set(title="The objective varies", ylabel=f"{weighting}\nshare of groups", ylim=(0, 1.02))
        row[1].set(title="Both vary (dotted), and disagree (solid)", ylabel="share of groups", ylim=(0, 1.02))
        row[2].set(title="Weight (dotted), share of advantage (solid)", ylabel="share", ylim=(-0.2, 1.02))
        row[3].set(title="Policy gradient of the objective", ylabel="norm", ylim=(0, 0.15))
        for axes in row:
            axes.set_xlabel("step")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    figure.legend(*row[1].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--draw", action="store_true", help="only draw the picture, from the CSV")
    if not parser.parse_args().draw:
        os.environ["OMP_NUM_THREADS"] = "1"
        cases = list(product(WEIGHTINGS.items(), [1, 2, 3]))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            rows = sum(pool.map(train, cases), [])
        with open(RESULTS, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    draw(pandas.read_csv(RESULTS)).savefig(RESULTS.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
