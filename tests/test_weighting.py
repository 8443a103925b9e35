"""The weightings in the main loop, with numbers worked out by hand. test_equations.py tests the equations."""

import json
import math

import pytest
import torch
from conftest import shared

import rewards

NAMES = ["accuracy", "conciseness", "clarity"]
# g_1 = (3, 4) has norm 5, g_2 = (.5, 0) and g_3 = (0, 0). Clipped to norm 1: (.6, .8), (.5, 0) and 0.
# Their sum is (1.1, .8).
GRAM = [[25.0, 1.5, 0.0], [1.5, 0.25, 0.0], [0.0, 0.0, 0.0]]
CLIPPED = [0.6 * 1.1 + 0.8 * 0.8, 0.5 * 1.1, 0.0]


@pytest.fixture
def weigh(run, script, monkeypatch, tmp_path):
    """weigh(gram, *flags): influences and weights of each step of a run whose probe returns `gram`."""
    gram_matrix = script.gram_matrix

    def call(gram, *flags):
        gram = torch.tensor(gram, dtype=torch.float64)
        monkeypatch.setattr(script, "gram_matrix", lambda *args: (gram, gram_matrix(*args)[1]))
        flags = ["--weighting", "gradient", "--learning-rate", "1e-3", *flags]
        metrics, _ = run(*flags, name=f"run{len(list(tmp_path.iterdir()))}")
        return [
            [line[f"{key}/{name}"] for name in NAMES]
            for line in metrics[1:]
            for key in ("influence", "weights")
        ]

    return call


@shared
def test_each_step_updates_the_weights_by_its_influences(weigh):
    """--mu 1e-2 and a learning rate of 1e-3: w_k grows by exp(I_k / 10) in each step, in proportion."""
    flags = ["--influence-scale", "clip", "--weights", "0.3", "0.5", "0.2", "--mu", "1e-2"]
    for step, values in enumerate(zip(*[iter(weigh(GRAM, *flags))] * 2), 1):
        influence, weights = values
        assert influence == pytest.approx(CLIPPED, abs=1e-12)
        raw = [w * math.exp(step * I / 10) for w, I in zip([0.3, 0.5, 0.2], CLIPPED)]
        assert weights == pytest.approx([x / sum(raw) for x in raw], abs=1e-9)


@shared
def test_mu_sets_the_speed(weigh):
    _, weights = weigh(GRAM, "--steps", "1", "--mu", "1e-4", "--influence-scale", "clip")
    raw = [math.exp(10 * I) for I in CLIPPED]
    assert weights == pytest.approx([x / sum(raw) for x in raw], abs=1e-9)


@shared
def test_an_objective_of_weight_zero_is_logged_with_its_influence(weigh):
    """I_0 = <g_0, g_1 + g_2> = (3 + 4) / 5, since only g_0 is longer than 1. The weight stays 0."""
    gram = [[25.0, 3.0, 4.0], [3.0, 0.25, 0.1], [4.0, 0.1, 0.16]]
    flags = ["--steps", "1", "--weights", "0", "0.5", "0.5", "--influence-scale", "clip"]
    influence, weights = weigh(gram, *flags)
    assert influence == pytest.approx([1.4, 0.35, 0.26], abs=1e-12)
    assert weights[0] == 0.0 and weights[1] / weights[2] == pytest.approx(math.exp(0.1 * 0.09), rel=1e-9)


@shared
def test_nash_weights_of_each_step_come_from_its_rollouts_and_the_initial_weights(run):
    initial = [0.2, 0.3, 0.5]
    rewards.OBJECTIVES["accuracy"] = lambda response, **_: float(len(response) % 3 > 0)
    rewards.OBJECTIVES["clarity"] = lambda response, **_: 0.3 + 0.5 * float("e" in response)
    metrics, folder = run("--weighting", "nash", "--steps", "3", "--weights", *map(str, initial))
    limit = json.loads((folder / "args.json").read_text())["max_new_tokens"]
    steps = []
    for line in metrics[1:]:
        conciseness = 1 - line["completions/mean_length"] / limit
        p = [line["rewards/accuracy/mean"], conciseness, line["rewards/clarity/mean"]]
        assert min(p) > 0.02 and len(set(p)) == 3
        raw = [w0 / x for w0, x in zip(initial, p)]
        weights = [line[f"weights/{name}"] for name in NAMES]
        assert weights == pytest.approx([x / sum(raw) for x in raw], rel=1e-6)
        steps.append(tuple(weights))
    assert len(set(steps)) == 3


