"""The study over eight tasks: its measures, tests, tables and texts, and how its tasks and runs are made."""

import csv
import json
import random
import re
import sys
from collections import defaultdict
from statistics import fmean

import moocore
import numpy as np
import pandas
import pytest
from conftest import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / "experiment"))
import eight_tasks  # noqa: E402
import make_task  # noqa: E402
import regret  # noqa: E402
import report  # noqa: E402

OBJECTIVES = eight_tasks.OBJECTIVES
SIZES = {"embedded": 3, "two": 2, "four": 4}  # number of objectives


def random_evaluations(rng, tasks, num_seeds=3, steps=(0, 10, 20, 30)):
    """Random evaluations of all weightings. tasks: their numbers of objectives, by name."""
    rows = []
    for task, K in tasks.items():
        for weighting in eight_tasks.weightings(K):
            for seed in range(1, num_seeds + 1):
                points = rng.uniform(0.1, 1, (len(steps), K))
                for step, point in zip(steps, points):
                    row = {"task": task, "weighting": weighting, "seed": seed, "step": step}
                    row |= dict(zip(OBJECTIVES, point)) | {"length": 50.0}
                    row |= {f"sampled_{name}": x / 2 for name, x in zip(OBJECTIVES, point) if step}
                    rows.append(row)
    return pandas.DataFrame(rows, columns=eight_tasks.COLUMNS)


@pytest.fixture(scope="module")
def evaluations():
    return random_evaluations(np.random.default_rng(0), SIZES)


@pytest.fixture(scope="module")
def runs(evaluations):
    return regret.measure_all(evaluations)


def points_of(evaluations, run, prefix=""):
    """The performance of a run as a list of lists, without pandas."""
    names = [prefix + name for name in OBJECTIVES[: SIZES[run["task"]]]]
    keys = ("task", "weighting", "seed")
    rows = [row for row in evaluations.to_dict("records") if all(row[key] == run[key] for key in keys)]
    return [[row[name] for name in names] for row in rows]


# Measures and tests


def test_areas_against_moocore(evaluations, runs):
    for _, run in runs.iloc[::7].iterrows():
        for prefix, name in ("", "area"), ("sampled_", "sampled_area"):
            points = points_of(evaluations, run, prefix)
            points = np.array(points[1:] if prefix else points)
            ref = [0] * points.shape[1]
            volumes = [
                moocore.hypervolume(points[: i + 1], ref=ref, maximise=True) for i in range(len(points))
            ]
            # The trapezium rule for equal steps: the first and the last volume count half.
            area = np.mean(volumes) if prefix else (sum(volumes) - (volumes[0] + volumes[-1]) / 2) / 3
            assert run[name] == pytest.approx(area, abs=1e-12)


def test_mean_utility_is_that_over_random_weights(evaluations, runs):
    """A Dirichlet distribution with all parameters 1 is uniform on the simplex."""
    for _, run in runs.iloc[::20].iterrows():
        last = points_of(evaluations, run)[-1]
        weights = np.random.default_rng(1).dirichlet(np.ones(len(last)), 40_000)
        assert run["utility"] == pytest.approx((weights @ last).mean(), abs=0.005)
        assert run["box"] == pytest.approx(moocore.hypervolume([last], ref=[0] * len(last), maximise=True))


def test_regret_by_hand():
    """Seed 1 chooses the best fixed weights, and seeds 2 and 3 judge. Their best does not count."""
    values = {
        "balanced": (0.5, 0.3, 0.5),
        "accuracy-focused": (0.4, 0.9, 0.9),
        "nash": (0.9, 0.5, 0.6),
    }
    cases = [(name, seed, x) for name, xs in values.items() for seed, x in enumerate(xs, 1)]
    runs = pandas.DataFrame(cases, columns=["weighting", "seed", "area"]).assign(task="one")
    assert regret.best_fixed(runs, "area").to_dict() == {"one": "balanced"}
    expected = {"balanced": 0.0, "accuracy-focused": -0.5, "nash": -0.15}
    assert regret.regrets(runs, "area").loc["one"].to_dict() == pytest.approx(expected)


