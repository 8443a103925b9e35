"""Tests of compare.py: reading runs, tables, pictures and the command line. Run: python -m pytest tests"""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import compare

ROOT = Path(__file__).resolve().parents[1]
ARGS = {
    "weighting": "fixed",
    "objectives": ["accuracy", "conciseness", "clarity"],
    "max_new_tokens": 100,
    "seed": 1,
}


def evaluation(step, *point, length=33.0, objectives=ARGS["objectives"]):
    """A line of metrics with an evaluation at `point`, and with other metrics of similar names."""
    performance = {f"eval/performance/{name}": value for name, value in zip(objectives, point)}
    similar = {"eval/accuracy": 0.9, "eval/rewards/conciseness/mean": 0.1, "val/performance/accuracy": 0.9}
    similar |= {"completions/mean_length": 55.0, "val/completions/mean_length": 66.0}
    line = {"step": step, "eval/hypervolume": 0.1, "eval/completions/mean_length": length}
    return line | similar | performance


RUN_A = [
    evaluation(0, 0.1, 0.1, 0.1, length=88.0),
    {"step": 1, "loss": 0.5, "rewards/accuracy/mean": 0.9},
    evaluation(2, 0.5, 0.5, 0.5),
    evaluation(4, 0.4, 0.8, 0.5, length=22.04),
]
RUN_B = [evaluation(0, 0.1, 0.1, 0.1, length=88.0), evaluation(2, 0.2, 0.7, 0.9)]


