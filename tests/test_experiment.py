"""The tables of benchmarks/RESULTS.md are those of benchmarks/results.csv, by other ways of counting, too."""

import csv
import math
import sys
from collections import defaultdict

import moocore
import numpy as np
import pandas
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import experiment  # noqa: E402
import report  # noqa: E402

EVALUATIONS = pandas.read_csv(ROOT / "benchmarks/results.csv")
EMBEDDED = EVALUATIONS[EVALUATIONS["task"] == "embedded"]
RUNS = report.measured(EVALUATIONS)
TEXT = (ROOT / "benchmarks/RESULTS.md").read_text()


def runs_by_hand():
    """Of each run: (hypervolume at the end, area) from the lines of the CSV, by moocore and the trapezium rule."""
    lines, found = defaultdict(list), {}
    with open(ROOT / "benchmarks/results.csv", newline="") as file:
        for row in csv.DictReader(file):
            point = [float(row[name]) for name in ("accuracy", "conciseness", "clarity")]
            key = row["task"], row["algorithm"], row["variant"], int(row["seed"])
            lines[key].append((int(row["step"]), point))
    for key, run in lines.items():
        points = np.array([point for _, point in run])
        volumes = [moocore.hypervolume(points[: i + 1], ref=[0, 0, 0], maximise=True) for i in range(len(run))]
        area = sum((run[i][0] - run[i - 1][0]) * (volumes[i] + volumes[i - 1]) / 2 for i in range(1, len(run)))
        found[key] = volumes[-1], area / run[-1][0]
    return found


def test_the_tables_are_those_of_the_csv():
    figures = [line[2:].split("](") for line in TEXT.splitlines() if line.startswith("![")]
    assert report.report(EVALUATIONS, [(name[:-1], what) for what, name in figures]) == TEXT


def test_every_run_is_whole():
    for key, run in EVALUATIONS.groupby(["task", "algorithm", "variant", "seed"]):
        steps = run["step"].tolist()
        last = {120} if key[0] == "embedded" else {180}
        assert steps[-1] in last | ({60} if key[-1] in (1, 2, 3) else set()), key
        assert steps == list(range(0, steps[-1] + 1, 10)), key


def test_hypervolume_and_area_counted_by_hand():
    by_hand = runs_by_hand()
    assert len(by_hand) == len(RUNS)
    for _, run in RUNS.iterrows():
        expected = by_hand[run["task"], run["algorithm"], run["variant"], run["seed"]]
        assert (run["hv"], run["area"]) == pytest.approx(expected, abs=1e-9)


def test_the_paired_comparison_by_hand():
    """Of gradient and balanced under GRPO: the mean difference, and half of its interval with t(.975, 4) = 2.776."""
    by_hand = runs_by_hand()
    d = np.array(
        [
            by_hand["embedded", "grpo", "gradient", s][1] - by_hand["embedded", "grpo", "balanced", s][1]
            for s in range(4, 9)
        ]
    )
    half = 2.7764451 * math.sqrt(((d - d.mean()) ** 2).sum() / 4 / 5)
    assert f"| GRPO | gradient | balanced | 5 | {d.mean():.3f} ± {half:.3f} |" in TEXT


