"""
Pareto fronts and hypervolume: what a run on several objectives is judged by, and what the hypervolume-guided
weighting of "Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting" (arXiv:2509.11452) is
rewarded by. Every objective is maximised, in [0, 1]; the hypervolume is measured from the origin, the worst corner.
With it goes the folder of a run: its log, its pictures, and how it compares with others.

Compare finished runs (prints a table, writes fronts.png):

    python hypervolume.py runs/A runs/B
"""
import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's colours, told apart by colour-blind readers too. 6 colours and 5 markers: 30 distinct pairs.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "D", "^", "v"]


def as_matrix(points, width=None):
    """`points` as a float array (N, K), [] as one of no rows. ValueError unless finite, K >= 1 and K = `width`."""
    try:
        matrix = np.asarray(points, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("points and reference must be numbers, as many for each point") from None
    if matrix.shape == (0,):
        matrix = matrix.reshape(0, width or 1)
    if matrix.ndim != 2 or matrix.shape[1] != (width or max(matrix.shape[1], 1)):
        raise ValueError(f"points must have shape (N, {width or 'K'}), not {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("points and reference must be finite, found NaN or infinity")
    return matrix


def pareto_front(points):
    """
    The non-dominated points, maximising. points: (N, K). Returns a boolean mask (N,).

    A point is dominated by one that is at least as good in every objective and better in one. Of equal points the
    first is kept. ValueError for non-finite or mis-shaped points.
    """
    points = as_matrix(points)
    index = np.arange(len(points))
    mask = np.ones(len(points), dtype=bool)
    for i, point in enumerate(points):
        at_least_as_good = (points >= point).all(axis=1)
        better = (points > point).any(axis=1)
        mask[i] = not (at_least_as_good & (better | (index < i))).any()
    return mask


def sweep(points):
    """Volume of the union of the boxes between the origin and each point. points: (N, K), N >= 1, all positive."""
    if points.shape[1] == 1:
        return points.max()
    points = points[np.argsort(-points[:, -1])]
    thickness = points[:, -1] - np.append(points[1:, -1], 0.0)
    # Between two neighbouring heights of the last objective, the cross-section is the union of all boxes that high.
    if points.shape[1] == 2:
        return np.maximum.accumulate(points[:, 0]) @ thickness
    return sum(t * sweep(points[: i + 1, :-1]) for i, t in enumerate(thickness) if t > 0)


def hypervolume(points, reference):
    """
    Volume dominated by `points` and above `reference`, maximising: exact, for any K. points: (N, K), reference: (K,).

    A point that does not exceed the reference in every objective adds nothing; no points give 0. The unit is the
    product of the objectives' units. ValueError for non-finite or mis-shaped input. Time grows about as N^(K - 1).
    """
    reference = as_matrix([reference])[0]
    above = as_matrix(points, width=len(reference)) - reference
    above = above[(above > 0).all(axis=1)]
    above = above[pareto_front(above)]
    return float(sweep(above)) if len(above) else 0.0


class ParetoBuffer:
    """The non-dominated points seen so far. `points` is a list of lists of K floats: save and restore it as it is."""

    def __init__(self, reference):
        """reference: (K,), the point that the hypervolume is measured from. ValueError if it is not finite."""
        self.reference = as_matrix([reference])[0].tolist()
        self.points = []

    def contribution(self, point):
        """Hypervolume gained by adding `point` (K,): >= 0, exactly 0 for a dominated one. Does not add it."""
        gain = hypervolume([*self.points, point], self.reference) - hypervolume(self.points, self.reference)
        return max(0.0, gain)  # rounding may leave -1e-17 where the gain is that small

    def add(self, point):
        """Adds `point` (K,) unless it is dominated or there already, and drops the points that it dominates."""
        points = as_matrix([*self.points, point], width=len(self.reference))
        self.points = points[pareto_front(points)].tolist()


def meta_reward(delta_hv):
    """Factor on the rewards for a gain in hypervolume: 0.5 for none, up to 2. delta_hv >= 0, of the unit cube."""
    return 0.5 + 1.5 * math.tanh(delta_hv)  # Eq. (1), arXiv:2509.11452


def performance(metrics, objectives, max_new_tokens, prefix):
    """
    The point (K floats, maximised) of one evaluation. metrics: its values, their keys starting with `prefix`.

    Conciseness is one minus the mean length as a fraction of the token limit, the others are mean rewards in [0, 1]:
    the worst corner (no reward, every answer at the limit) is the origin. KeyError for a missing metric.
    """
    return [
        1 - metrics[prefix + "mean_length"] / max_new_tokens if name == "conciseness" else metrics[prefix + name]
        for name in objectives
    ]


def fail(message):
    """The answer to bad input: one line, exit code 2."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def parse(text, where):
    """The JSON object in `text`. ValueError that names `where` if there is none."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a JSON object")
    return value


def write_whole(path, write):
    """Has `write` fill a temporary path, then renames it to `path`: a reader never sees half a file or folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def read_metrics(folder):
    """The lines of `folder`/metrics.jsonl, dictionaries. OSError or ValueError for a missing or broken file."""
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [parse(line, f"line {number} of metrics.jsonl") for number, line in enumerate(lines, 1)]


def read_settings(folder, script):
    """
    The settings that a run of `script` was started with, from its folder: a dictionary.

    ValueError, in one line, for a run without a checkpoint, a missing or broken args.json, or a run of another script.
    """
    if not (Path(folder) / "checkpoint.pt").exists():
        raise ValueError(f"{folder} has no checkpoint.pt, which --checkpoint-every N writes")
    try:
        settings = parse((Path(folder) / "args.json").read_text(encoding="utf-8"), "args.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/args.json is not that of a run: {error}") from None
    if settings.get("script") != script:
        raise ValueError(f"{folder} is a run of {settings.get('script')}")
    return settings


def start_log(folder, report_to, settings, step):
    """
    Returns log(metrics), which appends the dictionary to `folder`/metrics.jsonl and reports it. Makes the folder and,
    of `settings`, its args.json.

    Of a run that is resumed after `step`, lines up to that are kept and later ones dropped: it had got further than its
    checkpoint. ValueError if one is missing, OSError if the folder cannot be written. report_to: none, tensorboard or
    wandb.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)  # a killed run may leave half a line
    steps = [parse(line, f"line {number} of metrics.jsonl").get("step") for number, line in enumerate(lines, 1)]
    kept = list(range(step + 1)) if step else []
    if steps[: len(kept)] != kept:
        raise ValueError(f"metrics.jsonl lacks a step up to {step}")
    write_whole(path, lambda temporary: temporary.write_text("".join(lines[: len(kept)]), encoding="utf-8"))
    write_whole(folder / "args.json", lambda temporary: temporary.write_text(json.dumps(settings, indent=2) + "\n"))
    if report_to == "tensorboard":
        tensorboard = importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)
    elif report_to == "wandb":
        wandb = importlib.import_module("wandb").init(project="dynamic-reward-weighting", config=settings, dir=folder)

    def log(metrics):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if report_to == "tensorboard":
            for name, value in metrics.items():
                tensorboard.add_scalar(name, value, metrics["step"])
        elif report_to == "wandb":
            wandb.log(metrics, step=metrics["step"])

    return log


