"""
Compares weightings over eight tasks, from experiment/eight_tasks.csv, by the analysis of PLAN.md.

`python experiment/report.py` writes these tables and the picture. An evaluation is one row of the CSV. A run
is all rows with the same task, weighting and seed.
"""

from itertools import product

import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy import stats

from hypervolume import hypervolume

OBJECTIVES = ["accuracy", "conciseness", "clarity", "directness"]
DEFAULTS = {  # the paper's fixed weights: their names in the paper
    "balanced": "balanced",
    "accuracy-focused": "accuracy-focused",
    "less accuracy": "efficiency-focused",
}
DYNAMIC = ["hypervolume", "gradient", "nash"]
OLD_TASKS = ["embedded", "other"]  # The results of other runs on these tasks were known before the study.
MEASURES = {
    "area": "area",
    "sampled_area": "area, sampled responses",
    "utility": "mean utility of the last checkpoint",
    "box": "hypervolume of the last checkpoint",
}
NUM_RUNS, NUM_EVALUATIONS = 240, 7
CHOOSING_SEED = 1  # It chooses the best fixed weights of a task. The other seeds judge.
INTRODUCTION = """\
[PLAN.md](PLAN.md) defines the study, the measures and the tests. The regret of a weighting on a task is the
value of the task's best fixed weights minus that of the weighting. So less is better, and a negative regret
is an advantage. Seed 1 chooses the best fixed weights. Regrets are means over seeds 2 and 3. A cell of
the first two tables has the mean and the largest regret over the tasks. "Efficiency-focused" weights are
those that the plan calls `less accuracy`. p is that of a sign-flip test over the tasks. Holm's correction
covers the three weightings that are compared with the same weights."""


def volumes(points):
    """Returns the hypervolume so far of points (N, K), with reference point 0: N floats."""
    return np.array([hypervolume(points[: i + 1], [0.0] * points.shape[1]) for i in range(len(points))])


def measure(run):
    """Returns the four measures of PLAN.md of one run, from a frame of its evaluations in order."""
    names = [name for name in OBJECTIVES if run[name].notna().all()]
    points, steps = run[names].to_numpy(), run["step"].to_numpy()
    sampled = run[[f"sampled_{name}" for name in names]].to_numpy()[1:]  # Step 0 has no rollouts.
    return {
        "area": np.trapezoid(volumes(points), steps) / steps[-1],
        "sampled_area": volumes(sampled).mean(),
        "utility": points[-1].mean(),  # the mean of w . p over weights w that are uniform on the simplex
        "box": points[-1].prod(),
    }


def incomplete(evaluations):
    """Returns what is missing or wrong in the study, as a text. None if all of its runs are complete."""
    keys = ["task", "weighting", "seed"]
    sizes = evaluations.groupby(keys).size()
    if len(sizes) != NUM_RUNS:
        return f"{len(sizes)} of {NUM_RUNS} runs"
    if evaluations.duplicated([*keys, "step"]).any() or set(sizes) != {NUM_EVALUATIONS}:
        return f"runs with other than {NUM_EVALUATIONS} evaluations"
    for task, rows in evaluations.groupby("task"):
        if set(DYNAMIC + list(DEFAULTS)) - set(rows["weighting"]):
            return f"no run of some weightings on task {task}"
        if (rows[OBJECTIVES].isna().any() & rows[OBJECTIVES].notna().any()).any():
            return f"empty cells on task {task}"
    return None


def measure_all(evaluations):
    """Returns a frame with one row for each run: task, weighting, seed, and the four measures."""
    keys = ["task", "weighting", "seed"]
    groups = evaluations.groupby(keys, sort=False)
    return pandas.DataFrame([{**dict(zip(keys, key)), **measure(run)} for key, run in groups])


def best_fixed(runs, name):
    """Returns the fixed weighting of each task with the highest value of measure `name` with seed 1."""
    runs = runs[(runs["seed"] == CHOOSING_SEED) & ~runs["weighting"].isin(DYNAMIC)]
    return runs.loc[runs.groupby("task", sort=False)[name].idxmax()].set_index("task")["weighting"]


def regrets(runs, name):
    """
    Returns the regret in measure `name` of each weighting on each task: a frame (tasks, weightings).

    It is the value of the task's best fixed weights minus that of the weighting: a mean over the judging
    seeds.
    """
    means = runs[runs["seed"] != CHOOSING_SEED].pivot_table(name, "task", "weighting", sort=False)
    best = best_fixed(runs, name)
    return means.rsub([means.loc[task, best[task]] for task in means.index], axis="index")


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
    p_values, adjusted, largest = np.asarray(p_values), np.empty(len(p_values)), 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        largest = adjusted[i] = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
    return adjusted


