"""
Compare finished runs: a table and a picture of their Pareto fronts.

    python compare.py runs/A runs/B

prints the table and draws fronts.png.
"""

import argparse
import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hypervolume import hypervolume, pareto_front

# Colours of Okabe and Ito and of Paul Tol, for colour-blind readers
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933"]
MARKERS = "osD^v"
COLUMNS = ["length (tokens)", "hypervolume", "hypervolume so far"]
# Users' settings may ask for LaTeX. Dollar signs in names do not start formulas.
STYLE = matplotlib.rcParamsDefault | {"text.parse_math": False, "axes.grid": True, "grid.color": "0.92"}


def read_metrics(folder):
    """Returns the lines of `folder`/metrics.jsonl as dictionaries."""
    with open(f"{folder}/metrics.jsonl") as lines:
        return [json.loads(line) for line in lines]


def read_run(folder):
    """
    Returns a run as a dictionary. For N evaluations of K objectives on the test split, it has steps (N,),
    lengths (N,) in tokens, points (N, K) of performance, and front (N,), whether no other point dominates.
    Evaluations with a null, a number that was not finite, are left out.
    """
    settings = json.loads(Path(folder, "args.json").read_text())
    run = {key: settings[key] for key in ("weighting", "objectives", "max_new_tokens")}
    run |= {"name": str(folder), "metrics": read_metrics(folder)}
    keys = ["step", "eval/completions/mean_length"]
    keys += [f"eval/performance/{name}" for name in run["objectives"]]
    rows = [[line[key] for key in keys] for line in run["metrics"] if "eval/hypervolume" in line]
    rows = [row for row in rows if None not in row]
    if not rows:
        raise ValueError("no evaluation")
    numbers = np.array(rows, dtype=float)  # (N, 2 + K)
    run |= {"steps": numbers[:, 0].astype(int), "lengths": numbers[:, 1], "points": numbers[:, 2:]}
    return run | {"front": pareto_front(run["points"])}


def styles(items):
    """Returns (item, colour, marker) for each item."""
    return zip(items, itertools.cycle(COLOURS), itertools.cycle(MARKERS))


def save(figure, names, columns, path):
    """Saves the figure with a legend above all panels. "tight" makes room for it."""
    lines = [Line2D([], [], color=colour, marker=marker) for _, colour, marker in styles(names)]
    figure.legend(lines, names, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def draw_panel(axes, runs, pair):
    """Draws the runs in the plane of two objectives. pair: [index along x, index along y]."""
    names = runs[0]["objectives"]
    axes.set(xlabel=names[pair[0]], ylabel=names[pair[1]], xmargin=0.1, ymargin=0.1)
    axes.locator_params(nbins=6)
    for run, colour, marker in styles(runs):
        points = run["points"][:, pair]
        front = points[run["front"]]
        corners = sorted(points[pareto_front(points)].tolist())
        axes.plot(*points.T, color=colour, marker=marker, markersize=3, linewidth=0.7, alpha=0.4)
        axes.step(*zip(*corners), where="pre", color=colour, linewidth=2)
        axes.scatter(*front.T, color=colour, marker=marker, s=50, edgecolors="white", zorder=3)
        axes.scatter(*points[run["steps"] == 0].T, color="black", marker="*", s=200, zorder=3)
    if len(runs) == 1:
        steps = run["steps"][run["front"]]
        cells = (7 * axes.transLimits.transform(front)).astype(int)
        for i in np.unique(cells, axis=0, return_index=True)[1]:  # Near texts would overlap.
            axes.annotate(steps[i], front[i], xytext=(0, 7), textcoords="offset points", ha="center")


@matplotlib.rc_context(STYLE)
def plot_fronts(runs, path):
    """Draws `runs` (of `read_run`) into the picture `path`, a panel for each pair of objectives."""
    K = len(runs[0]["objectives"])
    if K < 2:
        raise ValueError("fronts need two objectives")
    figure = Figure(figsize=(5 * K - 5, 4 * K - 4), layout="constrained")
    for y, x in itertools.combinations(range(K), 2):
        draw_panel(figure.add_subplot(K - 1, K - 1, y * (K - 1) + x), runs, [x, y])

    figure.supxlabel(
        "Evaluations on the test split, from the initial model (star) on. Higher is better.\n"
        "Large marks (one run: with steps): Pareto front in all objectives.\n"
        "Thick line: front in the two objectives.",
        fontsize="medium",
    )
    save(figure, [run["name"] for run in runs], K, path)


@matplotlib.rc_context(STYLE)
def plot_curves(run, path):
    """Draws a run (of `read_run`) over its steps into the picture `path`."""
    keys = ["rewards/{}/mean", "eval/performance/{}", "eval/hypervolume", "eval/completions/mean_length"]
    keys += ["weights/{}", "influence/{}" if run["weighting"] == "gradient" else "r_pareto"]
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    for axes, key in zip(figure.subplots(2, 3).flat, keys):  # {} stands for each objective.
        axes.set(title=key.format("objective"), xlabel="step")
        axes.locator_params(axis="x", integer=True)
        for name, colour, marker in styles(run["objectives"]) if "{}" in key else [("", "black", "o")]:
            metric = key.format(name)
            points = [(line["step"], line[metric]) for line in run["metrics"] if line.get(metric) is not None]
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=3)
    save(figure, run["objectives"], 3, path)