def test_the_figures_of_the_readme_are_those_of_the_csv():
    by_hand, seeds = runs_by_hand(), range(4, 9)
    text = " ".join((ROOT / "README.md").read_text().split())

    def areas(name):
        return [np.mean([by_hand["embedded", a, name, s][1] for s in seeds]) for a in experiment.ALGORITHMS]

    def from_balanced(name):
        return [f"{abs(a - b):.3f}" for a, b in zip(areas(name), areas("balanced"))]

    def verdict(algorithm, one, other):
        embedded = TEXT[TEXT.index("## Task: embedded") :].split("\n## ")[0]
        [line] = [line for line in embedded.splitlines() if line.startswith(f"| {algorithm} | {one} | {other} |")]
        return line.split(" | ")[-1].strip(" |")

    assert (
        "beats balanced weights ({:.3f} with GRPO, {:.3f} RLOO, {:.3f} REINFORCE++)".format(*areas("balanced")) in text
    )
    for name, said in (("hypervolume", "hypervolume-guided weighting is {} to {} behind"),
                       ("gradient", "gradient-based weighting {} to {}.")):  # fmt: skip
        assert said.format(min(from_balanced(name)), max(from_balanced(name))) in text
        assert all(verdict(title, name, "balanced") == f"{name} is behind balanced" for title in report.TITLES.values())
    assert "`ascent`, is {}, {} and {} ahead (the latter two surely)".format(*from_balanced("ascent")) in text
    verdicts = [verdict(title, "ascent", "balanced") for title in report.TITLES.values()]
    assert verdicts == ["no difference survives", *["ascent is ahead of balanced"] * 2]
    assert "that favour brevity ({:.3f}, {:.3f}, {:.3f})".format(*areas("efficiency-focused")) in text
    assert all(e > a for e, a in zip(areas("efficiency-focused"), areas("ascent")))
    moving, fixed = ("gradient", "ascent"), ("balanced", "clarity-focused")
    other = [np.mean([by_hand["other", "grpo", v, s][1] for s in seeds]) for v in moving + fixed]
    assert (
        "weighting ({:.3f}) and `ascent` ({:.3f}, which loses them again) are ahead of balanced ({:.3f})".format(*other)
        in text
    )
    there = np.mean([by_hand["embedded", "grpo", "clarity-focused", s][1] for s in seeds])
    assert f"but not surely of weights that favour clarity ({other[3]:.3f}; above, {there:.3f})." in text


def test_holm():
    """The example of Holm (1979) in most textbooks: .01, .02, .03, .04 become .04, .06, .06, .06."""
    assert report.holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])


def test_steps_to_95_per_cent_by_hand():
    """Of a weighting that gets there: with each seed, the first evaluation at 95% of what balanced weights end at."""
    reached = []
    for seed in range(4, 9):
        goal = 0.95 * runs_by_hand()["embedded", "grpo", "balanced", seed][0]
        with open(ROOT / "benchmarks/results.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["task"] == "embedded" and row["algorithm"] == "grpo"]
        rows = [row for row in rows if row["variant"] == "hypervolume" and int(row["seed"]) == seed]
        points = np.array([[float(row[name]) for name in ("accuracy", "conciseness", "clarity")] for row in rows])
        for i, row in enumerate(rows):
            if moocore.hypervolume(points[: i + 1], ref=[0, 0, 0], maximise=True) >= goal:
                reached.append(int(row["step"]))
                break
    line = next(line for line in TEXT.splitlines() if line.startswith("| GRPO | hypervolume | 5 |"))
    assert line.endswith(f"| {sorted(reached)[len(reached) // 2]:.0f} ({len(reached)} of 5) |")


def test_an_ablation_counts_the_first_60_steps_only():
    """By the end of the lines that it shows: those of step 60, from the CSV."""
    with open(ROOT / "benchmarks/results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if list(row.values())[:3] == ["embedded", "grpo", "balanced"]]
    last = [float(row["accuracy"]) for row in rows if row["seed"] in "123" and row["step"] == "60"]
    short = report.measured(EMBEDDED[EMBEDDED["step"] <= report.ABLATED])
    shown = report.ablation(report.of_variants(short[short["seed"].between(1, 3)], ["balanced"]))
    assert f" {np.mean(last):.3f} ± " in shown and len(last) == 3


def test_a_longer_run_takes_the_place_of_a_shorter_one(tmp_path):
    """As of an ablation's first 60 steps: else its case would have two rows of a step. Others stay to the byte."""
    path, case = tmp_path / "results.csv", ("embedded", "grpo", "balanced", 1)
    titles, start = ",".join(experiment.FIELDS) + "\n", "embedded,grpo,balanced,1,"
    other = "embedded,grpo,balanced,11,60,0.5,0.5,0.5,48.0,,,,1.0,9\n"
    path.write_text(f"{titles}{start}60,0.1,0.1,0.1,86.4,,,,1.0,9\n{other}")
    lines = [60, 0.2, 0.2, 0.2, 76.8, "", "", "", 1.0, 8], [120, 0.3, 0.3, 0.3, 67.2, "", "", "", 1.0, 16]
    experiment.record(path, case, iter(lines))
    new = f"{start}60,0.2,0.2,0.2,76.8,,,,1.0,8\n{start}120,0.3,0.3,0.3,67.2,,,,1.0,16\n"
    assert path.read_text() == titles + other + new


@pytest.mark.parametrize("name, said", [("SGD", "SGD 0.0"), ("rewarded by p", "AdamW 0.75"), (None, "AdamW 0.0")])
def test_a_change_is_made_before_the_script_runs(tmp_path, monkeypatch, name, said):
    """A response of 24 of 96 tokens, as long as the mean, in a script that writes to its folder what it then sees."""
    (tmp_path / "toy_dynw.py").write_text(
        "import pathlib, rewards, sys, torch\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--output-dir') + 1])\n"
        "reward = rewards.OBJECTIVES['conciseness'](length=24, mean_length=24)\n"
        "folder.mkdir(), (folder / 'seen').write_text(f'{torch.optim.AdamW.__name__} {reward}')\n"
    )
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    (tmp_path / "rewards.py").symlink_to(ROOT / "rewards.py")
    experiment.train("toy", "", 1, 1, tmp_path / "run", [], experiment.CHANGES.get(name))
    assert (tmp_path / "run/seen").read_text() == said


@pytest.mark.parametrize("steps, said", [(180, " --steps 180"), (120, "")])
def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path, monkeypatch, steps, said):
    """A run that is as long as it was to be is resumed without --steps, which --lr-schedule polynomial refuses."""
    (tmp_path / "toy_dynw.py").write_text(
        "import pathlib, sys; pathlib.Path('seen').write_text(' '.join(sys.argv[1:]))"
    )
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "args.json").write_text('{"steps": 120}')
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    experiment.train("toy", "--weighting ascent", 1, steps, tmp_path, [], None)
    assert (tmp_path / "seen").read_text() == f"--resume {tmp_path}{said}"


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--learning-rate 1e-6", "--task: with"),
        ("--task my/task", "--task: with"),
        ("--task mine --weighting fixed", "--weighting: set by"),
        ("--task mine --output-dir x", "--output-dir: set by"),
        ("--task mine --max-grad-norm 0.5", "was begun with"),
        ("--task mine --learning-rate 1e-6", "was begun with '--learning-rate 1e-5'"),
        ("--steps 0", "--jobs, --steps"),
        ("--variants none", "--variants: no none"),
        ("--results {}/other.csv", "columns"),
    ],
)
def test_what_would_mix_runs_is_refused(tmp_path, monkeypatch, capsys, flags, said):
    (tmp_path / "mine.txt").write_text("--learning-rate 1e-5")
    (tmp_path / "other.csv").write_text("a,b\n")
    monkeypatch.setattr(experiment, "train", None)
    command = ["experiment.py", "--runs", f"{tmp_path}", "--results", f"{tmp_path}/r.csv"]
    monkeypatch.setattr(sys, "argv", command + flags.format(tmp_path).split())
    with pytest.raises(SystemExit) as stopped:
        experiment.main()
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and said in lines[-1] and "experiment.py: error: " in lines[-1]


