"""Choosing an algorithm for a layer by what was measured on layers like it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, log2
from typing import Any

__all__ = ["choose", "permitted"]

STRIDE_ONE = ("winograd", "fft-convolution")
SIZES = ("in_channels", "out_channels", "size")


def permitted(algorithm: str, shape: Mapping[str, Any]) -> bool:
    """Whether an algorithm can do a layer at all.

    Examples
    --------
    >>> permitted("winograd", {"kernel": 3, "stride": 1}), permitted("winograd", {"kernel": 3, "stride": 2})
    (True, False)
    """
    plain = shape.get("stride", 1) == 1 and shape.get("dilation", 1) == 1
    if algorithm == "winograd":
        return plain and shape["kernel"] == 3
    return plain or algorithm not in STRIDE_ONE


def choose(shape: Mapping[str, Any], times: Iterable[tuple[Mapping[str, Any], str, float]]) -> str:
    """The algorithm that was fastest on the measured layer most like this one, of those that can do it.

    Alike are layers of one kind, depthwise or not, whose channels and sizes differ by few factors of two; of an
    algorithm measured several times on a layer the fastest counts.

    Parameters
    ----------
    shape : mapping
        in_channels, out_channels, size, kernel, stride, groups; dilation if it is not one.
    times : iterable of (mapping, str, float)
        A measured layer, the algorithm, and its seconds.

    Raises
    ------
    ValueError
        If no algorithm that can do the layer was measured on one of its kind.

    Examples
    --------
    >>> small = {"in_channels": 64, "out_channels": 64, "size": 56, "kernel": 3, "stride": 1, "groups": 1}
    >>> measured = [(small, "direct-convolution", 2.0), (small, "winograd", 1.3)]
    >>> choose({**small, "in_channels": 128}, measured), choose({**small, "stride": 2}, measured)
    ('winograd', 'direct-convolution')
    """
    nearest, found = inf, ""
    fastest = inf
    for measured, algorithm, seconds in times:
        if _depthwise(measured) != _depthwise(shape) or not permitted(algorithm, shape):
            continue
        apart = sum(abs(log2(measured[name] / shape[name])) for name in SIZES) + abs(
            measured["kernel"] - shape["kernel"]
        )
        if apart < nearest or (apart == nearest and seconds < fastest):
            nearest, fastest, found = apart, seconds, algorithm
    if not found:
        raise ValueError(
            f"times: expected an algorithm measured on a layer of the kind of {dict(shape)}; there is none"
        )
    return found


def _depthwise(shape: Mapping[str, Any]) -> bool:
    return shape.get("groups", 1) > 1
