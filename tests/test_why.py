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
    late = {key: mean("gradient", key, 91, 120) for key in rows("why.csv")[0] if key[-1].isalpha() and "_" in key}
    assert f"from step 91 on it has {late['weight_clarity']:.2f} of the weight" in text
    lengths = mean("gradient", "length_clarity", 1, 10), late["length_clarity"]
    assert "its gradient has fallen from {:.2f} to {:.2f}".format(*lengths) in text
    assert f"and it varies in {late['varies_clarity']:.2f} of the groups" in text
    assert f"so that {late['share_clarity']:.2f} of the advantage is all" in text
    two = [mean("gradient", f"weight_{name}", 31, 60) for name in ("accuracy", "conciseness")]
    shares = [mean(weighting, "share_conciseness", 31, 60) for weighting in ("gradient", "balanced")]
    assert f"accuracy has {two[0] / two[1]:.1f} times the weight of conciseness" in text
    assert "whose share of the advantage is {:.2f} (balanced: {:.2f})".format(*shares) in text
    for name in why.NAMES:
        assert round(fmean(mean(w, f"length_{name}", 1, 10) for w in why.WEIGHTINGS), 2) == 0.07
    assert f"conciseness has {mean('balanced', 'share_conciseness', 1, 10):.2f} of the advantage then" in text

    def judged(variant, step, column, algorithm="grpo"):
        found = rows("results.csv", task="embedded", algorithm=algorithm, variant=variant, step=str(step))
        found = [row for row in found if int(row["seed"]) >= 4]
        assert len(found) == 5
        return [float(row[column]) if column else float(np.prod([float(row[n]) for n in why.NAMES])) for row in found]

    def end(variant, column, step=120, **algorithm):
        return fmean(judged(variant, step, column, **algorithm))

    ratio = [
        sum(end(variant, f"w_{name}", step) for step in (30, 40, 50, 60))
        for variant in ("efficiency-focused", "ascent", "gradient", "accuracy-focused")
        for name in ("conciseness", "accuracy")
    ]
    ratio = [ratio[i] / ratio[i + 1] for i in (0, 2, 4, 6)]
    assert "| {:.2f} | {:.2f} | 1.00 | {:.2f} | {:.2f} |".format(*ratio) in text
    variants = ("efficiency-focused", "ascent", "balanced", "hypervolume", "gradient", "accuracy-focused")
    right, clear = [end(v, "accuracy", 10) for v in variants], [end(v, "clarity", 40) for v in variants]
    assert f"({min(right):.2f} to {max(right):.2f} at step 10) and clear ({min(clear):.2f} or more at step 40)" in text
    two = end("gradient", "clarity", 30), end("accuracy-focused", "clarity", 30)
    assert "clarity sooner ({:.2f} at step 30, beside {:.2f})".format(*two) in text
    pairs = ("accuracy_conciseness", "conciseness_clarity", "accuracy_clarity")
    apart = [mean("gradient", f"disagree_{pair}", 11, 30) for pair in pairs]
    assert (
        "disagrees with accuracy in {:.2f} of the groups and with clarity in {:.2f}, those two in {:.2f}.".format(
            *apart
        )
        in text
    )
    order = ("accuracy-focused", "gradient", "hypervolume", "ascent", "balanced", "efficiency-focused")
    boxes = [end(variant, "") for variant in order]
    said = ", ".join(f"{box:.3f} ({name})" for box, name in zip(boxes[:5], order))
    assert f"{said}, {boxes[5]:.3f} ({order[5]})." in text and boxes == sorted(boxes, reverse=True)
    two = [end(v, "accuracy") for v in ("gradient", "accuracy-focused")]
    two += [96 * (1 - end(v, "conciseness")) for v in ("gradient", "accuracy-focused")]
    assert "an accuracy of {:.3f} and {:.3f} and a length of {:.1f} and {:.1f}".format(*two) in text
    factor = [end("hypervolume", "r_pareto", step) for step in (20, 40, 50)]
    assert "r_pareto is {:.2f} in steps 11 to 20".format(*factor) in text
    assert "{1:.2f} in steps 31 to 40 and {2:.2f} in the next ten".format(*factor) in text
    there = end("hypervolume", "accuracy"), end("balanced", "accuracy", 100)
    there += tuple(96 * (1 - end(v, "conciseness", s)) for v, s in (("hypervolume", 120), ("balanced", 100)))
    assert "at {:.3f} and {:.3f}, and {:.1f} and {:.1f} tokens".format(*there) in text
    sooner = [end("ascent", "accuracy", s) for s in (60, 70)] + [end("balanced", "accuracy", s) for s in (70, 80)]
    assert "with {:.3f} and {:.3f} at steps 60 and 70 where those have {:.3f} and {:.3f}".format(*sooner) in text
    box = end("ascent", "", 30), end("ascent", "")
    assert "falls from {:.2f} at step 30 to {:.2f}, as".format(*box) in text
    rloo = {"algorithm": "rloo"}
    ratio = [end("gradient", "w_accuracy", s, **rloo) / end("gradient", "w_conciseness", s, **rloo) for s in (20, 120)]
    assert "has {:.1f} times the weight of conciseness at step 20 and {:.1f} times at step 120".format(*ratio) in text
    accuracy = [end("gradient", "accuracy", step, **rloo) for step in range(20, 121, 10)]
    assert f"accuracy stays between {min(accuracy):.3f} and {max(accuracy):.3f} from step 20 on" in text
    assert f"whose r_pareto is {end('hypervolume', 'r_pareto', 40, **rloo):.2f} in steps 31 to 40" in text
    there = [end(variant, "accuracy", **rloo) for variant in ("hypervolume", "balanced")]
    assert "{:.3f} at step 120, where balanced weights have {:.3f}".format(*there) in text
