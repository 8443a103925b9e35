"""The experiment: its tables are those of results.csv, and its texts have the numbers of the tables."""

import csv
import math
import re
import sys
from collections import defaultdict

import moocore
import numpy as np
import pandas
import pytest
from conftest import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / "experiment"))
import report  # noqa: E402

import experiment  # noqa: E402

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
MAIN_SEEDS = range(4, 9)
EVALUATIONS = pandas.read_csv(ROOT / "experiment/results.csv")
EMBEDDED = EVALUATIONS[EVALUATIONS["task"] == "embedded"]
RUNS = report.measure_all(EVALUATIONS)
RESULTS = (ROOT / "experiment/RESULTS.md").read_text()


def read_text(name, start=None, end=None):
    """The text of a file from `start` to `end`, each line break replaced by a space."""
    text = " ".join((ROOT / name).read_text().split())
    text = text[text.index(start) :] if start else text
    return text[: text.index(end)] if end else text


def volumes_and_areas():
    """(final hypervolume, area) of each run, from the lines of the CSV, by moocore and the trapezium rule."""
    evaluations, measures = defaultdict(list), {}
    with open(ROOT / "experiment/results.csv", newline="") as file:
        for row in csv.DictReader(file):
            key = row["task"], row["algorithm"], row["variant"], int(row["seed"])
            evaluations[key].append((int(row["step"]), [float(row[name]) for name in OBJECTIVES]))
    for key, run in evaluations.items():
        steps, points = [step for step, _ in run], np.array([point for _, point in run])
        volumes = [
            moocore.hypervolume(points[: i + 1], ref=[0, 0, 0], maximise=True) for i in range(len(run))
        ]
        slices = [(steps[i] - steps[i - 1]) * (volumes[i] + volumes[i - 1]) / 2 for i in range(1, len(steps))]
        measures[key] = volumes[-1], sum(slices) / steps[-1]
    return measures


BY_HAND = volumes_and_areas()


def mean_area(task, algorithm, variant):
    """The mean area over the seeds of the main study."""
    return np.mean([BY_HAND[task, algorithm, variant, seed][1] for seed in MAIN_SEEDS])


def comparison(task, algorithm, weighting, fixed):
    """The mean difference of a comparison in RESULTS.md, and its p-value with Holm's correction."""
    section = RESULTS[RESULTS.index(f"## Task: {task}") :].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    titles = next(row for row in rows if f"minus {fixed}" in row)
    [row] = [row for row in rows if row[:2] == [report.TITLES[algorithm], weighting] and "(p " in row[2]]
    cell = row[titles.index(f"minus {fixed}")]
    return float(cell.split()[0]), float(cell.split("(p ")[1].strip(")"))


def verdict(task, algorithm, weighting, fixed):
    """Whether a dynamic weighting is "ahead" of a fixed one, "behind" it, or "not significant"."""
    difference, p = comparison(task, algorithm, weighting, fixed)
    return "not significant" if p >= 0.05 else "ahead" if difference > 0 else "behind"


# Tables


def test_results_md_is_what_report_writes():
    figures = [line[2:].split("](") for line in RESULTS.splitlines() if line.startswith("![")]
    figures = [(name[:-1], caption) for caption, name in figures if name.startswith("experiment-")]
    study = report.read_study(ROOT / "experiment/eight_tasks.csv")
    assert report.report(EVALUATIONS, figures, study) == RESULTS


def test_every_run_is_complete():
    for key, run in EVALUATIONS.groupby(["task", "algorithm", "variant", "seed"]):
        steps = run["step"].tolist()
        ends = {120} if key[0] == "embedded" else {180}
        ends |= {60} if key[-1] in (1, 2, 3) else set()
        assert steps[-1] in ends, key
        assert steps == list(range(0, steps[-1] + 1, 10)), key


def test_every_variant_consists_of_flags():
    variants = {name for _, variants, _, _ in experiment.STUDIES.values() for name in variants}
    assert set(EVALUATIONS["variant"]) == variants


def test_hypervolume_and_area_against_moocore():
    assert len(BY_HAND) == len(RUNS)
    for _, run in RUNS.iterrows():
        expected = BY_HAND[run["task"], run["algorithm"], run["variant"], run["seed"]]
        assert (run["hv"], run["area"]) == pytest.approx(expected, abs=1e-9)


