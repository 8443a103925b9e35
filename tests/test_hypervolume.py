"""Pareto fronts, hypervolume, the buffer, Eq. (1) and the command line. Run: python -m pytest tests"""
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import moocore
import numpy as np
import pytest

import hypervolume as module
from hypervolume import (
    ParetoBuffer, before_and_after, hypervolume, meta_reward, pareto_front, performance, plot_curves, plot_fronts,
    read_run, write_whole,
)

ROOT = Path(__file__).resolve().parents[1]
# Inputs and outputs of the functions in the paper authors' repository, at commit 238fe65.
ORACLE = json.loads((ROOT / "tests" / "data" / "numeric.json").read_text())


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b)) and any(x > y for x, y in zip(a, b))


# Hypervolume


@pytest.mark.parametrize("case", ORACLE["hypervolume"])
def test_hypervolume_of_the_authors(case):
    assert hypervolume(case["points"], case["reference"]) == pytest.approx(case["hypervolume"], rel=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "sphere", "ties"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_hypervolume_against_moocore(k, kind):
    rng = np.random.default_rng(k)
    for n in (1, 2, 7, 15):
        points = rng.uniform(size=(n, k))
        if kind == "sphere":  # all on the front
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        if kind == "ties":
            points = np.round(points, 1)
        for reference in (np.zeros(k), np.full(k, 0.3), rng.uniform(-1, 0.6, size=k)):
            above = points[(points > reference).all(axis=1)]  # moocore is asked only about points that count
            expected = moocore.hypervolume(above, ref=reference, maximise=True) if len(above) else 0.0
            assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_hypervolume_of_two_hundred_points_against_moocore():
    points = np.abs(np.random.default_rng(0).normal(size=(200, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    expected = moocore.hypervolume(points, ref=np.zeros(3), maximise=True)
    assert hypervolume(points, np.zeros(3)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_hypervolume_counts_the_cells_of_integer_grids(k):
    rng = np.random.default_rng(k)
    for n in (1, 3, 8):
        points = rng.integers(-1, 5, size=(n, k))  # with ties, duplicates and points below the reference
        cells = itertools.product(range(1, 5), repeat=k)
        count = sum(any(all(p >= cell) for p in points) for cell in map(np.array, cells))
        assert hypervolume(points, np.zeros(k)) == count


def test_hypervolume_is_not_changed_by_duplicates_or_dominated_points_or_order():
    points, reference = [[0.2, 0.9, 0.4], [0.7, 0.3, 0.5], [0.6, 0.6, 0.6]], [0.1, 0.1, 0.1]
    volume = hypervolume(points, reference)
    assert hypervolume(points + points, reference) == volume
    assert hypervolume([[0.5, 0.5, 0.5], *points, [0.6, 0.6, 0.2]], reference) == volume
    for order in itertools.permutations(points):
        assert hypervolume(order, reference) == pytest.approx(volume, rel=1e-12)


def test_points_not_above_the_reference_add_nothing():
    reference = [0.5, 0.5]
    assert hypervolume([], reference) == 0
    assert hypervolume(np.zeros((0, 2)), reference) == 0
    assert hypervolume([reference], reference) == 0
    assert hypervolume([[0.9, 0.5], [0.1, 0.9], [0.1, 0.1]], reference) == 0
    assert hypervolume([[0.9, 0.5], [0.1, 0.9], [0.1, 0.1], [0.7, 0.6]], reference) == pytest.approx(0.2 * 0.1)


BROKEN_POINTS = [[0.5, math.nan], [0.5, math.inf], [0.5], [0.5] * 3, [[0.5, 0.5]], 0.5, ["a", "b"], None]


@pytest.mark.parametrize("point", BROKEN_POINTS)
def test_broken_points_are_refused_in_one_line(point):
    buffer = ParetoBuffer([0, 0])
    buffer.add([0.4, 0.4])
    for call in (lambda: hypervolume([[0.4, 0.4], point], [0, 0]), lambda: hypervolume([point], [0, 0]),
                 lambda: buffer.add(point), lambda: buffer.contribution(point),
                 lambda: pareto_front([[0.4, 0.4], point])):
        with pytest.raises(ValueError, match="^points .*$") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert buffer.points == [[0.4, 0.4]]
    with pytest.raises(ValueError):
        ParetoBuffer([0, 0]).add([0.5] * 3)


def test_a_single_point_must_stand_in_a_list():
    with pytest.raises(ValueError, match="shape"):
        hypervolume([0.5, 0.5], [0, 0])


@pytest.mark.parametrize("reference", [[], 0.5, [0.5, math.nan], [0.5, math.inf], [[0.5, 0.5]], [0.5], ["a", "b"]])
def test_broken_references_are_refused_in_one_line(reference):
    with pytest.raises(ValueError) as caught:
        hypervolume([[0.9, 0.9]], reference)
    assert "\n" not in str(caught.value)


# Pareto front


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pareto_front_against_brute_force(k):
    rng = np.random.default_rng(k)
    for n in (1, 2, 5, 20):
        points = rng.integers(0, 4, size=(n, k)).tolist()
        expected = [
            not any(dominates(other, point) for other in points) and point not in points[:i]
            for i, point in enumerate(points)
        ]
        mask = pareto_front(points)
        assert mask.dtype == bool
        assert mask.tolist() == expected


def test_pareto_front_keeps_the_first_of_duplicates():
    assert pareto_front([[0, 0], [1, 2], [2, 1], [1, 2], [1, 1], [2, 1]]).tolist() == [False, True, True] + [False] * 3
    assert pareto_front([]).tolist() == []


# Buffer and Eq. (1)


@pytest.mark.parametrize("case", ORACLE["meta_reward"])
def test_meta_reward_of_the_authors(case):
    """
    In raw units (lengths in tokens), with the sign of minimised coordinates flipped. Ours differs from the authors' in
    two ways. Theirs is a difference of two hypervolumes, which leaves some 1e-13 for a dominated point: ours is exactly
    0. All these points exceed the reference in every coordinate: for one that does not, ours is 0, never negative.
    """
    sign = np.where(case["maximise"], 1, -1)
    point = sign * case["point"]
    buffer = ParetoBuffer(sign * case["reference"])
    for seen in case["buffer"]:
        buffer.add(sign * seen)
    delta_hv = buffer.contribution(point)
    assert delta_hv == pytest.approx(case["delta_hv"], rel=1e-12, abs=1e-12)
    assert meta_reward(delta_hv) == pytest.approx(case["r_pareto"], rel=1e-12)
    if any(dominates(sign * seen, point) for seen in case["buffer"]):
        assert delta_hv == 0

    worse = point.copy()
    worse[0] = sign[0] * case["reference"][0] - 0.01
    assert buffer.contribution(worse) == 0


def test_meta_reward_runs_from_a_half_to_two():
    assert meta_reward(0.0) == 0.5
    assert meta_reward(0.1) == pytest.approx(0.5 + 1.5 * 0.09966799462495582)
    assert meta_reward(100.0) == 2.0


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_contributions_are_differences_and_sum_to_the_hypervolume(k):
    rng = np.random.default_rng(k)
    reference = np.full(k, 0.2)
    buffer, seen, total = ParetoBuffer(reference), [], 0.0
    for point in np.round(rng.uniform(size=(25, k)), 1).tolist():  # with ties, duplicates, points below the reference
        contribution = buffer.contribution(point)
        gain = hypervolume([*seen, point], reference) - hypervolume(seen, reference)
        assert contribution >= 0
        assert contribution == pytest.approx(gain, abs=1e-12)
        before = [list(p) for p in buffer.points]
        seen.append(point)
        total += contribution
        assert buffer.points == before  # asking changes nothing
        buffer.add(point)
        assert buffer.points == np.array(seen)[pareto_front(seen)].tolist()
        assert buffer.contribution(point) == 0
    assert total == pytest.approx(hypervolume(seen, reference), rel=1e-12)


def test_buffer_points_are_plain_lists_and_can_be_restored():
    buffer = ParetoBuffer(np.zeros(2))
    for point in (np.array([0.2, 0.8]), (0.8, 0.2), [0.1, 0.1], [0.9, 0.3], [0.9, 0.3]):
        buffer.add(point)
    assert buffer.points == [[0.2, 0.8], [0.9, 0.3]]
    assert type(buffer.points) is list and {type(p) for p in buffer.points} == {list}
    assert {type(x) for p in buffer.points for x in p} == {float}
    restored = ParetoBuffer([0, 0])
    restored.points = json.loads(json.dumps(buffer.points))
    assert restored.contribution([0.5, 0.9]) == buffer.contribution([0.5, 0.9]) > 0


# Runs


def evaluation(step, accuracy, length, clarity):
    return {"step": step, "eval/accuracy": accuracy, "eval/mean_length": length, "eval/clarity": clarity,
            "eval/conciseness": 0.123, "eval/hypervolume": 0.1}


ARGS = {"objectives": ["accuracy", "conciseness", "clarity"], "max_new_tokens": 100, "weighting": "fixed", "seed": 1}
RUN_A = [evaluation(0, 0.1, 90.0, 0.1), {"step": 1, "train/loss": 0.5}, {"step": 1, "val/accuracy": 0.9},
         evaluation(2, 0.5, 50.0, 0.5), evaluation(4, 0.4, 20.0, 0.5)]
RUN_B = [evaluation(0, 0.1, 90.0, 0.1), evaluation(2, 0.2, 30.0, 0.9)]


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


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def command(monkeypatch, capsys, *arguments):
    """Runs the command line in this process. Returns its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["hypervolume.py", *map(str, arguments)])
    try:
        module.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_performance_is_in_maximised_coordinates():
    metrics = {"val/accuracy": 0.25, "val/mean_length": 30, "val/clarity": 0.75, "eval/accuracy": 0.9}
    assert performance(metrics, ["clarity", "conciseness", "accuracy"], 120, "val/") == [0.75, 0.75, 0.25]
    worst = {"accuracy": 0.0, "mean_length": 120, "clarity": 0.0}
    assert performance(worst, ARGS["objectives"], 120, "") == [0, 0, 0]
    with pytest.raises(KeyError):
        performance(metrics, ["clarity"], 120, "eval/")


def test_read_run_keeps_the_evaluations_on_the_test_split(runs):
    run = read_run(runs / "A")
    assert [run[key] for key in ("name", "weighting", "max_new_tokens")] == ["A", "fixed", 100]
    assert run["objectives"] == ARGS["objectives"]
    assert run["steps"].tolist() == [0, 2, 4]
    np.testing.assert_allclose(run["points"], [[0.1, 0.1, 0.1], [0.5, 0.5, 0.5], [0.4, 0.8, 0.5]])


def test_command_line_prints_the_table_and_writes_the_picture(runs):
    done = subprocess.run([sys.executable, ROOT / "hypervolume.py", "runs/A", "runs/B"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    header, a, b = done.stdout.splitlines()
    assert header.split("  ")[0] == "run" and header.index("hypervolume") == a.index("0.1850") == b.index("0.1260")
    # A: 0.5^3 and, beyond it, 0.4 * 0.5 * (0.8 - 0.5). B: 0.2 * 0.7 * 0.9.
    assert a.split() == ["A", "fixed", "2", "0.1850", "0.5000", "20.0", "0.5000"]
    assert b.split() == ["B", "hypervolume", "1", "0.1260", "0.2000", "30.0", "0.9000"]
    assert files(runs.parent) == [runs.parent / "fronts.png", *files(runs)]
    assert (runs.parent / "fronts.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_output_option(runs, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "runs/A", "--output", "picture.png")
    assert (code, err, len(out.splitlines())) == (0, "", 2)
    assert files(runs.parent) == [runs.parent / "picture.png", *files(runs)]


def drawn(monkeypatch, plot, *args):
    """The axes of the figure that plot(*args) makes."""
    figures = []

    class Recorded(module.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(module, "Figure", Recorded)
    plot(*args)
    return figures[0].axes


def panels(monkeypatch, path, *folders):
    """The axes of the picture, one a panel."""
    return drawn(monkeypatch, plot_fronts, [read_run(folder) for folder in folders], path)


def test_picture_shows_every_pair_with_up_and_right_better(runs, monkeypatch):
    axes = panels(monkeypatch, runs / "picture.png", runs / "A", runs / "B")
    assert [(a.get_xlabel().split(",")[0], a.get_ylabel().split(",")[0]) for a in axes] == [
        ("mean length (tokens)", "accuracy (mean reward)"),
        ("clarity (mean reward)", "accuracy (mean reward)"),
        ("clarity (mean reward)", "mean length (tokens)"),
    ]
    assert [(a.xaxis_inverted(), a.yaxis_inverted()) for a in axes] == [(True, False), (False, False), (False, True)]


def test_picture_marks_the_front_and_the_initial_model(runs, monkeypatch):
    first, second, _ = panels(monkeypatch, runs / "picture.png", runs / "A")
    points, front, start = (marks.get_offsets().tolist() for marks in first.collections)
    assert points == pytest.approx(np.array([[90.0, 0.1], [50.0, 0.5], [20.0, 0.4]]))
    assert front == pytest.approx(np.array([[50.0, 0.5], [20.0, 0.4]]))
    assert start == pytest.approx(np.array([[90.0, 0.1]]))
    assert first.lines[1].get_xydata() == pytest.approx(np.array([[50.0, 0.5], [20.0, 0.4]]))
    # Both points are on the front of the three objectives, one on that of clarity and accuracy.
    assert len(second.collections[1].get_offsets()) == 2
    assert second.lines[1].get_xydata() == pytest.approx(np.array([[0.5, 0.5]]))
    # The outline joins the front to the worst corner without stretching the axes to it.
    assert first.lines[0].get_xydata() == pytest.approx(np.array([[100.0, 0.5], [50.0, 0.5], [20.0, 0.4], [20.0, 0.0]]))
    assert max(first.get_xlim()) < 100 and min(first.get_ylim()) > 0


def test_picture_needs_two_objectives(runs):
    run = read_run(write_run(runs / "one", RUN_A, objectives=["accuracy"]))
    with pytest.raises(ValueError, match="two objectives"):
        plot_fronts([run], runs / "picture.png")


def test_a_failed_picture_leaves_the_old_one_and_nothing_else(runs, monkeypatch):
    picture = runs / "picture.png"
    picture.write_text("old")
    before = files(runs)

    def fail(self, path, **_):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Figure, "savefig", fail)
    with pytest.raises(OSError):
        plot_fronts([read_run(runs / "A")], picture)
    assert files(runs) == before and picture.read_text() == "old"


def curves(monkeypatch, folder):
    """The axes of curves.png, by title."""
    return {axes.get_title(): axes for axes in drawn(monkeypatch, plot_curves, folder)}


def test_curves_show_the_numbers_of_the_metrics(runs, monkeypatch):
    steps = [{"step": 1, "rewards/accuracy/mean": 0.5, "weights/accuracy": 0.4, "influence/accuracy": -1.0},
             {"step": 2, "rewards/accuracy/mean": 0.7, "weights/accuracy": 0.3, "influence/accuracy": 2.0}]
    folder = write_run(runs / "C", [RUN_A[0], *steps, RUN_A[-1]])
    panels = curves(monkeypatch, folder)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = {(title, line.get_label()): line.get_xydata().tolist() for title, a in panels.items() for line in a.lines}
    assert lines[("mean reward of the rollouts", "accuracy")] == [[1, 0.5], [2, 0.7]]
    assert lines[("weights", "accuracy")] == [[1, 0.4], [2, 0.3]]
    assert lines[("influence, Eq. (3)", "accuracy")] == [[1, -1], [2, 2]]
    assert lines[("test split, greedy", "clarity")] == [[0, 0.1], [4, 0.5]]
    assert lines[("mean length (tokens)", "test split, greedy")] == [[0, 90], [4, 20]]
    assert not panels["r_pareto, Eq. (1)"].lines and "not used" in panels["r_pareto, Eq. (1)"].texts[0].get_text()


def test_before_and_after_are_the_first_and_the_last_evaluation(runs):
    header, before, after = before_and_after(runs / "A").splitlines()
    assert header.split() == "test split accuracy length (tokens) clarity hypervolume".split()
    # The first: 0.1^3. The last: all three so far, 0.5^3 and, beyond it, 0.4 * 0.5 * (0.8 - 0.5).
    assert before.split() == ["initial", "model", "0.1000", "90.0", "0.1000", "0.0010"]
    assert after.split() == ["after", "step", "4", "0.4000", "20.0", "0.5000", "0.1850"]


def test_write_whole_replaces_files_and_folders_and_leaves_no_rest(tmp_path):
    def write_folder(text):
        return lambda path: (path.mkdir(), (path / "x").write_text(text))

    for text in ("one", "two"):
        write_whole(tmp_path / "file", lambda path: path.write_text(text))
        write_whole(tmp_path / "folder", write_folder(text))
        assert [path.read_text() for path in files(tmp_path)] == [text, text]

    def fail(path):
        path.mkdir()
        (path / "x").write_text("half")
        raise OSError

    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", fail)
    assert [path.read_text() for path in files(tmp_path)] == ["two", "two"]
    assert len(list(tmp_path.iterdir())) == 2


BROKEN_RUNS = {
    "missing folder": lambda folder: [path.unlink() for path in files(folder)] and folder.rmdir(),
    "empty folder": lambda folder: [path.unlink() for path in files(folder)],
    "no metrics": lambda folder: (folder / "metrics.jsonl").unlink(),
    "empty metrics": lambda folder: (folder / "metrics.jsonl").write_text(""),
    "no evaluation": lambda folder: write_run(folder, [{"step": 1, "train/loss": 0.5}]),
    "half a line": lambda folder: (folder / "metrics.jsonl").write_text(json.dumps(RUN_A[0]) + '\n{"step": 2, "ev'),
    "a line that is no object": lambda folder: write_run(folder, [RUN_A[0], [1]]),
    "not text": lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"),
    "NaN": lambda folder: write_run(folder, [evaluation(0, math.nan, 5, 0.5)]),
    "null": lambda folder: write_run(folder, [evaluation(0, None, 5, 0.5)]),
    "no length": lambda folder: write_run(folder, [{"step": 0, "eval/hypervolume": 0, "eval/accuracy": 0}]),
    "no step": lambda folder: write_run(folder, [{k: v for k, v in RUN_A[0].items() if k != "step"}]),
    "broken args": lambda folder: (folder / "args.json").write_text("{"),
    "args that are no object": lambda folder: (folder / "args.json").write_text("[]"),
    "args without objectives": lambda folder: (folder / "args.json").write_text('{"max_new_tokens": 100}'),
    "no objectives": lambda folder: write_run(folder, RUN_A, objectives=[]),
    "objectives not a list": lambda folder: write_run(folder, RUN_A, objectives=3),
    "no token": lambda folder: write_run(folder, RUN_A, max_new_tokens=0),
    "other objectives": lambda folder: write_run(folder, RUN_A, objectives=["accuracy", "clarity"]),
    "other limit": lambda folder: write_run(folder, RUN_A, max_new_tokens=200),
}


@pytest.mark.parametrize("name", BROKEN_RUNS)
def test_broken_runs_exit_with_one_line_and_write_nothing(runs, monkeypatch, capsys, name):
    BROKEN_RUNS[name](runs / "B")
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "runs/B")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.endswith("\n")
    start = "hypervolume.py: error: " + ("the runs differ" if name.startswith("other") else "runs/B: ")
    assert err.startswith(start)
    assert files(runs.parent) == before


def test_one_objective_exits_with_one_line_and_writes_nothing(runs, monkeypatch, capsys):
    write_run(runs / "A", RUN_A, objectives=["accuracy"])
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert files(runs.parent) == before


@pytest.mark.parametrize("output", ["nowhere/fronts.png", "runs"])
def test_an_output_that_cannot_be_written_exits_with_one_line(runs, monkeypatch, capsys, output):
    before = files(runs.parent)
    code, out, err = command(monkeypatch, capsys, "runs/A", "--output", output)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"hypervolume.py: error: cannot write {output}: ")
    assert files(runs.parent) == before


def test_no_run_prints_the_usage(runs, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("usage: ")