def versions():
    """What a run depends on beside its arguments: library versions and the commit of this file's repository."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "datasets", "numpy")}
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {"versions": {"python": platform.python_version(), **found}, "git_commit": commit or None}


def read_run(folder):
    """
    Reads the evaluations on the test split from `folder`/args.json and `folder`/metrics.jsonl.

    Returns a dictionary: name, weighting, objectives (K names), max_new_tokens, steps (N,), points (N, K) as of
    `performance`. Step 0 is the initial model. ValueError, in one line, for a missing, empty or broken folder.
    """
    folder = Path(folder)
    try:
        args = parse((folder / "args.json").read_text(encoding="utf-8"), "args.json")
        run = {key: args[key] for key in ("weighting", "objectives", "max_new_tokens")}
        evaluations = [m for m in read_metrics(folder) if "eval/hypervolume" in m]
        points = [performance(m, run["objectives"], run["max_new_tokens"], "eval/") for m in evaluations]
        run["points"] = as_matrix(points, width=len(run["objectives"]))
        run["steps"] = np.array([m["step"] for m in evaluations])
    except OSError as error:
        raise ValueError(f"{folder}: cannot read {Path(error.filename).name}: {error.strerror}") from None
    except KeyError as error:
        raise ValueError(f"{folder}: args.json or metrics.jsonl lacks {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{folder}: broken args.json or metrics.jsonl: {error}") from None
    if not evaluations:
        raise ValueError(f"{folder}: metrics.jsonl holds no evaluation on the test split")
    return {"name": folder.resolve().name, **run}


def as_shown(points, objectives, max_new_tokens):
    """Points (N, K) in the units that people read: conciseness becomes the mean length in tokens."""
    is_length = np.array([name == "conciseness" for name in objectives])
    return np.where(is_length, (1 - points) * max_new_tokens, points)


def styles(runs):
    """(run, colour, marker) of each run."""
    return list(zip(runs, itertools.cycle(COLOURS), itertools.cycle(MARKERS)))


def draw_panel(axes, runs, pair):
    """Draws the runs in the plane of two objectives, pair = [index along x, index along y]: up and right are better."""
    units = [runs[0]["objectives"][k] for k in pair], runs[0]["max_new_tokens"]
    for run, colour, marker in styles(runs):
        shown = as_shown(run["points"][:, pair], *units)
        front, start = shown[pareto_front(run["points"])], shown[run["steps"] == 0]
        axes.scatter(*shown.T, s=16, color=colour, marker=marker, alpha=0.35, linewidths=0, zorder=3)
        axes.scatter(*front.T, s=50, color=colour, marker=marker, edgecolors="white", linewidths=0.8, zorder=4)
        axes.scatter(*start.T, s=220, color="black", marker="*", edgecolors="white", zorder=5)
    axes.axis(axes.axis())  # the limits follow the points, not the outline, which reaches the worst corner
    for run, colour, _ in styles(runs):
        corners = run["points"][:, pair]
        corners = corners[pareto_front(corners)]
        corners = corners[np.argsort(corners[:, 0])]
        outline = np.vstack([[0.0, corners[0, 1]], corners, [corners[-1, 0], 0.0]])
        axes.step(*as_shown(outline, *units).T, where="pre", color=colour, linewidth=1, alpha=0.4)
        axes.step(*as_shown(corners, *units).T, where="pre", color=colour, linewidth=2)
    for name, axis in zip(units[0], [axes.xaxis, axes.yaxis]):
        is_length = name == "conciseness"
        axis.set_inverted(is_length)
        axis.set_label_text(
            "mean length (tokens), shorter is better →" if is_length else f"{name} (mean reward), higher is better →"
        )
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_legends(figure, runs, columns):
    """The runs above the panels, what the marks mean below."""
    names = [Line2D([], [], label=run["name"], color=c, marker=m, linewidth=1.8) for run, c, m in styles(runs)]
    marks = [
        Line2D([], [], color="0.4", linestyle="none", marker="o", markersize=4, alpha=0.5, label="evaluation"),
        Line2D([], [], color="0.4", linestyle="none", marker="o", markersize=7, label="on the front (all objectives)"),
        Line2D([], [], color="0.4", linewidth=1.8, label="front (the two shown)"),
        Line2D([], [], color="black", linestyle="none", marker="*", markersize=13, label="initial model"),
    ]
    figure.legend(handles=names, loc="outside upper center", ncols=2 * columns, frameon=False, fontsize="large")
    figure.legend(handles=marks, loc="outside lower center", ncols=2 * columns, frameon=False)


def plot_fronts(runs, path):
    """
    Writes a PNG to `path`: one panel for each pair of objectives, with all evaluations of `runs` (of `read_run`).

    Large marks are the points that no other of the run dominates in ALL objectives. The line is the front in the
    panel's TWO objectives, so that large marks may lie behind it. ValueError for a single objective.
    """
    path = Path(path)
    # The first of two objectives stands upright: panels of the first row share their vertical axis.
    pairs = [[x, y] for y, x in itertools.combinations(range(len(runs[0]["objectives"])), 2)]
    if not pairs:
        raise ValueError("a picture of the fronts needs two objectives or more")
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(max(4.6 * columns, 5.6), 4.0 * rows + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.03)
    for number, pair in enumerate(pairs, 1):
        draw_panel(figure.add_subplot(rows, columns, number), runs, pair)
    draw_legends(figure, runs, columns)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=200))


def plot_curves(folder):
    """Writes `folder`/curves.png, a run over its steps: rewards, evaluations, lengths, weights and what moves them."""
    run, metrics = read_run(folder), read_metrics(folder)
    objectives, is_scaled = run["objectives"], run["weighting"] == "hypervolume"
    colours = dict(zip(objectives, itertools.cycle(COLOURS)))
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = {  # title: what it shows, as key of the metrics: (label, style)
        "mean reward of the rollouts": {
            f"rewards/{k}/mean": (k, {"color": c, "alpha": 0.9}) for k, c in colours.items()},
        "test split, greedy": {
            **{f"eval/{k}": (k, {"color": c, "marker": "o"}) for k, c in colours.items()},
            "eval/hypervolume": ("hypervolume so far", {"color": "black", "marker": "o", "linestyle": "--"})},
        "mean length (tokens)": {
            "completions/mean_length": ("rollouts", {"color": "black"}),
            "eval/mean_length": ("test split, greedy", {"color": "0.5", "marker": "o", "linestyle": "--"})},
        "weights": {f"weights/{k}": (k, {"color": c}) for k, c in colours.items()},
        "influence, Eq. (3)": {f"influence/{k}": (k, {"color": c, "alpha": 0.9}) for k, c in colours.items()},
        "r_pareto, Eq. (1)": {"meta_reward": ("factor on the step's signal", {"color": "black"})} if is_scaled else {},
    }
    for axes, (title, lines) in zip(figure.subplots(2, 3, sharex=True).flat, panels.items()):
        axes.set_title(title)
        axes.grid(color="0.92", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for key, (label, style) in lines.items():
            shown = [(m["step"], m[key]) for m in metrics if key in m]
            if shown:
                axes.plot(*zip(*shown), label=label, **style)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            axes.text(0.5, 0.5, "not used by this weighting", ha="center", transform=axes.transAxes)
    figure.axes[3].set_ylim(0, 1)
    figure.axes[5].set_ylim(0, 2.1)
    for axes in figure.axes[3:]:
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
    write_whole(Path(folder) / "curves.png", lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def aligned(rows):
    """Rows of text cells as one text, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def table(runs):
    """The comparison as text: size of the front, hypervolume of all evaluations, best of each objective."""
    objectives = runs[0]["objectives"]
    best = ["shortest (tokens)" if name == "conciseness" else f"best {name}" for name in objectives]
    rows = [["run", "weighting", "front", "hypervolume", *best]]
    for run in runs:
        points = run["points"]
        shown = as_shown(points.max(axis=0), objectives, run["max_new_tokens"])
        cells = [f"{x:.1f}" if name == "conciseness" else f"{x:.4f}" for name, x in zip(objectives, shown)]
        volume = hypervolume(points, np.zeros(len(objectives)))
        rows.append([run["name"], str(run["weighting"]), str(pareto_front(points).sum()), f"{volume:.4f}", *cells])
    return aligned(rows)


def before_and_after(folder):
    """What a run achieved on the test split, as text: its first and its last evaluation."""
    run = read_run(folder)
    shown = as_shown(run["points"], run["objectives"], run["max_new_tokens"])
    names = ["length (tokens)" if name == "conciseness" else name for name in run["objectives"]]
    rows = [["test split", *names, "hypervolume"]]
    for i, label in [(0, "initial model"), (len(shown) - 1, f"after step {run['steps'][-1]}")]:
        cells = [f"{x:.1f}" if name == "conciseness" else f"{x:.4f}" for name, x in zip(run["objectives"], shown[i])]
        rows.append([label, *cells, f"{hypervolume(run['points'][: i + 1], np.zeros(len(names))):.4f}"])
    return aligned(rows)


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
    except OSError as error:
        fail(f"cannot write {args.output}: {error.strerror}")
    except ValueError as error:
        fail(error)
    print(table(runs))


if __name__ == "__main__":
    main()
