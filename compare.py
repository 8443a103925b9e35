"""
What came of a run, or of several: tables and pictures, out of the folders that the training scripts write.

    python compare.py runs/A runs/B

prints a table and draws the Pareto fronts of the two into fronts.png. Objectives are maximised and lie in [0, 1], and
hypervolumes are measured from the origin, the worst corner. `summary` is what a script shows at the end of a run.
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

# Okabe and Ito's colours, told apart by colour-blind readers too. 6 colours and 5 markers: 30 distinct pairs.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "D", "^", "v"]
# Without parse_math, a name with two dollar signs would be set as a formula.
STYLE = {"axes.grid": True, "grid.color": "0.92", "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"legend.frameon": False, "text.parse_math": False}
ON_TEST = {"marker": "o", "markersize": 4, "linestyle": "--"}


def parse(text, where):
    """The JSON object in `text`. ValueError that names `where` if there is none."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    raise ValueError(f"{where} is not a JSON object")


def read_metrics(folder):
    """The lines of `folder`/metrics.jsonl, dictionaries. OSError or ValueError for a missing or broken file."""
    with open(Path(folder) / "metrics.jsonl", encoding="utf-8") as lines:
        return [parse(line, f"line {number} of metrics.jsonl") for number, line in enumerate(lines, 1)]


def read_run(folder):
    """
    The evaluations on the test split, from `folder`/args.json and `folder`/metrics.jsonl, as a dictionary.

    Its keys: name, weighting, objectives (K names), max_new_tokens, steps (N,), points (N, K) and front (N,), which of
    them no other dominates. Step 0 is the initial model. Evaluations with a number that was not finite are left out.
    ValueError, in one line, for a missing, empty or broken folder.
    """
    folder = Path(folder)
    try:
        args = parse((folder / "args.json").read_text(encoding="utf-8"), "args.json")
        keys = ["step", *(f"eval/performance/{name}" for name in args["objectives"])]
        rows = [[metrics[key] for key in keys] for metrics in read_metrics(folder) if "eval/hypervolume" in metrics]
        numbers = np.array([row for row in rows if None not in row], dtype=float)
        if not len(numbers):
            raise ValueError("metrics.jsonl holds no evaluation on the test split")
        return {
            "name": folder.resolve().name.encode(errors="replace").decode(),  # a file system allows more than text
            "weighting": str(args["weighting"]),
            "objectives": args["objectives"],
            "max_new_tokens": float(args["max_new_tokens"]),
            "steps": numbers[:, 0].astype(int),
            "points": numbers[:, 1:],
            "front": pareto_front(numbers[:, 1:]),
        }
    except KeyError as error:
        raise ValueError(f"{folder}: args.json or metrics.jsonl lacks {error}") from None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from None


def as_shown(run, points):
    """Points (..., K) in the units that people read: conciseness becomes the mean length in tokens."""
    is_length = np.array(run["objectives"]) == "conciseness"
    return np.where(is_length, (1 - points) * run["max_new_tokens"], points)


# Pictures


def draw_legend(figure, handles, place):
    """Draws a legend of `handles` outside of the panels, in as many columns as the figure is wide enough for."""
    inches = [0.8 + 0.08 * len(handle.get_label()) for handle in handles]
    width = figure.get_figwidth()
    columns = len(handles) if sum(inches) < width else max(1, int(width / max(inches)))
    figure.legend(handles=handles, loc=place, ncols=columns)


def styles(runs):
    """(run, colour, marker) of each run."""
    return list(zip(runs, itertools.cycle(COLOURS), itertools.cycle(MARKERS)))


def outline(run, pair):
    """The front in the plane of two objectives: its points (N, 2) in the order of x, and with both ends at zero."""
    points = run["points"]
    corners = points[pareto_front(points[:, pair])]
    corners = corners[np.argsort(corners[:, pair[0]])]
    ends = corners[[0, *range(len(corners)), -1]]
    ends[0, pair[0]] = ends[-1, pair[1]] = 0.0
    return as_shown(run, corners)[:, pair], as_shown(run, ends)[:, pair]


def draw_steps(axes, steps, points):
    """Writes the step beside points (N, 2) that leave room: the last and, back from there, those at round steps."""
    wanted = MaxNLocator(6, integer=True).tick_values(0, steps[-1])[::-1]
    taken = [axes.transLimits.transform(point) for point in points[steps == 0]]  # in widths and heights of the panel
    for i in [-1, *np.abs(steps - wanted[:, None]).argmin(axis=1)]:
        place = axes.transLimits.transform(points[i])
        if all(np.abs(place - other).max() > 0.08 for other in taken):
            taken.append(place)
            halo = withStroke(linewidth=2.5, foreground="white")
            beside = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9, "zorder": 6}
            axes.annotate(steps[i], points[i], path_effects=[halo], **beside)


