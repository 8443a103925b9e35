"""
Tables and figures of the experiment, from benchmarks/results.csv alone.

    python benchmarks/report.py        writes benchmarks/RESULTS.md and benchmarks/experiment-*.png
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
sys.path.insert(0, str(ROOT))
from compare import COLOURS, STYLE  # noqa: E402
from hypervolume import hypervolume, pareto_front  # noqa: E402

KEYS = ["task", "algorithm", "variant", "seed"]  # of a run
NAMES = ["accuracy", "conciseness", "clarity"]
FIXED = ["accuracy-focused", "balanced", "efficiency-focused", "clarity-focused"]
DYNAMIC = ["hypervolume", "gradient", "ascent"]
PALETTE = dict(zip(FIXED + DYNAMIC, [*COLOURS[:3], "0.5", *COLOURS[3:]]))
TITLES = {"grpo": "GRPO", "rloo": "RLOO", "reinforce": "REINFORCE++"}
ABLATIONS = {  # title: variants, of which those that are in the CSV are shown
    "What r_pareto scales": ["balanced", "hypervolume", "hypervolume, r_pareto on the reward"],
    "The factor on the gain in hypervolume": ["hypervolume, scale 1", "hypervolume", "hypervolume, scale 2048"],
    "The reference point": ["hypervolume", "hypervolume, from the initial model"],
    "The scale of influence, and mu": ["gradient", "gradient, clipped", "gradient, mu / 10", "gradient, mu x 10"],
    "The least weight": ["gradient", "gradient, least weight 0.05", "gradient, least weight 0.15"],
    "What is normalised": ["balanced", "balanced, each normalised", "gradient", "gradient, each normalised"],
    "The probed layers": ["gradient, all layers", "gradient", "gradient, last layer"],
    "The schedule of the learning rate": [v + s for v in ("balanced", *DYNAMIC[:2]) for s in ("", ", polynomial")],
    "The optimiser": ["balanced", "hypervolume", "balanced, SGD", "hypervolume, SGD"],
    "A learning rate of 4e-5": [f"{variant}, learning rate 4e-5" for variant in FIXED + DYNAMIC],
}
ASCENT = {
    "That it was chosen on": ["balanced", "efficiency-focused", "ascent"],
    "Conciseness rewarded as p counts it": [v + s for v in ("balanced", "ascent") for s in ("", ", rewarded by p")],
}
ABLATED = 60  # steps of an ablation
MEASURES = {  # of a run: title of the column, format
    "hv": ("hypervolume", "{:.3f}"),
    "hv_last": ("of the last point", "{:.3f}"),
    "area": ("area", "{:.3f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "length": ("length", "{:.1f}"),
    "clarity": ("clarity", "{:.3f}"),
    "front_mean": ("mean over the front", "{:.3f}"),
    "front_index": ("its mean step", "{:.0f}"),
}


def summary(run):
    """The measures of one run, from its evaluations in order."""
    points, steps = run[NAMES].to_numpy(), run["step"].to_numpy()
    volumes = np.array([hypervolume(points[: i + 1], [0.0] * len(NAMES)) for i in range(len(points))])
    is_on_front = pareto_front(points)
    return {
        "hv": volumes[-1],
        "hv_last": points[-1].prod(),
        "area": np.trapezoid(volumes, steps) / steps[-1],
        "accuracy": points[-1, 0],
        "length": run["length"].to_numpy()[-1],
        "clarity": points[-1, 2],
        "weights": run[[f"w_{name}" for name in NAMES]].to_numpy()[-1],
        "r_pareto": run["r_pareto"].to_numpy()[1:].mean(),
        "front_mean": points[is_on_front].mean(),
        "front_index": steps[is_on_front].mean(),
        "volumes": volumes,
        "steps": steps,
    }


def interval(values, pattern="{:.3f}"):
    """Mean and half the width of its 95% confidence interval (Student's t), as text; of one value, that."""
    if len(values) == 1:
        return pattern.format(*values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{pattern.format(np.mean(values))} ± {pattern.format(half)}"


def holm(p):
    """P-values adjusted by Holm's method."""
    p, adjusted, largest = np.asarray(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(np.argsort(p)):
        largest = adjusted[i] = max(largest, min(1.0, (len(p) - rank) * p[i]))
    return adjusted


def table(rows):
    """Rows of cells, the first of them titles, as Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def final_table(runs):
    """Of each algorithm and variant, every measure with its confidence interval over seeds."""
    titles, has_goal = [title for title, _ in MEASURES.values()], bool(runs["reached"].notna().any())
    rows = [["algorithm", "weighting", "seeds", *titles, *["steps to 95%"] * has_goal]]
    for (algorithm, variant), same in runs.groupby(["algorithm", "variant"], sort=False):
        cells = [interval(same[name].to_numpy(), pattern) for name, (_, pattern) in MEASURES.items()]
        reached = same["reached"].dropna()
        to_95 = f"{reached.median():.0f} ({len(reached)} of {len(same)})" if len(reached) else f"(0 of {len(same)})"
        rows.append([TITLES[algorithm], variant, len(same), *cells, *[to_95] * has_goal])
    return table(rows)


def of_variants(runs, variants):
    """Those of `runs` that are of `variants`, in this order."""
    return pandas.concat([runs[runs["variant"] == variant] for variant in variants])


def ablation(runs):
    """Of each variant of an ablation, what it does to the end of a run and to what weighs it."""
    names = ["hv", "hv_last", "area", "accuracy", "length", "clarity"]
    rows = [["weighting", "seeds", *(MEASURES[name][0] for name in names), "weights at the end", "mean r_pareto"]]
    for variant, same in runs.groupby("variant", sort=False):
        cells = [interval(same[name].to_numpy(), MEASURES[name][1]) for name in names]
        weights = " ".join(f"{w:.2f}" for w in np.mean(np.stack(same["weights"]), axis=0))
        rows.append([variant, len(same), *cells, weights, f"{same['r_pareto'].mean():.2f}"])
    return table(rows)


def comparisons(runs):
    """Each dynamic weighting against each fixed one, paired by seed, on the area: a table, with p by Holm, or None."""
    rows = []
    for algorithm, same in runs.groupby("algorithm", sort=False):
        areas = same.pivot(index="seed", columns="variant", values="area")
        for variant, fixed in ((v, f) for v in DYNAMIC for f in FIXED if {v, f} <= set(areas)):
            difference = (areas[variant] - areas[fixed]).dropna().to_numpy()
            if len(difference) > 1:
                rows.append([TITLES[algorithm], variant, fixed, difference, stats.ttest_1samp(difference, 0).pvalue])
    adjusted = holm([row[-1] for row in rows])
    cells = [["algorithm", "weighting", "against", "pairs", "difference in area", "p", "p, Holm", ""]]
    for (algorithm, variant, fixed, difference, p), p_holm in zip(rows, adjusted):
        verdict = "no difference survives"
        if p_holm < 0.05:
            verdict = f"{variant} is {'ahead of' if difference.mean() > 0 else 'behind'} {fixed}"
        pairs, numbers = len(difference), [interval(difference), f"{p:.2g}", f"{p_holm:.2g}"]
        cells.append([algorithm, variant, fixed, pairs, *numbers, verdict])
    return table(cells) if rows else None


def judged(evaluations):
    """
    Of all evaluations those that say which weighting is best: the variants of the main experiment, on the embedded task
    from seed 4 on (`ascent` was chosen on others), at the steps that all runs of the same task and algorithm have.
    """
    main = evaluations[evaluations["variant"].isin(FIXED + DYNAMIC)]
    main = main[(main["task"] != "embedded") | (main["seed"] >= 4)]
    runs = (main["step"] == 0).groupby([main["task"], main["algorithm"]]).transform("sum")
    return main[main.groupby(["task", "algorithm", "step"])["seed"].transform("size") == runs]


def measured(evaluations):
    """A frame of runs with their measures, from one of evaluations."""
    runs = pandas.DataFrame(
        {**dict(zip(KEYS, key)), **summary(run)} for key, run in evaluations.groupby(KEYS, sort=False)
    )
    runs["reached"] = np.nan
    for _, same in runs.groupby(["task", "algorithm"]):
        fixed = same[same["variant"].isin(FIXED)]
        if len(fixed):
            best = fixed.groupby("variant")["hv"].mean().idxmax()
            goals = fixed[fixed["variant"] == best].set_index("seed")["hv"]
            for i, run in same.iterrows():
                late = run["steps"][run["volumes"] >= 0.95 * goals.get(run["seed"], np.inf)]
                runs.loc[i, "reached"] = late[0] if len(late) else np.nan
    return runs


def band(axes, x, values, colour, label, **style):
    """The mean over seeds, values (seeds, N), and one standard deviation to both sides."""
    mean, deviation = values.mean(0), values.std(0, ddof=int(len(values) > 1))
    axes.plot(x, mean, color=colour, label=label, **style)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def per_seed(evaluations, column):
    """A column of evaluations as an array (seeds, N)."""
    return evaluations.pivot(index="seed", columns="step", values=column).to_numpy()


def best_attained(points, x):
    """For each value in `x`, the largest y of points (N, 2) whose x is at least that, or nan where there is none."""
    return np.array([max(points[points[:, 0] >= value, 1], default=np.nan) for value in x])


def variants_in(frame):
    return [variant for variant in FIXED + DYNAMIC if variant in set(frame["variant"])]


def styled(variants):
    """(variant, colour, line style): fixed ones dashed."""
    return [(variant, PALETTE[variant], "--" if variant in FIXED else "-") for variant in variants]


def add_legend(figure, ncols):
    """One for all panels, below them."""
    handles = {}
    for axes in figure.axes:
        handles.update(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)


def draw_volumes(runs, variants):
    """Hypervolume of the front so far over the steps, a panel for each task and algorithm."""
    panels = list(runs.groupby(["task", "algorithm"], sort=False))
    columns = min(2, len(panels))
    figure = Figure(figsize=(5 * columns, 3.7 * math.ceil(len(panels) / columns)), layout="constrained")
    for i, ((task, algorithm), own) in enumerate(panels):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, i + 1)
        for variant, colour, style in styled(variants):
            same = own[own["variant"] == variant]
            if len(same):
                band(axes, same["steps"].iloc[0], np.stack(same["volumes"]), colour, variant, linestyle=style)
        axes.set(title=f"{TITLES[algorithm]}, task: {task}", xlabel="step", ylabel="hypervolume of the front so far")
        axes.set_ylim(bottom=0)
    add_legend(figure, 3 if columns > 1 else 2)
    return figure


def draw_fronts(evaluations, algorithms, variants):
    """Mean fronts in each plane of two objectives, as far as those of all seeds go; a row an algorithm."""
    figure = Figure(figsize=(13, 3.8 * len(algorithms)), layout="constrained")
    for row, algorithm in zip(figure.subplots(len(algorithms), 3, squeeze=False), algorithms):
        own = evaluations[evaluations["algorithm"] == algorithm]
        start = own[own["step"] == 0].iloc[0]
        limit = start["length"] / (1 - start["conciseness"])
        for axes, pair in zip(row, combinations(NAMES, 2)):
            x_name, y_name = sorted(pair, key=["conciseness", "clarity", "accuracy"].index)
            grid = np.linspace(own[x_name].min(), own[x_name].max(), 200)
            shown = limit * (1 - grid) if x_name == "conciseness" else grid
            for variant, colour, style in styled(variants):
                seeds = own[own["variant"] == variant].groupby("seed")
                if len(seeds):
                    fronts = [best_attained(run[[x_name, y_name]].to_numpy(), grid) for _, run in seeds]
                    band(axes, shown, np.stack(fronts), colour, variant, linestyle=style)
            x = start["length" if x_name == "conciseness" else x_name]
            axes.plot(x, start[y_name], "k*", markersize=14)
            axes.set(title=TITLES[algorithm], xlabel="length (tokens)" if x_name == "conciseness" else x_name)
            axes.set(ylabel=y_name, ylim=(own[y_name].min() - 0.03, 1.02))
            axes.xaxis.set_inverted(x_name == "conciseness")
    add_legend(figure, 6)
    return figure


def draw_weights(evaluations, algorithms):
    """The weights of those weightings that move them, and r_pareto of hypervolume-guided weighting, over the steps."""
    figure = Figure(figsize=(4.6 * len(algorithms), 9), layout="constrained")
    for panels, algorithm in zip(figure.subplots(3, len(algorithms), squeeze=False).T, algorithms):
        own = evaluations[(evaluations["algorithm"] == algorithm) & (evaluations["step"] > 0)]
        for axes, variant in zip(panels, ("gradient", "ascent")):
            moving = own[own["variant"] == variant]
            for name, colour in zip(NAMES, COLOURS[3:]):
                if len(moving):
                    band(axes, moving["step"].unique(), per_seed(moving, f"w_{name}"), colour, name)
            axes.set(title=f"{TITLES[algorithm]}: weights, {variant}", ylim=(0, 1), xlabel="step")
        guided = own[own["variant"] == "hypervolume"]
        if len(guided):
            band(panels[2], guided["step"].unique(), per_seed(guided, "r_pareto"), "black", "r_pareto")
        panels[2].set(title=f"{TITLES[algorithm]}: r_pareto, hypervolume", ylim=(0.4, 2.1), xlabel="step")
    add_legend(figure, min(4, 2 * len(algorithms)))
    return figure


def report(evaluations, figures):
    """All tables as Markdown. figures: (name, what it shows) of each picture that there is."""
    runs, short = measured(evaluations), measured(evaluations[evaluations["step"] <= ABLATED])
    best = measured(judged(evaluations))
    text = [
        "# Does dynamic weighting win?",
        "Drawn by `python benchmarks/report.py` from [results.csv](results.csv), made by `benchmarks/experiment.py`. "
        "Means over seeds ± half the width of their 95% confidence intervals; performance on the test split, greedy; "
        "hypervolumes from the worst corner. Area is that under the hypervolume of the front so far, over steps, the "
        "main measure. Steps to 95% are those until a run has 95% of what the best fixed weighting of its algorithm "
        "has at the end with the same seed: the median of the runs that get there, and how many do. Comparisons are "
        "paired by seed, p is that of a t-test, and Holm's correction is for all comparisons of a task.",
    ]
    text += [f"![{what}]({name})" for name, what in figures[:1]]
    for task, same in runs.groupby("task", sort=False):
        main = best[best["task"] == task].groupby("algorithm", sort=False)
        main = pandas.concat([of_variants(own, FIXED + DYNAMIC) for _, own in main] or [best[:0]])
        text.append(f"## Task: {task}")
        if len(main):
            lengths = {f"{steps[-1]}" for steps in main["steps"]}
            text += [f"After {' or '.join(sorted(lengths))} steps:", final_table(main)]
            text += filter(None, [comparisons(main)])
            text += [f"![{what}]({name})" for name, what in figures[1:] if name.startswith(f"experiment-{task}-")]
        tuned, whole = (
            r[(r["task"] == task) & (r["algorithm"] == "grpo") & r["seed"].between(1, 3)] for r in (short, runs)
        )
        tables = {title: of_variants(tuned, variants) for title, variants in ABLATIONS.items()}
        tables = {title: shown for title, shown in tables.items() if shown["variant"].str.contains(",").any()}
        if tables:
            text.append(f"### Ablations: GRPO, the first {ABLATED} steps, seeds 1 to 3")
            text += [part for title, shown in tables.items() for part in (f"{title}:", ablation(shown))]
        if whole["variant"].str.contains("rewarded by p").any():
            text.append("### Ascent: GRPO, 120 steps, seeds 1 to 3")
            tables = {title: of_variants(whole, variants) for title, variants in ASCENT.items()}
            text += [part for title, shown in tables.items() for part in (f"{title}:", ablation(shown))]
        chosen = same[(same["seed"] == 0) & same["variant"].str.contains("learning rate")]
        if len(chosen):
            text += ["### The learning rate, chosen on balanced weights, seed 0"]
            largest = chosen.loc[chosen.groupby("algorithm", sort=False)["hv"].idxmax()]
            largest = "; ".join(f"{TITLES[run['algorithm']]}: {run['variant']}" for _, run in largest.iterrows())
            text += [f"The largest hypervolume at the end has {largest}.", final_table(chosen)]
    return "\n\n".join(text) + "\n"


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results.csv", help="the CSV")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks", help="where tables and figures go")
    args = parser.parse_args()
    if not args.results.exists():
        parser.error(f"--results: no {args.results}")
    args.output.mkdir(parents=True, exist_ok=True)
    evaluations, figures = pandas.read_csv(args.results), []
    if evaluations.empty:
        parser.error("--results: no run in it yet")
    best = judged(evaluations)
    if len(best):
        figures = [("experiment-volumes.png", "Hypervolume over the steps")]
        draw_volumes(measured(best), variants_in(best)).savefig(args.output / figures[0][0], dpi=120)
    for task, same in best.groupby("task", sort=False):
        algorithms = list(same["algorithm"].unique())
        for kind, what, figure in (
            ("fronts", "Fronts, as far as those of all seeds go", draw_fronts(same, algorithms, variants_in(same))),
            ("weights", "Weights and r_pareto over the steps", draw_weights(same, algorithms)),
        ):
            figures.append((f"experiment-{task}-{kind}.png", what))
            figure.savefig(args.output / figures[-1][0], dpi=120)
    (args.output / "RESULTS.md").write_text(report(evaluations, figures))
    print(f"{evaluations.groupby(KEYS).ngroups} runs: {args.output / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
