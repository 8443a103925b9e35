"""
Draws the tables and pictures of the experiment from experiment/eight_tasks.csv and experiment/results.csv.

    python experiment/report.py        writes experiment/RESULTS.md and pictures

An evaluation is one row of the CSV. A run is all rows with the same task, algorithm, variant and seed. The
area of a run is the area under the curve of its hypervolume so far over the steps, divided by the number of
steps.
"""

import argparse
import math
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiment")]

import regret  # noqa: E402
from regret import holm, markdown_table  # noqa: E402

from compare import COLOURS, STYLE  # noqa: E402
from hypervolume import hypervolume  # noqa: E402

KEYS = ["task", "algorithm", "variant", "seed"]  # They identify a run.
OBJECTIVES = ["accuracy", "conciseness", "clarity"]
FIXED = ["accuracy-focused", "balanced", "efficiency-focused", "clarity-focused"]
DYNAMIC = ["hypervolume", "gradient", "nash"]
PALETTE = dict(zip(FIXED + DYNAMIC, [*COLOURS[:3], "0.5", *COLOURS[3:]]))
TITLES = {"grpo": "GRPO", "rloo": "RLOO", "reinforce": "REINFORCE++"}
ABLATION_STEPS = 60
ABLATIONS = [  # variants
    "balanced",
    "balanced, each normalised",
    "balanced, polynomial",
    "hypervolume",
    "hypervolume, r_pareto on the reward",
    "hypervolume, scale 1",
    "hypervolume, scale 2048",
    "hypervolume, from the initial model",
    "hypervolume, polynomial",
    "gradient",
    "gradient, clipped",
    "gradient, mu / 10",
    "gradient, mu x 10",
    "gradient, all layers",
    "gradient, last layer",
    "gradient, each normalised",
    "gradient, polynomial",
    *(f"{variant}, learning rate 4e-5" for variant in FIXED + DYNAMIC),
]
MEASURES = {  # measure of a run: title of its column, format
    "hv": ("hypervolume", "{:.3f}"),
    "hv_last": ("of the last point", "{:.3f}"),
    "area": ("area", "{:.3f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "length": ("length", "{:.1f}"),
    "clarity": ("clarity", "{:.3f}"),
}
ORIGIN = """\
`python experiment/report.py` draws these tables and pictures from the CSV files. [README.md](README.md)
explains them."""
INTRODUCTION = """\
`experiment/experiment.py` writes [results.csv](results.csv).

- A number is the mean over seeds ± half the width of its 95% confidence interval.
- Performance is that of greedy responses on the test split. Accuracy, length (in tokens) and clarity are
  those of the last evaluation.
- The hypervolume is that of all evaluations of a run, with reference point 0. "Of the last point" is the
  hypervolume of the last evaluation alone.
- The area is the mean over the steps of the hypervolume so far. It is the main measure.
- Differences are those in area, paired by seed. p is that of a t-test, with Holm's correction over all
  comparisons of a task. A difference is significant if this p is below 0.05.
- Clarity-focused weights are a control that was added after the other runs had been seen."""


# Measures and tests


def measure(run):
    """The measures of one run, from a frame of its evaluations in order."""
    points, steps = run[OBJECTIVES].to_numpy(), run["step"].to_numpy()
    volumes = np.array([hypervolume(points[: i + 1], [0.0] * len(OBJECTIVES)) for i in range(len(points))])
    return {
        "hv": volumes[-1],
        "hv_last": points[-1].prod(),
        "area": np.trapezoid(volumes, steps) / steps[-1],
        "accuracy": points[-1, 0],
        "length": run["length"].to_numpy()[-1],
        "clarity": points[-1, 2],
        "weights": run[[f"w_{name}" for name in OBJECTIVES]].to_numpy()[-1],
        "r_pareto": run["r_pareto"].to_numpy()[1:].mean(),
        "volumes": volumes,
        "steps": steps,
    }


def measure_all(evaluations):
    """A frame with one row for each run: keys and measures."""
    groups = evaluations.groupby(KEYS, sort=False)
    return pandas.DataFrame({**dict(zip(KEYS, key)), **measure(run)} for key, run in groups)


def comparable_evaluations(evaluations):
    """
    The evaluations on which weightings are compared.

    These are those of the main study and the control, at the steps that all runs of a task and algorithm
    have. Seeds 1 to 3 of the embedded task are left out, because Nash weighting was developed on them.
    """
    main = evaluations[evaluations["variant"].isin(FIXED + DYNAMIC)]
    main = main[(main["task"] != "embedded") | (main["seed"] >= 4)]
    num_runs = (main["step"] == 0).groupby([main["task"], main["algorithm"]]).transform("sum")
    return main[main.groupby(["task", "algorithm", "step"])["seed"].transform("size") == num_runs]


def interval(values, pattern="{:.3f}"):
    """Mean ± half the width of its 95% confidence interval (Student's t). One value is shown alone."""
    if len(values) == 1:
        return pattern.format(*values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{pattern.format(np.mean(values))} ± {pattern.format(half)}"


def select_variants(runs, variants):
    """The runs of the given variants, in the order of `variants`."""
    return pandas.concat([runs[runs["variant"] == variant] for variant in variants])


# Tables


def main_table(runs):
    """One row for each algorithm and variant, with all measures."""
    rows = [["algorithm", "weighting", "seeds", *(title for title, _ in MEASURES.values())]]
    for (algorithm, variant), seeds in runs.groupby(["algorithm", "variant"], sort=False):
        cells = [interval(seeds[name].to_numpy(), pattern) for name, (_, pattern) in MEASURES.items()]
        rows.append([TITLES[algorithm], variant, len(seeds), *cells])
    return markdown_table(rows)


def ablation_table(runs):
    """One row for each variant, with its final weights and mean r_pareto."""
    names = ["hv", "hv_last", "area", "accuracy", "length"]
    rows = [["weighting", *(MEASURES[name][0] for name in names), "weights at the end", "mean r_pareto"]]
    for variant, seeds in runs.groupby("variant", sort=False):
        cells = [interval(seeds[name].to_numpy(), MEASURES[name][1]) for name in names]
        weights = " ".join(f"{w:.2f}" for w in np.mean(np.stack(seeds["weights"]), axis=0))
        rows.append([variant, *cells, weights, f"{seeds['r_pareto'].mean():.2f}"])
    return markdown_table(rows)


def comparisons(runs):
    """
    The area of each dynamic weighting minus that of each fixed one, paired by seed.

    Returns a dictionary. Its keys are (algorithm, weighting, fixed weighting). Its values are the
    differences (seeds,), and the p-value of their t-test with Holm's correction over all pairs.
    """
    pairs = {}
    for algorithm, group in runs.groupby("algorithm", sort=False):
        areas = group.pivot(index="seed", columns="variant", values="area")
        for variant, fixed in ((v, f) for v in DYNAMIC for f in FIXED if {v, f} <= set(areas)):
            differences = (areas[variant] - areas[fixed]).dropna().to_numpy()
            if len(differences) > 1:
                pairs[algorithm, variant, fixed] = differences
    p_values = holm([stats.ttest_1samp(differences, 0).pvalue for differences in pairs.values()])
    return {key: (differences, p) for (key, differences), p in zip(pairs.items(), p_values)}


def comparison_table(runs):
    """One row for each algorithm and dynamic weighting, one column for each fixed one. None without pairs."""
    pairs = comparisons(runs)
    if not pairs:
        return None
    columns = [fixed for fixed in FIXED if any(key[2] == fixed for key in pairs)]
    rows = [["algorithm", "weighting", *(f"minus {fixed}" for fixed in columns)]]
    for algorithm, variant in dict.fromkeys(key[:2] for key in pairs):
        cells = [pairs.get((algorithm, variant, fixed)) for fixed in columns]
        cells = [f"{interval(cell[0])} (p {cell[1]:.2g})" if cell else "" for cell in cells]
        rows.append([TITLES[algorithm], variant, *cells])
    return markdown_table(rows)


# Pictures


def plot_band(axes, x, values, colour, label, **style):
    """Plots the mean over seeds of values (seeds, N), and one standard deviation above and below it."""
    mean, deviation = values.mean(0), values.std(0, ddof=int(len(values) > 1))
    axes.plot(x, mean, color=colour, label=label, **style)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def by_seed(evaluations, column):
    """A column of evaluations as an array (seeds, N)."""
    return evaluations.pivot(index="seed", columns="step", values=column).to_numpy()


def best_attained(points, x):
    """For each value in `x`, the largest y of points (N, 2) with at least this x, or nan if there is none."""
    return np.array([max(points[points[:, 0] >= value, 1], default=np.nan) for value in x])


def variants_in(frame):
    """The variants of the main study and the control that a frame contains, in their usual order."""
    return [variant for variant in FIXED + DYNAMIC if variant in set(frame["variant"])]


def line_styles(variants):
    """(variant, colour, line style) of each variant. Fixed weights are dashed."""
    return [(variant, PALETTE[variant], "--" if variant in FIXED else "-") for variant in variants]


def add_legend(figure, ncols):
    """Adds one legend for all panels, below them."""
    handles = {}
    for axes in figure.axes:
        handles.update(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)


def draw_volumes(runs, variants):
    """Hypervolume so far over the steps, one panel for each task and algorithm."""
    panels = list(runs.groupby(["task", "algorithm"], sort=False))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3.7 * rows), layout="constrained")
    for i, ((task, algorithm), panel_runs) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, i)
        for variant, colour, style in line_styles(variants):
            seeds = panel_runs[panel_runs["variant"] == variant]
            if len(seeds):
                plot_band(
                    axes, seeds["steps"].iloc[0], np.stack(seeds["volumes"]), colour, variant, linestyle=style
                )
        axes.set(title=f"{TITLES[algorithm]}, task: {task}", xlabel="step", ylabel="hypervolume so far")
        axes.set_ylim(bottom=0)
    add_legend(figure, 3 if columns > 1 else 2)
    return figure


