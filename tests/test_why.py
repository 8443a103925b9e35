"""experiment/why.py: its statistics against numpy, and the numbers of the text against the CSV files."""

import csv
import sys
from statistics import fmean

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiment"))
import why  # noqa: E402


def test_shares_and_disagreements_are_those_of_numpy():
    rng, weights = np.random.default_rng(0), np.array([0.5, 0.2, 0.3])
    rewards = rng.random((3, 20, 8))
    rewards[2, :5] = 1.0  # the third objective does not vary in a quarter of the groups
    varies, share, both, disagree = why.group_statistics(rewards, weights)
    assert varies.tolist() == [1, 1, 0.75] and both.tolist() == [1, 0.75, 0.75]

    shares, disagreements = [], np.zeros(3)
    for p in range(20):
        r = weights @ rewards[:, p]
        shares.append([weights[k] * np.cov(rewards[k, p], r)[0, 1] / np.var(r, ddof=1) for k in range(3)])
        for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            if np.ptp(rewards[j, p]) > 0:
                disagreements[n] += np.corrcoef(rewards[i, p], rewards[j, p])[0, 1] < 0
    assert share == pytest.approx(np.mean(shares, 0)) and share.sum() == pytest.approx(1)
    assert disagree == pytest.approx(disagreements / 20) and disagree.min() > 0


def test_groups_whose_rewards_cancel_do_not_count_in_the_shares():
    """Accuracy and its opposite, nearly equal weights: only the second group, with accuracy alone, counts."""
    a = np.array([1.0, 0, 1, 0, 0, 0, 0, 1])
    rewards = np.stack([[a, a], [1 - a, 0 * a], [0 * a, 0 * a]])
    _, share, both, disagree = why.group_statistics(rewards, np.array([0.334, 0.333, 0.333]))
    assert share == pytest.approx([1, 0, 0])
    assert both.tolist() == disagree.tolist() == [0.5, 0, 0]


@pytest.fixture(scope="module")
def text():
    """The section of the README on the embedded task, each line break replaced by a space."""
    text = " ".join((ROOT / "experiment/README.md").read_text().split())
    return text[text.index("### The embedded task") : text.index("### The other task")]


def read_rows(name, **values):
    """The rows of a CSV file that have these values."""
    with open(ROOT / "experiment" / name, newline="") as file:
        return [
            row for row in csv.DictReader(file) if all(row[key] == value for key, value in values.items())
        ]


def step_mean(weighting, column, first, last):
    """The mean of a column of why.csv over three seeds and the steps from `first` to `last`."""
    rows = [row for row in read_rows("why.csv", weighting=weighting) if first <= int(row["step"]) <= last]
    assert len(rows) == 3 * (last - first + 1)
    return fmean(float(row[column]) for row in rows)


def main_rows(variant, step, algorithm):
    """The evaluations of results.csv on the five seeds of the main study."""
    values = {"task": "embedded", "algorithm": algorithm, "variant": variant, "step": str(step)}
    rows = [row for row in read_rows("results.csv", **values) if int(row["seed"]) >= 4]
    assert len(rows) == 5
    return rows


def eval_mean(variant, column, step=120, algorithm="grpo"):
    """The mean of a column of results.csv over the five seeds of the main study."""
    return fmean(float(row[column]) for row in main_rows(variant, step, algorithm))


def product_mean(variant, step=120):
    """The mean over seeds of the product of the three performances under GRPO."""
    rows = main_rows(variant, step, "grpo")
    return fmean(float(np.prod([float(row[name]) for name in why.OBJECTIVES])) for row in rows)


def test_the_text_on_the_area(text):
    def weight_sum(variant, name):
        return sum(eval_mean(variant, f"w_{name}", step) for step in (30, 40, 50, 60))

    ratios = [
        weight_sum(variant, "conciseness") / weight_sum(variant, "accuracy")
        for variant in ("efficiency-focused", "nash", "gradient", "accuracy-focused")
    ]
    assert "| {:.2f} | {:.2f} | 1.00 | {:.2f} | {:.2f} |".format(*ratios) in text

    order = ("accuracy-focused", "gradient", "hypervolume", "nash", "balanced", "efficiency-focused")
    accuracy = [eval_mean(variant, "accuracy", 10) for variant in order]
    assert f"(accuracy {min(accuracy):.2f} to {max(accuracy):.2f} at step 10)" in text
    clarity = min(eval_mean(variant, "clarity", 40) for variant in order)
    assert f"(clarity {clarity:.2f} or more at step 40)" in text
    clarity = [eval_mean(variant, "clarity", 30) for variant in ("gradient", "accuracy-focused")]
    assert "clarity sooner ({:.2f} at step 30, accuracy-focused: {:.2f}).".format(*clarity) in text


