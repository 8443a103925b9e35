"""
Compare finished runs: a table and a picture of their Pareto fronts.

    python compare.py runs/A runs/B

prints the table and draws the picture into fronts.png. Objectives are shown as performance in [0, 1], where
higher is better. Hypervolumes are measured from the origin. The training scripts call `summary` at their end.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from hypervolume import hypervolume, pareto_front

# Six colours of Okabe and Ito and two of Paul Tol, which colour-blind readers can tell apart.
# The eight colours and five markers make 40 distinct pairs.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933"]
MARKERS = ["o", "s", "D", "^", "v"]
STYLE = {"axes.grid": True, "grid.color": "0.92", "axes.spines.top": False, "axes.spines.right": False}
# Names of runs and objectives may contain dollar signs, which matplotlib would read as formulas.
STYLE |= {"legend.frameon": False, "text.parse_math": False, "text.usetex": False}
ON_TEST = {"marker": "o", "markersize": 4, "linestyle": "--"}


def parse_object(text, source):
    """Returns the JSON object in `text` as a dictionary. ValueError that names `source` if there is none."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    raise ValueError(f"{source} is not a JSON object")


def read_metrics(folder):
    """Returns the lines of `folder`/metrics.jsonl as dictionaries. OSError or ValueError if it is broken."""
    with open(Path(folder) / "metrics.jsonl", encoding="utf-8") as lines:
        return [parse_object(line, f"line {number} of metrics.jsonl") for number, line in enumerate(lines, 1)]


def read_run(folder):
    """
    Reads the evaluations on the test split from `folder`/args.json and `folder`/metrics.jsonl.

    Returns a dictionary: name, weighting, objectives (K names) and limit (max_new_tokens). For N evaluations,
    it has steps (N,), points (N, K) of performance, lengths (N,) (means in tokens), and front (N,), the mask
    of points that no other point dominates. Step 0 is the initial model. Evaluations with a null, which
    stands for a number that was not finite, are left out. ValueError with one line for a broken folder.
    """
    folder = Path(folder)
    try:
        settings = parse_object((folder / "args.json").read_text(encoding="utf-8"), "args.json")
        keys = ["step", "eval/completions/mean_length"]
        keys += [f"eval/performance/{name}" for name in settings["objectives"]]
        rows = [[entry[key] for key in keys] for entry in read_metrics(folder) if "eval/hypervolume" in entry]
        numbers = np.array([row for row in rows if None not in row], dtype=float)
        if not len(numbers):
            raise ValueError("metrics.jsonl holds no evaluation on the test split")

        return {
            "name": folder.resolve().name,
            "weighting": str(settings["weighting"]),
            "objectives": settings["objectives"],
            "limit": float(settings["max_new_tokens"]),
            "steps": numbers[:, 0].astype(int),
            "lengths": numbers[:, 1],
            "points": numbers[:, 2:],
            "front": pareto_front(numbers[:, 2:]),
        }
    except KeyError as error:
        raise ValueError(f"{folder}: args.json or metrics.jsonl lacks {error}") from None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from None


# Pictures


def draw_legend(figure, handles, location):
    """Draws a legend of `handles` outside of the panels, with as many columns as fit into the figure."""
    inches = [0.8 + 0.08 * len(handle.get_label()) for handle in handles]
    width = figure.get_figwidth()
    columns = len(handles) if sum(inches) < width else max(1, int(width / max(inches)))
    figure.legend(handles=handles, loc=location, ncols=columns)


def styles(runs):
    """Returns (run, colour, marker) for each run."""
    return list(zip(runs, itertools.cycle(COLOURS), itertools.cycle(MARKERS)))


def draw_steps(axes, steps, points, front):
    """
    Writes the step beside the last of points (N, 2). Of points[front], which have large marks, those nearest
    to round steps get it, too, if there is room.
    """
    round_steps = MaxNLocator(6, integer=True).tick_values(0, steps[-1])[::-1]
    # Positions are in widths and heights of the panel.
    occupied = [axes.transLimits.transform(point) for point in points[steps == 0]]
    front = np.arange(len(steps))[front]
    for i in [-1, *front[np.abs(steps[front] - round_steps[:, None]).argmin(axis=1)]]:
        position = axes.transLimits.transform(points[i])
        if all(np.abs(position - other).max() > 0.08 for other in occupied):
            occupied.append(position)
            halo = withStroke(linewidth=2.5, foreground="white")
            style = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9, "zorder": 6}
            axes.annotate(steps[i], points[i], path_effects=[halo], **style)