def draw_fronts(evaluations, algorithms, variants):
    """Mean Pareto fronts in each pair of objectives, where all seeds have a front. Rows: algorithms."""
    figure = Figure(figsize=(13, 3.8 * len(algorithms)), layout="constrained")
    for panels, algorithm in zip(figure.subplots(len(algorithms), 3, squeeze=False), algorithms):
        subset = evaluations[evaluations["algorithm"] == algorithm]
        start = subset[subset["step"] == 0].iloc[0]
        limit = start["length"] / (1 - start["conciseness"])
        for axes, pair in zip(panels, combinations(OBJECTIVES, 2)):
            x_name, y_name = sorted(pair, key=["conciseness", "clarity", "accuracy"].index)
            is_length = x_name == "conciseness"
            grid = np.linspace(subset[x_name].min(), subset[x_name].max(), 200)
            for variant, colour, style in line_styles(variants):
                seeds = subset[subset["variant"] == variant].groupby("seed")
                if len(seeds):
                    fronts = [best_attained(run[[x_name, y_name]].to_numpy(), grid) for _, run in seeds]
                    x = limit * (1 - grid) if is_length else grid
                    plot_band(axes, x, np.stack(fronts), colour, variant, linestyle=style)
            x = start["length" if is_length else x_name]
            axes.plot(
                x, start[y_name], "*", color="black", linestyle="none", markersize=14, label="initial model"
            )
            axes.set(title=TITLES[algorithm], xlabel="length (tokens)" if is_length else x_name)
            axes.set(ylabel=y_name, ylim=(subset[y_name].min() - 0.05, 1.02))
            axes.xaxis.set_inverted(is_length)
    add_legend(figure, 4)
    return figure


