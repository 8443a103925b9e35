"""
Writes the tables and pictures of the experiment from its CSV files: RESULTS.md, regrets.png, headline.png.

    python experiment/report.py
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from analysis import (  # noqa: E402
    DEFAULTS,
    DYNAMIC,
    comparisons,
    holm,
    measure_all,
    paired_differences,
    read_evaluations,
    regrets,
    sign_flip_p,
)
from studies import FOLDER, STUDIES  # noqa: E402

from hypervolume import pareto_front  # noqa: E402

MEASURES = {
    "area": "area",
    "sampled_area": "area, sampled",
    "utility": "mean utility, last checkpoint",
    "box": "hypervolume, last checkpoint",
}
TITLES = {"less accuracy": "efficiency-focused"}  # as the paper calls these weights
OLD_TASKS = ["embedded", "other"]  # Results of other runs on these tasks were known before the study.
REFERENCE_POINTS = [-0.05, -0.1, -0.25]
PAIRS = [("nash", "balanced"), ("gradient", "balanced"), ("nash", "gradient")]
HYPOTHESES = {"H1": ("area", PAIRS[0]), "H2": ("sampled_area", PAIRS[1])}  # of PLAN-2.md
EARLIER_COLUMNS = [("embedded", "grpo"), ("embedded", "rloo"), ("embedded", "reinforce"), ("other", "grpo")]
COLOURS = {"accuracy": "#CC79A7", "conciseness": "#E69F00", "clarity": "#56B4E9"}
GREEN, GREY = "#009E73", "0.5"
SHOWN = {  # in headline.png: title, colour
    "balanced": ("balanced (fixed weights)", "#0072B2"),
    "hypervolume": ("hypervolume-guided", "#D55E00"),
    "gradient": ("gradient-based", GREEN),
}
STYLE = {"axes.grid": True, "grid.color": "0.92", "axes.spines.top": False, "axes.spines.right": False}

INTRODUCTION = """\
# Results

`python experiment/report.py` writes this file and its pictures from the CSV files. [README.md](README.md)
explains them.

## Eight tasks

[PLAN.md](PLAN.md) defines the measures and the tests. A small regret is good. Two weightings that were run on
one task only are left out. The plan calls efficiency-focused weights `less accuracy`."""
COMPARISONS = """\
Differences in mean regret {}. A negative difference is an advantage:"""
TWELVE_TEXT = """\
## Twelve new tasks

[PLAN-2.md](PLAN-2.md) has the two hypotheses and defines the effect size. A positive difference is an
advantage of the first weighting. ± is half the width of the 95% confidence interval over tasks."""
EARLIER_TEXT = """\
## Earlier runs

Mean areas over five seeds, from [results.csv](results.csv), ± half the width of the 95% confidence interval.
The last column has the mean weight of conciseness divided by that of accuracy, in steps 30 to 60 of the runs
of the first column."""


# Tables


def markdown_table(rows):
    """Returns rows of cells as a Markdown table. The first row has the titles."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def number(x):
    """Returns a number with three decimals, without a sign if it is rounded to 0."""
    return f"{round(x, 3) + 0.0:.3f}"


def title(weighting, regret):
    """Returns the name of a weighting in tables, with the number of its tasks if it was not run on all."""
    name, count = TITLES.get(weighting, weighting), regret[weighting].notna().sum()
    return name if count == len(regret) else f"{name}, {count} of {len(regret)} tasks"


def ordered(regret):
    """Returns the weightings, sorted by mean regret. Those that were not run on all tasks come last."""
    means, is_partial = regret.mean(), regret.isna().any()
    return sorted(regret, key=lambda name: (is_partial[name], means[name]))


def on_most_tasks(regret):
    """Returns the regrets of the weightings that were run on most of the tasks."""
    return regret.loc[:, regret.notna().mean() > 0.5]


def summary_table(runs):
    """Returns a table of the mean and the largest regret of weightings, and the mean over the new tasks."""
    regret = {measure: on_most_tasks(regrets(runs, measure)) for measure in MEASURES}
    rows = [["weighting", *MEASURES.values()]]
    for name in ordered(regret["area"]):
        new = {measure: number(r[name].drop(OLD_TASKS).mean()) for measure, r in regret.items()}
        cells = [f"{number(r[name].mean())}, {number(r[name].max())} ({new[m]})" for m, r in regret.items()]
        rows.append([title(name, regret["area"]), *cells])
    return markdown_table(rows)


def comparison_table(runs, measure):
    """Returns a table of the comparisons of PLAN.md in a measure."""
    regret = regrets(runs, measure)
    rows = [["weighting", "against", "difference", f"ahead, of {len(regret)}", "p", "p, Holm", "p, t-test"]]
    for default in [*DEFAULTS, None]:
        against = TITLES.get(default, default or "best fixed weights")
        for name, test in comparisons(regret, default).iterrows():
            cells = [number(test["difference"]), f"{test['ahead']:.0f}"]
            rows.append([name, against, *cells, *(f"{test[p]:.2g}" for p in ("p", "p_holm", "p_t"))])
    return markdown_table(rows)