def test_a_paired_comparison_by_hand():
    """Gradient-based minus balanced, GRPO: the mean difference and its interval with t(.975, 4) = 2.776."""
    areas = {
        name: np.array([BY_HAND["embedded", "grpo", name, seed][1] for seed in MAIN_SEEDS])
        for name in ("gradient", "balanced")
    }
    d = areas["gradient"] - areas["balanced"]
    half = 2.7764451 * math.sqrt(((d - d.mean()) ** 2).sum() / 4 / 5)
    row = next(
        line for line in RESULTS.splitlines() if line.startswith("| GRPO | gradient |") and "(p" in line
    )
    assert row.split("|")[4].startswith(f" {d.mean():.3f} ± {half:.3f} (p ")


def test_all_p_values_by_hand():
    """Those of scipy's paired t-test, and Holm's correction in its textbook form."""
    for task, algorithms in (("embedded", experiment.ALGORITHMS), ("other", ["grpo"])):
        p_values = {}
        for algorithm in algorithms:
            for weighting in report.DYNAMIC:
                for fixed in report.FIXED:
                    if (task, algorithm, fixed, 4) in BY_HAND:
                        a, b = (
                            [BY_HAND[task, algorithm, name, seed][1] for seed in MAIN_SEEDS]
                            for name in (weighting, fixed)
                        )
                        p_values[task, algorithm, weighting, fixed] = stats.ttest_rel(a, b).pvalue
        largest = 0.0
        for rank, key in enumerate(sorted(p_values, key=p_values.get)):
            largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[key]))
            assert comparison(*key)[1] == pytest.approx(largest, rel=0.06), key


def test_holm():
    """The example of most textbooks: .01, .02, .03, .04 become .04, .06, .06, .06."""
    assert report.holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])


def test_ablations_count_the_first_60_steps_only():
    with open(ROOT / "experiment/results.csv", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if list(row.values())[:3] == ["embedded", "grpo", "balanced"]
        ]
    last = [float(row["accuracy"]) for row in rows if row["seed"] in "123" and row["step"] == "60"]
    short = report.measure_all(EMBEDDED[EMBEDDED["step"] <= report.ABLATION_STEPS])
    table = report.ablation_table(report.select_variants(short[short["seed"].between(1, 3)], ["balanced"]))
    assert len(last) == 3 and f" {np.mean(last):.3f} ± " in table


def test_runs_are_compared_up_to_the_end_of_the_shortest():
    """If one run is cut off, all are cut off at its end or before. Seeds 1 to 3 are left out."""
    main = EMBEDDED[(EMBEDDED["algorithm"] == "rloo") & (EMBEDDED["seed"] >= 4)]
    is_cut = (main["variant"] == "balanced") & (main["seed"] == 6) & (main["step"] > 70)
    early = EMBEDDED[(EMBEDDED["algorithm"] == "grpo") & EMBEDDED["seed"].between(1, 3)].assign(
        algorithm="rloo"
    )
    comparable = report.comparable_evaluations(pandas.concat([main[~is_cut], early]))
    pandas.testing.assert_frame_equal(comparable, main[main["step"] <= 70])
    assert len(comparable) == 6 * 5 * 8

    main.loc[is_cut & (main["step"] == 80), "step"] = 75  # a step that the other runs lack
    comparable = report.comparable_evaluations(main[~is_cut | (main["step"] == 75)])
    assert comparable["step"].max() == 70 and len(comparable) == 6 * 5 * 8


def test_a_front_ends_at_its_last_point():
    points = np.array([[0.2, 0.9], [0.5, 0.4], [0.6, 0.1]])
    best = report.best_attained(points, [0.1, 0.3, 0.6, 0.7])
    assert best == pytest.approx([0.9, 0.4, 0.1, np.nan], nan_ok=True)