def test_a_weighting_that_is_not_run_on_a_task_has_no_regret_there(runs):
    by_task = regret.regrets(runs, "area")
    assert by_task["directness-focused"].notna().tolist() == [False, False, True]
    assert by_task["clarity-focused"].notna().tolist() == [True, False, True]
    assert regret.title("less clarity", by_task) == "less clarity, 2 of 3 tasks"


@pytest.mark.parametrize("size", [3, 8])
def test_the_sign_flip_test_against_scipy(size):
    for seed in range(5):
        differences = np.random.default_rng(seed).normal(0.5, 1, size)
        options = {"permutation_type": "samples", "alternative": "two-sided", "n_resamples": np.inf}
        expected = stats.permutation_test((differences,), np.mean, **options).pvalue
        assert regret.sign_flip_p(differences) == pytest.approx(expected)
    assert regret.sign_flip_p([0.1] * 8) == 2 / 256


def test_comparisons(runs):
    by_task = regret.regrets(runs, "area")
    results = regret.comparisons(by_task, "balanced")
    assert list(results) == ["hypervolume", "gradient", "nash"]
    for name, result in results.items():
        assert result["p_t"] == pytest.approx(stats.ttest_rel(by_task[name], by_task["balanced"]).pvalue)
    adjusted = regret.holm([result["p"] for result in results.values()])
    assert [result["p_holm"] for result in results.values()] == adjusted.tolist()
    against_best = regret.comparisons(by_task)["nash"]["differences"]
    assert against_best.tolist() == by_task["nash"].tolist()


def test_the_tables_have_all_weightings_and_tasks(evaluations, runs):
    parts = regret.section(evaluations)
    text = "\n\n".join(parts)
    by_task = regret.regrets(runs, "area")
    for name in by_task:
        assert f"| {regret.title(name, by_task)} |" in parts[4]
    assert [", " in line.split("|")[1] for line in parts[4].splitlines()[2:]] == [False] * 8 + [True] * 4
    best = regret.best_fixed(runs, "area").replace("less accuracy", "efficiency-focused")
    assert all(f"| {task} | {best[task]} |" in parts[-1] for task in SIZES)
    assert "nan" not in text and "-0.000" not in text
    nash = by_task["nash"]
    assert f"| nash | {nash.mean():.3f}, {nash.max():.3f} |" in parts[4]
    difference = (nash - by_task["balanced"]).mean()
    assert f"| nash | balanced | {difference:.3f} |" in parts[8]


def test_a_report_has_the_study_only_if_it_is_complete(tmp_path, capsys):
    path = tmp_path / "eight_tasks.csv"
    assert report.read_study(path) is None
    study = random_evaluations(np.random.default_rng(1), eight_tasks.TASKS, steps=range(0, 61, 10))
    study.to_csv(path, index=False)
    assert len(report.read_study(path)) == len(study)
    two_objectives = report.read_study(path).query("task == '8'")
    assert regret.measure(two_objectives.iloc[:7])["box"] == two_objectives.iloc[6][OBJECTIVES[:2]].prod()

    is_nash = (study["task"] == "9") & (study["weighting"] == "nash")
    damaged = {
        "239 of 240 runs": study.iloc[7:],
        "runs with other than 7": study.iloc[:-1],
        "runs with other": pandas.concat([study.iloc[1:], study.iloc[-1:]]),
        "no run of some weightings on task 9": study.assign(
            weighting=study["weighting"].mask(is_nash, "nashh")
        ),
        "empty cells on task embedded": study.assign(accuracy=study["accuracy"].mask(study.index == 3)),
    }
    for message, frame in damaged.items():
        frame.to_csv(path, index=False)
        assert report.read_study(path) is None and f"has {message}" in capsys.readouterr().out


