"""Protects the experiment: its tables follow from the CSV (by moocore and scipy), its runs are read right."""

import csv
import json
import re
import runpy
import sys
from collections import defaultdict
from itertools import product
from statistics import fmean

import moocore
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

FOLDER = ROOT / "experiment"
sys.path.insert(0, str(FOLDER))
import analysis  # noqa: E402
import make_task  # noqa: E402
import report  # noqa: E402
import run_study  # noqa: E402
import studies  # noqa: E402

DYNAMIC = ["hypervolume", "gradient", "nash"]
# Titles in tables: names in the CSV.
NAMES = {"efficiency-focused": "less accuracy", "best fixed weights": None}
TASKS = list(studies.EIGHT_TASKS["tasks"])
RESULTS = (FOLDER / "RESULTS.md").read_text()


def read_runs(name, num_keys):
    runs = defaultdict(list)
    with open(FOLDER / name, newline="") as file:
        for row in csv.DictReader(file):
            runs[tuple(row.values())[:num_keys]].append(row)
    return runs


STUDY, EARLIER = read_runs("eight_tasks.csv", 3), read_runs("results.csv", 4)
TWELVE = read_runs("twelve_tasks.csv", 3)


def points_of(rows, prefix=""):
    names = [name for name in studies.OBJECTIVES if rows[-1].get(name)]
    return np.array([[float(row[prefix + name]) for name in names] for row in rows])


def volumes(points, reference=0.0):
    corner = [reference] * points.shape[1]
    return [moocore.hypervolume(points[:n], ref=corner, maximise=True) for n in range(1, len(points) + 1)]


def area(rows, reference=0.0):
    so_far = volumes(points_of(rows), reference)  # trapezoids of equal width
    return (sum(so_far) - (so_far[0] + so_far[-1]) / 2) / (len(so_far) - 1)


MEASURES = {
    "area": area,
    "sampled_area": lambda rows: fmean(volumes(points_of(rows[1:], "sampled_"))),
    "utility": lambda rows: fmean(points_of(rows)[-1]),
    "box": lambda rows: np.prod(points_of(rows)[-1]),
}


def regrets_of(measure):
    """{weighting: {task: regret}}, and the best fixed weights of each task, which seed 1 chooses."""
    values, regrets, best = {key: measure(rows) for key, rows in STUDY.items()}, defaultdict(dict), {}
    for task in TASKS:
        names = [name for other, name, seed in values if other == task and seed == "1"]
        best[task] = max((n for n in names if n not in DYNAMIC), key=lambda n: values[task, n, "1"])
        for name in names:
            regrets[name][task] = fmean(values[task, best[task], s] - values[task, name, s] for s in "23")
    return regrets, best


@pytest.fixture(scope="module")
def regrets():
    return {name: regrets_of(measure)[0] for name, measure in MEASURES.items()}


def sign_flip_p(differences):
    options = {"permutation_type": "samples", "n_resamples": np.inf}
    return stats.permutation_test((differences,), np.mean, **options).pvalue


def compare(regrets, default):
    """{dynamic weighting: [differences, p, p with Holm, p_t]}. None: against the best fixed weights."""
    tests, largest = {}, 0.0
    for name in DYNAMIC:
        d = np.array([regrets[name][task] - (regrets[default][task] if default else 0) for task in TASKS])
        tests[name] = [d, sign_flip_p(d), None, stats.ttest_1samp(d, 0).pvalue]
    for factor, test in zip((3, 2, 1), sorted(tests.values(), key=lambda test: test[1])):
        test[2] = largest = max(largest, min(1.0, factor * test[1]))
    return tests


