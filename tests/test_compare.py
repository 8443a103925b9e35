"""Protects compare.py: it reads runs rightly, and tables and pictures show what they measured."""

import itertools
import json
import sys
import warnings

import numpy as np
import pytest
from matplotlib import colors, image

import compare

NAMES = ["accuracy", "conciseness", "clarity"]
SETTINGS = {"weighting": "fixed", "objectives": NAMES, "max_new_tokens": 100}


def evaluation(step, *point, names=NAMES):
    """A line of metrics with an evaluation at `point`, and with other metrics of similar names."""
    line = {"step": step, "eval/hypervolume": 0.1, "eval/completions/mean_length": 33.0}
    line |= {"val/performance/accuracy": 0.9, "completions/mean_length": 55.0}
    return line | {f"eval/performance/{name}": x for name, x in zip(names, point)}


POINTS = [[0.51, 0.51, 0.51], [0.53, 0.53, 0.53], [0.52, 0.54, 0.53]]
RUN = [evaluation(2 * i, *point) for i, point in enumerate(POINTS)]


def write_run(folder, metrics=RUN, **changes):
    """Writes a run and returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "args.json").write_text(json.dumps(SETTINGS | changes))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def grid_run(folder, seed, K):
    """Writes and reads a run of nine evaluations on a grid, some of them equal."""
    names = [rf"objective-{k}_$\frac$" for k in range(K)]  # no formula
    points = np.random.default_rng(seed).integers(1, 6, (9, K)) / 10
    lines = [evaluation(5 * i, *point, names=names) for i, point in enumerate(points.tolist())]
    return compare.read_run(write_run(folder, lines, objectives=names))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, save = [], compare.save
    monkeypatch.setattr(compare, "save", lambda *args: (saved.append(args[0]), save(*args)))
    return saved


def test_evaluations_with_null_are_left_out(tmp_path):
    lines = [*RUN, {"step": 5}, evaluation(6, 0.5, None, 0.5)]
    run = compare.read_run(write_run(tmp_path, lines))
    assert compare.read_metrics(tmp_path) == lines
    assert run["points"].tolist() == POINTS and run["steps"].tolist() == [0, 2, 4]


# Tables


def grid_volume(points):
    """The hypervolume of points on a grid of 0.1, from the number of dominated cells."""
    corners = np.rint(10 * np.array(points))
    cells = itertools.product(range(10), repeat=corners.shape[1])
    return sum((corners > cell).all(axis=1).any() for cell in cells) / 10 ** corners.shape[1]


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_tables_by_brute_force(tmp_path, seed, K):
    """Of equal points, the first is on the front."""
    run = grid_run(tmp_path, seed, K)
    points, steps = run["points"].tolist(), []
    for i, point in enumerate(points):
        better = [other for other in points if other != point and np.greater_equal(other, point).all()]
        steps += [] if better or point in points[:i] else [5 * i]

    front = [len(steps), min(steps), round(sum(steps) / len(steps), 1)]
    last = [*points[-1], 33.0, np.prod(points[-1]), grid_volume(points)]
    first = [*points[0], 33.0, np.prod(points[0]), np.prod(points[0])]
    rows = [compare.table([run]).splitlines()[1], *compare.before_and_after(tmp_path).splitlines()[1:]]
    for row, numbers in zip(rows, ([*front, *last], first, [40, *last]), strict=True):
        np.testing.assert_allclose([float(cell) for cell in row.split()[2:]], numbers, atol=6e-5)


WEIGHTINGS = {"fixed": [], "gradient": [0.5, 0.2], "nash": [0.5, 0.2], "hypervolume": [0.7, 0.8, 0.9]}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_results_of_a_weighting(tmp_path, weighting):
    """Quartiles are those of 0.8, 0.6 and 1, because step 1 has no contribution to use."""
    settings = {"weighting": weighting, "objectives": NAMES[:2]}
    steps = [{"step": i, "r_pareto": x} for i, x in enumerate([5.0, 0.8, 0.6, 1.0], 1)]
    steps[-1] |= {"weights/accuracy": 0.5, "weights/conciseness": 0.2}
    folder = write_run(tmp_path, [RUN[0], *steps], **settings)
    words = compare.summary(folder).removeprefix(compare.before_and_after(folder)).split()
    assert [float(word.strip("[],")) for word in words if "0." in word] == WEIGHTINGS[weighting]
    assert {path.name for path in folder.glob("*.png")} == {"curves.png", "fronts.png"}
    write_run(folder, RUN[:1], **settings)
    assert compare.summary(folder) == compare.before_and_after(folder)


def test_summary_never_fails(tmp_path, monkeypatch):
    compare.summary(tmp_path)
    table = compare.before_and_after(write_run(tmp_path))
    monkeypatch.setattr(compare, "plot_curves", lambda *_: 1 / 0)
    assert compare.summary(tmp_path).startswith(table)


# Pictures


@pytest.mark.parametrize("number, K", [(1, 2), (2, 3), (5, 4), (8, 2), (40, 2)])
def test_legend_and_panels(tmp_path, figures, number, K):
    runs = [grid_run(tmp_path / rf"grpo-hypervolume-$\frac$-120000-{i}", i, K) for i in range(number)]
    with warnings.catch_warnings(action="error"):
        compare.plot_fronts(runs, tmp_path / "x.png")
    (figure,) = figures
    legend = figure.legends[0].get_window_extent()
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [run["name"] for run in runs]
    assert len(panels) == K * (K - 1) / 2 and min(panel.height for panel in panels) > 2 * figure.dpi
    assert not any(legend.overlaps(panel) for panel in panels)
    assert any(axes.texts for axes in figure.axes) == (number == 1)

    # The picture holds the legend, whose texts scale only roughly, and all colours.
    picture = image.imread(tmp_path / "x.png")[..., :3]
    assert picture.shape[0] / 150 > 0.98 * legend.y1 / figure.dpi
    assert {line.get_color() for line in figure.axes[0].lines} == {*compare.COLOURS[:number]}
    for colour in compare.COLOURS[:number]:
        assert (abs(picture - colors.to_rgb(colour)).max(axis=2) < 0.01).sum() > 50


def test_fronts(tmp_path, figures):
    run = compare.read_run(write_run(tmp_path))
    compare.plot_fronts([run], tmp_path / "x.png")
    first, second, _ = figures[0].axes
    path, corners = [line.get_xydata().tolist() for line in first.lines]
    front, start = [marks.get_offsets().tolist() for marks in first.collections]
    assert (first.get_xlabel(), first.get_ylabel()) == ("conciseness", "accuracy")
    assert path == [[0.51, 0.51], [0.53, 0.53], [0.54, 0.52]]
    assert front == corners == path[1:] and start == path[:1]
    assert first.lines[1].get_drawstyle() == "steps-pre"  # down, then right
    # Both points are on the front of all objectives, one is on that of clarity and accuracy.
    assert len(second.collections[0].get_offsets()) == 2 and len(second.lines[1].get_xydata()) == 1
    assert [(text.get_text(), *text.xy) for text in first.texts] == [("2", 0.53, 0.53), ("4", 0.54, 0.52)]


@pytest.mark.parametrize("weighting, key", [("gradient", "influence/clarity"), ("hypervolume", "r_pareto")])
def test_curves_show_the_metrics(tmp_path, figures, weighting, key):
    lines = [*RUN, {"step": 5, "weights/clarity": None, key: 0.7}, {"step": 6, "weights/clarity": 0.2}]
    compare.plot_curves(compare.read_run(write_run(tmp_path, lines, weighting=weighting)), tmp_path / "x.png")
    curves = [axes.lines[-1].get_xydata().tolist() for axes in figures[0].axes if axes.lines]
    assert curves[0] == [[0, 0.51], [2, 0.53], [4, 0.53]] and curves[-2:] == [[[6, 0.2]], [[5, 0.7]]]


# Bad input


BROKEN = {
    "": "metrics.jsonl",
    '{"step": ': "metrics.jsonl",
    json.dumps(evaluation(0, 0.5)): "metrics.jsonl",
    json.dumps(evaluation(0, None, 0.5, 0.5)): "metrics.jsonl",
    json.dumps(SETTINGS | {"objectives": NAMES[:2]}): "args.json",
    json.dumps(SETTINGS | {"max_new_tokens": 2}): "args.json",
}
CASES = [(text, "broken") for text in BROKEN]
CASES += [("", "missing"), ("", "--output=nowhere/x.png"), ("", "--output=x.unknown")]


@pytest.mark.parametrize("text, path", CASES)
def test_bad_input_is_named_in_one_line(tmp_path, monkeypatch, capsys, text, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(write_run(tmp_path / "A")), path])
    (write_run(tmp_path / "broken") / BROKEN[text]).write_text(text)
    with pytest.raises(SystemExit) as stop:
        compare.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert path.removeprefix("--output=") in err