def test_the_text_on_groups(text):
    both, disagree = (
        fmean(step_mean(weighting, f"{prefix}_accuracy_conciseness", 1, 120) for weighting in why.WEIGHTINGS)
        for prefix in ("both", "disagree")
    )
    assert f"both vary in {both:.2f} of all groups, and disagree in {disagree:.2f}." in text
    early, late = (step_mean("balanced", "varies_clarity", *steps) for steps in ((11, 20), (91, 120)))
    assert (
        f"varies in {early:.2f} of the groups of steps 11 to 20, and in {late:.2f} of the groups from" in text
    )


def test_the_text_on_gradient_based_weighting(text):
    pairs = ("accuracy_conciseness", "conciseness_clarity", "accuracy_clarity")
    disagree = [step_mean("gradient", f"disagree_{pair}", 11, 30) for pair in pairs]
    assert "with accuracy in {:.2f} of the groups and with clarity in {:.2f}.".format(*disagree) in text
    assert f"Accuracy and clarity disagree in {disagree[2]:.2f}." in text

    late = {
        name: step_mean("gradient", f"{name}_clarity", 91, 120)
        for name in ("weight", "norm", "varies", "share")
    }
    early_norm = step_mean("gradient", "norm_clarity", 1, 10)
    assert f"From step 91 on, clarity has {late['weight']:.2f} of the weight." in text
    assert f"its gradient has shrunk from {early_norm:.2f} to {late['norm']:.2f}" in text
    assert f"and it varies in {late['varies']:.2f} of the groups" in text
    assert f"clarity has only {late['share']:.2f} of the advantage." in text

    accuracy, conciseness = (step_mean("gradient", f"weight_{name}", 31, 60) for name in why.OBJECTIVES[:2])
    assert f"accuracy has {accuracy / conciseness:.1f} times the weight of conciseness in these steps" in text
    shares = [step_mean(weighting, "share_conciseness", 31, 60) for weighting in ("gradient", "balanced")]
    assert "conciseness in the advantage is {:.2f} (balanced: {:.2f}).".format(*shares) in text

    ends = [eval_mean(variant, "accuracy") for variant in ("gradient", "accuracy-focused")]
    ends += [96 * (1 - eval_mean(variant, "conciseness")) for variant in ("gradient", "accuracy-focused")]
    sentence = "its accuracy is {:.3f} (accuracy-focused: {:.3f}) and its length {:.1f} tokens ({:.1f})."
    assert sentence.format(*ends) in text


def test_the_text_on_hypervolume_guided_weighting(text):
    r_pareto = [eval_mean("hypervolume", "r_pareto", step) for step in (20, 40, 50)]
    assert f"r_pareto is {r_pareto[0]:.2f} in steps 11 to 20" in text
    assert "r_pareto is {:.2f} in steps 31 to 40 and {:.2f} in steps 41 to 50".format(*r_pareto[1:]) in text
    points = ("hypervolume", 120), ("balanced", 100)
    numbers = [eval_mean(variant, "accuracy", step) for variant, step in points]
    numbers += [96 * (1 - eval_mean(variant, "conciseness", step)) for variant, step in points]
    assert "At step 120, the policy is where balanced weights have it at step 100:" in text
    sentence = "its accuracy is {:.3f} (balanced: {:.3f}) and its length {:.1f} tokens ({:.1f})."
    assert sentence.format(*numbers) in text


def test_the_text_on_nash_weighting(text):
    nash = [eval_mean("nash", "accuracy", step) for step in (60, 70)]
    balanced = [eval_mean("balanced", "accuracy", step) for step in (70, 80)]
    assert "the accuracy is {:.3f} and {:.3f} at steps 60 and 70.".format(*nash) in text
    assert "With balanced weights it is {:.3f} and {:.3f} at steps 70 and 80.".format(*balanced) in text
    products = product_mean("nash", 30), product_mean("nash")
    assert "falls from {:.2f} at step 30 to {:.2f} at the end".format(*products) in text
    assert (
        product_mean("balanced", 30) - product_mean("balanced") > 0.05
    )  # "as it does with balanced weights"

    assert "first to clarity, then to conciseness, and from step 70 on to accuracy." in text

    def heaviest(step):
        return max(why.OBJECTIVES, key=lambda name: eval_mean("nash", f"w_{name}", step))

    assert heaviest(10) == "clarity"
    assert {heaviest(step) for step in range(20, 60, 10)} == {"conciseness"}
    assert {heaviest(step) for step in range(70, 130, 10)} == {"accuracy"}
