"""The equations of the weightings agree with closed forms and with the results of the authors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared

from hypervolume import contribution, hypervolume

ORACLE = json.loads((Path(__file__).parent / "data" / "numeric.json").read_text())
# g_1 = (3, 4) has norm 5, g_2 = (.5, 0) and g_3 = (0, 0).
GRADIENTS = torch.tensor([[3.0, 4.0], [0.5, 0.0], [0.0, 0.0]], dtype=torch.float64)
EQUAL = torch.full((3,), 1 / 3, dtype=torch.float64)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# Eq. (1)


@shared
@pytest.mark.parametrize("scale, delta_hv", [(1, 0.0), (1, 0.3), (100, 0.008), (2048, 1.5), (0, 7.0)])
def test_the_meta_reward_is_that_of_the_closed_form(script, scale, delta_hv):
    """tanh(x) = (e^2x - 1) / (e^2x + 1)."""
    power = math.exp(min(2 * scale * delta_hv, 700))
    expected = 0.5 + 1.5 * (power - 1) / (power + 1)
    assert script.meta_reward(delta_hv, scale) == pytest.approx(expected, rel=1e-12)


@shared
@pytest.mark.parametrize("case", ORACLE["meta_reward"])
def test_the_meta_reward_of_the_authors(script, case):
    assert script.meta_reward(case["delta_hv"], 1.0) == pytest.approx(case["r_pareto"], rel=1e-9)


@shared
@pytest.mark.parametrize("case", [case for case in ORACLE["meta_reward"] if case["buffer"]])
def test_the_hypervolume_gain_of_the_authors_gives_their_meta_reward(script, case):
    """The authors count lengths in tokens. As shares of 2000 tokens, delta_hv is 2000 times smaller."""
    signs = np.where(case["maximise"], 1.0, -1.0) / [1, 2000, 1]
    point, buffer, reference = ((np.array(case[name]) * signs) for name in ("point", "buffer", "reference"))
    delta_hv = contribution(point, buffer, reference)
    if case["delta_hv"] >= 0:  # Below the reference, the authors' hypervolume is negative.
        assert 2000 * delta_hv == pytest.approx(case["delta_hv"], rel=1e-6, abs=1e-6)
        assert script.meta_reward(delta_hv, 2000) == pytest.approx(case["r_pareto"], rel=1e-6)


# Eq. (3)


@shared
def test_influences_by_hand(script):
    """
    At norm 1, the gradients are (.6, .8), (1, 0) and 0. Their sum is (1.6, .8). Clipped to norm 1, they are
    (.6, .8), (.5, 0) and 0. Their sum is (1.1, .8).
    """
    unit, clip = (script.influences(GRADIENTS @ GRADIENTS.T, EQUAL, scale) for scale in ("unit", "clip"))
    assert unit.tolist() == pytest.approx([0.6 * 1.6 + 0.8 * 0.8, 1.6, 0.0], abs=1e-12)
    assert clip.tolist() == pytest.approx([0.6 * 1.1 + 0.8 * 0.8, 0.5 * 1.1, 0.0], abs=1e-12)


@shared
@pytest.mark.parametrize("influence_scale", ["unit", "clip"])
@pytest.mark.parametrize("K", [2, 3, 8])
def test_influences_are_the_inner_products_of_the_gradients_themselves(script, K, influence_scale):
    gradients = torch.randn(K, 50, generator=torch.Generator().manual_seed(K), dtype=torch.float64) / 5
    influence = script.influences(gradients @ gradients.T, torch.full((K,), 1 / K), influence_scale)
    norms = gradients.norm(dim=1, keepdim=True)
    scaled = gradients / (norms if influence_scale == "unit" else norms.clamp(min=1.0))
    torch.testing.assert_close(influence, scaled @ scaled.sum(0))


@shared
def test_an_objective_with_zero_weight_has_an_influence_but_no_part_in_that_of_others(script):
    gradients = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients /= gradients.norm(dim=1, keepdim=True)
    influence = script.influences(gradients @ gradients.T, double(0.0, 0.5, 0.5), "unit")
    torch.testing.assert_close(influence, gradients @ gradients[1:].sum(0))
    assert influence[0] != 0


@shared
@pytest.mark.parametrize("influence_scale", ["unit", "clip"])
def test_a_numerically_zero_gradient_has_no_influence(script, influence_scale):
    gram = double([4.0, 0.0, 1e-13], [0.0, 1.0, 0.0], [1e-13, 0.0, 1e-24])
    assert script.influences(gram, EQUAL, "unit").tolist() == [1.0, 1.0, 0.0]
    assert script.influences(torch.zeros_like(gram), EQUAL, influence_scale).tolist() == [0.0] * 3


@shared
@pytest.mark.parametrize("factor", [1e-6, 10, 1e6])
def test_the_scale_of_the_loss_changes_no_influence_of_unit_gradients(script, factor):
    gram = GRADIENTS @ GRADIENTS.T
    influence, scaled = (script.influences(g, EQUAL, "unit") for g in (gram, factor**2 * gram))
    torch.testing.assert_close(scaled, influence)


@shared
@pytest.mark.parametrize("lr, mu", [(1e-6, 1e-5), (2e-5, 2e-4), (1e-3, 1e-4)])
def test_the_weight_update_is_that_of_the_closed_form(script, lr, mu):
    weights, influence = [0.3, 0.5, 0.2], [1.6, -0.4, 0.0]
    expected = [w * math.exp(lr * I / mu) for w, I in zip(weights, influence)]
    expected = [x / sum(expected) for x in expected]
    updated = script.update_weights(double(*weights), double(*influence), lr, mu)
    assert updated.tolist() == pytest.approx(expected, rel=1e-12)


@shared
def test_the_weight_update_keeps_zero_weights_and_large_influences_finite(script):
    updated = script.update_weights(double(0.0, 0.5, 0.5), double(900.0, 800.0, 0.0), 1.0, 1.0)
    assert updated.tolist() == [0.0, 1.0, 0.0]


# Nash weighting


@shared
def test_nash_weights_by_hand(script):
    """.2 / .4 = .5, .3 / .1 = 3, .5 / 1 = .5."""
    weights = script.nash_weights(double(0.2, 0.3, 0.5), double(0.4, 0.1, 1.0))
    assert weights.tolist() == pytest.approx([0.125, 0.75, 0.125], abs=1e-12)


@shared
def test_nash_weights_are_the_direction_of_the_gradient_of_the_nash_social_welfare(script):
    """Autograd differentiates sum_k w0_k log p_k."""
    initial, p = double(0.2, 0.3, 0.5), double(0.31, 0.82, 0.07).requires_grad_()
    (initial * p.log()).sum().backward()
    weights = script.nash_weights(initial, p.detach())
    torch.testing.assert_close(weights, p.grad / p.grad.sum())


@shared
def test_equal_nash_weights_follow_the_logarithm_of_the_hypervolume_of_one_point(script):
    p, step = [0.31, 0.82, 0.07], 1e-7
    slopes = []
    for k in range(3):
        moved = [x + step * (i == k) for i, x in enumerate(p)]
        slopes.append(math.log(hypervolume([moved], [0.0] * 3)) - math.log(hypervolume([p], [0.0] * 3)))
    weights = script.nash_weights(EQUAL, double(*p))
    assert weights.tolist() == pytest.approx([slope / sum(slopes) for slope in slopes], rel=1e-5)


@shared
def test_nash_weights_of_zero_performance_and_zero_initial_weight(script):
    """A performance of 0 counts as .02: .5 / .02 = 25, .5 / .5 = 1. An initial weight of 0 stays 0."""
    weights = script.nash_weights(double(0.5, 0.5, 0.0), double(0.0, 0.5, 0.1))
    assert weights.tolist() == pytest.approx([25 / 26, 1 / 26, 0.0], abs=1e-12)
