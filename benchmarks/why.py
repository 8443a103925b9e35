"""
Why the weightings end where they do: what weights can change at all, and what gradient-based weighting goes by.

    python benchmarks/why.py           6 runs of grpo_dynw.py, two at a time, into benchmarks/why.csv; some 25 minutes
    python benchmarks/why.py --draw    draws benchmarks/why.png from it

Three seeds each of balanced and of gradient-based weighting. Both are run with `--weighting gradient`, the former with
a --mu that moves no weight, so that the gradients of the objectives are known in both.
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
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from headline import smooth  # noqa: E402

from compare import COLOURS, STYLE  # noqa: E402

RESULTS, STEPS = ROOT / "benchmarks/why.csv", 120
NAMES = ["accuracy", "conciseness", "clarity"]
PAIRS = list(combinations(range(3), 2))
WEIGHTINGS = {"balanced": ["--mu", "1e9"], "gradient": []}
FIELDS = ["weighting", "seed", "step"]
FIELDS += [f"{what}_{name}" for what in ("varies", "weight", "share", "length") for name in NAMES]
FIELDS += [f"{what}_{NAMES[i]}_{NAMES[j]}" for what in ("both", "disagree") for i, j in PAIRS]


def of_groups(groups, w):
    """
    Of rewards (K, prompts, G) with weights (K,): the share of groups in which each objective varies (K,); each one's
    share of the variance of the weighted reward, a mean over the groups in which it does not all but cancel (K,); the
    share of groups in which both of a pair vary, and in which they then disagree, that is, have a negative covariance
    (pairs,).
    """
    centred = groups - groups.mean(-1, keepdims=True)
    covariance = np.einsum("kpg,lpg->pkl", centred, centred)
    varies = np.einsum("pkk->kp", covariance) > 0
    parts = w[:, None] * np.einsum("pkl,l->kp", covariance, w)  # (K, prompts)
    total = parts.sum(0)
    remains = total > 0.01 * np.einsum("k,pkk->p", w**2, covariance)
    share = parts[:, remains] / total[remains]
    both = np.array([varies[i] & varies[j] for i, j in PAIRS])
    disagree = np.array([both[n] & (covariance[:, i, j] < 0) for n, (i, j) in enumerate(PAIRS)])
    return varies.mean(1), share.mean(1), both.mean(1), disagree.mean(1)


def observed(case):
    """A run of grpo_dynw.py, in a process of its own: a row of the CSV for each step."""
    import torch

    import grpo_dynw

    torch.set_num_threads(1)
    (weighting, flags), seed = case
    found, gram_matrix, score = [], grpo_dynw.gram_matrix, grpo_dynw.rewards.score

    def seen_score(names, texts, problems, *more):
        table = score(names, texts, problems, *more)
        found.append({"rewards": np.array(table).T})  # (K, N)
        return table

    def seen_gram(*given):
        gram, old = gram_matrix(*given)
        found[-1]["lengths"] = gram.diagonal().sqrt().tolist()  # which only training has, so this marks its rewards
        return gram, old

    grpo_dynw.gram_matrix, grpo_dynw.rewards.score = seen_gram, seen_score
    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as quiet:
        sys.argv = ["grpo_dynw.py", "--weighting", "gradient", *flags, "--seed", str(seed), "--steps", str(STEPS)]
        sys.argv += ["--eval-every", "1000", "--output-dir", f"{scratch}/run"]
        with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            grpo_dynw.main()
        lines = pandas.read_json(f"{scratch}/run/metrics.jsonl", lines=True).set_index("step")
    rows = []
    for step, seen in enumerate((seen for seen in found if "lengths" in seen), 1):
        w = lines.loc[step, [f"weights/{name}" for name in NAMES]].to_numpy(float)
        varies, share, both, disagree = of_groups(seen["rewards"].reshape(3, -1, 8), w)
        numbers = [*varies, *w, *share, *seen["lengths"], *both, *disagree]
        rows.append([weighting, seed, step, *(round(float(number), 5) for number in numbers)])
    return rows


def draw(table):
    """A row a weighting: where objectives vary, where they disagree, their shares of the advantage, their gradients."""
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    for row, weighting in zip(figure.subplots(len(WEIGHTINGS), 4), WEIGHTINGS):
        own = table[table["weighting"] == weighting]

        def line(axes, column, colour, label=None, style="-", own=own):
            values = own.pivot(index="seed", columns="step", values=column)
            axes.plot(values.columns, smooth(values.to_numpy().mean(0), 2), style, color=colour, label=label)

        for name, colour in zip(NAMES, COLOURS[3:]):
            line(row[0], f"varies_{name}", colour, name)
            line(row[2], f"share_{name}", colour, name)
            line(row[2], f"weight_{name}", colour, style=":")
            line(row[3], f"length_{name}", colour, name)
        for (i, j), colour in zip(PAIRS, COLOURS):
            line(row[1], f"both_{NAMES[i]}_{NAMES[j]}", colour, f"{NAMES[i]}, {NAMES[j]}", ":")
            line(row[1], f"disagree_{NAMES[i]}_{NAMES[j]}", colour, f"{NAMES[i]}, {NAMES[j]}")
        row[0].set(ylabel=f"{weighting}\nshare of groups", title="Groups in which each varies", ylim=(0, 1))
        row[1].set(title="Both vary (dotted), and disagree", ylim=(0, 1))
        row[2].set(title="Share of weights (dotted), of advantage", ylim=(-0.2, 1))
        row[3].set(title="Length of the policy gradient", ylim=(0, 0.15))
        for axes in row:
            axes.set_xlabel("step")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    figure.legend(*(half[1::2] for half in row[1].get_legend_handles_labels()), loc="outside lower right", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--draw", action="store_true", help="only the picture, from the CSV that is there")
    if not parser.parse_args().draw:
        os.environ["OMP_NUM_THREADS"] = "1"
        cases = list(product(WEIGHTINGS.items(), [1, 2, 3]))
        with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            rows = sum(pool.map(observed, cases), [])
        with open(RESULTS, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([FIELDS, *rows])
    draw(pandas.read_csv(RESULTS)).savefig(RESULTS.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
