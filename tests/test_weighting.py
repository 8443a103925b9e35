"""The dynamic weightings as the main loop runs them, on numbers that are worked out by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

import rewards
from hypervolume import hypervolume

ORACLE = json.loads((Path(__file__).parent / "data" / "numeric.json").read_text())
NAMES = ["accuracy", "conciseness", "clarity"]
# g_1 = (3, 4), of length 5, g_2 = (.5, 0) and g_3 = (0, 0)
GRAM = [[25.0, 1.5, 0.0], [1.5, 0.25, 0.0], [0.0, 0.0, 0.0]]
# Of length 1: (.6, .8), (1, 0), 0. I_1 = .6 * 1.6 + .8 * .8, I_2 = 1.6. At most: (.6, .8), (.5, 0), 0.
INFLUENCE = {"unit": [1.6, 1.6, 0.0], "clip": [1.3, 0.55, 0.0]}


@pytest.fixture
def weigh(run, script, monkeypatch):
    """weigh(gram, *flags): influences and weights after one step in which the probe finds `gram`."""
    probe = script.gram_matrix

    def call(gram, *flags, steps="1"):
        gram = torch.tensor(gram, dtype=torch.float64)
        monkeypatch.setattr(script, "gram_matrix", lambda *args: (gram, probe(*args)[1]))
        flags = ["--weighting", "gradient", "--learning-rate", "1e-3", "--steps", steps, *flags]
        metrics, _ = run(*flags, name=f"run{len(list(Path.cwd().iterdir()))}")
        return [[line[f"{key}/{name}"] for name in NAMES] for line in metrics[1:] for key in ("influence", "weights")]

    return call


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("scale", INFLUENCE)
def test_influence_and_weights_by_hand(weigh, scale):
    influence, w = weigh(GRAM, "--influence-scale", scale, "--weights", "0.3", "0.5", "0.2")
    assert influence == pytest.approx(INFLUENCE[scale], abs=1e-12)
    raw = [p * math.exp(I / 10) for p, I in zip([0.3, 0.5, 0.2], INFLUENCE[scale])]  # mu is 10 learning rates
    assert w == pytest.approx([x / sum(raw) for x in raw], abs=1e-9)


def test_mu_sets_the_speed(weigh):
    _, w = weigh(GRAM, "--mu", "1e-4", "--influence-scale", "clip")
    raw = [math.exp(10 * I) for I in INFLUENCE["clip"]]
    assert w == pytest.approx([x / sum(raw) for x in raw], abs=1e-9)


def test_an_objective_of_weight_zero_is_only_watched(weigh):
    """It keeps its weight, and its gradient has no part in the sum that the others are compared with."""
    gram = [[25.0, 3.0, 4.0], [3.0, 0.25, 0.1], [4.0, 0.1, 0.16]]
    I, w = weigh(gram, "--weights", "0", "0.5", "0.5", "--influence-scale", "clip")
    assert pytest.approx([0.0, 0.35, 0.26], abs=1e-12) == I
    assert w[0] == 0.0 and w[1] / w[2] == pytest.approx(math.exp(0.1 * 0.09), rel=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 10, 1e6])
def test_the_scale_of_the_loss_changes_no_weight(weigh, factor):
    scaled = [[factor**2 * x for x in row] for row in GRAM]
    assert weigh(scaled) == [pytest.approx(values, rel=1e-9) for values in weigh(GRAM)]


def test_a_gradient_that_is_rounding_has_no_influence(weigh):
    gram = [[4.0, 0.0, 1e-13], [0.0, 1.0, 0.0], [1e-13, 0.0, 1e-24]]
    assert weigh(gram)[0] == [1.0, 1.0, 0.0]
    assert weigh([[0.0] * 3] * 3)[0] == [0.0] * 3


def test_no_weight_falls_below_the_bound(weigh):
    """The third is pushed down for ever: it stops at .1, and the others share .9 as they would without it."""
    gram = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    flags = ["--mu", "1e-4", "--weights", "0.5", "0.25", "0.25"]
    for line in weigh(gram, *flags, "--min-weight", "0.1", steps="3")[1::2]:
        assert line == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
        assert min(line) >= 0.1 - 1e-12 and sum(line) == pytest.approx(1, abs=1e-12)
    assert weigh(gram, *flags)[1][2] < 1e-3
    assert weigh(gram, *flags, "--min-weight", "0.333333")[1] == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_the_bound_lifts_no_objective_of_weight_zero(weigh):
    gram = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    flags = ["--weights", "0.5", "0", "0.5", "--mu", "1e-4", "--min-weight", "0.1", "--influence-scale", "clip"]
    assert weigh(gram, *flags)[1] == pytest.approx([0.9, 0.0, 0.1], abs=1e-3)


def test_ascent_follows_the_logarithm_of_the_hypervolume(run):
    """Of one point, the step's means: its derivative by each objective, times p, is 1, so w_k are as 1 / p_k."""
    flags = ["--weighting", "ascent", "--objectives", "accuracy", "conciseness", "clarity"]
    initial = [0.2, 0.3, 0.5]
    rewards.OBJECTIVES["accuracy"] = lambda response, **_: float(len(response) % 3 > 0)
    rewards.OBJECTIVES["clarity"] = lambda response, **_: 0.25 + 0.5 * float("e" in response)
    metrics, folder = run(*flags, "--steps", "3", "--weights", *map(str, initial), name="ascent")
    limit, seen = json.loads((folder / "args.json").read_text())["max_new_tokens"], []
    for line in metrics[1:]:
        p = [line["rewards/accuracy/mean"], 1 - line["completions/mean_length"] / limit, line["rewards/clarity/mean"]]
        assert min(p) > 0.02 and len(set(p)) == 3
        # The logarithm of the box's volume, by differences of volumes, each objective weighted by its initial weight.
        step, volume = 1e-6, hypervolume([p], [0.0] * 3)
        slope = [(hypervolume([[x + step * (i == k) for i, x in enumerate(p)]], [0.0] * 3) - volume) / step / volume
                 for k in range(3)]  # fmt: skip
        w = [w0 * s for w0, s in zip(initial, slope)]
        assert [line[f"weights/{name}"] for name in NAMES] == pytest.approx([x / sum(w) for x in w], rel=1e-5)
        seen.append(w)
    assert len({tuple(w) for w in seen}) == 3