def test_runs_are_compared_as_far_as_the_shortest_goes():
    """With one run cut off, all are cut off there, or before. On the embedded task, seeds 1 to 3 do not count."""
    main = EMBEDDED[(EMBEDDED["algorithm"] == "rloo") & (EMBEDDED["seed"] >= 4)]
    is_cut = (main["variant"] == "balanced") & (main["seed"] == 6) & (main["step"] > 70)
    early = EMBEDDED[(EMBEDDED["algorithm"] == "grpo") & EMBEDDED["seed"].between(1, 3)].assign(algorithm="rloo")
    found = report.judged(pandas.concat([main[~is_cut], early]))
    pandas.testing.assert_frame_equal(found, main[main["step"] <= 70])
    assert len(found) == 6 * 5 * 8
    main.loc[is_cut & (main["step"] == 80), "step"] = 75
    found = report.judged(main[~is_cut | (main["step"] == 75)])
    assert found["step"].max() == 70 and len(found) == 6 * 5 * 8


def test_a_task_of_ones_own_is_reported_whatever_its_seeds(tmp_path, monkeypatch):
    """One seed of two weightings, a limit of 512 tokens: no comparison, lengths in tokens, all pictures."""
    own = EMBEDDED[(EMBEDDED["algorithm"] == "rloo") & (EMBEDDED["seed"] == 4)]
    own = own[own["variant"].isin(["balanced", "gradient"])].assign(task="mine", seed=1)
    own.assign(length=512 * (1 - own["conciseness"])).to_csv(tmp_path / "results.csv", index=False)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", f"{tmp_path}/results.csv", "--output", f"{tmp_path}"])
    report.main()
    text = (tmp_path / "RESULTS.md").read_text()
    last = 512 * (1 - own.loc[(own["variant"] == "gradient") & (own["step"] == 120), "conciseness"].item())
    assert "## Task: mine" in text and "| RLOO | gradient | 1 |" in text and f" {last:.1f} |" in text
    assert "against" not in text and "chosen" not in text and "embedded" not in text
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"experiment-volumes.png", "experiment-mine-fronts.png", "experiment-mine-weights.png"}