def sampled_sentence(runs):
    """Returns a sentence on comparisons by the area of sampled responses, which PLAN.md does not test."""
    tests = comparisons(regrets(runs, "sampled_area"), "balanced").iterrows()
    numbers = [f"{number(test['difference'])} ({name}, p = {test['p']:.2g})" for name, test in tests]
    return (
        "By the area of sampled responses, which the plan does not test, mean regrets minus that of balanced "
        f"weights are {', '.join(numbers)}, without a correction of p."
    )


def reference_sentence(evaluations):
    """Returns a sentence on the regrets by area with other reference points of the hypervolume."""
    orders, verdicts = [], []
    for reference in [0.0, *REFERENCE_POINTS]:
        regret = regrets(measure_all(evaluations, reference), "area")
        tests = [comparisons(regret, default) for default in [*DEFAULTS, None]]
        orders.append(ordered(regret.dropna(axis="columns")))
        verdicts.append([p < 0.05 for table in tests for p in table["p_holm"]])

    order = "the same" if all(names == orders[0] for names in orders) else "not the same"
    verdict = "the same" if all(flags == verdicts[0] for flags in verdicts) else "not the same"
    points = ", ".join(f"{reference:g}" for reference in REFERENCE_POINTS)
    return (
        f"With the reference points {points} instead of 0, the order by area of the {len(orders[0])} "
        f"weightings that were run on all tasks is {order}, and the significant comparisons are {verdict}."
    )


# Twelve new tasks


def twelve_table(runs):
    """Returns a table of the differences between weightings, with the tests of the two hypotheses."""
    tested = [sign_flip_p(paired_differences(runs, *hypothesis)) for hypothesis in HYPOTHESES.values()]
    p_values = dict(zip(HYPOTHESES.values(), zip(HYPOTHESES, tested, holm(tested))))
    rows = [["measure", "weightings", "difference", "effect size", "tasks +, -", "test", "p", "p, Holm"]]
    for measure, label in MEASURES.items():
        for pair in PAIRS:
            d = paired_differences(runs, measure, pair)
            cells = [interval(d), f"{d.mean() / d.std():.2f}", f"{(d > 0).sum()}, {(d < 0).sum()}"]
            name, *p = p_values.get((measure, pair), ["", "", ""])
            rows.append([label, " - ".join(pair), *cells, name, *(x and f"{x:.2g}" for x in p)])
    return markdown_table(rows)


# Earlier runs


def half_width(values):
    """Returns half the width of the 95% confidence interval of the mean (Student's t)."""
    return stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))


def interval(values):
    """Returns the mean ± half the width of its 95% confidence interval."""
    return f"{np.mean(values):.3f} ± {half_width(values):.3f}"


def earlier_table(evaluations):
    """Returns a table of mean areas. The last column compares weights."""
    runs = measure_all(evaluations)
    areas = runs.groupby(["task", "algorithm", "weighting"])["area"].agg(["mean", interval])
    middle = evaluations[evaluations["step"].between(30, 60)]
    weights = middle.groupby(["task", "algorithm", "weighting"])[["w_accuracy", "w_conciseness"]].mean()

    rows = [["weighting", *(", ".join(column) for column in EARLIER_COLUMNS), "conciseness / accuracy"]]
    for name in areas.loc["embedded", "grpo"].sort_values("mean", ascending=False).index:
        keys = [(*column, name) for column in EARLIER_COLUMNS]
        cells = [areas.loc[key, "interval"] if key in areas.index else "" for key in keys]
        w_accuracy, w_conciseness = weights.loc[keys[0]]
        rows.append([name, *cells, f"{w_conciseness / w_accuracy:.2f}"])
    return markdown_table(rows)


# Pictures