def draw_panel(axes, runs, pair):
    """Draws the runs in the plane of two objectives, pair = [index along x, index along y]: up and right are better."""
    for run, colour, marker in styles(runs):
        shown = as_shown(run, run["points"])[:, pair]
        axes.plot(*shown.T, color=colour, marker=marker, markersize=3.5, markeredgewidth=0, linewidth=0.8, alpha=0.5)
        front, start = shown[run["front"]], shown[run["steps"] == 0]
        axes.scatter(*front.T, s=50, color=colour, marker=marker, edgecolors="white", linewidths=0.8, zorder=4)
        axes.scatter(*start.T, s=220, color="black", marker="*", edgecolors="white", zorder=5)
    axes.margins(0.1)
    axes.axis(axes.axis())  # the limits follow the points, not the outline, which reaches the worst corner
    for k, axis in zip(pair, [axes.xaxis, axes.yaxis]):
        name = runs[0]["objectives"][k]
        is_length = name == "conciseness"
        axis.set_inverted(is_length)
        label = "mean length (tokens), shorter" if is_length else f"{name}, higher"
        axis.set_label_text(f"{label} is better →")
    for run, colour, _ in styles(runs):
        corners, ends = outline(run, pair)
        axes.step(*ends.T, where="pre", color=colour, linewidth=1, alpha=0.4)
        axes.step(*corners.T, where="pre", color=colour, linewidth=2, alpha=0.8)
    if len(runs) == 1:  # those of several would lie on top of one another
        axes.fill_between(*ends.T, ends[-1, 1], step="pre", color=colour, alpha=0.06, linewidth=0)
        draw_steps(axes, run["steps"], shown)


@matplotlib.rc_context(STYLE)
def plot_fronts(runs, path):
    """
    Draws the course of `runs` (of `read_run`) into the picture `path`: one panel for each pair of objectives.

    Large marks are the points that no other of the run dominates in ALL objectives. The thick line is the front in the
    panel's TWO objectives, so that large marks may lie behind it. ValueError for a single objective.
    """
    # The first of two objectives stands upright: panels of the first row share their vertical axis.
    pairs = [[x, y] for y, x in itertools.combinations(range(len(runs[0]["objectives"])), 2)]
    if not pairs:
        raise ValueError("a picture of the fronts needs two objectives or more")
    columns = min(len(pairs), 3 if len(pairs) < 10 else 4)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(max(4.6 * columns, 6.4), 4.0 * rows + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.03)
    for number, pair in enumerate(pairs, 1):
        draw_panel(figure.add_subplot(rows, columns, number), runs, pair)
    names = [Line2D([], [], label=run["name"], color=c, marker=m, linewidth=1.8) for run, c, m in styles(runs)]
    draw_legend(figure, names, "outside upper center")
    grey = {"color": "0.4", "marker": "o"}
    marks = [
        Line2D([], [], **grey, markersize=4, linewidth=0.8, alpha=0.6, label="evaluations, first to last"),
        Line2D([], [], **grey, markersize=7, linestyle="none", label="on the front (all objectives)"),
        Line2D([], [], color="0.4", linewidth=2, label="front (the two shown)"),
        Line2D([], [], color="black", linestyle="none", marker="*", markersize=13, label="initial model"),
    ]
    draw_legend(figure, marks, "outside lower center")
    figure.savefig(path, dpi=200)  # draws first: the old picture stays if that fails


def curves(run):
    """What curves.png shows of a run. Title of a panel: {key of the metrics: style of its line}."""
    colours = list(zip(run["objectives"], itertools.cycle(COLOURS)))
    panels = {
        "mean reward of the rollouts": {f"rewards/{k}/mean": {"color": c} for k, c in colours},
        "performance on the test split": {f"eval/performance/{k}": {"color": c, **ON_TEST} for k, c in colours}
        | {"eval/hypervolume": {"color": "black", **ON_TEST}},
        "mean length (tokens)": {
            "completions/mean_length": {"color": "0.5"},
            "eval/completions/mean_length": {"color": "0.5", **ON_TEST},
        },
    }
    if run["weighting"] in ("gradient", "ascent"):
        panels["weights"] = {f"weights/{k}": {"color": c} for k, c in colours}
    if run["weighting"] == "gradient":
        panels["influence, Eq. (3)"] = {f"influence/{k}": {"color": c} for k, c in colours}
    if run["weighting"] == "hypervolume":
        panels["r_pareto, Eq. (1)"] = {"r_pareto": {"color": "black"}}
    return panels


