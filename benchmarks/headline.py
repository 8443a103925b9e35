"""
The README's first picture: the three weightings from the same start, over the steps and in the space of objectives.

    for weighting in fixed hypervolume gradient; do
        python grpo_dynw.py --weighting $weighting --output-dir runs/$weighting
    done
    python benchmarks/headline.py runs/fixed runs/hypervolume runs/gradient

The runs must be of fixed, hypervolume and gradient weighting, in this order.
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

LINES = ["--", ":", "-"]  # of the three weightings; the colours here are of the objectives
COURSES = {"weights/{}": "weights", "rewards/{}/mean": "mean reward of the rollouts"}


def smooth(values, width=5):
    """Running means, over fewer values at both ends."""
    return [sum(part) / len(part) for part in (values[max(0, i - width) : i + width + 1] for i in range(len(values)))]


@matplotlib.rc_context(STYLE)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("runs", nargs=3, type=Path, help="folders of runs: fixed, hypervolume, gradient")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/headline.png", help="the picture")
    args = parser.parse_args()
    runs, metrics = [read_run(folder) for folder in args.runs], [read_metrics(folder)[1:] for folder in args.runs]
    names, colours = runs[0]["objectives"], COLOURS[3:]

    figure = Figure(figsize=(13, 7.6), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, (key, title) in zip(panels[0], COURSES.items()):
        axes.set_title(title)
        for line, lines in zip(LINES, metrics):
            for name, colour in zip(names, colours):
                values = [step[key.format(name)] for step in lines]
                if "rewards" in key:
                    values = smooth(values)
                axes.plot([step["step"] for step in lines], values, line, color=colour, linewidth=1.6)
    panels[0, 0].set_ylim(0, 1)
    panels[0, 2].set_title("r_pareto of hypervolume-guided weighting")
    panels[0, 2].plot([step["step"] for step in metrics[1]], [step["r_pareto"] for step in metrics[1]], "k:")
    for axes in panels[0]:
        axes.set_xlabel("step")
    for axes, pair in zip(panels[1], ([1, 0], [2, 0], [2, 1])):
        draw_panel(axes, runs, pair)
    legend = [Line2D([], [], color=colour, label=name) for name, colour in zip(names, colours)]
    legend += [Line2D([], [], color="0.3", linestyle=line, label=run["weighting"]) for line, run in zip(LINES, runs)]
    figure.legend(handles=legend, loc="outside upper center", ncols=6)
    marks = [
        Line2D([], [], color=colour, marker=marker, label=run["weighting"]) for run, colour, marker in styles(runs)
    ]
    star = {"color": "black", "linestyle": "none", "marker": "*", "markersize": 12}
    figure.legend(handles=[*marks, Line2D([], [], **star, label="initial model")], loc="outside lower center", ncols=4)
    figure.savefig(args.output, dpi=130)


if __name__ == "__main__":
    main()