def test_by_area_the_largest_learning_rate_leads():
    tried = RUNS[(RUNS["task"] == "embedded") & (RUNS["seed"] == 0)]
    leading = tried.loc[tried.groupby("algorithm")["area"].idxmax(), "variant"]
    assert leading.tolist() == ["balanced, learning rate 4e-5"] * 3


def test_a_front_ends_where_its_points_do():
    points = np.array([[0.2, 0.9], [0.5, 0.4], [0.6, 0.1]])
    assert report.best_attained(points, [0.1, 0.3, 0.6, 0.7]) == pytest.approx([0.9, 0.4, 0.1, np.nan], nan_ok=True)


def test_the_order_by_area_is_the_same_under_all_algorithms():
    judged = RUNS[(RUNS["task"] == "embedded") & (RUNS["seed"] >= 4) & RUNS["variant"].isin(experiment.MAIN)]
    areas = judged.groupby(["algorithm", "variant"])["area"].mean().unstack(0)
    expected = ["accuracy-focused", "gradient", "hypervolume", "balanced", "ascent", "efficiency-focused"]
    for algorithm in experiment.ALGORITHMS:
        assert areas[algorithm].sort_values().index.tolist() == expected
    assert 0.003 < (areas["reinforce"] - areas["grpo"]).abs().max() < 0.004  # "all six areas are within 0.004"


def test_what_the_text_says_of_conciseness_rewarded_as_p_counts_it():
    text = " ".join((ROOT / "benchmarks/README.md").read_text().split())
    names = ("ascent, rewarded by p", "balanced, rewarded by p")
    ascent, balanced = (EMBEDDED[EMBEDDED["variant"] == name] for name in names)

    def boxes(runs):
        return runs[["accuracy", "conciseness", "clarity"]].prod(axis=1).groupby(runs["step"]).mean()

    assert boxes(ascent).loc[60:].round(2).tolist() == [0.35] * 7
    assert (
        "a box of 0.35 from step 60 to step 120, with an accuracy of {:.3f} there".format(
            ascent.loc[ascent["step"] == 120, "accuracy"].mean()
        )
        in text
    )
    last = balanced[balanced["step"] == 120].sort_values("seed")["accuracy"]
    before = balanced.loc[balanced["step"] == 110, "accuracy"].mean()
    assert f"balanced weights one of {boxes(balanced)[120]:.3f} at step 120, with {last.mean():.3f} (" in text
    assert "({:.3f}, {:.3f} and {:.3f}, after {:.3f} ten steps before)".format(*last, before) in text
    areas = [report.measured(runs)["area"].mean() for runs in (ascent, balanced)]
    assert "costs them area ({:.3f} and {:.3f})".format(*areas) in text


