"""
The analysis of PLAN.md: the measures of a run, the regrets of weightings, and tests over tasks.

An evaluation is a row of a CSV. Evaluations with the same task, weighting and seed are a run. `runs` is a
frame with one row for each run: its task, weighting and seed, and its measures.
"""

from collections import defaultdict
from itertools import product

import numpy as np
import pandas
from scipy import stats
from studies import EVAL_EVERY, OBJECTIVES, cases, key_columns

from hypervolume import contribution

DEFAULTS = ["balanced", "accuracy-focused", "less accuracy"]  # the paper's fixed weights
DYNAMIC = ["hypervolume", "gradient", "nash"]
CHOOSING_SEED = 1  # It chooses the best fixed weights of a task. The other seeds judge.


# Evaluations


def read_evaluations(study):
    """
    Returns the evaluations of a study as a frame. The variants of results.csv are its weightings.

    ValueError that names the CSV, and the run or the column, if something is missing or is no number.
    """
    types = defaultdict(lambda: float, dict.fromkeys(["task", "algorithm", "variant", "weighting"], str))
    try:
        evaluations = pandas.read_csv(study["results"], dtype=types | {"seed": int, "step": int})
        if missing := set(study["columns"]) - set(evaluations):
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        evaluations = evaluations[evaluations["step"] <= study["steps"]]
        runs = dict(list(evaluations.groupby(key_columns(study))))
        complete = pandas.concat([complete_run(runs, study, case) for case in cases(study)])
        return complete.rename(columns={"variant": "weighting"})
    except (OSError, ValueError) as error:
        raise ValueError(f"{study['results']}: {error}") from None


def complete_run(runs, study, case):
    """Returns the evaluations of one run. ValueError that names the run if they are not complete."""
    key = tuple(case[name] for name in key_columns(study))
    names = OBJECTIVES[: study["tasks"][case["task"]]]
    steps = list(range(0, study["steps"] + 1, EVAL_EVERY))
    run = runs.get(key)
    if run is None or run["step"].tolist() != steps or run[names].isna().any(axis=None):
        raise ValueError(f"the run {', '.join(map(str, key))} is missing or not complete")
    return run


# Measures of a run


def volumes(points, reference=0.0):
    """Returns the hypervolume of the first n of points (N, K), for each n: (N,)."""
    corner = [reference] * points.shape[1]
    return np.cumsum([contribution(points[n], points[:n], corner) for n in range(len(points))])


def measure(run, reference=0.0):
    """Returns the measures of a run, from a frame of its evaluations in order. An objective may be empty."""
    names = [name for name in OBJECTIVES if name in run and run[name].notna().all()]
    points, steps = run[names].to_numpy(), run["step"].to_numpy()
    so_far = volumes(points, reference)
    measures = {
        "area": np.trapezoid(so_far, steps) / steps[-1],
        "utility": points[-1].mean(),  # the mean of w . p over weights w that are uniform on the simplex
        "box": points[-1].prod(),
        "hypervolume": so_far[-1],
    }
    if f"sampled_{names[0]}" in run:
        sampled = run[[f"sampled_{name}" for name in names]].to_numpy()[1:]  # Step 0 has no rollouts.
        measures["sampled_area"] = volumes(sampled, reference).mean()
    return measures


def measure_all(evaluations, reference=0.0):
    """Returns the frame `runs`."""
    keys = [name for name in ("task", "algorithm", "weighting", "seed") if name in evaluations]
    groups = evaluations.groupby(keys, sort=False)
    return pandas.DataFrame([{**dict(zip(keys, key)), **measure(run, reference)} for key, run in groups])


# Regrets


def best_fixed(runs, measure, seed=CHOOSING_SEED):
    """Returns the fixed weighting of each task with the highest value of a measure with one seed."""
    runs = runs[(runs["seed"] == seed) & ~runs["weighting"].isin(DYNAMIC)]
    return runs.loc[runs.groupby("task", sort=False)[measure].idxmax()].set_index("task")["weighting"]


def task_means(runs, measure, seed=CHOOSING_SEED):
    """Returns the means of a measure over all seeds but `seed`: a frame (tasks, weightings)."""
    return runs[runs["seed"] != seed].pivot_table(measure, "task", "weighting", sort=False)


def regrets(runs, measure):
    """
    Returns the regret in a measure of each weighting on each task: a frame (tasks, weightings).

    It is the value of the task's best fixed weights minus that of the weighting. A weighting that was not run
    on a task has no regret there (NaN).
    """
    means, best = task_means(runs, measure), best_fixed(runs, measure)
    return means.rsub([means.loc[task, best[task]] for task in means.index], axis="index")


# Tests


def sign_flip_p(differences):
    """
    Returns the exact two-sided p-value of a sign-flip test. Under the null hypothesis, each difference is as
    likely to be positive as to be negative.
    """
    differences = np.asarray(differences, dtype=float)
    sums = np.array(list(product([-1, 1], repeat=len(differences)))) @ differences
    return float((np.abs(sums) >= np.abs(differences.sum()) - 1e-12).mean())


def holm(p_values):
    """Returns p-values adjusted by Holm's method."""
    p_values = np.asarray(p_values)
    adjusted, largest = np.empty(len(p_values)), 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        largest = adjusted[i] = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
    return adjusted


def tests_of_means(differences):
    """
    Tests whether the mean of each column of `differences`, a frame (tasks, weightings), is 0.

    Returns a frame with one row for each weighting: the mean difference, the number of tasks with a negative
    one (ahead), and the p-values of the sign-flip test (p, and p_holm with Holm's correction over the rows)
    and of the t-test (p_t).
    """
    table = pandas.DataFrame({"difference": differences.mean(), "ahead": (differences < 0).sum()})
    table["p"] = [sign_flip_p(differences[name]) for name in differences]
    table["p_holm"] = holm(table["p"])
    table["p_t"] = stats.ttest_1samp(differences, 0).pvalue
    return table


def paired_differences(runs, measure, pair):
    """Returns the differences of PLAN-2.md between two weightings, by task: means over all seeds."""
    means = task_means(runs, measure, seed=None)
    return means[pair[0]] - means[pair[1]]


def comparisons(regret, default=None):
    """Tests the regrets of the dynamic weightings minus those of a default (None: the best fixed weights)."""
    differences = regret[DYNAMIC]
    return tests_of_means(differences.sub(regret[default], axis="index") if default else differences)
