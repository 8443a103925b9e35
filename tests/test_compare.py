"""Reading the folders of runs, tables, pictures and the command line. Run: python -m pytest tests"""

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
ARGS = {"weighting": "fixed", "objectives": ["accuracy", "conciseness", "clarity"], "max_new_tokens": 100, "seed": 1}


def evaluation(step, *point, objectives=ARGS["objectives"]):
    """The line of an evaluation at `point`, with metrics that must not be taken for its coordinates."""
    own = {f"eval/performance/{name}": value for name, value in zip(objectives, point)}
    others = {"eval/accuracy": 0.9, "eval/rewards/conciseness/mean": 0.123, "val/performance/accuracy": 0.9}
    return {"step": step, "eval/hypervolume": 0.1, "eval/completions/mean_length": 33.0, **others, **own}


RUN_A = [evaluation(0, 0.1, 0.1, 0.1), {"step": 1, "loss": 0.5, "rewards/accuracy/mean": 0.9},
         evaluation(2, 0.5, 0.5, 0.5), evaluation(4, 0.4, 0.8, 0.5)]  # fmt: skip
RUN_B = [evaluation(0, 0.1, 0.1, 0.1), evaluation(2, 0.2, 0.7, 0.9)]


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
    """The figures that are made, in a coarse resolution, which takes less time."""
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
    assert [run[key] for key in ("name", "weighting", "max_new_tokens")] == ["A", "fixed", 100]
    assert run["objectives"] == ARGS["objectives"]
    assert run["steps"].tolist() == [0, 2, 4]
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


def test_evaluations_that_hold_null_are_left_out(runs):
    run = compare.read_run(write_run(runs / "C", [*RUN_A, evaluation(6, 0.5, None, 0.5)]))
    assert run["steps"].tolist() == [0, 2, 4]


def test_a_folder_whose_name_is_not_text_can_be_shown(runs):
    assert compare.read_run(write_run(runs / "A\udcff", RUN_A))["name"] == "A?"


# Tables


def test_before_and_after_are_the_first_and_the_last_evaluation(runs):
    header, before, after = compare.before_and_after(runs / "A").splitlines()
    assert " ".join(header.split()) == "test split accuracy length (tokens) clarity hypervolume of all so far"
    assert before.split() == ["initial", "model", "0.1000", "90.0", "0.1000", "0.0010", "0.0010"]
    # The last point alone is 0.4 * 0.8 * 0.5. All three: 0.5^3 and, beyond it, 0.4 * (0.8 - 0.5) * 0.5.
    assert after.split() == ["after", "step", "4", "0.4000", "20.0", "0.5000", "0.1600", "0.1850"]
    assert header.index("of all") == before.rindex("0.0010") == after.index("0.1850")


def test_a_run_of_no_step_has_one_row(runs):
    text = compare.summary(write_run(runs / "C", RUN_A[:1]))
    assert [line.split()[0] for line in text.splitlines()] == ["test", "initial"]


def test_command_line_prints_the_table_and_writes_the_picture(runs):
    before = files(runs.parent)
    arguments = [sys.executable, ROOT / "compare.py", "runs/A", "runs/B"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    header, a, b = done.stdout.splitlines()
    assert header.split("  ")[0] == "run" and header.index("hypervolume") == a.index("0.1850")
    # B is one point: 0.2 * 0.7 * 0.9.
    assert a.split() == ["A", "fixed", "2", "0.1850", "0.1600", "0.5000", "20.0", "0.5000"]
    assert b.split() == ["B", "hypervolume", "1", "0.1260", "0.1260", "0.2000", "30.0", "0.9000"]
    after = files(runs.parent)
    assert after.keys() - before.keys() == {runs.parent / "fronts.png"} and before.items() <= after.items()
    assert after[runs.parent / "fronts.png"].startswith(b"\x89PNG\r\n\x1a\n")


def test_output_option(runs, monkeypatch, capsys):
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "--output", "picture.png")
    assert (code, err, len(out.splitlines())) == (0, "", 2)
    assert files(runs.parent).keys() - before.keys() == {runs.parent / "picture.png"}


# Pictures


def test_fronts_show_every_pair_with_up_and_right_better(runs, figures):
    compare.plot_fronts([compare.read_run(runs / name) for name in "AB"], runs / "picture.png")
    axes = figures[0].axes
    length = "mean length (tokens), shorter is better →"
    accuracy, clarity = (f"{name}, higher is better →" for name in ("accuracy", "clarity"))
    labels = [(a.get_xlabel(), a.get_ylabel()) for a in axes]
    assert labels == [(length, accuracy), (clarity, accuracy), (clarity, length)]
    assert [(a.xaxis_inverted(), a.yaxis_inverted()) for a in axes] == [(True, False), (False, False), (False, True)]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["A", "B"]
    assert not any(a.texts for a in axes)  # steps are written beside the points of a single run