def draw_weights(evaluations, algorithms):
    """Weights (gradient-based and Nash weighting) and meta reward over the steps. Columns: algorithms."""
    figure = Figure(figsize=(4.6 * len(algorithms), 9), layout="constrained")
    for panels, algorithm in zip(figure.subplots(3, len(algorithms), squeeze=False).T, algorithms):
        subset = evaluations[(evaluations["algorithm"] == algorithm) & (evaluations["step"] > 0)]
        for axes, variant in zip(panels, ("gradient", "nash")):
            seeds = subset[subset["variant"] == variant]
            for name, colour in zip(OBJECTIVES, COLOURS[3:]):
                if len(seeds):
                    plot_band(axes, seeds["step"].unique(), by_seed(seeds, f"w_{name}"), colour, name)
            axes.set(title=f"{TITLES[algorithm]}: weights, {variant}", ylim=(0, 1), xlabel="step")
        seeds = subset[subset["variant"] == "hypervolume"]
        if len(seeds):
            plot_band(
                panels[2], seeds["step"].unique(), by_seed(seeds, "r_pareto"), "black", "meta reward r_pareto"
            )
        panels[2].set(title=f"{TITLES[algorithm]}: r_pareto, hypervolume", ylim=(0.3, 2.1), xlabel="step")
    add_legend(figure, min(4, 2 * len(algorithms)))
    return figure


# The report


def read_csv(path, columns):
    """The evaluations in a CSV file. ValueError if it lacks one of the columns, or has text in one."""
    try:
        evaluations = pandas.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    for name in columns:
        if name not in evaluations or not pandas.api.types.is_numeric_dtype(evaluations[name]):
            raise ValueError(f"{path}: column {name} is missing or has cells that are no numbers")
    return evaluations


