"""benchmarks/why.py: what it counts of a group, by other ways, and its figures in benchmarks/README.md."""

import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import why  # noqa: E402


def test_shares_and_disagreements_are_those_of_numpy():
    rng, w = np.random.default_rng(0), np.array([0.5, 0.2, 0.3])
    groups = rng.random((3, 20, 8))
    groups[2, :5] = 1.0
    varies, share, both, disagree = why.of_groups(groups, w)
    assert varies.tolist() == [1, 1, 0.75] and both.tolist() == [1, 0.75, 0.75]
    shares, apart = [], np.zeros(3)
    for p in range(20):
        r = w @ groups[:, p]
        shares.append([w[k] * np.cov(groups[k, p], r)[0, 1] / np.var(r, ddof=1) for k in range(3)])
        for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            apart[n] += np.ptp(groups[j, p]) > 0 and np.corrcoef(groups[i, p], groups[j, p])[0, 1] < 0
    assert share == pytest.approx(np.mean(shares, 0)) and share.sum() == pytest.approx(1)
    assert disagree == pytest.approx(apart / 20) and disagree.min() > 0


def test_a_group_whose_rewards_cancel_has_no_say_in_the_shares():
    """Of accuracy and its opposite, with weights that nearly are equal: only the group with accuracy alone counts."""
    a = np.array([1.0, 0, 1, 0, 0, 0, 0, 1])
    groups = np.stack([[a, a], [1 - a, 0 * a], [0 * a, 0 * a]])
    _, share, both, disagree = why.of_groups(groups, np.array([0.334, 0.333, 0.333]))
    assert share == pytest.approx([1, 0, 0])
    assert both.tolist() == disagree.tolist() == [0.5, 0, 0]