def test_fronts_show_the_way_the_front_and_the_initial_model(runs, figures):
    compare.plot_fronts([compare.read_run(runs / "A")], runs / "picture.png")
    first, second, _ = figures[0].axes
    way, outline, corners = (line.get_xydata() for line in first.lines)
    front, start = (marks.get_offsets() for marks in first.collections[:2])
    np.testing.assert_allclose(way, [[90.0, 0.1], [50.0, 0.5], [20.0, 0.4]])
    np.testing.assert_allclose(front, [[50.0, 0.5], [20.0, 0.4]])
    np.testing.assert_allclose(start, [[90.0, 0.1]])
    np.testing.assert_allclose(corners, [[50.0, 0.5], [20.0, 0.4]])
    # The outline joins the front to the worst corner without stretching the axes to it.
    np.testing.assert_allclose(outline, [[100.0, 0.5], [50.0, 0.5], [20.0, 0.4], [20.0, 0.0]])
    assert max(first.get_xlim()) < 100 and min(first.get_ylim()) > 0
    assert {text.get_text(): text.xy[0] for text in first.texts} == pytest.approx({"2": 50.0, "4": 20.0})
    # Both points are on the front of the three objectives, one on that of clarity and accuracy.
    assert len(second.collections[0].get_offsets()) == 2
    np.testing.assert_allclose(second.lines[2].get_xydata(), [[0.5, 0.5]])


