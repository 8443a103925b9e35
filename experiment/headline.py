"""
The README's first picture: three runs with one weighting each, over the steps and in the space of objectives.

    for weighting in fixed hypervolume gradient; do
        python grpo_dynw.py --weighting $weighting --output-dir runs/$weighting
    done
    python experiment/headline.py runs/fixed runs/hypervolume runs/gradient
"""

import argparse
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from compare import COLOURS, STYLE, draw_panel, read_metrics, read_run, styles  # noqa: E402

WEIGHTINGS = ["fixed", "hypervolume", "gradient"]
LINE_STYLES = ["--", ":", "-"]  # of WEIGHTINGS, in the upper panels


def smooth(values, width=5):
    """Means of each value and up to `width` values on either side of it."""
    windows = (values[max(0, i - width) : i + width + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def draw_objectives(axes, key, title, metrics, objectives, width=0):
    """Draws a metric of each objective (colour) and run (line style), smoothed over `width` values."""
    for line_style, steps in zip(LINE_STYLES, metrics):
        for name, colour in zip(objectives, COLOURS[3:]):
            values = smooth([step[key.format(name)] for step in steps], width)
            axes.plot([step["step"] for step in steps], values, line_style, color=colour, linewidth=1.6)
    axes.set(title=title, xlabel="step")


def draw(runs, metrics):
    """The picture of three runs (see `read_run`). metrics: a list of dictionaries for each run."""
    objectives = runs[0]["objectives"]
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    draw_objectives(upper[0], "weights/{}", "weights", metrics, objectives)
    upper[0].set_ylim(0, 1)
    draw_objectives(upper[1], "rewards/{}/mean", "mean reward of the rollouts", metrics, objectives, width=5)
    upper[2].plot([step["step"] for step in metrics[1]], [step["r_pareto"] for step in metrics[1]], "k:")
    upper[2].set(title="meta reward (hypervolume)", xlabel="step", ylabel="r_pareto")
    for axes, pair in zip(lower, ([1, 0], [2, 0], [2, 1])):
        draw_panel(axes, runs, pair)

    handles = [Line2D([], [], color=colour, label=name) for name, colour in zip(objectives, COLOURS[3:])]
    for line_style, weighting in zip(LINE_STYLES, WEIGHTINGS):
        handles.append(Line2D([], [], color="0.3", linestyle=line_style, label=weighting))
    figure.legend(handles=handles, loc="outside upper center", ncols=6)
    handles = [
        Line2D([], [], color=colour, marker=marker, label=run["weighting"])
        for run, colour, marker in styles(runs)
    ]
    star = {"color": "black", "linestyle": "none", "marker": "*", "markersize": 12}
    handles.append(Line2D([], [], **star, label="initial model"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "runs", nargs=3, type=Path, help="folders of a fixed, a hypervolume and a gradient run"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "experiment/headline.png", help="the picture")
    args = parser.parse_args()
    runs = [read_run(folder) for folder in args.runs]
    if [run["weighting"] for run in runs] != WEIGHTINGS:
        parser.error(f"runs: give a run of each weighting, in the order {', '.join(WEIGHTINGS)}")
    metrics = [read_metrics(folder)[1:] for folder in args.runs]  # without step 0, the initial model
    draw(runs, metrics).savefig(args.output, dpi=130)


if __name__ == "__main__":
    main()