def test_report_of_another_task(tmp_path, monkeypatch):
    """One seed of two weightings, a limit of 512 tokens: no comparison, lengths in tokens, all pictures."""
    runs = EMBEDDED[(EMBEDDED["algorithm"] == "rloo") & (EMBEDDED["seed"] == 4)]
    runs = runs[runs["variant"].isin(["balanced", "gradient"])].assign(task="mine", seed=1)
    runs.assign(length=512 * (1 - runs["conciseness"])).to_csv(tmp_path / "results.csv", index=False)
    command = ["report.py", "--results", f"{tmp_path}/results.csv", "--output", f"{tmp_path}"]
    monkeypatch.setattr(sys, "argv", command)
    report.main()
    text = (tmp_path / "RESULTS.md").read_text()
    is_last = (runs["variant"] == "gradient") & (runs["step"] == 120)
    length = 512 * (1 - runs.loc[is_last, "conciseness"].item())
    assert "## Task: mine" in text and "| RLOO | gradient | 1 |" in text and f" {length:.1f} |" in text
    assert not any(word in text for word in ("against", "chosen", "embedded", "Nash"))
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"experiment-volumes.png", "experiment-mine-fronts.png", "experiment-mine-weights.png"}


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "No such file"),
        ("", "No columns"),
        ("task,seed\n1,1\n", "column step is missing"),
        ("{titles}\nembedded,grpo,nash,1,0,good,1,1,9,,,,,1\n", "column accuracy is missing or has cells"),
        ("{titles}\nembedded,grpo,nash,1,0,1\n", "no runs, or empty cells"),
        ("{titles}\n", "is missing or has cells"),
    ],
)
def test_damaged_results_are_one_line(tmp_path, monkeypatch, capsys, text, message):
    path = tmp_path / "results.csv"
    if text is not None:
        path.write_text(text.format(titles=",".join(experiment.COLUMNS)))
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", f"{path}", "--output", f"{tmp_path}"])
    with pytest.raises(SystemExit) as error:
        report.main()
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert error.value.code == 2 and message in line and not (tmp_path / "RESULTS.md").exists()


# Runs


def test_a_longer_run_replaces_a_shorter_one(tmp_path):
    """Otherwise its case would have two rows for a step. The rows of other cases do not change."""
    path, case = tmp_path / "results.csv", ("embedded", "grpo", "balanced", 1)
    titles, start = ",".join(experiment.COLUMNS) + "\n", "embedded,grpo,balanced,1,"
    other = "embedded,grpo,balanced,11,60,0.5,0.5,0.5,48.0,,,,1.0,9\n"
    path.write_text(f"{titles}{start}60,0.1,0.1,0.1,86.4,,,,1.0,9\n{other}")
    rows = [60, 0.2, 0.2, 0.2, 76.8, "", "", "", 1.0, 8], [120, 0.3, 0.3, 0.3, 67.2, "", "", "", 1.0, 16]
    experiment.record(path, case, iter(rows))
    new = f"{start}60,0.2,0.2,0.2,76.8,,,,1.0,8\n{start}120,0.3,0.3,0.3,67.2,,,,1.0,16\n"
    assert path.read_text() == titles + other + new


def test_the_evaluations_of_a_run(tmp_path):
    """r_pareto is averaged since the previous evaluation, and seconds are summed. Step 0 has no weights."""
    scores = ', "eval/completions/mean_length": 48, ' + ", ".join(
        f'"eval/performance/{name}": 0.5' for name in OBJECTIVES
    )
    weights = ", ".join(f'"weights/{name}": 0.25' for name in OBJECTIVES)
    lines = [
        f'{{"step": 0, "time/validate": 1{scores}}}',
        f'{{"step": 1, "time/rollout": 2, "r_pareto": 1.0, {weights}}}',
        f'{{"step": 2, "time/rollout": 3, "time/update": 4, "r_pareto": 2.0, {weights}{scores}}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert list(experiment.evaluations(tmp_path)) == [
        [0, 0.5, 0.5, 0.5, 48, "", "", "", 1.0, 1],
        [2, 0.5, 0.5, 0.5, 48, 0.25, 0.25, 0.25, 1.5, 10],
    ]