def draw_panel(axes, runs, pair):
    """Draws the runs in the plane of two objectives. pair: [index along x, index along y]."""
    for run, colour, marker in styles(runs):
        points = run["points"][:, pair]
        front, start = points[run["front"]], points[run["steps"] == 0]
        style = {"color": colour, "marker": marker}
        axes.plot(*points.T, **style, markersize=3.5, markeredgewidth=0, linewidth=0.8, alpha=0.5)
        axes.scatter(*front.T, **style, s=50, edgecolors="white", linewidths=0.8, zorder=4)
        axes.scatter(*start.T, s=220, color="black", marker="*", edgecolors="white", zorder=5)

    x, y = (f"{runs[0]['objectives'][k]}, higher is better →" for k in pair)
    axes.set(xlabel=x, ylabel=y)
    axes.margins(0.1)
    axes.locator_params(axis="x", nbins=6)
    axes.axis(axes.axis())  # The outlines below reach down to 0, but the limits stay at the points.

    for run, colour, _ in styles(runs):
        points = run["points"][:, pair]
        corners = np.array(sorted(points[pareto_front(points)].tolist()))
        outline = np.array([[0, corners[0, 1]], *corners, [corners[-1, 0], 0]])
        axes.step(*outline.T, where="pre", color=colour, linewidth=1, alpha=0.4)
        axes.step(*corners.T, where="pre", color=colour, linewidth=2, alpha=0.8)
        if len(runs) == 1:  # Areas and step numbers of several runs would overlap.
            axes.fill_between(*outline.T, step="pre", color=colour, alpha=0.06, linewidth=0)
            draw_steps(axes, run["steps"], points, run["front"])


@matplotlib.rc_context(STYLE)
def plot_fronts(runs, path):
    """
    Draws `runs` (of `read_run`) into the picture `path`, with a panel for each pair of objectives.

    Large marks are the points that no other point of the run dominates in ALL objectives. The thick line is
    the front in the panel's TWO objectives, so large marks may lie behind it. ValueError if there is one
    objective only.
    """
    # The earlier objective of a pair is the vertical axis, so most neighbouring panels share it.
    pairs = [[x, y] for y, x in itertools.combinations(range(len(runs[0]["objectives"])), 2)]
    if not pairs:
        raise ValueError("a picture of the fronts needs two objectives or more")
    columns = min(len(pairs), 3 if len(pairs) < 10 else 4)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(max(4.6 * columns, 6.4), 4.0 * rows + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.03)
    for number, pair in enumerate(pairs, 1):
        draw_panel(figure.add_subplot(rows, columns, number), runs, pair)

    names = [Line2D([], [], label=run["name"], color=c, marker=m, linewidth=2) for run, c, m in styles(runs)]
    draw_legend(figure, names, "outside upper center")
    grey = {"color": "0.4", "marker": "o"}
    marks = [
        Line2D([], [], **grey, markersize=4, linewidth=0.8, alpha=0.6, label="evaluations, first to last"),
        Line2D([], [], **grey, markersize=7, linestyle="none", label="front in all objectives"),
        Line2D([], [], color="0.4", linewidth=2, label="front in the two objectives"),
        Line2D([], [], color="black", linestyle="none", marker="*", markersize=13, label="initial model"),
    ]
    draw_legend(figure, marks, "outside lower center")
    figure.savefig(path, dpi=200)  # An error while drawing leaves an old picture intact.


def curves(weighting, colours):
    """
    Returns the panels of curves.png as a dictionary {title: {key of the metrics: style of its line}}.

    colours: {objective: style with its colour}.
    """
    panels = {
        "mean reward of the rollouts": {f"rewards/{name}/mean": colour for name, colour in colours.items()},
        "performance on the test split": {
            **{f"eval/performance/{name}": colour | ON_TEST for name, colour in colours.items()},
            "eval/hypervolume": {"color": "black", **ON_TEST},
        },
        "mean length (tokens)": {
            "completions/mean_length": {"color": "0.5"},
            "eval/completions/mean_length": {"color": "0.5", **ON_TEST},
        },
    }
    if weighting in ("gradient", "nash"):
        panels["weights"] = {f"weights/{name}": colour for name, colour in colours.items()}
    if weighting == "gradient":
        panels["influence, Eq. (3)"] = {f"influence/{name}": colour for name, colour in colours.items()}
    if weighting == "hypervolume":
        panels["meta reward r_pareto, Eq. (1)"] = {"r_pareto": {"color": "black"}}
    return panels