def test_steps_are_written_where_there_is_room(runs, figures):
    points = [(t, t, t**2) for t in [*np.linspace(0, 0.96, 61), *np.linspace(0.961, 1, 40)]]  # fast, then slow
    lines = [evaluation(step, *point) for step, point in enumerate(points)]
    compare.plot_fronts([compare.read_run(write_run(runs / "C", lines))], runs / "picture.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["100", "40", "20"]


@pytest.mark.parametrize("k", [2, 4, 5])
def test_fronts_of_any_number_of_objectives(runs, figures, k):
    names = [f"objective {i}" for i in range(k)]
    lines = [evaluation(step, *np.linspace(0.1, 0.1 * step, k), objectives=names) for step in range(5)]
    compare.plot_fronts([compare.read_run(write_run(runs / "C", lines, objectives=names))], runs / "picture.png")
    assert len(figures[0].axes) == k * (k - 1) / 2


def test_curves_show_the_numbers_of_the_metrics(runs, figures):
    steps = [{"step": 1, "rewards/accuracy/mean": 0.5, "weights/accuracy": 0.4, "influence/accuracy": -1.0},
             {"step": 2, "rewards/accuracy/mean": None, "weights/accuracy": 0.3, "influence/accuracy": None},
             {"step": 3, "rewards/accuracy/mean": 0.7, "completions/mean_length": 44.0}]  # fmt: skip
    folder = write_run(runs / "C", [RUN_A[0], *steps, RUN_A[-1]], weighting="gradient")
    compare.plot_curves(folder)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = {axes.get_title(): [line.get_xydata().tolist() for line in axes.lines] for axes in figures[0].axes}
    assert lines == {
        "mean reward of the rollouts": [[[1, 0.5], [3, 0.7]], [], []],
        "performance on the test split": [
            [[0, 0.1], [4, 0.4]], [[0, 0.1], [4, 0.8]], [[0, 0.1], [4, 0.5]], [[0, 0.1], [4, 0.1]],
        ],
        "mean length (tokens)": [[[3, 44]], [[0, 33], [4, 33]]],
        "weights": [[[1, 0.4], [2, 0.3]], [], []],
        "influence, Eq. (3)": [[[1, -1]], [], []],
    }  # fmt: skip


def test_curves_show_what_the_weighting_uses(runs, figures):
    line = {"step": 1, "r_pareto": 0.7, "weights/accuracy": 0.3}
    for weighting in ("fixed", "hypervolume"):
        compare.plot_curves(write_run(runs / "C", [RUN_A[0], line], weighting=weighting))
    fixed, hypervolume = ({axes.get_title(): axes for axes in figure.axes} for figure in figures)
    assert hypervolume.keys() - fixed.keys() == {"r_pareto, Eq. (1)"}
    assert hypervolume["r_pareto, Eq. (1)"].lines[0].get_xydata().tolist() == [[1, 0.7]]
    assert len(fixed) == 3


@pytest.mark.parametrize("name", ["cost $a$ b", "_x^{_", r"a\$\frac$", "%s {0} & #", "$$"])
def test_names_are_shown_as_they_are(runs, figures, name):
    """Two dollar signs would be read as a formula, and a broken one is an error."""
    names = [name, "other"]
    lines = [evaluation(step, 0.1 * step, 0.3, objectives=names) for step in range(3)]
    folder = write_run(runs / name, lines, objectives=names)
    with warnings.catch_warnings(action="error"):
        compare.summary(folder)
    curves, fronts = figures
    label = fronts.axes[0].yaxis.label
    texts = [curves.legends[0].get_texts()[0], fronts.legends[0].get_texts()[0], label]
    assert [text.get_text() for text in texts] == [name, name, f"{name}, higher is better →"]
    assert not any(text.get_parse_math() for text in texts)


def test_a_failed_picture_leaves_the_old_one_and_nothing_else(runs, monkeypatch):
    (runs / "picture.png").write_text("old")
    before = files(runs)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(compare.Figure, "draw", fail)
    with pytest.raises(MemoryError):
        compare.plot_fronts([compare.read_run(runs / "A")], runs / "picture.png")
    assert files(runs) == before


def test_summary_draws_both_pictures(runs):
    text = compare.summary(runs / "A")
    assert text == compare.before_and_after(runs / "A")
    assert {path.name for path in files(runs / "A")} == {"args.json", "metrics.jsonl", "curves.png", "fronts.png"}


# Bad input

BROKEN_RUNS = {
    "missing folder": lambda folder: [path.unlink() for path in files(folder)] and folder.rmdir(),
    "no metrics": lambda folder: (folder / "metrics.jsonl").unlink(),
    "empty metrics": lambda folder: (folder / "metrics.jsonl").write_text(""),
    "no evaluation": lambda folder: write_run(folder, [{"step": 1, "loss": 0.5}]),
    "half a line": lambda folder: (folder / "metrics.jsonl").write_text(json.dumps(RUN_A[0]) + '\n{"step": 2, "ev'),
    "a line that is no object": lambda folder: write_run(folder, [RUN_A[0], [1]]),
    "not text": lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"),
    "NaN": lambda folder: write_run(folder, [evaluation(0, math.nan, 0.5, 0.5)]),
    "all null": lambda folder: write_run(folder, [evaluation(0, None, 0.5, 0.5)]),
    "words": lambda folder: write_run(folder, [evaluation(0, "good", 0.5, 0.5)]),
    "an objective missing": lambda folder: write_run(folder, [evaluation(0, 0.5, 0.5)]),
    "no step": lambda folder: write_run(folder, [{k: v for k, v in RUN_A[0].items() if k != "step"}]),
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
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "runs/B")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("compare.py: error: " + ("the runs differ" if name.startswith("other") else "runs/B: "))
    assert files(runs.parent) == before


def test_one_objective_has_no_fronts(runs, monkeypatch, capsys):
    write_run(runs / "A", RUN_A, objectives=["accuracy"])
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "two objectives" in err
    assert files(runs.parent) == before


@pytest.mark.parametrize("output", ["nowhere/fronts.png", "fronts.unknown"])
def test_an_output_that_cannot_be_written_exits_with_one_line(runs, monkeypatch, capsys, output):
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "--output", output)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("compare.py: error: ")
    assert files(runs.parent) == before


def test_what_moved_is_said_of_dynamic_weightings(runs):
    names = ARGS["objectives"]
    lines = [RUN_A[0]]
    for step, (w, I, r) in enumerate(zip([(0.3, 0.3, 0.4), (0.5, 0.2, 0.3)], [(1, 2, 3), (2, 2, None)], [1.0, 0.8]), 1):
        lines.append({"step": step, "r_pareto": r})
        lines[-1] |= {f"weights/{name}": value for name, value in zip(names, w)}
        lines[-1] |= {f"influence/{name}": value for name, value in zip(names, I)}
    text = compare.what_moved(write_run(runs / "C", lines, weighting="gradient"))
    assert "accuracy 0.50, conciseness 0.20, clarity 0.30" in text and "1.50, 2.00, 3.00" in text
    assert text.count("\n") == 1
    text = compare.what_moved(write_run(runs / "E", lines, weighting="ascent"))
    assert text.startswith("\nWeights went to ") and "influence" not in text
    lines += [{"step": 3, "r_pareto": 0.6}, {"step": 4, "r_pareto": 1.0}]
    text = compare.what_moved(write_run(runs / "D", lines, weighting="hypervolume"))
    assert "0.70, 0.80, 0.90" in text  # of .6, .8 and 1: that of step 1 comes before any gain
    assert compare.what_moved(runs / "A") == ""
