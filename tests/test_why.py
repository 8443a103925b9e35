"""benchmarks/why.py: what it counts of a group, by other ways, and its figures in benchmarks/README.md."""

import csv
import sys
from statistics import fmean

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import why  # noqa: E402


def test_shares_and_disagreements_are_those_of_numpy():
    rng, w = np.random.default_rng(0), np.array([0.5, 0.2, 0.3])
    groups = rng.random((3, 20, 8))
    groups[2, :5] = 1.0
    varies, share, both, disagree = why.of_groups(groups, w)
    assert varies.tolist() == [1, 1, 0.75] and both.tolist() == [1, 0.75, 0.75]
    shares, apart = [], np.zeros(3)
    for p in range(20):
        r = w @ groups[:, p]
        shares.append([w[k] * np.cov(groups[k, p], r)[0, 1] / np.var(r, ddof=1) for k in range(3)])
        for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            apart[n] += np.ptp(groups[j, p]) > 0 and np.corrcoef(groups[i, p], groups[j, p])[0, 1] < 0
    assert share == pytest.approx(np.mean(shares, 0)) and share.sum() == pytest.approx(1)
    assert disagree == pytest.approx(apart / 20) and disagree.min() > 0


def test_a_group_whose_rewards_cancel_has_no_say_in_the_shares():
    """Of accuracy and its opposite, with weights that nearly are equal: only the group with accuracy alone counts."""
    a = np.array([1.0, 0, 1, 0, 0, 0, 0, 1])
    groups = np.stack([[a, a], [1 - a, 0 * a], [0 * a, 0 * a]])
    _, share, both, disagree = why.of_groups(groups, np.array([0.334, 0.333, 0.333]))
    assert share == pytest.approx([1, 0, 0])
    assert both.tolist() == disagree.tolist() == [0.5, 0, 0]


def rows(name, **given):
    with open(ROOT / "benchmarks" / name, newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in given.items())]


def test_the_figures_of_the_text_are_those_of_the_csv():
    text = " ".join((ROOT / "benchmarks/README.md").read_text().split())
    text = text[text.index("## Why ") : text.index("## The paper's runs")]

    def mean(weighting, column, first, last):
        found = [row for row in rows("why.csv", weighting=weighting) if first <= int(row["step"]) <= last]
        assert len(found) == 3 * (last - first + 1)
        return fmean(float(row[column]) for row in found)

    both = [
        fmean(mean(w, f"{what}_accuracy_conciseness", 1, 120) for w in why.WEIGHTINGS) for what in ("both", "disagree")
    ]
    assert "so in {:.2f} of all groups, and disagree in {:.2f}".format(*both) in text
    varies = mean("balanced", "varies_clarity", 11, 20), mean("balanced", "varies_clarity", 91, 120)
    assert "varies in {:.2f} of the groups of steps 11 to 20, and in {:.2f} of those".format(*varies) in text
    early = mean("gradient", "weight_conciseness", 11, 20), mean("gradient", "share_conciseness", 11, 20)
    assert "{:.2f} in steps 11 to 20, which leaves it no share of the advantage ({:.2f}".format(*early) in text
    late = {key: mean("gradient", key, 91, 120) for key in rows("why.csv")[0] if key[-1].isalpha() and "_" in key}
    lengths = mean("gradient", "length_clarity", 1, 10), late["length_clarity"]
    assert f"it has {late['weight_clarity']:.2f} of the weight, while its gradient" in text
    assert "from {:.2f} to {:.2f}".format(*lengths) in text
    assert f"and it varies in {late['varies_clarity']:.2f} of the groups" in text
    assert f"clarity has {late['share_clarity']:.2f} of the advantage" in text
    ratio = late["weight_accuracy"] / late["weight_conciseness"]
    assert f"{ratio:.1f} times the weight of conciseness, and {late['share_accuracy']:.2f} of the advantage" in text
    for name in why.NAMES:
        assert round(fmean(mean(w, f"length_{name}", 1, 10) for w in why.WEIGHTINGS), 2) == 0.07
    main = {"task": "embedded", "algorithm": "grpo"}
    factor = [row for row in rows("results.csv", variant="hypervolume", **main) if int(row["seed"]) >= 4]
    factor = [fmean(float(row["r_pareto"]) for row in factor if row["step"] == step) for step in ("20", "40")]
    assert "r_pareto is {:.2f} in steps 11 to 20 and {:.2f} in steps 31 to 40".format(*factor) in text
    box = [row for row in rows("results.csv", variant="ascent", **main) if int(row["seed"]) >= 4]
    box = [fmean(np.prod([float(row[n]) for n in why.NAMES]) for row in box if row["step"] == s) for s in ("30", "120")]
    assert "falls from {:.2f} at step 30 to {:.2f}".format(*box) in text