@pytest.mark.parametrize("steps, flags", [(180, " --steps 180"), (120, "")])
def test_a_longer_run_continues_from_its_checkpoint(tmp_path, monkeypatch, steps, flags):
    """A run with unchanged steps is resumed without --steps, which a polynomial schedule refuses."""
    script = "import pathlib, sys; pathlib.Path('arguments').write_text(' '.join(sys.argv[1:]))"
    (tmp_path / "toy_dynw.py").write_text(script)
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "args.json").write_text('{"steps": 120}')
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    experiment.train("toy", ["--weighting", "nash"], 1, steps, tmp_path)
    assert (tmp_path / "arguments").read_text() == f"--resume {tmp_path}{flags}"


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--learning-rate 1e-6", "--task: a name"),
        ("--task my/task", "--task: a name"),
        ("--task mine --weighting fixed", "--weighting: the experiment sets"),
        ("--task mine --output-dir x", "--output-dir: the experiment sets"),
        ("--task mine --max-grad-norm 0.5", "has the flags"),
        ("--task mine --learning-rate 1e-6", "has the flags '--learning-rate 1e-5'"),
        ("--steps 0", "--jobs, --steps"),
        ("--variants none", "--variants: no none"),
        ("--results {}/other.csv", "columns"),
    ],
)
def test_flags_that_would_mix_runs_are_refused(tmp_path, monkeypatch, capsys, flags, message):
    (tmp_path / "mine.txt").write_text("--learning-rate 1e-5")
    (tmp_path / "other.csv").write_text("a,b\n")
    monkeypatch.setattr(experiment, "train", None)
    command = ["experiment.py", "--runs", f"{tmp_path}", "--results", f"{tmp_path}/r.csv"]
    monkeypatch.setattr(sys, "argv", command + flags.format(tmp_path).split())
    with pytest.raises(SystemExit) as error:
        experiment.main()
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and "experiment.py: error: " in lines[-1] and message in lines[-1]


# Texts


def test_the_table_of_the_two_tasks():
    lines = (ROOT / "experiment/README.md").read_text().splitlines()
    columns = [*(("embedded", algorithm) for algorithm in experiment.ALGORITHMS), ("other", "grpo")]
    for variant in report.FIXED + report.DYNAMIC:
        title = f"{variant} (control)" if variant == "clarity-focused" else variant
        has_run = [(*column, variant, 4) in BY_HAND for column in columns]
        cells = [
            f" {mean_area(*column, variant):.3f} |" if run else " |" for column, run in zip(columns, has_run)
        ]
        assert f"| {title} |{''.join(cells)}" in lines


def test_the_fixed_weights_of_the_two_tasks():
    text = read_text("experiment/README.md", "## Two tasks", "**Embedded task.**")
    variants = {**experiment.MAIN, **experiment.CONTROL}
    assert variants["balanced"] == ""
    for name in ("accuracy-focused", "efficiency-focused", "clarity-focused"):
        assert f"{variants[name].removeprefix('--weights ')} ({name})" in text


def test_the_findings_on_the_embedded_task():
    text = read_text("experiment/README.md", "**Embedded task.**", "**Other task.**")
    algorithms = experiment.ALGORITHMS

    def distances(variant):
        pairs = [
            (mean_area("embedded", a, variant), mean_area("embedded", a, "balanced")) for a in algorithms
        ]
        return [f"{abs(area - balanced):.3f}" for area, balanced in pairs]

    for variant in ("hypervolume", "gradient"):
        for algorithm in algorithms:
            assert verdict("embedded", algorithm, variant, "balanced") == "behind"
    sentence = "is ahead of them by {} (GRPO), {} (RLOO) and {} (REINFORCE++)."
    assert sentence.format(*distances("nash")) in text
    verdicts = [verdict("embedded", algorithm, "nash", "balanced") for algorithm in algorithms]
    assert verdicts == ["not significant", "ahead", "ahead"]
    for algorithm in algorithms:
        areas = {name: mean_area("embedded", algorithm, name) for name in experiment.MAIN}
        assert max(areas, key=areas.get) == "efficiency-focused"


def test_no_dynamic_weighting_is_ahead_of_the_best_fixed_one():
    for task, algorithms in (("embedded", experiment.ALGORITHMS), ("other", ["grpo"])):
        for algorithm in algorithms:
            areas = {name: mean_area(task, algorithm, name) for name in report.FIXED[:3]}
            for weighting in report.DYNAMIC:
                assert verdict(task, algorithm, weighting, max(areas, key=areas.get)) != "ahead"


def test_the_findings_on_the_other_task():
    text = read_text("experiment/README.md", "**Other task.**", "**Ablations**")
    areas = [BY_HAND["other", "grpo", "accuracy-focused", seed][1] for seed in MAIN_SEEDS]
    assert f"whose areas lie between {min(areas):.3f} and {max(areas):.3f}." in text
    for weighting in ("gradient", "nash"):
        for fixed in report.FIXED:
            is_ahead = fixed in ("balanced", "efficiency-focused")
            expected = "ahead" if is_ahead else "not significant"
            assert verdict("other", "grpo", weighting, fixed) == expected
    for task, best in (("embedded", "efficiency-focused"), ("other", "accuracy-focused")):
        assert max(report.FIXED[:3], key=lambda name: mean_area(task, "grpo", name)) == best
        assert verdict(task, "grpo", "nash", "clarity-focused") == "not significant"