def test_ascent_of_objectives_that_earn_nothing_or_weigh_nothing(run):
    """At 0, a performance counts as .02, or nothing else would be learned. An initial weight of 0 stays 0."""
    for name, value in (("accuracy", 0.0), ("clarity", 0.5), ("mood", 0.1)):
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    flags = ["--weighting", "ascent", "--objectives", "accuracy", "clarity", "mood", "--weights", "0.5", "0.5", "0"]
    metrics, _ = run(*flags, "--steps", "1", name="zero")
    found = [metrics[1][f"weights/{name}"] for name in ("accuracy", "clarity", "mood")]
    assert found == pytest.approx([50 / 52, 2 / 52, 0.0], abs=1e-9)


def validated(script, monkeypatch, points):
    """Lets the validation split show `points`, one after the other."""
    evaluate, points = script.evaluate, iter(points)
    monkeypatch.setattr(
        script,
        "evaluate",
        lambda *args: ({}, next(points), []) if args[-2] == "val" else evaluate(*args),
    )


def test_r_pareto_by_hand(run, script, monkeypatch):
    """From (.2, .2, .2), of volume .008, to (.4, .2, .2) are .008, to (.3, .2, .2) nothing, to (.4, .4, .2) .016."""
    points = [[0.2, 0.2, 0.2], [0.4, 0.2, 0.2], [0.3, 0.2, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]
    gains = [0.008, 0.0, 0.016, 0.0]
    for scale, flags in ((100, []), (1, ["--hv-scale", "1"])):
        validated(script, monkeypatch, points)
        metrics, _ = run("--weighting", "hypervolume", "--steps", "4", *flags, name=f"scale{scale}")
        assert [line["delta_hv"] for line in metrics[1:]] == pytest.approx(gains, abs=1e-12)
        expected = [1.0] + [0.5 + 1.5 * math.tanh(scale * gain) for gain in gains[:3]]
        assert [line["r_pareto"] for line in metrics[1:]] == pytest.approx(expected, abs=1e-9)


def test_r_pareto_runs_from_a_half_to_two(run, script, monkeypatch):
    validated(script, monkeypatch, [[0.1] * 3, [0.9] * 3, [0.5] * 3, [0.5] * 3])
    metrics, _ = run("--weighting", "hypervolume", "--steps", "3")
    assert [line["r_pareto"] for line in metrics[1:]] == [1.0, pytest.approx(2.0), 0.5]


@pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)
@pytest.mark.parametrize("case", [case for case in ORACLE["meta_reward"] if 0 < len(case["buffer"]) < 3][:4])
def test_r_pareto_of_the_authors_in_their_unit(run, script, monkeypatch, case):
    """They count lengths in tokens. As shares of 2000 and seen from their reference, it takes a factor of 2000."""
    unit = [1, 2000, 1]
    shares = [
        [(p - r) * (1 if up else -1) / u for p, r, up, u in zip(point, case["reference"], case["maximise"], unit)]
        for point in [*case["buffer"], case["point"]]
    ]
    n = len(case["buffer"])
    validated(script, monkeypatch, [*shares, shares[0]])
    metrics, _ = run("--weighting", "hypervolume", "--hv-scale", "2000", "--steps", str(n + 1))
    assert 2000 * metrics[n]["delta_hv"] == pytest.approx(case["delta_hv"], rel=1e-9, abs=1e-9)
    assert metrics[n + 1]["r_pareto"] == pytest.approx(case["r_pareto"], rel=1e-9)