def test_the_picture_has_a_row_for_each_weighting_of_all_tasks(runs):
    figure = regret.draw_regrets(runs, {})
    [axes] = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(
        ["balanced", "accuracy-focused", "conciseness-focused", "efficiency-focused", "less conciseness"]
        + ["hypervolume", "gradient", "nash"]
    )


# Tasks


def test_the_fixed_weights():
    by_name = eight_tasks.weightings(3)
    weights = {name: flags.split()[1:] for name, flags in by_name.items() if flags.startswith("--weights")}
    weights = {name: [float(w) for w in numbers] for name, numbers in weights.items()}
    assert weights == {
        "accuracy-focused": [0.5, 0.25, 0.25],
        "conciseness-focused": [0.25, 0.5, 0.25],
        "clarity-focused": [0.25, 0.25, 0.5],
        "less accuracy": [0.25, 0.375, 0.375],
        "less conciseness": [0.375, 0.25, 0.375],
        "less clarity": [0.375, 0.375, 0.25],
    }
    assert sum(len(eight_tasks.weightings(K)) for K in eight_tasks.TASKS.values()) == 80
    for K in (2, 4):
        for flags in eight_tasks.weightings(K).values():
            if flags.startswith("--weights"):
                numbers = [float(w) for w in flags.split()[1:]]
                assert len(numbers) == K and abs(sum(numbers) - 1) < 1e-6


def test_directness():
    assert eight_tasks.directness(response="Step 1: $1+1=2$\n\\boxed{2}") == 1.0
    assert eight_tasks.directness(response="Okay, let me see.\n\\boxed{2}") == 0.0
    assert eight_tasks.directness(response="$1+1=2$\nWait, let me check that.\n") == 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_task_is_drawn_from_its_seed(tokenizer, monkeypatch, seed):
    names = ("TERMS", "BOUND", "MANNER", "ORDINALS", "ORDINALS_BELOW", "RECHECKS", "RECHECKS_BELOW", "LIMIT")
    for name in (*names, "SIGNS"):
        monkeypatch.setattr(make_task.make_tiny, name, getattr(make_task.make_tiny, name))
    task = make_task.draw_task(seed, tokenizer)
    assert task == make_task.draw_task(seed, tokenizer)
    assert task["limit"] in range(64, 129) and 3 <= task["TERMS"] <= 6 and 20 <= task["BOUND"] <= 60
    assert sum(task["MANNER"].values()) == pytest.approx(1, abs=0.003)
    assert max(task["MANNER"], key=task["MANNER"].get) == "wordy"
    for name, (low, high) in make_task.DEMONSTRATIONS.items():
        assert low <= task["demonstrations"][name] <= high
    rng = random.Random(5)
    for _ in range(100):
        terms = make_task.make_tiny.make_problem(rng)
        assert len(terms) == task["TERMS"] and all(2 <= abs(term) <= task["BOUND"] for term in terms)
        assert all(sum(terms[:i]) >= 0 for i in range(1, len(terms)))
        assert min(terms) > 0 or task["SIGNS"] == [1, -1]


def test_a_start_outside_of_its_bounds_is_named():
    start = {"accuracy": 0.3, "conciseness": 0.2, "clarity": 0.02, "cut_off": 0.7}
    assert make_task.outside(start, make_task.START) == ["clarity", "cut_off"]


# Runs