@shared
def test_an_objective_may_define_its_performance(run, monkeypatch):
    """Evaluations report it, and Nash weighting uses it."""
    monkeypatch.setattr(rewards, "PERFORMANCE", {"clarity": lambda reward, length, limit: 0.5 + reward / 4})
    rewards.OBJECTIVES["accuracy"] = rewards.OBJECTIVES["clarity"] = lambda response, **_: float(
        len(response) % 2
    )
    metrics, _ = run("--weighting", "nash", "--objectives", "accuracy", "clarity", "--steps", "1")
    line = metrics[1]
    accuracy = line["rewards/accuracy/mean"]
    assert line["weights/accuracy"] == pytest.approx(
        (0.5 + accuracy / 4) / (0.5 + accuracy / 4 + accuracy), rel=1e-9
    )
    p = [line[f"eval/performance/{name}"] for name in ("accuracy", "clarity")]
    assert p[1] == pytest.approx(0.5 + p[0] / 4)


def validated(script, monkeypatch, points):
    """Replaces the evaluations on the validation split by `points`, one after the other."""
    evaluate, points = script.evaluate, iter(points)
    monkeypatch.setattr(
        script,
        "evaluate",
        lambda *args: ({}, next(points), []) if args[3] == "validation" else evaluate(*args),
    )


@shared
def test_r_pareto_of_each_step_is_that_of_the_gain_before_it(run, script, monkeypatch):
    """(.2, .2, .2) has volume .008. (.4, .2, .2) adds .008, (.3, .2, .2) nothing, (.4, .4, .2) adds .016."""
    points = [[0.2, 0.2, 0.2], [0.4, 0.2, 0.2], [0.3, 0.2, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2]]
    gains = [0.008, 0.0, 0.016, 0.0]
    for scale, flags in ((100, []), (1, ["--hv-scale", "1"])):
        validated(script, monkeypatch, points)
        metrics, _ = run("--weighting", "hypervolume", "--steps", "4", *flags, name=f"scale{scale}")
        assert [line["delta_hv"] for line in metrics[1:]] == pytest.approx(gains, abs=1e-12)
        expected = [1.0] + [0.5 + 1.5 * math.tanh(scale * gain) for gain in gains[:3]]
        assert [line["r_pareto"] for line in metrics[1:]] == pytest.approx(expected, abs=1e-9)
        assert [line["weights/accuracy"] for line in metrics[1:]] == [1 / 3] * 4


@shared
def test_r_pareto_runs_from_a_half_to_two(run, script, monkeypatch):
    validated(script, monkeypatch, [[0.1] * 3, [0.9] * 3, [0.5] * 3, [0.5] * 3])
    metrics, _ = run("--weighting", "hypervolume", "--steps", "3")
    assert [line["r_pareto"] for line in metrics[1:]] == [1.0, pytest.approx(2.0), 0.5]


def test_normalizing_each_reward_or_the_sum_is_the_same_where_one_objective_has_all_the_weight(run):
    results = []
    for normalize in ("sum", "each"):
        flags = ["--weights", "0", "1", "0", "--normalize", normalize, "--steps", "3"]
        metrics, _ = run(*flags, name=normalize)
        results.append(
            [(line["loss"], line["grad_norm"], line["completions/mean_length"]) for line in metrics[1:]]
        )
    for one, other in zip(*results):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_normalizing_each_reward_or_the_sum_is_the_same_only_for_rloo(run, script):
    """RLOO's advantage is linear in the reward."""
    kl = ["--kl-coefficient", "0"] if script.__name__ != "rloo_dynw" else []
    norms = []
    for normalize in ("sum", "each"):
        metrics, _ = run("--normalize", normalize, "--steps", "1", *kl, name=normalize)
        norms.append(metrics[1]["grad_norm"])
    assert (norms[0] == pytest.approx(norms[1], rel=1e-4)) == (script.__name__ == "rloo_dynw")


def test_the_advantages_of_each_reward_are_summed_with_the_weights(run, script, monkeypatch):
    losses, policy_loss = [], script.policy_loss
    monkeypatch.setattr(
        script,
        "policy_loss",
        lambda new, old, A, *rest: (losses.append(A), policy_loss(new, old, A, *rest))[1],
    )
    scores, score = [], rewards.score
    monkeypatch.setattr(rewards, "score", lambda *args: scores.append((args, score(*args))) or scores[-1][1])
    advantages, advantage = [], script.advantage
    monkeypatch.setattr(
        script, "advantage", lambda *args: advantages.append((args, advantage(*args))) or advantages[-1][1]
    )
    flags = [
        "--normalize",
        "each",
        "--weights",
        "0.5",
        "0.3",
        "0.2",
        "--micro-batch-size",
        "16",
        "--steps",
        "1",
    ]
    run(*flags)
    [r_vec] = [torch.tensor(rows, dtype=torch.float64).T for args, rows in scores if len(args[1]) == 16]
    _, lengths, args = advantages[0][0]
    expected = sum(w * advantage(r, lengths, args) for w, r in zip([0.5, 0.3, 0.2], r_vec))
    order = lengths.argsort(stable=True)
    torch.testing.assert_close(losses[0].double(), expected[order], rtol=1e-6, atol=1e-6)
