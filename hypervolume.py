"""
Pareto fronts and hypervolumes, exact for any number K of objectives. Every objective is maximised.

The hypervolume of points is the volume that they dominate above a reference point. It is the volume of the
union of the boxes between the reference point and each point. The method is that of While, Bradstreet and
Barone, "A Fast Way of Calculating Exact Hypervolumes" (IEEE Transactions on Evolutionary Computation 16(1),
2012): each point adds the volume of its own box, minus the part of this box that earlier boxes cover.
"""

import numpy as np


def _as_matrix(rows):
    """Returns `rows` as an array (N, K). ValueError unless all are finite and the rows equally long."""
    try:
        matrix = np.asarray(rows, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("points and reference must be lists of numbers of the same length") from None
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError("points must have shape (N, K) and the reference (K,)")
    if not np.isfinite(matrix).all():
        raise ValueError("points and reference must be finite, found NaN or infinity")
    return matrix


def _above(points, reference):
    """Returns points (N, K) minus the reference (K,). Leaves out points that do not exceed it everywhere."""
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

    The last objective is the height of a point. The others span its base, a box in K - 1 objectives. Points
    are added from the highest to the lowest. Over the part of a base that earlier bases do not cover, the
    union is as high as the point. The volume is the sum of these parts, each times the height of its point.
    """
    if points.shape[1] == 1:
        return points.max(initial=0.0)
    if points.shape[1] > 2:
        points = points[_front(points)]  # dominated points add nothing, and each point costs time

    points = points[np.argsort(-points[:, -1])]
    heights = points[:, -1]
    if points.shape[1] == 2:
        # The same volume in slices: between two heights, the union is as wide as the widest higher point.
        return np.maximum.accumulate(points[:, 0]) @ -np.diff(heights, append=0.0)
    bases = points[:, :-1]
    return sum(height * _gain(bases[i], bases[:i]) for i, height in enumerate(heights))


def _gain(point, points):
    """
    Returns the volume that the box of `point` (K,) adds to the boxes of `points` (N, K), all positive.

    This is the volume of the box minus the part that the other boxes cover. Exactly 0 if one covers it all.
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

    This is far cheaper than the difference of two hypervolumes, because only the parts of the other boxes
    inside the box of `point` count. Shapes, unit and errors are those of `hypervolume`.
    """
    others, corner = _above(points, reference), _above([point], reference)
    # Rounding may turn a gain close to 0 into about -1e-17.
    return max(0.0, float(_gain(corner[0], others))) if len(corner) else 0.0
