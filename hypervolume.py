"""
Pareto fronts and hypervolume, exact in any number K of objectives. Every objective is maximised.

The hypervolume of some points is the volume that they dominate above a reference: the union of the boxes that reach
from the reference to each point. It is found as by While, Bradstreet and Barone, "A Fast Way of Calculating Exact
Hypervolumes" (IEEE Transactions on Evolutionary Computation 16(1), 2012): each point adds its own box, less what the
points before it cover of that box.
"""

import numpy as np


def as_matrix(rows):
    """`rows` as floats (N, K). ValueError unless they are finite numbers, as many in each row."""
    try:
        matrix = np.asarray(rows, dtype=float)
    except (TypeError, ValueError):
        raise ValueError("points and reference must be numbers, as many for each point") from None
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError("points must have shape (N, K) and the reference (K,)")
    if not np.isfinite(matrix).all():
        raise ValueError("points and reference must be finite, found NaN or infinity")
    return matrix


def above(points, reference):
    """The points (N, K) that exceed the reference (K,) in every objective, as seen from it: all positive."""
    matrix = as_matrix([reference, *points])
    corners = matrix[1:] - matrix[0]
    return corners[(corners > 0).all(axis=1)]


def front(points):
    """The mask of `pareto_front` for a matrix (N, K)."""
    # Comparing all pairs in one objective at a time is faster than all objectives of one point at a time.
    covers = np.logical_and.reduce([np.greater_equal.outer(column, column) for column in points.T])
    is_earlier = ~np.tri(len(points), dtype=bool)
    return ~(covers & (~covers.T | is_earlier)).any(axis=0)


def volume(points):
    """Volume of the union of the boxes between the origin and each of `points` (N, K), all positive."""
    if points.shape[1] == 1:
        return points.max(initial=0.0)
    if points.shape[1] > 2:
        points = points[front(points)]
    points = points[np.argsort(-points[:, -1])]
    heights = points[:, -1]
    if points.shape[1] == 2:
        return np.maximum.accumulate(points[:, 0]) @ -np.diff(heights, append=0.0)
    # Seen along the last objective, from the highest point down, each point adds to the silhouette of those before it.
    # Over what it adds there, the union of the boxes is as high as the point.
    flat = points[:, :-1]
    return sum(height * gain(flat[i], flat[:i]) for i, height in enumerate(heights))


def gain(point, points):
    """The volume that `point` (K,) adds to that of `points` (N, K), all positive. Exactly 0 where one covers it."""
    cut = np.minimum(points, point)
    if (cut == point).all(axis=1).any():
        return 0.0
    return point.prod() - volume(cut)


def pareto_front(points):
    """
    The non-dominated points, maximising. points: (N, K). Returns a boolean mask (N,).

    A point is dominated by one that is at least as good in every objective and better in one. Of equal points the first
    is kept. Memory grows as N^2. ValueError for points that are not finite or not of one length.
    """
    return front(as_matrix(points)) if len(points) else np.zeros(0, dtype=bool)


def hypervolume(points, reference):
    """
    The volume that `points` dominate above `reference`, maximising. points: (N, K), N >= 0, reference: (K,).

    Its unit is the product of the objectives' units. A point that does not exceed the reference in every objective adds
    nothing. ValueError for points or a reference that are not finite or not of one length.
    """
    return float(volume(above(points, reference)))


def contribution(point, points, reference):
    """
    The hypervolume that `point` (K,) would add to that of `points`. Never negative, and 0 for a dominated point.

    Far cheaper than a difference of two hypervolumes: of `points`, only what lies within the point's own box counts.
    Shapes, unit and errors as for `hypervolume`.
    """
    others, own = above(points, reference), above([point], reference)
    # Rounding may leave -1e-17 where the gain is that small.
    return max(0.0, float(gain(own[0], others))) if len(own) else 0.0
