"""K-means: points share the centre nearest to them, a centre is the mean of its points; by turns until it stands."""

from __future__ import annotations

import numpy as np

__all__ = ["k_means", "k_means_of_numbers", "nearest"]


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The index of each point's nearest centre, of equally near ones the first.

    Parameters
    ----------
    x : ndarray of float64, shape (n, d)
    centres : ndarray of float64, shape (k, d)

    Returns
    -------
    ndarray of int64, shape (n,)

    Examples
    --------
    >>> nearest(np.array([[0.0], [1.0], [4.0]]), np.array([[0.0], [2.0]]))
    array([0, 0, 1])
    """
    if x.shape[1] == 1:  # differences, not squares expanded: exact ties stay ties
        return np.abs(x - centres[:, 0]).argmin(1)
    return ((centres**2).sum(1) - 2 * x @ centres.T).argmin(1)


def k_means(
    x: np.ndarray, centres: np.ndarray, weights: np.ndarray | None = None, iterations: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    r"""Lloyd's algorithm from given centres.

    .. math:: \min_{c, z} \sum_i h_i \lVert x_i - c_{z_i} \rVert^2

    Parameters
    ----------
    x : ndarray of float64, shape (n, d)
        Points.
    centres : ndarray of float64, shape (k, d)
        To begin with; one that no point is nearest to stays where it is.
    weights : ndarray of float64, shape (n,), optional
        h, how much a point counts; all the same unless given.
    iterations : int
        At most; fewer when nothing moves any more.

    Returns
    -------
    centres : ndarray of float64, shape (k, d)
    labels : ndarray of int64, shape (n,)
        Of the returned centres.

    Source: S. P. Lloyd, "Least squares quantization in PCM", 1982.

    Examples
    --------
    >>> k_means(np.array([[0.0], [1.0], [10.0]]), np.array([[0.0], [6.0]]))
    (array([[ 0.5],
           [10. ]]), array([0, 0, 1]))
    """
    h = np.ones(len(x)) if weights is None else weights
    centres, labels = centres.copy(), nearest(x, centres)
    for _ in range(iterations):
        mass = np.bincount(labels, h, len(centres))
        sums = np.stack([np.bincount(labels, h * column, len(centres)) for column in x.T], axis=1)
        used = mass > 0
        centres[used] = sums[used] / mass[used, None]
        before, labels = labels, nearest(x, centres)
        if np.array_equal(before, labels):
            break
    return centres, labels


def k_means_of_numbers(x: np.ndarray, centres: np.ndarray, iterations: int = 300) -> tuple[np.ndarray, np.ndarray]:
    r"""Lloyd's algorithm for points on a line, in the time of one sorting.

    The points of a centre are those between its middles with its two neighbours. Of sorted points these are a run from
    :math:`a` to :math:`b`, whose sum is the difference of two running sums, so that an iteration costs
    :math:`O(k \log n)` in place of :math:`O(n k)`:

    .. math:: c = \frac{S_b - S_a}{b - a}, \qquad S_i = \sum_{j \le i} x_{(j)}

    Parameters
    ----------
    x : ndarray of float64, shape (n,)
    centres : ndarray of float64, shape (k,)
        To begin with, from least to largest; one that no point is nearest to stays where it is.
    iterations : int
        At most; fewer when nothing moves any more.

    Returns
    -------
    centres : ndarray of float64, shape (k,)
    labels : ndarray of int64, shape (n,)

    Examples
    --------
    >>> k_means_of_numbers(np.array([10.0, 0.0, 1.0]), np.array([0.0, 6.0]))
    (array([ 0.5, 10. ]), array([1, 0, 0]))
    """
    order = np.argsort(x, kind="stable")
    points = x[order]
    sums = np.concatenate([[0.0], np.cumsum(points)])

    def runs(centres: np.ndarray) -> np.ndarray:
        middles = (centres[:-1] + centres[1:]) / 2
        return np.concatenate([[0], np.searchsorted(points, middles, side="right"), [len(points)]])

    centres, ends = centres.copy(), runs(centres)
    for _ in range(iterations):
        mass = np.diff(ends)
        used = mass > 0
        centres[used] = np.diff(sums[ends])[used] / mass[used]
        before, ends = ends, runs(centres)
        if np.array_equal(before, ends):
            break
    labels = np.empty(len(x), np.int64)
    labels[order] = np.repeat(np.arange(len(centres)), np.diff(ends))
    return centres, labels