def test_the_order_by_area_is_the_same_with_all_algorithms():
    order = ["accuracy-focused", "gradient", "hypervolume", "balanced", "nash", "efficiency-focused"]
    areas = {a: {name: mean_area("embedded", a, name) for name in order} for a in experiment.ALGORITHMS}
    for by_variant in areas.values():
        assert sorted(order, key=by_variant.get) == order
    distances = [abs(areas["reinforce"][name] - areas["grpo"][name]) for name in order]
    bound = math.ceil(1000 * max(distances)) / 1000
    assert f"All six areas are within {bound:.3f} of GRPO's." in read_text("experiment/README.md", "## Why")


def test_the_choice_of_the_learning_rate():
    """2e-5 has the largest final hypervolume with each algorithm, 4e-5 the largest area."""
    runs = RUNS[(RUNS["task"] == "embedded") & (RUNS["seed"] == 0)]
    text = read_text("experiment/README.md", "- **The learning rate**", "- **Nash")
    assert "where 2e-5 is best. By area, 4e-5 is best with each algorithm." in text
    for measure, rate in (("hv", "2e-5"), ("area", "4e-5")):
        best = runs.loc[runs.groupby("algorithm")[measure].idxmax(), "variant"]
        assert best.tolist() == [f"balanced, learning rate {rate}"] * 3


@pytest.fixture(scope="module")
def other():
    """The evaluations of the other task, and their means by variant and step."""
    evaluations = EVALUATIONS[EVALUATIONS["task"] == "other"]
    return evaluations, evaluations.groupby(["variant", "step"])[experiment.COLUMNS[5:-1]].mean()


def test_the_three_best_on_the_other_task_after_120_steps(other):
    evaluations, _ = other
    areas = report.measure_all(evaluations[evaluations["step"] <= 120]).groupby("variant")["area"].mean()
    by_hand = {name: mean_area("other", "grpo", name) for name in report.FIXED + report.DYNAMIC}
    assert areas.nlargest(3).index.tolist() == sorted(by_hand, key=by_hand.get)[:-4:-1]
    clarity = evaluations[(evaluations["variant"] == "balanced") & (evaluations["step"] == 120)]["clarity"]
    assert clarity.min() > 0 and clarity.max() < 0.25  # "had only begun to recover clarity"


def test_the_course_of_the_other_task(other):
    text = read_text("experiment/README.md", "### The other task")
    evaluations, means = other
    start, ten = means.xs(0, level=1).iloc[0], means.xs(10, level=1)
    assert "an accuracy of {accuracy:.2f} and a clarity of {clarity:.2f}.".format(**start) in text
    assert "the mean accuracy is 0.73 or more" in text and 0.73 <= ten["accuracy"].min() < 0.74
    assert "the mean length is 40 tokens." in text and set(ten["length"].round()) == {40}
    early = evaluations[evaluations["step"].between(10, 30)]
    assert f"it is {early['clarity'].max():.2f} at steps 10 to 30." in text
    lengths = means.loc[means["clarity"] > 0.999, "length"].round()
    assert f"A clear response has {lengths.min():.0f} to {lengths.max():.0f} tokens" in text
    assert f"a terse one {means.loc[('balanced', 40), 'length']:.0f}." in text

    clear = evaluations[evaluations["clarity"] > 0.9].groupby(["variant", "seed"])["step"].min()
    clear = clear.groupby("variant").agg(["min", "max"])
    assert "at step 70 with gradient-based" in text and clear.loc["gradient"].tolist() == [70, 70]
    assert "at steps {} to {} with Nash weighting".format(*clear.loc["nash"]) in text
    assert "at steps {} to {} with the control (added".format(*clear.loc["clarity-focused"]) in text
    assert "at step {} or {} with balanced weights".format(*clear.loc["balanced"]) in text


