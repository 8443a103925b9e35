"""The main loop uses the weightings rightly. The steps are worked out by hand."""

import json
import math

import pytest
import torch
from conftest import shared, spy

import rewards

NAMES = ["accuracy", "conciseness", "clarity"]
# g_1 = (3, 4) has norm 5, g_2 = (.5, 0) and g_3 = (0, 0). Clipped to norm 1: (.6, .8), (.5, 0) and 0.
# Their sum is (1.1, .8).
GRAM = [[25.0, 1.5, 0.0], [1.5, 0.25, 0.0], [0.0, 0.0, 0.0]]
CLIPPED = [0.6 * 1.1 + 0.8 * 0.8, 0.5 * 1.1, 0.0]


def values(line, prefix):
    """Returns the numbers of the three objectives in a line of the metrics."""
    return [line[f"{prefix}/{name}"] for name in NAMES]


def normalized(weights):
    return [weight / sum(weights) for weight in weights]


# Gradient-based weighting


@pytest.fixture
def weigh(run, script, monkeypatch):
    """weigh(gram, *flags): influences and weights of each step of a run whose probe returns `gram`."""
    gram_matrix = script.gram_matrix

    def call(gram, *flags):
        gram = torch.tensor(gram, dtype=torch.float64)
        monkeypatch.setattr(script, "gram_matrix", lambda *args: (gram_matrix(*args), gram)[1])
        flags = ["--weighting", "gradient", "--influence-scale", "clip", "--learning-rate", "1e-3", *flags]
        metrics, _ = run(*flags)
        return [(values(line, "influence"), values(line, "weights")) for line in metrics[1:]]

    return call


@shared
@pytest.mark.parametrize("mu", [1e-2, 1e-4])
def test_each_step_updates_the_weights_by_its_influences(weigh, mu):
    """With a learning rate of 1e-3, w_k grows by exp(1e-3 I_k / mu) in each step, in proportion."""
    steps = weigh(GRAM, "--weights", "0.3", "0.5", "0.2", "--mu", str(mu))
    for step, (influence, weights) in enumerate(steps, 1):
        assert influence == pytest.approx(CLIPPED, abs=1e-12)
        raw = [w * math.exp(step * 1e-3 * I / mu) for w, I in zip([0.3, 0.5, 0.2], CLIPPED)]
        assert weights == pytest.approx(normalized(raw), abs=1e-9)


@shared
def test_an_objective_of_weight_zero_is_logged_with_its_influence(weigh):
    """I_0 = <g_0, g_1 + g_2> = (3 + 4) / 5, since only g_0 is longer than 1. The weight stays 0."""
    gram = [[25.0, 3.0, 4.0], [3.0, 0.25, 0.1], [4.0, 0.1, 0.16]]
    [(influence, weights)] = weigh(gram, "--steps", "1", "--weights", "0", "0.5", "0.5")
    assert influence == pytest.approx([1.4, 0.35, 0.26], abs=1e-12)
    assert weights[0] == 0.0 and weights[1] / weights[2] == pytest.approx(math.exp(0.1 * 0.09), rel=1e-9)


def record_step(run, script, monkeypatch, *flags):
    """
    Runs two steps of one micro-batch each. Returns the metrics of the second, its rewards r_vec (K, N), the
    advantages A (N,) in its policy loss, and a function that returns the advantage of a reward (..., N).
    """
    scores, losses = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "policy_loss")
    advantages, advantage = spy(monkeypatch, script, "advantage"), script.advantage
    metrics, _ = run("--micro-batch-size", "16", "--learning-rate", "1e-2", *flags)
    r_vec = [torch.tensor(rows, dtype=torch.float64).T for args, rows in scores if len(args[1]) == 16][1]
    _, lengths, args = advantages[-1][0]
    A = torch.zeros(16, dtype=torch.float64)
    A[lengths.argsort(stable=True)] = losses[1][0][2].double()  # A micro-batch is in the order of lengths.
    return metrics[2], r_vec, A, lambda reward: advantage(reward, lengths, args)