def comparisons(regret, default=None):
    """
    Returns the comparison of each dynamic weighting with a default (None: the best fixed weights), by name.

    Each is a dictionary: differences (tasks,) of regrets, the p-values of the sign-flip test (p) and of the
    t-test (p_t), and p_holm, which is p with Holm's correction over the dynamic weightings.
    """
    results = {}
    for name in DYNAMIC:
        differences = (regret[name] - (regret[default] if default else 0.0)).to_numpy()
        p_t = float(stats.ttest_1samp(differences, 0).pvalue)
        results[name] = {"differences": differences, "p": sign_flip_p(differences), "p_t": p_t}
    for result, p_holm in zip(results.values(), holm([result["p"] for result in results.values()])):
        result["p_holm"] = float(p_holm)
    return results


# Tables and picture


def markdown_table(rows):
    """Returns rows of cells as a Markdown table. The first row has the titles."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def number(x):
    """Returns a number with three decimals, without a sign if it is rounded to 0."""
    return f"{round(x, 3) + 0.0:.3f}"


def ordered(regret):
    """Returns the weightings, sorted by mean regret. Those that are not run on all tasks come last."""
    means, is_partial = regret.mean(), regret.isna().any()
    return sorted(regret, key=lambda name: (is_partial[name], means[name]))


def title(weighting, regret):
    """Returns the name of a weighting in tables, with the number of its tasks if it is not run on all."""
    name, count = DEFAULTS.get(weighting, weighting), regret[weighting].notna().sum()
    return name if count == len(regret) else f"{name}, {count} of {len(regret)} tasks"


def summary_table(runs):
    """Returns a table of the mean and the largest regret of each weighting, in the four measures."""
    regret = {name: regrets(runs, name) for name in MEASURES}
    rows = [["weighting", *MEASURES.values()]]
    for weighting in ordered(regret["area"]):
        cells = [f"{number(r[weighting].mean())}, {number(r[weighting].max())}" for r in regret.values()]
        rows.append([title(weighting, regret["area"]), *cells])
    return markdown_table(rows)


def task_table(runs, name="area"):
    """Returns a table of the best fixed weights of each task, their value, and all regrets in a measure."""
    regret, best = regrets(runs, name), best_fixed(runs, name)
    judged = runs[runs["seed"] != CHOOSING_SEED].groupby(["task", "weighting"])[name].mean()
    names = ordered(regret)
    titles = [DEFAULTS.get(weighting, weighting) for weighting in names]
    rows = [["task", "best fixed weights", "their value", *titles]]
    for task, values in regret.iterrows():
        cells = ["" if np.isnan(values[weighting]) else number(values[weighting]) for weighting in names]
        rows.append([task, DEFAULTS.get(best[task], best[task]), number(judged[task, best[task]]), *cells])
    return markdown_table(rows)


def comparison_table(runs, name="area"):
    """Returns a table of the comparisons of PLAN.md in a measure. A negative difference is an advantage."""
    regret = regrets(runs, name)
    rows = [["weighting", "against", "difference in mean regret", "tasks ahead", "p", "p, Holm", "p, t-test"]]
    for default in [*DEFAULTS, None]:
        for weighting, result in comparisons(regret, default).items():
            d = result["differences"]
            cells = [number(d.mean()), f"{(d < 0).sum()} of {len(d)}"]
            cells += [f"{result[key]:.2g}" for key in ("p", "p_holm", "p_t")]
            rows.append([weighting, DEFAULTS.get(default, "best fixed weights"), *cells])
    return markdown_table(rows)


def draw_regrets(runs, palette):
    """Draws the regret by area of weightings that are run on all tasks: a dot for each task, and the mean."""
    regret = regrets(runs, "area").dropna(axis="columns")
    names = ordered(regret)[::-1]
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.6", linewidth=1)
    for y, name in enumerate(names):
        colour = palette.get(DEFAULTS.get(name, name), "0.5")
        axes.plot(regret[name], [y] * len(regret), "o", color=colour, alpha=0.5, markeredgewidth=0)
        axes.plot(regret[name].mean(), y, "D", color=colour, markersize=9, markeredgecolor="black")
    axes.plot([], [], "o", color="0.5", alpha=0.5, markeredgewidth=0, label="a task")
    axes.plot([], [], "D", color="0.5", markersize=9, markeredgecolor="black", label="mean")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    axes.set_yticks(range(len(names)), [DEFAULTS.get(name, name) for name in names])
    axes.set_xlabel(
        "regret (less is better): area of the task's best fixed weights minus that of the weighting"
    )
    return figure


def section(evaluations):
    """Returns the section on the eight tasks, as a list of Markdown parts."""
    runs = measure_all(evaluations)
    new = runs[~runs["task"].isin(OLD_TASKS)]
    return [
        "## Eight tasks",
        INTRODUCTION,
        "![Regret of each weighting on each task](regrets.png)",
        "Mean and largest regret over the tasks:",
        summary_table(runs),
        "The same over the six new tasks:",
        summary_table(new),
        "Comparisons by area:",
        comparison_table(runs),
        "Comparisons by the hypervolume of the last checkpoint (the box):",
        comparison_table(runs, "box"),
        "Regret by area on each task:",
        task_table(runs),
    ]
