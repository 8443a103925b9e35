"""
Pareto fronts and hypervolumes, exact for any number K of objectives. Every objective is maximised.

The hypervolume of points is the volume that they dominate above a reference point: the union of the boxes
that reach from the reference point to each point. The method is that of While, Bradstreet and Barone, "A Fast
Way of Calculating Exact Hypervolumes" (IEEE Transactions on Evolutionary Computation 16(1), 2012): each point
adds the volume of its own box, minus the part of that box that earlier points cover.
"""

import numpy as np


def _as_matrix(rows):
    """Returns `rows` as floats (N, K). ValueError unless they are finite, equally many in each row."""
    try:
        matrix = np.asarray(rows, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("points and reference must be numbers, as many for each point") from None
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError("points must have shape (N, K) and the reference (K,)")
    if not np.isfinite(matrix).all():
        raise ValueError("points and reference must be finite, found NaN or infinity")
    return matrix


def _above(points, reference):
    """Returns points (N, K) minus the reference (K,), only those that exceed it in every objective."""
    matrix = _as_matrix([reference, *points])
    corners = matrix[1:] - matrix[0]
    return corners[(corners > 0).all(axis=1)]


def _front(points):
    """Returns the mask of `pareto_front` for a matrix (N, K)."""
    # A loop over objectives that compares all pairs of points is faster than a loop over points.
    covers = np.logical_and.reduce([np.greater_equal.outer(column, column) for column in points.T])
    is_earlier = ~np.tri(len(points), dtype=bool)
    return ~(covers & (~covers.T | is_earlier)).any(axis=0)


def _volume(points):
    """
    Returns the volume of the union of the boxes between the origin and each of points (N, K), all positive.

    The union is sliced along the last objective, the height of a point. From the highest point down, each
    point adds a region to what the points before it cover in the other K - 1 objectives. Over this region,
    the union is as high as the point. The volume is the sum, over the points, of the region times the height.
    """
    if points.shape[1] == 1:
        return points.max(initial=0.0)
    if points.shape[1] > 2:
        points = points[_front(points)]  # dominated points add nothing, and each point costs time

    points = points[np.argsort(-points[:, -1])]
    heights = points[:, -1]
    if points.shape[1] == 2:
        # The same sum, rearranged: the slice between two heights is as wide as the widest point above it.
        return np.maximum.accumulate(points[:, 0]) @ -np.diff(heights, append=0.0)
    bases = points[:, :-1]
    return sum(height * _gain(bases[i], bases[:i]) for i, height in enumerate(heights))


def _gain(point, points):
    """
    Returns the volume that the box of `point` (K,) adds to the boxes of `points` (N, K), all positive.

    This is the volume of the box minus the part that the others cover. Exactly 0 if one of them covers it.
    """
    covered = np.minimum(points, point)
    if (covered == point).all(axis=1).any():
        return 0.0
    return point.prod() - _volume(covered)


def pareto_front(points):
    """
    Returns which of the points (N, K) are not dominated, as a boolean mask (N,).

    A point is dominated by one that is at least as good in every objective and better in one. The first of
    equal points is kept. Memory grows as N^2. ValueError for points that are not finite or differ in length.
    """
    return _front(_as_matrix(points)) if len(points) else np.zeros(0, dtype=bool)


def hypervolume(points, reference):
    """
    Returns the volume that points (N, K), N >= 0, dominate above the reference point (K,).

    Its unit is the product of the objectives' units. A point that does not exceed the reference point in
    every objective adds nothing. ValueError for points that are not finite or differ in length.
    """
    return float(_volume(_above(points, reference)))


def contribution(point, points, reference):
    """
    Returns the hypervolume that `point` (K,) adds to that of `points`: at least 0, and 0 if it is dominated.

    This is far cheaper than the difference of two hypervolumes, because only the part of `points` inside the
    box of `point` counts. Shapes, unit and errors are those of `hypervolume`.
    """
    others, corner = _above(points, reference), _above([point], reference)
    # Rounding may turn a gain close to 0 into about -1e-17.
    return max(0.0, float(_gain(corner[0], others))) if len(corner) else 0.0