def table(start, text=RESULTS):
    """The rows of the first table after `start`."""
    lines = text[text.index(start) :].split("\n| ", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def regret_cell(by_task, tasks=TASKS):
    values = [by_task[task] for task in tasks if task in by_task]
    return f"{fmean(values):.3f}, {max(values):.3f}".replace("-0.000", "0.000")


def test_the_table_of_regrets(regrets):
    """Numbers in brackets are means over the six new tasks."""
    rows = table("Mean and largest")[1:]
    assert len(rows) == 10
    for title, *cells in rows:
        name, _, count = title.partition(", ")
        regret = [by_name[NAMES.get(name, name)] for by_name in regrets.values()]
        new = [regret_cell(by_task, TASKS[2:]).split(",")[0] for by_task in regret]
        assert cells == [f"{regret_cell(by_task)} ({mean})" for by_task, mean in zip(regret, new)]
        assert count == ("" if len(regret[0]) == len(TASKS) else f"{len(regret[0])} of {len(TASKS)} tasks")


@pytest.mark.parametrize(
    "measure, start", [("area", "regret by area. A"), ("box", "regret by the hypervolume of")]
)
def test_the_tables_of_comparisons(regrets, measure, start):
    rows = table(start)[1:]
    assert len(rows) == 12
    for name, against, *cells in rows:
        d, *p_values = compare(regrets[measure], NAMES.get(against, against))[name]
        assert cells == [f"{d.mean():.3f}", str((d < 0).sum()), *(f"{p:.2g}" for p in p_values)]


def test_the_sentences(regrets):
    tests = compare(regrets["sampled_area"], "balanced").items()
    numbers = [f"{test[0].mean():.3f} ({name}, p = {test[1]:.2g})" for name, test in tests]
    assert f"balanced weights are {', '.join(numbers)}, without" in RESULTS

    orders, verdicts = set(), set()
    for reference in (0.0, -0.05, -0.1, -0.25):
        values = regrets_of(lambda rows, reference=reference: area(rows, reference))[0]
        complete = [name for name in values if len(values[name]) == 8]
        orders.add(tuple(sorted(complete, key=lambda name: fmean(values[name].values()))))
        tests = [compare(values, name) for name in ("balanced", "accuracy-focused", "less accuracy", None)]
        verdicts.add(tuple(test[name][2] < 0.05 for test in tests for name in DYNAMIC))
    assert len(orders) == len(verdicts) == 1
    assert "on all tasks is the same, and the significant comparisons are the same." in RESULTS


def test_the_tables_of_earlier_runs():
    rows = table("## Earlier runs")[1:]
    assert len(rows) == 7
    for name, *cells, ratio in rows:
        for column, cell in zip(report.EARLIER_COLUMNS, cells, strict=True):
            areas = [area(EARLIER[key]) for s in "45678" if (key := (*column, name, s)) in EARLIER]
            half = stats.sem(areas) * stats.t.isf(0.025, 4) if areas else None
            assert cell == (f"{fmean(areas):.3f} ± {half:.3f}" if areas else "")
        middle = [row for seed in "45678" for row in EARLIER["embedded", "grpo", name, seed][3:7]]
        weights = [sum(float(row[f"w_{k}"]) for row in middle) for k in ("conciseness", "accuracy")]
        assert middle[0]["step"] == "30" and ratio == f"{weights[0] / weights[1]:.2f}"


def difference(measure, one, other):
    """The differences between two weightings on the twelve tasks: means of two seeds."""
    tasks = studies.TWELVE_TASKS["tasks"]
    values = {key: MEASURES[measure](rows) for key, rows in TWELVE.items()}
    return np.array([fmean(values[t, one, s] - values[t, other, s] for s in "12") for t in tasks])


def test_the_table_of_twelve_tasks():
    tested = {("area", "nash"): "H1", ("sampled_area", "gradient"): "H2"}
    p_values = [sign_flip_p(difference(*key, "balanced")) for key in tested]
    low, high = sorted(p_values)
    holm = {low: min(1, 2 * low), high: max(min(1, 2 * low), high)}
    rows = table("## Twelve new tasks")[1:]
    pairs = [("nash", "balanced"), ("gradient", "balanced"), ("nash", "gradient")]
    assert len(rows) == 12 and len(TWELVE) == 72
    for row, (measure, pair) in zip(rows, product(report.MEASURES, pairs)):
        d = difference(measure, *pair)
        interval = stats.t.interval(0.95, 11, d.mean(), stats.sem(d))
        cells = [f"{d.mean():.3f} ± {(interval[1] - interval[0]) / 2:.3f}", f"{d.mean() / d.std(ddof=1):.2f}"]
        cells += [f"{(d > 0).sum()}, {(d < 0).sum()}", "", "", ""]
        key = (measure, pair[0])
        if key in tested and pair[1] == "balanced":
            p = p_values[list(tested).index(key)]
            cells[3:] = [tested[key], f"{p:.2g}", f"{holm[p]:.2g}"]
        assert row == [report.MEASURES[measure], " - ".join(pair), *cells]


def test_report_writes_results_md():
    frames = {name: analysis.read_evaluations(study) for name, study in studies.STUDIES.items()}
    earlier = [frames[name] for name in ("algorithms", "control", "other-task")]
    assert report.report(frames["eight-tasks"], frames["twelve-tasks"], earlier) == RESULTS
    left, *_ = report.draw_headline(earlier[0]).axes
    last = EARLIER["embedded", "grpo", "gradient", "4"][-1]
    ends = [line.get_ydata()[-1] for line in left.lines]
    assert ends == sorted(float(last[f"w_{name}"]) for name in studies.OBJECTIVES[:3])


@pytest.mark.parametrize("name", ["README.md", "experiment/README.md"])
def test_numbers_of_readmes(regrets, name):
    sections = (ROOT / name).read_text().split("\n## ")
    text = "".join(s for s in sections if "experiment" in name or s.startswith("Which weighting"))
    for title, *cells in table("\n", text)[1:] if "\n| weighting" in text else []:
        weighting = NAMES.get(title.split(",")[0], title.split(",")[0])
        assert cells[:2] == [regret_cell(regrets[name][weighting]) for name in ("area", "box")]
    numbers = re.findall(r"(?<![\d.])\d\.\d\d+|(?<=p = )\.\d+", text)
    known = set(map(float, re.findall(r"\d\.\d+", RESULTS)))
    assert len(numbers) > 10 and [x for x in numbers if float(x) not in known] == []


def test_sign_flip_and_holm():
    assert analysis.sign_flip_p([0.1] * 8) == 2 / 256
    assert analysis.holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])