def read_study(path):
    """The evaluations of the study over eight tasks. None, with a message, if they are not complete."""
    study = read_csv(path, ["seed", "step", *regret.OBJECTIVES]) if path.exists() else None
    if study is not None and (problem := regret.incomplete(study)):
        print(f"{path.name} has {problem}, so its tables are left out")
        return None
    return study


def ablation_section(runs):
    """The section on the ablations, as a list of Markdown parts. `runs` end at step ABLATION_STEPS."""
    runs = select_variants(runs, ABLATIONS)
    if not runs["variant"].str.contains(",").any():  # only variants of the main study
        return []
    title = f"### Ablations: GRPO, the first {ABLATION_STEPS} steps, seeds 1 to 3"
    return [title, ablation_table(runs)]


def learning_rate_section(runs):
    """The section on the choice of the learning rate, as a list of Markdown parts."""
    runs = runs[(runs["seed"] == 0) & runs["variant"].str.contains("learning rate")]
    if runs.empty:
        return []
    best = runs.loc[runs.groupby("algorithm", sort=False)["hv"].idxmax()]
    best = "; ".join(f"{TITLES[run['algorithm']]}: {run['variant']}" for _, run in best.iterrows())
    title = "### The learning rate, chosen on balanced weights, seed 0"
    return [title, f"The largest final hypervolume belongs to {best}.", main_table(runs)]


def report(evaluations, figures, study=None):
    """
    All tables as Markdown. figures: pairs (file name, caption). The first is that of the hypervolumes. study:
    the evaluations of the study over eight tasks, if it is complete.
    """
    runs = measure_all(evaluations)
    short_runs = measure_all(evaluations[evaluations["step"] <= ABLATION_STEPS])
    comparable = measure_all(comparable_evaluations(evaluations))
    parts = ["# Results", ORIGIN, *(regret.section(study) if study is not None else [])]
    parts += ["## The runs in results.csv", INTRODUCTION]
    parts += [f"![{caption}]({name})" for name, caption in figures[:1]]
    for task, task_runs in runs.groupby("task", sort=False):
        parts.append(f"## Task: {task}")
        groups = comparable[comparable["task"] == task].groupby("algorithm", sort=False)
        if len(groups):
            main = pandas.concat([select_variants(group, FIXED + DYNAMIC) for _, group in groups])
            num_steps = sorted({str(steps[-1]) for steps in main["steps"]})
            parts += [f"After {' or '.join(num_steps)} steps:", main_table(main)]
            parts += filter(None, [comparison_table(main)])
            parts += [
                f"![{caption}]({name})"
                for name, caption in figures[1:]
                if name.startswith(f"experiment-{task}-")
            ]
        early = short_runs[(short_runs["task"] == task) & (short_runs["algorithm"] == "grpo")]
        parts += ablation_section(early[early["seed"].between(1, 3)])
        parts += learning_rate_section(task_runs)
    return "\n\n".join(parts) + "\n"


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--results", type=Path, default=ROOT / "experiment/results.csv", help="the CSV")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "experiment", help="folder for tables and pictures"
    )
    args = parser.parse_args()
    try:
        evaluations = read_csv(args.results, ["seed", "step", "length", *OBJECTIVES])
        study = read_study(args.results.with_name("eight_tasks.csv"))
        args.output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if evaluations.empty or evaluations[["seed", "step", "length", *OBJECTIVES]].isna().any(axis=None):
        parser.error(f"{args.results}: no runs, or empty cells")

    comparable = comparable_evaluations(evaluations)
    figures = []  # (file name, caption, figure)
    if len(comparable):
        figure = draw_volumes(measure_all(comparable), variants_in(comparable))
        figures.append(("experiment-volumes.png", "Hypervolume over the steps", figure))
    for task, subset in comparable.groupby("task", sort=False):
        algorithms = list(subset["algorithm"].unique())
        figure = draw_fronts(subset, algorithms, variants_in(subset))
        figures.append((f"experiment-{task}-fronts.png", "Pareto fronts, means over seeds", figure))
        figure = draw_weights(subset, algorithms)
        figures.append((f"experiment-{task}-weights.png", "Weights and meta reward over the steps", figure))
    if study is not None:
        figure = regret.draw_regrets(regret.measure_all(study), PALETTE)
        figure.savefig(args.output / "regrets.png", dpi=120)
    for name, _, figure in figures:
        figure.savefig(args.output / name, dpi=120)
    (args.output / "RESULTS.md").write_text(
        report(evaluations, [(name, caption) for name, caption, _ in figures], study)
    )
    print(f"{evaluations.groupby(KEYS).ngroups} runs: {args.output / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