def test_what_the_text_says_of_the_other_task():
    text = " ".join((ROOT / "benchmarks/README.md").read_text().split())
    text = text[text.index("## Another task ") : text.index("## Ablations ")]
    other = EVALUATIONS[EVALUATIONS["task"] == "other"]
    means = other.groupby(["variant", "step"])[experiment.FIELDS[5:-1]].mean()
    order = [
        "ascent",
        "gradient",
        "clarity-focused",
        "accuracy-focused",
        "efficiency-focused",
        "balanced",
        "hypervolume",
    ]
    by_hand = runs_by_hand()
    areas = {name: [by_hand["other", "grpo", name, seed][1] for seed in range(4, 9)] for name in order}
    assert f"| {' | '.join(f'{np.mean(areas[name]):.3f}' for name in order)} |" in text
    found = report.measured(other[other["step"] <= 120]).groupby("variant")["area"].mean().sort_values(ascending=False)
    assert found.index[:3].tolist() == order[:3]
    embedded = {
        name: np.mean([by_hand["embedded", "grpo", name, seed][1] for seed in range(4, 9)])
        for name in (*report.FIXED, "ascent")
    }
    assert max(report.FIXED[:3], key=embedded.get) == "efficiency-focused"
    assert max(report.FIXED[:3], key=lambda name: np.mean(areas[name])) == "accuracy-focused"
    assert "with {clarity-focused:.3f} beside {ascent:.3f}.".format(**embedded) in text
    assert "between {:.3f} and {:.3f}.".format(min(areas["accuracy-focused"]), max(areas["accuracy-focused"])) in text
    table = TEXT[TEXT.index("## Task: other") :]
    lines = [line for line in TEXT.splitlines() if line.startswith("| GRPO | ascent | clarity-focused |")]
    assert len(lines) == 2 and all("no difference survives" in line for line in lines)  # "cannot be told from ascent"
    for name in ("gradient", "ascent"):
        for fixed in report.FIXED:
            [line] = [line for line in table.splitlines() if line.startswith(f"| GRPO | {name} | {fixed} | 5 |")]
            is_ahead = fixed in ("balanced", "efficiency-focused")
            assert line.endswith(f" | {name} is ahead of {fixed} |" if is_ahead else " | no difference survives |")
    start, ten = means.xs(0, level=1).iloc[0], means.xs(10, level=1)
    assert "From an accuracy of {accuracy:.2f} and a clarity of {clarity:.2f}, all".format(**start) in text
    assert 0.73 <= ten["accuracy"].min() < 0.74 and set(ten["length"].round()) == {40}
    assert other.loc[other["step"].between(10, 30), "clarity"].max() < 0.005
    is_clear = means["clarity"] > 0.999
    lengths = means.loc[is_clear, "length"].round()
    assert f"clear response has some {lengths.min():.0f} to {lengths.max():.0f} tokens" in text
    assert round(means.loc[("balanced", 40), "length"]) == 41
    clear = (
        other[other["clarity"] > 0.9].groupby(["variant", "seed"])["step"].min().groupby("variant").agg(["min", "max"])
    )
    assert "above 0.9 at step 70 with gradient-based" in text and clear.loc["gradient"].tolist() == [70, 70]
    assert "at steps {} to {} with `ascent`".format(*clear.loc["ascent"]) in text
    assert "at steps {} to {} with the control".format(*clear.loc["clarity-focused"]) in text
    assert "at {} or {} with balanced".format(*clear.loc["balanced"]) in text
    assert "efficiency-focused weights until step 120" in text and set(clear.loc["efficiency-focused"]) == {120}
    assert "accuracy-focused ones from {} to {}.".format(*clear.loc["accuracy-focused"]) in text
    assert "same weights, turns at {} to {}: while".format(*clear.loc["hypervolume"]) in text
    at_40, at_10 = means.loc["gradient", 40], means.loc["ascent", 10]
    assert "conciseness ({w_conciseness:.2f} of the weight at step 40, clarity {w_clarity:.2f})".format(**at_40) in text
    assert "clarity ({w_clarity:.2f} at step 10, conciseness {w_conciseness:.2f})".format(**at_10) in text
    is_stuck = (other["variant"] == "hypervolume") & other["step"].between(20, 100)
    assert other.loc[is_stuck, "clarity"].max() == 0 and other.loc[is_stuck, "r_pareto"].mean().round(2) == 0.5
    ends = {name: np.mean([by_hand["other", "grpo", name, seed][0] for seed in range(4, 9)]) for name in order}
    four, three = ("ascent", "accuracy-focused", "clarity-focused", "gradient"), order[4:]
    assert ", ".join(f"{ends[name]:.3f} ({name})" for name in four) in text
    assert f"and {min(ends[v] for v in three):.3f} to {max(ends[v] for v in three):.3f}." in text
    ascent, last = means.loc["ascent"], other[other["step"] == 180].set_index("variant")
    assert "clarity is {:.2f} at step 130 and {:.2f} at step 180".format(*ascent.loc[[130, 180], "clarity"]) in text
    boxes = last[["accuracy", "conciseness", "clarity"]].prod(axis=1).groupby("variant").mean()
    least = boxes.drop("ascent").min()
    assert f"its volume is {boxes['ascent']:.3f}, the others' at least {least:.3f}." in text
    assert last["clarity"].drop("ascent").min() > 0.99
    assert "({w_conciseness:.2f} to {w_clarity:.2f} at step 70)".format(**ascent.loc[70]) in text