def write_run(folder, metrics, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({**ARGS, **changes}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "A", RUN_A)
    write_run(tmp_path / "runs" / "B", RUN_B, weighting="hypervolume")
    return tmp_path / "runs"


@pytest.fixture
def figures(monkeypatch):
    """Records the figures that are made, and saves them in a coarse resolution to save time."""
    made = []

    class Recorded(compare.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

        def savefig(self, path, **_):
            super().savefig(path, dpi=20)

    monkeypatch.setattr(compare, "Figure", Recorded)
    return made


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(monkeypatch, capsys, *arguments):
    """Runs the command line in this process. Returns its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    try:
        compare.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


# Reading


def test_read_run_keeps_the_evaluations_on_the_test_split(runs):
    run = compare.read_run(runs / "A")
    keys = ["name", "weighting", "objectives", "limit", "steps", "lengths", "points", "front"]
    assert sorted(run) == sorted(keys)
    assert [run[key] for key in ("name", "weighting", "limit")] == ["A", "fixed", 100]
    assert run["objectives"] == ARGS["objectives"]
    assert run["steps"].tolist() == [0, 2, 4]
    assert run["lengths"].tolist() == [88.0, 33.0, 22.04]
    assert run["points"].tolist() == [[0.1, 0.1, 0.1], [0.5, 0.5, 0.5], [0.4, 0.8, 0.5]]
    assert run["front"].tolist() == [False, True, True]
    assert compare.read_metrics(runs / "A") == RUN_A


def test_objectives_may_have_the_names_of_other_metrics(runs):
    names = ["length", "mean_length", "hypervolume", "completions/mean_length", "step"]
    points = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.5, 0.4, 0.3, 0.2]]
    lines = [evaluation(step, *point, objectives=names) for step, point in enumerate(points)]
    folder = write_run(runs / "C", lines, objectives=names)
    assert compare.read_run(folder)["points"].tolist() == points
    assert "0.6000  0.5000" in compare.summary(folder).splitlines()[2]


def test_evaluations_that_contain_null_are_left_out(runs):
    lines = [*RUN_A, evaluation(6, 0.5, None, 0.5), evaluation(8, 0.5, 0.5, 0.5, length=None)]
    folder = write_run(runs / "C", lines)
    assert compare.read_run(folder)["steps"].tolist() == [0, 2, 4]
    assert "after step 4" in compare.summary(folder)


# Tables


def test_before_and_after_are_the_first_and_the_last_evaluation(runs):
    header, first, last = compare.before_and_after(runs / "A").splitlines()
    columns = "test split accuracy conciseness clarity length (tokens) hypervolume hypervolume so far"
    assert " ".join(header.split()) == columns
    assert first.split() == ["initial", "model", "0.1000", "0.1000", "0.1000", "88.0", "0.0010", "0.0010"]
    # The last point alone is 0.4 * 0.8 * 0.5. All three: 0.5^3 and, beyond it, 0.4 * (0.8 - 0.5) * 0.5.
    assert last.split() == ["after", "step", "4", "0.4000", "0.8000", "0.5000", "22.0", "0.1600", "0.1850"]
    assert header.index("hypervolume so far") == first.rindex("0.0010") == last.index("0.1850")


@pytest.mark.parametrize("weighting", ["fixed", "hypervolume", "gradient", "nash"])
def test_a_run_without_steps_has_one_row(runs, weighting):
    text = compare.summary(write_run(runs / "C", RUN_A[:1], weighting=weighting))
    assert [line.split()[0] for line in text.splitlines()] == ["test", "initial"]


def test_the_last_line_of_a_run_depends_on_its_weighting(runs):
    steps = [{"step": i, "r_pareto": r_pareto} for i, r_pareto in enumerate([1.0, 0.8, 0.6, 1.0], 1)]
    for line, weights in zip(steps, [(0.3, 0.3, 0.4), (0.4, 0.3, 0.3), (0.4, 0.4, 0.2), (0.5, 0.2, 0.3)]):
        line |= {f"weights/{name}": weight for name, weight in zip(ARGS["objectives"], weights)}

    lines = [RUN_A[0], *steps]
    final_weights = "\nFinal weights: accuracy 0.50, conciseness 0.20, clarity 0.30"
    # The quartiles are those of 0.8, 0.6 and 1: step 1 has no hypervolume contribution to use.
    quartiles = "\nQuartiles of the meta reward r_pareto: 0.70, 0.80, 0.90"
    expected = {"fixed": "", "gradient": final_weights, "nash": final_weights, "hypervolume": quartiles}
    for weighting, last_line in expected.items():
        folder = write_run(runs / weighting, lines, weighting=weighting)
        assert compare.summary(folder) == compare.before_and_after(folder) + last_line


def test_command_line_prints_the_table_and_writes_the_picture(runs):
    files_before = files(runs.parent)
    arguments = [sys.executable, ROOT / "compare.py", "runs/A", "runs/B"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    header, a, b, note = done.stdout.splitlines()
    assert header.split("  ")[0] == "run" and header.index("hypervolume") == a.index("0.1850")
    columns = "last hypervolume best accuracy best conciseness best clarity last length (tokens)"
    assert " ".join(header.split()).endswith(columns)
    assert a.split() == ["A", "fixed", "2", "0.1850", "0.1600", "0.5000", "0.8000", "0.5000", "22.0"]
    # The front of B is one point: 0.2 * 0.7 * 0.9.
    assert b.split() == ["B", "hypervolume", "1", "0.1260", "0.1260", "0.2000", "0.7000", "0.9000", "33.0"]
    assert note == "The Pareto fronts are drawn in fronts.png"

    files_after = files(runs.parent)
    assert files_after.keys() - files_before.keys() == {runs.parent / "fronts.png"}
    assert files_before.items() <= files_after.items()
    assert files_after[runs.parent / "fronts.png"].startswith(b"\x89PNG\r\n\x1a\n")


def test_output_option(runs, monkeypatch, capsys):
    files_before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "--output", "picture.png")
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    assert out.endswith("\nThe Pareto fronts are drawn in picture.png\n")
    assert files(runs.parent).keys() - files_before.keys() == {runs.parent / "picture.png"}


# Pictures


def test_fronts_show_every_pair_with_up_and_right_better(runs, figures):
    compare.plot_fronts([compare.read_run(runs / name) for name in "AB"], runs / "picture.png")
    axes = figures[0].axes
    accuracy, conciseness, clarity = (f"{name}, higher is better →" for name in ARGS["objectives"])
    labels = [(a.get_xlabel(), a.get_ylabel()) for a in axes]
    assert labels == [(conciseness, accuracy), (clarity, accuracy), (clarity, conciseness)]
    assert not any(a.xaxis_inverted() or a.yaxis_inverted() for a in axes)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["A", "B"]
    assert not any(a.texts for a in axes)  # steps are written beside the points of a single run


def test_fronts_show_the_evaluations_the_front_and_the_initial_model(runs, figures):
    compare.plot_fronts([compare.read_run(runs / "A")], runs / "picture.png")
    first, second, _ = figures[0].axes
    path, outline, corners = (line.get_xydata() for line in first.lines)
    front, start = (marks.get_offsets() for marks in first.collections[:2])
    np.testing.assert_allclose(path, [[0.1, 0.1], [0.5, 0.5], [0.8, 0.4]])
    np.testing.assert_allclose(front, [[0.5, 0.5], [0.8, 0.4]])
    np.testing.assert_allclose(start, [[0.1, 0.1]])
    np.testing.assert_allclose(corners, [[0.5, 0.5], [0.8, 0.4]])
    # The outline joins the front to the axes without extending the panel to 0.
    np.testing.assert_allclose(outline, [[0, 0.5], [0.5, 0.5], [0.8, 0.4], [0.8, 0]])
    assert min(first.get_xlim()) > 0 and min(first.get_ylim()) > 0
    assert {text.get_text(): text.xy[0] for text in first.texts} == pytest.approx({"2": 0.5, "4": 0.8})
    # Both points are on the front of the three objectives, one is on that of clarity and accuracy.
    assert len(second.collections[0].get_offsets()) == 2
    np.testing.assert_allclose(second.lines[2].get_xydata(), [[0.5, 0.5]])


def test_the_corners_of_a_front_are_drawn_from_left_to_right(runs, figures):
    points = [(0.2, 0.9, 0), (0.8, 0.1, 0), (0.5, 0.6, 0)]
    lines = [evaluation(step, *point) for step, point in enumerate(points)]
    compare.plot_fronts([compare.read_run(write_run(runs / "C", lines))], runs / "picture.png")
    corners = figures[0].axes[0].lines[2].get_xydata()
    np.testing.assert_allclose(corners, [[0.1, 0.8], [0.6, 0.5], [0.9, 0.2]])


def test_steps_are_written_where_there_is_room(runs, figures):
    # Fast, then slow. All points are on the front but for step 40.
    points = [(t, 1 - t, t**2) for t in [*np.linspace(0, 0.96, 61), *np.linspace(0.961, 1, 40)]]
    points[40] = tuple(x - 0.05 for x in points[40])
    lines = [evaluation(step, *point) for step, point in enumerate(points)]
    compare.plot_fronts([compare.read_run(write_run(runs / "C", lines))], runs / "picture.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["100", "39", "20"]


@pytest.mark.parametrize("k", [2, 4, 8])
def test_fronts_of_any_number_of_objectives(runs, figures, k):
    names = [f"objective {i}" for i in range(k)]
    lines = [evaluation(step, *np.linspace(0.1, 0.1 * step, k), objectives=names) for step in range(5)]
    compare.plot_fronts(
        [compare.read_run(write_run(runs / "C", lines, objectives=names))], runs / "picture.png"
    )
    assert len(figures[0].axes) == k * (k - 1) / 2


def test_eight_objectives_have_eight_colours(runs, figures):
    names = [f"objective {i}" for i in range(8)]
    lines = [evaluation(step, *[0.1] * 8, objectives=names) for step in (0, 2)]
    compare.plot_curves(write_run(runs / "C", lines, objectives=names))
    performance = figures[0].axes[1].lines
    assert len(performance) == 9 and len({line.get_color() for line in performance}) == 9


def test_curves_show_the_numbers_of_the_metrics(runs, figures):
    steps = [
        {"step": 1, "rewards/accuracy/mean": 0.5, "weights/accuracy": 0.4, "influence/accuracy": -1.0},
        {"step": 2, "rewards/accuracy/mean": None, "weights/accuracy": 0.3, "influence/accuracy": None},
        {"step": 3, "rewards/accuracy/mean": 0.7, "completions/mean_length": 44.0},
    ]
    folder = write_run(runs / "C", [RUN_A[0], *steps, RUN_A[-1]], weighting="gradient")
    compare.plot_curves(folder)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = {
        axes.get_title(): [line.get_xydata().tolist() for line in axes.lines] for axes in figures[0].axes
    }
    assert lines == {
        "mean reward of the rollouts": [[[1, 0.5], [3, 0.7]], [], []],
        "performance on the test split": [
            [[0, 0.1], [4, 0.4]], [[0, 0.1], [4, 0.8]], [[0, 0.1], [4, 0.5]], [[0, 0.1], [4, 0.1]],
        ],
        "mean length (tokens)": [[[0, 55], [3, 44], [4, 55]], [[0, 88], [4, 22.04]]],
        "weights": [[[1, 0.4], [2, 0.3]], [], []],
        "influence, Eq. (3)": [[[1, -1]], [], []],
    }  # fmt: skip


def test_curves_show_the_metrics_of_the_weighting(runs, figures):
    line = {"step": 1, "r_pareto": 0.7, "weights/accuracy": 0.3}
    for weighting in ("fixed", "hypervolume", "nash", "gradient"):
        compare.plot_curves(write_run(runs / "C", [RUN_A[0], line], weighting=weighting))
    fixed, hypervolume, nash, gradient = ({axes.get_title(): axes for axes in f.axes} for f in figures)
    assert len(fixed) == 3
    assert hypervolume.keys() - fixed.keys() == {"meta reward r_pareto, Eq. (1)"}
    assert hypervolume["meta reward r_pareto, Eq. (1)"].lines[0].get_xydata().tolist() == [[1, 0.7]]
    assert nash.keys() - fixed.keys() == {"weights"}
    assert gradient.keys() - fixed.keys() == {"weights", "influence, Eq. (3)"}


def test_the_axis_of_steps_has_whole_numbers(runs, figures):
    compare.plot_curves(write_run(runs / "C", RUN_A[:1]))
    assert all((ticks == ticks.round()).all() for ticks in [axes.get_xticks() for axes in figures[0].axes])


@pytest.mark.parametrize("name", ["cost $a$ b", "_x^{_", r"a\$\frac$", "%s {0} & #", "$$"])
def test_names_are_shown_as_they_are(runs, figures, name):
    """matplotlib would read text between two dollar signs as a formula, and fail for a broken one."""
    names = [name, "other"]
    lines = [evaluation(step, 0.1 * step, 0.3, objectives=names) for step in range(3)]
    folder = write_run(runs / name, lines, objectives=names)
    with warnings.catch_warnings(action="error"):
        assert "No pictures" not in compare.summary(folder)
    curves, fronts = figures
    label = fronts.axes[0].yaxis.label
    texts = [curves.legends[0].get_texts()[0], fronts.legends[0].get_texts()[0], label]
    assert [text.get_text() for text in texts] == [name, name, f"{name}, higher is better →"]
    assert not any(text.get_parse_math() for text in texts)


def test_a_failed_picture_leaves_the_old_one_and_nothing_else(runs, monkeypatch):
    (runs / "picture.png").write_text("old")
    files_before = files(runs)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(compare.Figure, "draw", fail)
    with pytest.raises(MemoryError):
        compare.plot_fronts([compare.read_run(runs / "A")], runs / "picture.png")
    assert files(runs) == files_before


def test_pictures_that_cannot_be_drawn_leave_the_results(runs, monkeypatch):
    """For instance, a user's matplotlibrc may ask for a font that is missing."""
    expected = compare.summary(runs / "A")

    def fail(*_):
        raise RuntimeError("Failed to process string with tex\nbecause latex could not be found")

    monkeypatch.setattr(compare, "plot_curves", fail)
    reason = "No pictures: Failed to process string with tex because latex could not be found"
    assert compare.summary(runs / "A") == f"{expected}\n{reason}"


def test_a_matplotlibrc_that_asks_for_latex_does_not_matter(runs):
    with compare.matplotlib.rc_context({"text.usetex": True}):
        assert "No pictures" not in compare.summary(runs / "A")


def test_summary_draws_both_pictures(runs):
    text = compare.summary(runs / "A")
    assert "No pictures" not in text
    assert text == compare.before_and_after(runs / "A")
    assert {path.name for path in files(runs / "A")} == {
        "args.json",
        "metrics.jsonl",
        "curves.png",
        "fronts.png",
    }


# Bad input


def without(key, line):
    return {k: value for k, value in line.items() if k != key}


BROKEN_RUNS = {
    "missing folder": lambda folder: [path.unlink() for path in files(folder)] and folder.rmdir(),
    "no metrics": lambda folder: (folder / "metrics.jsonl").unlink(),
    "empty metrics": lambda folder: (folder / "metrics.jsonl").write_text(""),
    "no evaluation": lambda folder: write_run(folder, [{"step": 1, "loss": 0.5}]),
    "half a line": lambda folder: (folder / "metrics.jsonl").write_text(json.dumps(RUN_A[0]) + '\n{"step": '),
    "a line that is no object": lambda folder: write_run(folder, [RUN_A[0], [1]]),
    "not text": lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"),
    "NaN": lambda folder: write_run(folder, [evaluation(0, math.nan, 0.5, 0.5)]),
    "all null": lambda folder: write_run(folder, [evaluation(0, None, 0.5, 0.5)]),
    "words": lambda folder: write_run(folder, [evaluation(0, "good", 0.5, 0.5)]),
    "an objective missing": lambda folder: write_run(folder, [evaluation(0, 0.5, 0.5)]),
    "no length": lambda folder: write_run(folder, [without("eval/completions/mean_length", RUN_A[0])]),
    "no step": lambda folder: write_run(folder, [without("step", RUN_A[0])]),
    "broken args": lambda folder: (folder / "args.json").write_text("{"),
    "args that are no object": lambda folder: (folder / "args.json").write_text("[]"),
    "args without objectives": lambda folder: (folder / "args.json").write_text('{"max_new_tokens": 100}'),
    "no objectives": lambda folder: write_run(folder, RUN_A, objectives=[]),
    "objectives not a list": lambda folder: write_run(folder, RUN_A, objectives=3),
    "other objectives": lambda folder: write_run(folder, RUN_A, objectives=["accuracy", "clarity"]),
    "other limit": lambda folder: write_run(folder, RUN_A, max_new_tokens=200),
}


@pytest.mark.parametrize("name", BROKEN_RUNS)
def test_broken_runs_exit_with_one_line_and_write_nothing(runs, monkeypatch, capsys, name):
    BROKEN_RUNS[name](runs / "B")
    files_before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "runs/B")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(
        "compare.py: error: " + ("the runs differ" if name.startswith("other") else "runs/B: ")
    )
    assert files(runs.parent) == files_before


@pytest.mark.parametrize("key", ["step", "eval/completions/mean_length", "eval/performance/clarity"])
def test_a_missing_key_is_named(runs, key):
    write_run(runs / "A", [without(key, RUN_A[0])])
    with pytest.raises(ValueError, match=f"A: args.json or metrics.jsonl lacks '{key}'$"):
        compare.read_run(runs / "A")


def test_one_objective_has_no_fronts(runs, monkeypatch, capsys):
    write_run(runs / "A", RUN_A, objectives=["accuracy"])
    files_before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "two objectives" in err
    assert files(runs.parent) == files_before


@pytest.mark.parametrize("output", ["nowhere/fronts.png", "fronts.unknown"])
def test_an_output_that_cannot_be_written_exits_with_one_line(runs, monkeypatch, capsys, output):
    files_before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "--output", output)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("compare.py: error: ")
    assert files(runs.parent) == files_before