def draw_regrets(runs):
    """Draws the regrets by area of the weightings that were run on most tasks, and their means."""
    regret = on_most_tasks(regrets(runs, "area"))
    names = sorted(regret, key=lambda name: -regret[name].mean())
    figure = Figure(figsize=(8, 0.4 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.6", linewidth=1)
    dot = {"marker": "o", "linestyle": "none", "alpha": 0.5, "markeredgewidth": 0}
    diamond = {"marker": "D", "linestyle": "none", "markersize": 9, "markeredgecolor": "black"}
    for y, name in enumerate(names):
        colour = GREEN if name in DYNAMIC else GREY
        axes.plot(regret[name], [y] * len(regret), color=colour, **dot)
        axes.plot(regret[name].mean(), y, color=colour, **diamond)

    axes.set_yticks(range(len(names)), [title(name, regret) for name in names])
    axes.set_xlabel("regret by area (less is better)")
    axes.plot([], [], color=GREEN, **diamond, label="dynamic weighting, mean")
    axes.plot([], [], color=GREY, **diamond, label="fixed weights, mean")
    axes.plot([], [], color=GREY, **dot, label="one task")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_differences(runs):
    """Draws the differences of the two hypotheses on each task, and their means with 95% intervals."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, (name, (measure, pair)) in zip(figure.subplots(1, 2), HYPOTHESES.items()):
        d = paired_differences(runs, measure, pair).sort_values()
        axes.axvline(0, color="0.6", linewidth=1)
        axes.plot(d, range(len(d)), "o", color=GREEN)
        axes.errorbar(d.mean(), -1.5, xerr=half_width(d), fmt="D", color="black", capsize=4)
        axes.set_yticks([-1.5, *range(len(d))], ["mean", *(f"task {task}" for task in d.index)])
        axes.set(title=f"{name}: {' - '.join(pair)}", xlabel=f"difference in {MEASURES[measure]}")
    return figure


def draw_lines(axes, run, prefix, label):
    """Draws a column of each objective over the steps, with its name at the end. Weights begin equal."""
    columns = {name: run[prefix + name].fillna(1 / len(COLOURS)).to_numpy() for name in COLOURS}
    end, height = run["step"].max(), -1.0
    for name, values in sorted(columns.items(), key=lambda item: item[1][-1]):
        axes.plot(run["step"], values, color=COLOURS[name], linewidth=2.5)
        height = max(values[-1], height + 0.07)  # Names must not overlap.
        axes.annotate(f" {name}", (end, height), color=COLOURS[name], va="center", annotation_clip=False)
    axes.set(title=label, xlabel="step", ylim=(0, 1.05), xticks=range(0, end + 1, 30))


def draw_fronts(axes, runs):
    """Draws the points of each run that no other of its points dominates. runs: {weighting: evaluations}."""
    for weighting, run in runs.items():
        points = run[list(COLOURS)].to_numpy()
        accuracy, conciseness, clarity = points[pareto_front(points)].T
        label, colour = SHOWN[weighting]
        style = {"linestyle": "none", "marker": "o", "markersize": 8, "color": colour}
        axes.plot(conciseness[clarity > 0.9], accuracy[clarity > 0.9], **style, label=label)
        axes.plot(conciseness[clarity <= 0.9], accuracy[clarity <= 0.9], **style, fillstyle="none")
    axes.plot([], [], "o", color=GREY, markersize=8, fillstyle="none", label="clarity below 0.9")
    axes.plot(points[0, 1], points[0, 0], "k*", markersize=14, label="initial model")
    axes.set(title="Three weightings: Pareto fronts", xlabel="conciseness (1 - length / limit)")
    axes.set(ylabel="accuracy", ylim=(0.2, 1.0))
    axes.legend(loc="lower left")


def draw_headline(evaluations):
    """Draws a run with gradient-based weighting, and the fronts of three weightings, with the same seed."""
    is_shown = (evaluations["algorithm"] == "grpo") & (evaluations["seed"] == 4)
    by_weighting = evaluations[is_shown].groupby("weighting")
    runs = {name: by_weighting.get_group(name) for name in SHOWN}
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    left, middle, right = figure.subplots(1, 3)
    draw_lines(left, runs["gradient"], "w_", "Gradient-based weighting: weights")
    draw_lines(middle, runs["gradient"], "", "The same run: performance on the test split")
    draw_fronts(right, runs)
    return figure


# The report


def report(study, twelve, earlier):
    """Returns RESULTS.md, from evaluations. earlier: those of each of the studies with five seeds."""
    runs = measure_all(study)
    parts = [
        INTRODUCTION,
        "Mean and largest regret over the tasks, and in brackets the mean over the six new tasks:",
        summary_table(runs),
        COMPARISONS.format("by area"),
        comparison_table(runs, "area"),
        COMPARISONS.format("by the hypervolume of the last checkpoint"),
        comparison_table(runs, "box"),
        sampled_sentence(runs),
        reference_sentence(study),
        TWELVE_TEXT,
        twelve_table(measure_all(twelve)),
        EARLIER_TEXT,
        earlier_table(pandas.concat(earlier)),
    ]
    return "\n\n".join(parts) + "\n"


@matplotlib.rc_context(STYLE)
def main():
    try:
        study, twelve, algorithms, control, other = map(read_evaluations, STUDIES.values())
    except ValueError as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        sys.exit(2)

    (FOLDER / "RESULTS.md").write_text(report(study, twelve, [algorithms, control, other]))
    draw_regrets(measure_all(study)).savefig(FOLDER / "regrets.png", dpi=120)
    draw_differences(measure_all(twelve)).savefig(FOLDER / "differences.png", dpi=120)
    draw_headline(algorithms).savefig(FOLDER / "headline.png", dpi=120)


if __name__ == "__main__":
    main()