def test_runs_are_what_their_names_say():
    assert set(STUDY) == {studies.key_of(studies.EIGHT_TASKS, c) for c in studies.cases(studies.EIGHT_TASKS)}
    assert studies.weightings(3)["less accuracy"] == "--weights 0.250000000 0.375000000 0.375000000"
    for (task, weighting, _), rows in STUDY.items():
        flags = studies.weightings(studies.EIGHT_TASKS["tasks"][task])[weighting].split()
        weights = points_of(rows[1:], "w_")
        initial = [float(w) for w in flags[1:]] if flags[:1] == ["--weights"] else 1 / weights.shape[1]
        assert np.allclose(weights, initial, atol=1e-5) == (weighting not in ("gradient", "nash"))
        assert any(float(row["r_pareto"]) != 1 for row in rows[1:]) == (weighting == "hypervolume")


def test_a_run_is_recorded_and_continues(tmp_path, monkeypatch):
    """Two steps on the embedded task, with four objectives, by the training script."""
    study = studies.EIGHT_TASKS | {"results": tmp_path / "study.csv", "tasks": {"embedded": 4}, "seeds": [7]}
    study |= {"weightings": lambda K: {"nash": "--weighting nash"}, "steps": 2}
    study |= {"flags": "--prompts-per-step 2 --max-eval-problems 4"}
    run_study.write_rows(study, [])
    [case] = run_study.missing_cases(study)
    run_study.record(study, case, [{"step": 1, "accuracy": 0.5}])  # a shorter run
    run_study.run_all(study, run_study.missing_cases(study), tmp_path, 1)
    assert run_study.missing_cases(study) == [] and list((tmp_path / "studies").iterdir()) == []
    first, last = run_study.read_rows(study)
    assert (first["step"], last["step"], last["seed"]) == ("0", "2", "7")
    assert all(last.values()) and first["sampled_directness"] == first["w_accuracy"] == ""

    calls = []
    monkeypatch.setattr(run_study, "run_script", lambda command, title: calls.append(command[2:]))
    (tmp_path / "checkpoint.pt").touch()
    for folder in (tmp_path, tmp_path / "new"):
        run_study.train("grpo", ["--seed=1"], folder)
    assert calls == [["--resume", tmp_path], ["--seed=1", "--output-dir", tmp_path / "new"]]


def test_evaluations_of_a_run(tmp_path):
    """Sampled performance and r_pareto are means since the previous evaluation."""
    (tmp_path / "args.json").write_text('{"objectives": ["accuracy", "conciseness"], "max_new_tokens": 100}')
    scores = {"eval/performance/accuracy": 0.5, "eval/performance/conciseness": 0.25}
    lines = [{"step": 0, "time/validate": 1.4, **scores, "eval/completions/mean_length": 75.0}]
    for step in range(1, 11):
        line = {"step": step, "time/rollout": 1.0, "r_pareto": 1.0 + (step > 5), "weights/accuracy": 0.4}
        line |= {"rewards/accuracy/mean": step / 10, "rewards/conciseness/mean": 0.9}
        lines.append(line | {"completions/mean_length": 10.0 * step, "weights/conciseness": 0.6})
    for line in (lines[5], lines[10]):
        line |= scores | {"eval/completions/mean_length": 75.0}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, _, last = run_study.evaluations(tmp_path)
    assert first["seconds"] == 1 and "sampled_accuracy" not in first
    assert (last["step"], last["seconds"]) == (10, 11)
    assert (last["sampled_accuracy"], last["sampled_conciseness"], last["r_pareto"]) == (0.8, 0.2, 2)


def test_directness(monkeypatch):
    monkeypatch.setattr("rewards.OBJECTIVES", {})
    directness = runpy.run_path(FOLDER / "train.py")["directness"]
    assert [directness(text) for text in ("2", "Okay", "Wait")] == [1, 0, 0]


def test_a_task_is_drawn_from_its_seed(tokenizer, monkeypatch):
    for name, value in list(vars(make_task.make_tiny).items()):
        if name.isupper():  # A task changes the constants of this module.
            monkeypatch.setattr(make_task.make_tiny, name, value)
    task = make_task.draw_task(1, tokenizer)
    assert task == make_task.draw_task(1, tokenizer)
    assert make_task.outside(task["demonstrations"], make_task.DEMONSTRATIONS) == []
    start = {"accuracy": 0.3, "clarity": 0.02, "cut_off": 0.7}
    assert make_task.outside(start, make_task.START) == ["clarity", "cut_off"]