@pytest.fixture(scope="module")
def ablated():
    """Of each variant of the ablations: its runs, cut off at step 60."""
    short = EMBEDDED[EMBEDDED["step"] <= report.ABLATED]
    runs = report.measured(short[(short["algorithm"] == "grpo") & short["seed"].between(1, 3)])
    return dict(list(runs.groupby("variant")))


def test_r_pareto_on_the_reward_does_what_balanced_weighting_does(ablated):
    """In each mean four times as near to it as r_pareto on the advantage is."""
    for measure in ("hv", "accuracy"):
        balanced = ablated["balanced"][measure].mean()
        off, on = (ablated[f"hypervolume{where}"][measure].mean() for where in (", r_pareto on the reward", ""))
        assert abs(off - balanced) < abs(on - balanced) / 4


def test_what_the_text_says_of_the_ablations(ablated):
    text = " ".join((ROOT / "benchmarks/README.md").read_text().split())
    text = text[text.index("## Ablations ") : text.index("## Why ")]
    assert all(len(runs) == 3 for runs in ablated.values()) and set(experiment.ABLATIONS) <= set(ablated)

    def mean(variant, measure="hv"):
        return f"{ablated[variant][measure].mean():.3f}"

    def weights(variant):
        return " ".join(f"{w:.2f}" for w in np.mean(np.stack(ablated[variant]["weights"]), 0))

    on_reward = mean("hypervolume, r_pareto on the reward")
    assert f"a hypervolume of {on_reward} beside {mean('balanced')}; on the advantage, {mean('hypervolume')}." in text
    others = ["hypervolume, scale 1", "hypervolume, scale 2048", "hypervolume, from the initial model"]
    volumes = [mean(variant) for variant in others]
    assert f"(mean {ablated[others[0]]['r_pareto'].mean():.2f}), a constant, which" in text
    assert "out (above): {}. At 2048 it is {}, from the initial model {}.".format(*volumes) in text
    assert max(volumes) < mean("balanced")
    assert f"weights end at {weights('gradient, mu x 10')}; at a tenth" in text
    assert f"clarity has all, {weights('gradient, mu / 10')}." in text
    assert f"moves none, {weights('gradient, clipped')}:" in text
    assert f"one of three runs, at step 60 (means {weights('gradient, least weight 0.05')})." in text
    bounded = EMBEDDED[(EMBEDDED["variant"] == "gradient, least weight 0.05") & (EMBEDDED["step"] > 0)]
    assert bounded.loc[bounded["w_conciseness"] < 0.0501, "step"].tolist() == [60]
    assert weights("gradient, least weight 0.15").split()[1] == "0.15"
    areas = mean("gradient, least weight 0.15", "area"), mean("gradient", "area")
    assert "and the area is {} beside {}.".format(*areas) in text
    for name in ("balanced", "gradient"):
        assert f"from {mean(name, 'area')} to {mean(f'{name}, each normalised', 'area')} ({name})" in text
    probed = [weights(f"gradient{which}") for which in (", all layers", "", ", last layer")]
    assert "All lead to {}, the middle half to {}, the last alone to {}.".format(*probed) in text
    last = EMBEDDED[(EMBEDDED["variant"] == "gradient, last layer") & EMBEDDED["step"].between(30, 60)]
    assert f"has {last['w_conciseness'].sum() / last['w_accuracy'].sum():.1f} times the weight of accuracy" in text
    sold = [mean(name, what) for what in ("accuracy", "area") for name in ("gradient, last layer", "balanced")]
    assert "{} beside {} at step 60, and an area of {} beside {}.".format(*sold) in text
    assert f"on their way, at {weights('gradient, polynomial')}." in text
    areas = [mean(name, "area") for name in ("balanced, SGD", "hypervolume, SGD", "balanced", "hypervolume")]
    assert "{} (balanced) and {} (hypervolume), with AdamW {} and {}.".format(*areas) in text
    order = ["efficiency-focused", "ascent", "balanced", "hypervolume", "gradient", "accuracy-focused"]
    areas = [mean(f"{name}, learning rate 4e-5", "area") for name in order]
    assert ", ".join(f"{area} ({name})" for area, name in zip(areas, order)) in text
    assert areas == sorted(areas, reverse=True)