def test_the_end_of_the_other_task(other):
    text = read_text("experiment/README.md", "**At the end**, the fronts")
    evaluations, means = other
    nash, last = means.loc["nash"], evaluations[evaluations["step"] == 180].set_index("variant")
    clarity = nash.loc[[130, 180], "clarity"]
    assert "clarity is {:.2f} at step 130 and {:.2f} at step 180.".format(*clarity) in text
    products = last[OBJECTIVES].prod(axis=1).groupby("variant").mean()
    least = products.drop("nash").min()
    assert f"the last point is {products['nash']:.3f}, that of the others is at least {least:.3f}." in text
    assert last["clarity"].drop("nash").min() > 0.99
    assert "({w_conciseness:.2f} and {w_clarity:.2f} at step 70)".format(**nash.loc[70]) in text


@pytest.fixture(scope="module")
def ablated():
    """The runs of each variant of the ablations, cut off at step 60."""
    short = EMBEDDED[EMBEDDED["step"] <= report.ABLATION_STEPS]
    runs = report.measure_all(short[(short["algorithm"] == "grpo") & short["seed"].between(1, 3)])
    assert set(experiment.ABLATIONS) <= set(runs["variant"])
    assert all(runs.groupby("variant").size() == 3)
    return dict(list(runs.groupby("variant")))


def test_r_pareto_on_the_reward_has_the_results_of_balanced_weights(ablated):
    """Both means are four times as close to those of balanced weights as with r_pareto on the advantage."""
    for measure in ("hv", "accuracy"):
        balanced = ablated["balanced"][measure].mean()
        on_reward = ablated["hypervolume, r_pareto on the reward"][measure].mean()
        on_advantage = ablated["hypervolume"][measure].mean()
        assert abs(on_reward - balanced) < abs(on_advantage - balanced) / 4


def test_the_text_on_the_ablations(ablated):
    text = read_text("experiment/README.md", "**Ablations**", "## How to reproduce")

    def mean(variant):
        return f"{ablated[variant]['hv'].mean():.3f}"

    def weights(variant):
        return " ".join(f"{w:.2f}" for w in np.mean(np.stack(ablated[variant]["weights"]), 0))

    on_reward = mean("hypervolume, r_pareto on the reward")
    assert f"The hypervolume is {on_reward}, with balanced weights {mean('balanced')}." in text
    assert f"With the meta reward on the advantage, it is {mean('hypervolume')}." in text

    scale_1 = "hypervolume, scale 1"
    assert f"stays near 0.5 (mean {ablated[scale_1]['r_pareto'].mean():.2f})." in text
    assert f"and the hypervolume is {mean(scale_1)}." in text

    assert f"the weights end at {weights('gradient, mu x 10')} (accuracy, conciseness, clarity)." in text
    assert f"clarity gets all the weight: {weights('gradient, mu / 10')}." in text
    assert f"hardly move, and end at {weights('gradient, clipped')}." in text
    assert f"on their way, at {weights('gradient, polynomial')}." in text


def test_the_text_on_the_probed_layers(ablated):
    text = read_text("experiment/README.md", "**Probed layers.**", "## How to reproduce")
    probed = [
        np.mean(np.stack(ablated[f"gradient{name}"]["weights"]), 0)
        for name in (", all layers", "", ", last layer")
    ]
    probed = [" ".join(f"{w:.2f}" for w in weights) for weights in probed]
    assert "end at {} with all layers, at {} with the middle half".format(*probed) in text
    assert f"and at {probed[2]} with the last layer alone." in text
    last = EMBEDDED[(EMBEDDED["variant"] == "gradient, last layer") & EMBEDDED["step"].between(30, 60)]
    ratio = last["w_conciseness"].sum() / last["w_accuracy"].sum()
    assert f"conciseness has {ratio:.1f} times the weight of accuracy in steps 30 to 60." in text
    accuracy = [ablated[name]["accuracy"].mean() for name in ("gradient, last layer", "balanced")]
    assert accuracy[0] < accuracy[1] - 0.1  # "gives up accuracy for brevity sooner"


def test_the_order_with_twice_the_learning_rate(ablated):
    order = ["efficiency-focused", "nash", "balanced", "hypervolume", "gradient", "accuracy-focused"]
    areas = [ablated[f"{name}, learning rate 4e-5"]["area"].mean() for name in order]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("name", ["experiment/README.md", "experiment/RESULTS.md", "benchmarks/README.md"])
def test_links_lead_to_files_and_headings(name):
    def anchors(path):
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    links = re.findall(r"\]\(([^):]+)\)", (ROOT / name).read_text())
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