def test_each_reward_normalised_is_the_sum_normalised_where_one_has_all_the_weight(run):
    results = []
    for normalize in ("sum", "each"):
        flags = ["--weights", "0", "1", "0", "--normalize", normalize, "--steps", "3"]
        metrics, _ = run(*flags, name=normalize)
        results.append([(line["loss"], line["grad_norm"], line["completions/mean_length"]) for line in metrics[1:]])
    for one, other in zip(*results):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_what_is_normalised_makes_a_difference_but_to_rloo(run, script):
    """RLOO's advantage is linear in the reward."""
    kl = ["--kl-coefficient", "0"] if script.__name__ != "rloo_dynw" else []
    norms = []
    for normalize in ("sum", "each"):
        metrics, _ = run("--normalize", normalize, "--steps", "1", *kl, name=normalize)
        norms.append(metrics[1]["grad_norm"])
    assert (norms[0] == pytest.approx(norms[1], rel=1e-4)) == (script.__name__ == "rloo_dynw")


def test_each_advantage_is_weighed_by_hand(run, script, monkeypatch):
    given, policy_loss = [], script.policy_loss
    monkeypatch.setattr(
        script, "policy_loss", lambda new, old, A, *rest: (given.append(A), policy_loss(new, old, A, *rest))[1]
    )
    scored, score = [], rewards.score
    monkeypatch.setattr(rewards, "score", lambda *args: scored.append((args, score(*args))) or scored[-1][1])
    advantages, advantage = [], script.advantage
    monkeypatch.setattr(
        script, "advantage", lambda *args: advantages.append((args, advantage(*args))) or advantages[-1][1]
    )
    flags = ["--normalize", "each", "--weights", "0.5", "0.3", "0.2", "--micro-batch-size", "16", "--steps", "1"]
    run(*flags)
    [r_vec] = [torch.tensor(rows, dtype=torch.float64).T for args, rows in scored if len(args[1]) == 16]
    _, lengths, args = advantages[0][0]
    expected = sum(w * advantage(r, lengths, args) for w, r in zip([0.5, 0.3, 0.2], r_vec))
    order = lengths.argsort(stable=True)
    torch.testing.assert_close(given[0].double(), expected[order], rtol=1e-6, atol=1e-6)