def aligned(rows):
    """Returns rows of text cells as one text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def results(run, i):
    """Returns evaluation i of a run as text cells. The last one is the hypervolume of all up to it."""
    points, origin = run["points"][: i + 1], np.zeros(len(run["objectives"]))
    volumes = [hypervolume(points[i:], origin), hypervolume(points, origin)]
    return [f"{x:.4f}" for x in points[i]] + [f"{run['lengths'][i]:.1f}"] + [f"{x:.4f}" for x in volumes]


def table(runs):
    """Returns the steps on the front and the last evaluation of each run as text."""
    header = ["last evaluation", "weighting", "front points", "first front step", "mean front step"]
    rows = [[*header, *runs[0]["objectives"], *COLUMNS]]
    for run in runs:
        steps = run["steps"][run["front"]]
        front = [str(len(steps)), str(steps.min()), f"{steps.mean():.1f}"]
        rows.append([run["name"], run["weighting"], *front, *results(run, len(run["steps"]) - 1)])
    return aligned(rows)


def before_and_after(folder):
    """Returns the first and the last evaluation of a run as text."""
    run = read_run(folder)
    rows = [["test split", *run["objectives"], *COLUMNS]]
    for i in sorted({0, len(run["steps"]) - 1}):
        step = run["steps"][i]
        rows.append([f"after step {step}" if step else "initial model", *results(run, i)])
    return aligned(rows)


def summary(folder):
    """Draws curves.png and fronts.png of a run, which must not fail at its end. Returns results as text."""
    lines = []
    try:
        lines.append(before_and_after(folder))
        run = read_run(folder)
        metrics = run["metrics"]
        plot_curves(run, f"{folder}/curves.png")
        plot_fronts([run], f"{folder}/fronts.png")
        if run["weighting"] in ("gradient", "nash") and metrics[1:]:
            weights = [f"{name} {metrics[-1][f'weights/{name}']:.2f}" for name in run["objectives"]]
            lines.append(f"Final weights: {', '.join(weights)}")
        if run["weighting"] == "hypervolume" and metrics[2:]:  # Step 1 has no earlier delta_hv.
            quartiles = np.quantile([line["r_pareto"] for line in metrics[2:]], [0.25, 0.5, 0.75])
            lines.append(f"Quartiles of r_pareto: {quartiles.round(2)}")
    except Exception as error:
        lines.append(f"The summary is incomplete: {error!r}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output", default="fronts.png")
    args = parser.parse_args()
    runs = []
    try:
        for folder in args.runs:
            runs.append(read_run(folder))
            if any(runs[-1][key] != runs[0][key] for key in ("objectives", "max_new_tokens")):
                raise ValueError(f"other objectives or max_new_tokens than {args.runs[0]}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        parser.exit(2, f"{folder}: {error!r}\n")

    try:
        plot_fronts(runs, args.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{args.output}: {error!r}\n")
    print(table(runs))


if __name__ == "__main__":
    main()
