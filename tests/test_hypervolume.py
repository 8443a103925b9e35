"""Protects hypervolume.py: hypervolume, contribution and Pareto front."""

import itertools
import json
import math
from pathlib import Path

import moocore
import numpy as np
import pytest

from hypervolume import contribution, hypervolume, pareto_front

# Inputs and outputs of the functions in the paper authors' repository, at commit 238fe65.
ORACLE = json.loads((Path(__file__).resolve().parent / "data" / "numeric.json").read_text())


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b)) and any(x > y for x, y in zip(a, b))


def on_sphere(rng, n, k):
    """Returns points (n, k) of which none dominates another."""
    points = np.abs(rng.normal(size=(n, k)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def some_points(rng, kind, n, k):
    if kind == "sphere":
        return on_sphere(rng, n, k)
    points = rng.uniform(size=(n, k))
    return np.round(points, 1) if kind == "ties" else points


def cells_below(points, k):
    """Returns the cells of the grid {1, 2, 3, 4}^k that integer points dominate. A cell has volume 1."""
    cells = itertools.product(range(1, 5), repeat=k)
    return {cell for cell in cells if any((point >= cell).all() for point in points)}


# Hypervolume


@pytest.mark.parametrize("case", ORACLE["hypervolume"])
def test_hypervolume_of_the_authors(case):
    assert hypervolume(case["points"], case["reference"]) == pytest.approx(case["hypervolume"], rel=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "sphere", "ties"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_hypervolume_against_moocore(k, kind):
    rng = np.random.default_rng(k)
    for n in (1, 2, 7, 15):
        points = some_points(rng, kind, n, k)
        for reference in (np.zeros(k), np.full(k, 0.3), rng.uniform(-1, 0.6, size=k)):
            above = points[(points > reference).all(axis=1)]  # moocore gets only the points that count
            expected = moocore.hypervolume(above, ref=reference, maximise=True) if len(above) else 0.0
            assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.slow
def test_ten_thousand_random_cases_against_moocore():
    """K is 1 to 6. There are 1 to 12 points, many with equal coordinates or below the reference."""
    rng = np.random.default_rng(0)
    for case in range(10000):
        k, reference = case % 6 + 1, rng.uniform(-0.2, 0.3)
        points = rng.uniform(size=(rng.integers(1, 13), k)).round(rng.integers(1, 4))
        above = points[(points > reference).all(axis=1)]  # moocore gets only the points that count
        expected = moocore.hypervolume(above, ref=[reference] * k, maximise=True) if len(above) else 0.0
        assert hypervolume(points, [reference] * k) == pytest.approx(expected, rel=1e-9, abs=1e-15), case


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_hypervolume_counts_the_cells_of_integer_grids(k):
    rng = np.random.default_rng(k)
    for n in (1, 3, 8):
        points = rng.integers(-1, 5, size=(n, k))  # with ties, duplicates and points below the reference
        assert hypervolume(points, np.zeros(k)) == len(cells_below(points, k))


def test_hypervolume_is_not_changed_by_duplicates_or_dominated_points_or_order():
    points, reference = [[0.2, 0.9, 0.4], [0.7, 0.3, 0.5], [0.6, 0.6, 0.6]], [0.1, 0.1, 0.1]
    volume = hypervolume(points, reference)
    assert hypervolume(points + points, reference) == volume
    assert hypervolume([[0.5, 0.5, 0.5], *points, [0.6, 0.6, 0.2]], reference) == volume
    for order in itertools.permutations(points):
        assert hypervolume(order, reference) == pytest.approx(volume, rel=1e-12)


def test_points_not_above_the_reference_add_nothing():
    reference = [0.5, 0.5]
    below = [[0.9, 0.5], [0.1, 0.9], [0.1, 0.1]]
    assert hypervolume([], reference) == hypervolume(np.zeros((0, 2)), reference) == 0
    assert hypervolume([reference], reference) == hypervolume(below, reference) == 0
    assert hypervolume([*below, [0.7, 0.6]], reference) == pytest.approx(0.2 * 0.1)
    for point in below:
        assert contribution(point, [], reference) == contribution(point, [[0.7, 0.6]], reference) == 0
    assert contribution([0.7, 0.6], below, reference) == pytest.approx(0.2 * 0.1)


# Contribution


@pytest.mark.parametrize("case", ORACLE["meta_reward"])
def test_contribution_of_the_authors(case):
    """
    Points are in raw units (lengths in tokens), and the sign of minimised coordinates is flipped.

    The authors take the difference of two hypervolumes, which leaves about 1e-13 for a dominated point. Here
    it is exactly 0. All these points exceed the reference in every coordinate. A point that does not has a
    contribution of 0, never a negative one.
    """
    sign = np.where(case["maximise"], 1, -1)
    point, reference = sign * case["point"], sign * case["reference"]
    buffer = [sign * seen for seen in case["buffer"]]
    assert contribution(point, buffer, reference) == pytest.approx(case["delta_hv"], rel=1e-12, abs=1e-12)
    if any(dominates(seen, point) for seen in buffer):
        assert contribution(point, buffer, reference) == 0
    point[0] = reference[0] - 0.01
    assert contribution(point, buffer, reference) == 0


@pytest.mark.parametrize("kind", ["uniform", "sphere", "ties"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_contributions_are_differences_and_sum_to_the_hypervolume(k, kind):
    rng = np.random.default_rng(k)
    reference = np.full(k, 0.2)
    points = some_points(rng, kind, 25, k)
    total = 0.0
    for n, point in enumerate(points):
        gained = contribution(point, points[:n], reference)
        assert type(gained) is float and gained >= 0
        difference = hypervolume(points[: n + 1], reference) - hypervolume(points[:n], reference)
        assert gained == pytest.approx(difference)
        assert contribution(point, points[: n + 1], reference) == 0
        total += gained
    assert total == pytest.approx(hypervolume(points, reference), rel=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_contribution_against_moocore(k):
    points = on_sphere(np.random.default_rng(k), 60, k)
    for i in range(0, 60, 10):
        others = np.delete(points, i, axis=0)
        both = [moocore.hypervolume(p, ref=np.zeros(k), maximise=True) for p in (points, others)]
        gained = contribution(points[i], others, np.zeros(k))
        assert gained == pytest.approx(both[0] - both[1], rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_contribution_counts_the_cells_of_integer_grids(k):
    rng = np.random.default_rng(k)
    for n in (0, 1, 3, 8):
        points, point = rng.integers(-1, 5, size=(n, k)), rng.integers(1, 5, size=k)
        gained = len(cells_below([point], k) - cells_below(points, k))
        assert contribution(point, points, np.zeros(k)) == gained


def test_contribution_is_never_negative():
    """If the other boxes cover all but a tiny corner of the box, rounding alone decides the sign."""
    rng = np.random.default_rng(0)
    for k in (2, 3, 4) * 100:
        point = rng.uniform(0.1, 1, size=k)
        # Each of the others is lower in one objective, by the smallest possible difference.
        others = np.where(np.eye(k, dtype=bool), np.nextafter(point, 0), point)
        assert 0 <= contribution(point, others, np.zeros(k)) < 1e-15


# Pareto front


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pareto_front_against_brute_force(k):
    rng = np.random.default_rng(k)
    for n in (0, 1, 2, 5, 20):
        points = rng.integers(0, 4, size=(n, k)).tolist()
        expected = [
            not any(dominates(other, point) for other in points) and point not in points[:i]
            for i, point in enumerate(points)
        ]
        mask = pareto_front(points)
        assert mask.dtype == bool and mask.tolist() == expected


# Input


BROKEN_POINTS = [[0.5, math.nan], [0.5, math.inf], [0.5], [0.5] * 3, [[0.5, 0.5]], 0.5, ["a", "b"]]


@pytest.mark.parametrize("broken", BROKEN_POINTS)
def test_broken_input_is_refused_in_one_line(broken):
    good = [0.4, 0.4]
    for call in (
        lambda: hypervolume([good, broken], [0, 0]),
        lambda: hypervolume([broken], [0, 0]),
        lambda: hypervolume([good], broken),
        lambda: contribution(broken, [good], [0, 0]),
        lambda: contribution(good, [broken], [0, 0]),
        lambda: contribution(good, [], broken),
        lambda: pareto_front([good, broken]),
    ):
        with pytest.raises(ValueError, match="^points .*$") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_single_point_must_stand_in_a_list():
    with pytest.raises(ValueError):
        hypervolume([0.5, 0.5], [0, 0])
    with pytest.raises(ValueError):
        contribution([0.5, 0.5], [0.5, 0.5], [0, 0])