@matplotlib.rc_context(STYLE)
def plot_curves(folder):
    """Draws `folder`/curves.png, a run over its steps: rewards, evaluations, lengths, and what its weighting moves."""
    run, metrics = read_run(folder), read_metrics(folder)
    panels = curves(run)
    columns = 2 if len(panels) == 4 else 3
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * rows + 0.5), layout="constrained")
    for number, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number, title=title, xlabel="step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for key, style in lines.items():
            known = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]  # null was not finite
            axes.plot(*np.reshape(known, (-1, 2)).T, **style)
        if title == "weights":
            axes.set_ylim(0, 1)
    legend = [Line2D([], [], color=c, label=name) for name, c in zip(run["objectives"], itertools.cycle(COLOURS))]
    legend += [
        Line2D([], [], color="black", **ON_TEST, label="hypervolume so far"),
        Line2D([], [], color="0.5", label="rollouts"),
        Line2D([], [], color="0.5", **ON_TEST, label="test split, greedy"),
    ]
    draw_legend(figure, legend, "outside upper center")
    figure.savefig(Path(folder) / "curves.png", dpi=200)


# Tables


def volume(points):
    """The hypervolume of points (N, K) as a text cell."""
    return f"{hypervolume(points, np.zeros(points.shape[1])):.4f}"


def cells(run, point):
    """A point (K,) as text cells."""
    shown = zip(run["objectives"], as_shown(run, point))
    return [f"{x:.1f}" if name == "conciseness" else f"{x:.4f}" for name, x in shown]


def aligned(rows):
    """Rows of text cells as one text, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def table(runs):
    """The comparison as text: of each run the hypervolume of all points and of the last, and the best it reached."""
    best = ["shortest (tokens)" if name == "conciseness" else f"best {name}" for name in runs[0]["objectives"]]
    rows = [["run", "weighting", "front", "hypervolume", "of the last", *best]]
    for run in runs:
        points = run["points"]
        numbers = [str(run["front"].sum()), volume(points), volume(points[-1:]), *cells(run, points.max(axis=0))]
        rows.append([run["name"], run["weighting"], *numbers])
    return aligned(rows)


def before_and_after(folder):
    """What a run achieved on the test split, as text: its first and its last evaluation."""
    run = read_run(folder)
    points, steps = run["points"], run["steps"]
    names = ["length (tokens)" if name == "conciseness" else name for name in run["objectives"]]
    rows = [["test split", *names, "hypervolume", "of all so far"]]  # of this point alone, and of all up to it
    for i in sorted({0, len(points) - 1}):
        label = f"after step {steps[i]}" if steps[i] else "initial model"
        rows.append([label, *cells(run, points[i]), volume(points[i : i + 1]), volume(points[: i + 1])])
    return aligned(rows)


def what_moved(folder):
    """What a dynamic weighting did in a run, and why, as a line of text. '' for fixed weights."""
    run, steps = read_run(folder), [line for line in read_metrics(folder) if line["step"]]
    if run["weighting"] in ("gradient", "ascent") and steps:
        went = ", ".join(f"{name} {steps[-1][f'weights/{name}']:.2f}" for name in run["objectives"])
        if run["weighting"] == "ascent":
            return f"\nWeights went to {went}: the lower an objective's performance, the higher its weight"
        seen = [[line[f"influence/{name}"] for line in steps] for name in run["objectives"]]
        means = [np.mean([value for value in values if value is not None] or [0.0]) for values in seen]
        why = ", ".join(f"{mean:.2f}" for mean in means)
        return (
            f"\nWeights went to {went}: what each gradient has in common with all, its influence, was {why} on average"
        )
    if run["weighting"] == "hypervolume" and len(steps) > 1:
        scaled = [line["r_pareto"] for line in steps[1:]]  # step 1 comes before any gain
        low, median, high = np.quantile(scaled, [0.25, 0.5, 0.75])
        return f"\nr_pareto had quartiles {low:.2f}, {median:.2f}, {high:.2f}: it is 0.5 after a step without a gain"
    return ""


def summary(folder):
    """Draws `folder`/curves.png and `folder`/fronts.png and says what the run achieved, and what moved."""
    plot_curves(folder)
    plot_fronts([read_run(folder)], Path(folder) / "fronts.png")
    return before_and_after(folder) + what_moved(folder)


def main():
    parser = argparse.ArgumentParser(description="Compare the Pareto fronts of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders with args.json and metrics.jsonl")
    parser.add_argument("--output", type=Path, default=Path("fronts.png"), help="the picture (default: %(default)s)")
    args = parser.parse_args()
    try:
        runs = [read_run(folder) for folder in args.runs]
        if any(run[key] != runs[0][key] for run in runs for key in ("objectives", "max_new_tokens")):
            raise ValueError("the runs differ in objectives or max_new_tokens and cannot be compared")
        plot_fronts(runs, args.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    print(table(runs))


if __name__ == "__main__":
    main()