@matplotlib.rc_context(STYLE)
def plot_curves(folder):
    """Draws rewards, evaluations, lengths and weighting over the steps of a run into `folder`/curves.png."""
    run, metrics = read_run(folder), read_metrics(folder)
    colours = {name: {"color": c} for name, c in zip(run["objectives"], itertools.cycle(COLOURS))}
    panels = curves(run["weighting"], colours)
    columns = 2 if len(panels) == 4 else 3
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * rows + 0.5), layout="constrained")
    for number, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number, title=title, xlabel="step")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        for key, style in lines.items():
            # A null stands for a number that was not finite.
            values = [(entry["step"], entry[key]) for entry in metrics if entry.get(key) is not None]
            axes.plot(*np.reshape(values, (-1, 2)).T, **style)
        if title == "weights":
            axes.set_ylim(0, 1)

    legend = [
        *(Line2D([], [], **colour, label=name) for name, colour in colours.items()),
        Line2D([], [], color="black", **ON_TEST, label="hypervolume so far"),
        Line2D([], [], color="0.5", label="rollouts"),
        Line2D([], [], color="0.5", **ON_TEST, label="test split, greedy"),
    ]
    draw_legend(figure, legend, "outside upper center")
    figure.savefig(Path(folder) / "curves.png", dpi=200)


# Tables


def hypervolume_cell(points):
    """Returns the hypervolume of points (N, K) as a text cell."""
    return f"{hypervolume(points, np.zeros(points.shape[1])):.4f}"


def aligned(rows):
    """Returns rows of text cells as one text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def table(runs):
    """Returns the comparison of the runs as text. Columns named "last" are of the last evaluation alone."""
    rows = [["run", "weighting", "on front", "hypervolume", "last hypervolume"]]
    rows[0] += [*(f"best {name}" for name in runs[0]["objectives"]), "last length (tokens)"]
    for run in runs:
        points = run["points"]
        cells = [str(run["front"].sum()), hypervolume_cell(points), hypervolume_cell(points[-1:])]
        cells += [f"{performance:.4f}" for performance in points.max(axis=0)]
        rows.append([run["name"], run["weighting"], *cells, f"{run['lengths'][-1]:.1f}"])
    return aligned(rows)


def before_and_after(folder):
    """
    Returns the first and the last evaluation of a run as text.

    "hypervolume" is that of the evaluation alone, "hypervolume so far" that of all evaluations up to it.
    """
    run = read_run(folder)
    points, steps = run["points"], run["steps"]
    rows = [["test split", *run["objectives"], "length (tokens)", "hypervolume", "hypervolume so far"]]
    for i in sorted({0, len(points) - 1}):
        label = f"after step {steps[i]}" if steps[i] else "initial model"
        cells = [f"{performance:.4f}" for performance in points[i]] + [f"{run['lengths'][i]:.1f}"]
        rows.append([label, *cells, hypervolume_cell(points[i : i + 1]), hypervolume_cell(points[: i + 1])])
    return aligned(rows)


def weighting_summary(folder):
    """Returns a line on the weights or the meta reward of a run, '' for fixed weights or too few steps."""
    run, steps = read_run(folder), [entry for entry in read_metrics(folder) if entry["step"] > 0]
    if run["weighting"] in ("gradient", "nash") and steps:
        weights = [f"{name} {steps[-1][f'weights/{name}']:.2f}" for name in run["objectives"]]
        return f"Final weights: {', '.join(weights)}"
    if run["weighting"] == "hypervolume" and len(steps) > 1:
        r_pareto = [entry["r_pareto"] for entry in steps[1:]]  # Step 1 has no earlier delta_hv to use.
        quartiles = [f"{quartile:.2f}" for quartile in np.quantile(r_pareto, [0.25, 0.5, 0.75])]
        return f"Quartiles of the meta reward r_pareto: {', '.join(quartiles)}"
    return ""


def summary(folder):
    """
    Draws `folder`/curves.png and `folder`/fronts.png. Returns the results of the run as text.

    If the pictures cannot be drawn, the text says why, because the run must still end normally.
    """
    lines = [before_and_after(folder), weighting_summary(folder)]
    try:
        plot_curves(folder)
        plot_fronts([read_run(folder)], Path(folder) / "fronts.png")
    except Exception as error:  # A user's matplotlibrc may ask for fonts or programs that are missing.
        lines.append(f"No pictures: {' '.join(str(error).split())[:300]}")
    return "\n".join(line for line in lines if line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("runs", nargs="+", type=Path, help="folders with args.json and metrics.jsonl")
    parser.add_argument(
        "--output", type=Path, default=Path("fronts.png"), help="picture (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        runs = [read_run(folder) for folder in args.runs]
        if any(run[key] != runs[0][key] for run in runs for key in ("objectives", "limit")):
            raise ValueError("the runs differ in objectives or max_new_tokens and cannot be compared")
        plot_fronts(runs, args.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")

    print(table(runs))
    print(f"The Pareto fronts are drawn in {args.output}")


if __name__ == "__main__":
    main()