def test_the_evaluations_of_a_run(tmp_path):
    """Sampled performance and r_pareto are means since the previous evaluation. Step 0 has neither."""
    (tmp_path / "args.json").write_text('{"objectives": ["accuracy", "conciseness"], "max_new_tokens": 100}')
    scores = {"eval/performance/accuracy": 0.5, "eval/performance/conciseness": 0.25}
    scores["eval/completions/mean_length"] = 75.0
    lines = [{"step": 0, "time/validate": 1.4, **scores}]
    for step in range(1, 11):
        line = {"step": step, "time/rollout": 1.0, "r_pareto": 1.0 + (step > 5)}
        line |= {"rewards/accuracy/mean": step / 10, "rewards/conciseness/mean": 0.9}
        line |= {"completions/mean_length": 10.0 * step, "weights/accuracy": 0.4, "weights/conciseness": 0.6}
        lines.append(line | (scores if step == 10 else {}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    first, last = (
        dict(zip(eight_tasks.COLUMNS[3:], row, strict=True)) for row in eight_tasks.evaluations(tmp_path)
    )
    assert first["seconds"] == 1 and first["sampled_accuracy"] == "" and first["w_accuracy"] == ""
    assert (last["step"], last["accuracy"], last["clarity"], last["seconds"]) == (10, 0.5, "", 11)
    assert (last["sampled_accuracy"], last["sampled_conciseness"]) == (0.55, 0.45)  # not the rewards' 0.9
    assert (last["w_conciseness"], last["w_clarity"], last["r_pareto"]) == (0.6, "", 1.5)


def test_a_run_in_the_csv_is_not_repeated(tmp_path):
    path = tmp_path / "results.csv"
    rows = ["embedded,balanced,1,60", "embedded,nash,1,50", "8,gradient,1,60"]
    path.write_text("task,weighting,seed,step\n" + "\n".join(rows) + "\n")
    cases = eight_tasks.missing_cases(path, ["embedded", "8"], [1, 2])
    assert ("embedded", "balanced", 1) not in cases and ("8", "gradient", 1) not in cases
    assert ("embedded", "nash", 1) in cases  # It is not complete.
    assert len(cases) == 2 * (10 + 8) - 2
    assert [seed for _, _, seed in cases] == sorted(seed for _, _, seed in cases)


# The study and its texts. All numbers are computed again from the lines of the CSV, not by regret.py.

DYNAMIC = ["hypervolume", "gradient", "nash"]
PAPER_NAMES = {"less accuracy": "efficiency-focused"}


def read_study():
    """The evaluations of each run as a list of dictionaries. A key is (task, weighting, seed)."""
    evaluations = defaultdict(list)
    with open(ROOT / "experiment/eight_tasks.csv", newline="") as file:
        for row in csv.DictReader(file):
            evaluations[row["task"], row["weighting"], int(row["seed"])].append(row)
    return evaluations


STUDY = read_study()


def points_of_row(row, prefix=""):
    """The performances of an evaluation, as many as its task has objectives."""
    return [float(row[prefix + name]) for name in OBJECTIVES[: eight_tasks.TASKS[row["task"]]]]


def volumes_by_hand(points):
    """The hypervolume of the first n points, for each n."""
    ref = [0] * len(points[0])
    return [
        moocore.hypervolume(np.array(points[: n + 1]), ref=ref, maximise=True) for n in range(len(points))
    ]


def measures_by_hand(rows):
    """The four measures of a run."""
    last = points_of_row(rows[-1])
    volumes = volumes_by_hand([points_of_row(row) for row in rows])
    return {
        "area": (sum(volumes) - (volumes[0] + volumes[-1]) / 2) / (len(volumes) - 1),
        "sampled_area": fmean(volumes_by_hand([points_of_row(row, "sampled_") for row in rows[1:]])),
        "utility": fmean(last),
        "box": float(np.prod(last)),
    }


def regrets_by_hand(measures, tasks=tuple(eight_tasks.TASKS)):
    """The regret of each weighting on each of some tasks: a dictionary of lists for each of the measures."""
    regrets = {name: defaultdict(list) for name in regret.MEASURES}
    for name in regrets:
        for task in tasks:
            values = defaultdict(dict)
            for (other, weighting, seed), run in measures.items():
                if other == task:
                    values[weighting][seed] = run[name]
            fixed = [weighting for weighting in values if weighting not in DYNAMIC]
            best = max(fixed, key=lambda weighting: values[weighting][1])
            for weighting, by_seed in values.items():
                difference = (values[best][2] + values[best][3] - by_seed[2] - by_seed[3]) / 2
                regrets[name][PAPER_NAMES.get(weighting, weighting)].append(difference)
    return regrets


@pytest.fixture(scope="module")
def by_hand():
    return regrets_by_hand({key: measures_by_hand(rows) for key, rows in STUDY.items()})


def corrected_p_values(regrets, default=None):
    """The p-values of the dynamic weightings against a default (None: the best fixed weights)."""
    p_values = {}
    for name in DYNAMIC:
        differences = np.array(regrets[name]) - (regrets[default] if default else 0)
        options = {"permutation_type": "samples", "alternative": "two-sided", "n_resamples": np.inf}
        p_values[name] = stats.permutation_test((differences,), np.mean, **options).pvalue
    adjusted, largest = {}, 0
    for factor, name in zip((3, 2, 1), sorted(p_values, key=p_values.get)):
        adjusted[name] = largest = max(largest, min(1, factor * p_values[name]))
    return adjusted


def test_the_study_is_complete():
    expected = {
        (task, weighting, seed)
        for task, K in eight_tasks.TASKS.items()
        for weighting in eight_tasks.weightings(K)
        for seed in eight_tasks.SEEDS
    }
    assert set(STUDY) == expected and len(STUDY) == regret.NUM_RUNS
    for rows in STUDY.values():
        assert [int(row["step"]) for row in rows] == [0, 10, 20, 30, 40, 50, 60]


def test_the_runs_are_what_their_names_say():
    """Runs of a task start from one model. Only gradient-based and Nash weighting change weights."""
    starts = defaultdict(set)
    for (task, weighting, _), rows in STUDY.items():
        starts[task].add(tuple(points_of_row(rows[0])))
        flags = eight_tasks.weightings(eight_tasks.TASKS[task])[weighting].split()
        weights = [points_of_row(row, "w_") for row in rows[1:]]
        assert np.allclose(np.sum(weights, axis=1), 1, atol=1e-5)
        if weighting not in ("gradient", "nash"):
            K = len(weights[0])
            initial = [float(w) for w in flags[1:]] if flags[:1] == ["--weights"] else [1 / K] * K
            assert np.allclose(weights, [initial] * 6, atol=1e-5), (task, weighting)
        else:
            assert np.std(weights, axis=0).max() > 0
        assert (weighting == "hypervolume") == any(float(row["r_pareto"]) != 1 for row in rows[1:])
    assert all(len(points) == 1 for points in starts.values())


def test_the_initial_models_are_within_the_bounds_of_the_plan():
    """On the task with two objectives, clarity was not recorded."""
    for (task, _, _), rows in STUDY.items():
        if task.isdigit():
            for name in ("accuracy", "clarity")[: eight_tasks.TASKS[task] - 1]:
                low, high = make_task.START[name]
                assert low <= float(rows[0][name]) <= high, (task, name)


def test_results_md_has_the_regrets_of_all_weightings(by_hand):
    text = (ROOT / "experiment/RESULTS.md").read_text()
    table = text[text.index("Mean and largest regret") : text.index("The same over the six new tasks")]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(by_hand["area"])
    for name, *cells in rows:
        name = re.sub(r", \d of 8 tasks$", "", name)
        for measure, cell in zip(regret.MEASURES, cells, strict=True):
            values = by_hand[measure][name]
            expected = [fmean(values), max(values)]
            assert [float(x) for x in cell.split(", ")] == pytest.approx(expected, abs=0.00051), (
                name,
                measure,
            )


def test_results_md_has_the_p_values_of_all_comparisons(by_hand):
    text = (ROOT / "experiment/RESULTS.md").read_text()
    for measure, start in ("area", "Comparisons by area:"), ("box", "Comparisons by the hypervolume"):
        table = text[text.index(start) :].split("\n\n")[1]
        rows = [line.strip("| ").split(" | ") for line in table.splitlines()][2:]
        assert len(rows) == 12
        for weighting, default, _, _, _, p, _ in rows:
            default = None if default == "best fixed weights" else default
            expected = corrected_p_values(by_hand[measure], default)[weighting]
            assert float(p) == pytest.approx(expected, rel=0.06), (measure, weighting, default)


def read_text(name, start, end):
    """The text of a file from `start` to `end`, each line break replaced by a space."""
    text = " ".join((ROOT / name).read_text().split())
    text = text[text.index(start) :]
    return text[: text.index(end)]


def formatted(values):
    """The mean and the maximum of regrets, as the texts have them."""
    return [regret.number(fmean(values)), regret.number(max(values))]


def p_as_in_text(regrets, name, default=None):
    return f"{corrected_p_values(regrets, default)[name]:.2g}".lstrip("0")


def test_the_table_of_the_main_readme(by_hand):
    text = (ROOT / "README.md").read_text()
    table = text[
        text.index("| weighting (accuracy, conciseness, clarity) | area | last checkpoint |") :
    ].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    weights = {"efficiency-focused": ".25 .375 .375", "accuracy-focused": ".5 .25 .25", "nash": "ours"}
    names = [title.split(", ")[0] for title, *_ in rows]
    assert sorted(names) == sorted(["balanced", "accuracy-focused", "efficiency-focused", *DYNAMIC])
    for name, (title, area, box, _) in zip(names, rows):
        assert title == (f"{name}, {weights[name]}" if name in weights else name)
        assert area == ", ".join(formatted(by_hand["area"][name]))
        assert box == ", ".join(formatted(by_hand["box"][name]))
    means = [fmean(by_hand["area"][name]) for name in names]
    assert means == sorted(means)


def test_the_advice_of_the_main_readme(by_hand):
    text = read_text("README.md", "## Which weighting", "## The method")
    area, sampled = by_hand["area"], by_hand["sampled_area"]
    names = ("balanced", "accuracy-focused", "efficiency-focused")
    p_values = [p_as_in_text(area, "nash", name) for name in names]
    assert "p = {}, {} and {} against balanced, accuracy- and efficiency-focused".format(*p_values) in text
    assert f"(nash: p = {p_as_in_text(area, 'nash')})" in text
    assert f"its mean regret is {formatted(sampled['nash'])[0]}" in text
    assert f"(accuracy-focused: {formatted(sampled['accuracy-focused'])[0]})" in text
    known = {x for regrets in by_hand.values() for values in regrets.values() for x in formatted(values)}
    numbers = set(re.findall(r"(?<![\d.])0\.\d{3}(?!\d)", text))
    assert len(numbers) > 20 and numbers <= known
    box = formatted(by_hand["box"]["less conciseness"])
    means = {name: fmean(values) for name, values in by_hand["box"].items() if len(values) == 8}
    assert min(means, key=means.get) == "less conciseness"
    assert (
        ".375 .25 .375 was best here, with a mean regret of {}, at most {} (not tested).".format(*box) in text
    )


def test_the_findings_of_eight_tasks(by_hand):
    text = read_text("experiment/README.md", "## Eight tasks", "## Two tasks")
    area = by_hand["area"]
    mean = {measure: {name: formatted(x)[0] for name, x in r.items()} for measure, r in by_hand.items()}

    def against(name):
        return f"{mean['area'][name]} (p = {p_as_in_text(area, 'nash', name)})"

    assert f"Nash weighting, which is ours, has a mean regret of {mean['area']['nash']}." in text
    assert f"Balanced weights have {against('balanced')}, accuracy-focused" in text
    assert f"accuracy-focused weights {against('accuracy-focused')}, and efficiency-focused" in text
    assert f"efficiency-focused weights {against('efficiency-focused')}." in text
    for name in ("gradient", "hypervolume"):
        for default in ("balanced", "accuracy-focused", "efficiency-focused"):
            assert corrected_p_values(area, default)[name] >= 0.05  # "not shown to differ from any default"
    assert f"Gradient-based ({mean['area']['gradient']}) and hypervolume-guided" in text
    assert f"weighting ({mean['area']['hypervolume']}) are not shown" in text
    behind = [
        f"{mean['area'][name]} (p = {p_as_in_text(area, name)})"
        for name in ("nash", "gradient", "hypervolume")
    ]
    assert "behind by {}, gradient-based by {}, and hypervolume-guided by {}.".format(*behind) in text

    clarity, seven = area["clarity-focused"], [x for i, x in enumerate(area["nash"]) if i != 6]
    assert list(eight_tasks.TASKS)[6] == "8" and len(clarity) == 7
    assert "a mean regret of {} and a largest regret of {} over the seven".format(*formatted(clarity)) in text
    assert "On the seven, Nash weighting has {} and {}.".format(*formatted(seven)) in text

    sampled, box = mean["sampled_area"], mean["box"]
    assert (
        f"of Nash weighting is {sampled['nash']}, that of gradient-based weighting {sampled['gradient']}"
        in text
    )
    assert f"and that of accuracy-focused weights {sampled['accuracy-focused']}." in text
    sentence = (
        "have a mean regret of {}, accuracy-focused weights {}, Nash weighting {}, and balanced weights {}."
    )
    names = ("less conciseness", "accuracy-focused", "nash", "balanced")
    assert sentence.format(*(box[name] for name in names)) in text
    significant = [
        (name, default)
        for default in ("balanced", "accuracy-focused", "efficiency-focused", None)
        for name, p in corrected_p_values(by_hand["box"], default).items()
        if p < 0.05
    ]
    assert significant == [("nash", "efficiency-focused")] and box["nash"] < box["efficiency-focused"]
    p = p_as_in_text(by_hand["box"], "nash", "efficiency-focused")
    assert (
        f"only one is significant: Nash weighting is ahead of efficiency-focused weights (p = {p})." in text
    )


def test_the_findings_on_two_objectives():
    text = read_text("experiment/README.md", "**Two objectives.**", "Over the six new tasks")
    ends = defaultdict(list)
    for (task, weighting, seed), rows in STUDY.items():
        if task == "8" and seed > 1:
            ends[weighting].append(float(rows[-1]["accuracy"]))
    kept = ("nash", "less conciseness", "accuracy-focused")
    assert all((fmean(x) < 0.1) == (name not in kept) for name, x in ends.items())
    sentence = "by Nash weighting ({:.2f}), less conciseness ({:.2f}) and accuracy-focused weights ({:.2f})."
    assert sentence.format(*(fmean(ends[name]) for name in kept)) in text


def test_the_findings_on_the_six_new_tasks():
    text = read_text("experiment/README.md", "Over the six new tasks", "## Two tasks")
    tasks = [task for task in eight_tasks.TASKS if task.isdigit()]
    regrets = regrets_by_hand({key: measures_by_hand(rows) for key, rows in STUDY.items()}, tasks)["area"]
    names = sorted(
        ["balanced", "accuracy-focused", "efficiency-focused", *DYNAMIC], key=lambda n: fmean(regrets[n])
    )
    numbers = [f"{formatted(regrets[name])[0]} ({name})" for name in names]
    assert f"the mean regrets are {', '.join(numbers[:-1])} and {numbers[-1]}." in text


def test_which_fixed_weights_are_best_depends_on_the_task():
    runs = {key: measures_by_hand(rows)["area"] for key, rows in STUDY.items()}
    best = []
    for task in eight_tasks.TASKS:
        areas = {
            w: area for (t, w, seed), area in runs.items() if t == task and seed == 1 and w not in DYNAMIC
        }
        best.append(max(areas, key=areas.get))
    counts = {name: best.count(name) for name in ("less accuracy", "clarity-focused", "less conciseness")}
    assert sum(counts.values()) == 8
    words = ["none", "one", "two", "three", "four", "five"]
    counts = [words[count] for count in counts.values()]
    sentence = (
        "efficiency-focused weights on {} tasks, clarity-focused on {}, and less conciseness on {}. Balanced"
    )
    assert sentence.format(*counts) in read_text("experiment/README.md", "## Eight tasks", "## Two tasks")