def test_gradients_come_from_each_reward_alone_and_the_update_from_the_new_weights(run, script, monkeypatch):
    probes = spy(monkeypatch, script, "gram_matrix")
    flags = ["--weighting", "gradient", "--weights", "0.5", "0.3", "0.2", "--mu", "1e-2"]
    line, r_vec, A, advantage = record_step(run, script, monkeypatch, *flags)
    A_k = torch.stack([advantage(reward) for reward in r_vec])
    torch.testing.assert_close(probes[1][0][2].double(), A_k, rtol=1e-6, atol=1e-6)
    weights = torch.tensor(values(line, "weights"), dtype=torch.float64)
    assert min(abs(weights - torch.tensor([0.5, 0.3, 0.2]))) > 0.01
    torch.testing.assert_close(A, advantage(weights @ r_vec), rtol=1e-6, atol=1e-6)


# Nash weighting


@shared
def test_nash_weights_of_each_step_come_from_its_rollouts_and_the_initial_weights(run):
    initial = [0.2, 0.3, 0.5]
    rewards.OBJECTIVES["accuracy"] = lambda response, **_: float(len(response) % 3 > 0)
    rewards.OBJECTIVES["clarity"] = lambda response, **_: 0.3 + 0.5 * float("e" in response)
    metrics, folder = run("--weighting", "nash", "--steps", "3", "--weights", *map(str, initial))
    limit, steps = json.loads((folder / "args.json").read_text())["max_new_tokens"], set()
    for line in metrics[1:]:
        conciseness = 1 - line["completions/mean_length"] / limit
        p = [line["rewards/accuracy/mean"], conciseness, line["rewards/clarity/mean"]]
        assert min(p) > 0.02 and len(set(p)) == 3
        expected = normalized([w0 / x for w0, x in zip(initial, p)])
        assert values(line, "weights") == pytest.approx(expected, rel=1e-6)
        steps.add(tuple(expected))
    assert len(steps) == 3


@shared
def test_an_objective_may_define_its_performance(run, monkeypatch):
    """Evaluations report it, and Nash weighting uses it."""
    monkeypatch.setattr(rewards, "PERFORMANCE", {"clarity": lambda reward, length, limit: 0.5 + reward / 4})
    rewards.OBJECTIVES["clarity"] = rewards.OBJECTIVES["accuracy"]
    metrics, _ = run("--weighting", "nash", "--objectives", "accuracy", "clarity", "--steps", "1")
    accuracy = metrics[1]["rewards/accuracy/mean"]
    clarity = 0.5 + accuracy / 4
    assert metrics[1]["weights/accuracy"] == pytest.approx(clarity / (clarity + accuracy), rel=1e-9)
    p = [metrics[1][f"eval/performance/{name}"] for name in ("accuracy", "clarity")]
    assert p[1] == pytest.approx(0.5 + p[0] / 4)


# Hypervolume-guided weighting


def validated(script, monkeypatch, points):
    """Replaces the evaluations on the validation split by `points`, one after the other."""
    evaluate, points = script.evaluate, iter(points)
    monkeypatch.setattr(
        script, "evaluate", lambda *args: next(points) if args[3] == "val" else evaluate(*args)
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


@pytest.mark.parametrize("place", ["advantage", "reward"])
@pytest.mark.parametrize("point, r_pareto", [([0.9] * 3, 2.0), ([0.1] * 3, 0.5)])
def test_r_pareto_from_a_half_to_two_is_on_the_advantage_or_on_the_reward(
    run, script, monkeypatch, place, point, r_pareto
):
    validated(script, monkeypatch, [[0.2] * 3, point, point])
    flags = ["--weighting", "hypervolume", "--meta-reward-on", place]
    line, r_vec, A, advantage = record_step(run, script, monkeypatch, *flags)
    assert line["r_pareto"] == pytest.approx(r_pareto, abs=1e-9)
    reward = r_vec.mean(0)
    expected = r_pareto * advantage(reward) if place == "advantage" else advantage(r_pareto * reward)
    torch.testing.assert_close(A, expected, rtol=1e-5, atol=1e-6)


# All weightings


@shared
def test_means_are_over_the_tokens_of_an_update_not_of_a_micro_batch(run):
    """With means over each micro-batch, one of few tokens would count as much as one of many."""
    results = []
    for size in (1, 3, 16):
        flags = ["--steps", "1", "--weighting", "gradient", "--micro-batch-size", str(size)]
        metrics, _ = run(*flags, name=f"size{size}")
        results.append([metrics[1][key] for key in ("loss", "grad_norm", "influence/accuracy")])
    for result in results[:2]:
        assert result == pytest.approx(results[2], rel=1e-3)
    assert min(map(abs, results[2])) > 1e-3
