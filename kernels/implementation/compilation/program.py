"""What a compiled network is: a table of steps, and one compiled loop that takes them on arrays in an arena.

An image lies in the arena with its channels last and with a margin of zeros, as wide as the convolutions that read it
need. One row of a convolution's result is a product: for each row of the filter, the pixels that a result meets lie
side by side, so that a register tile of results times vectors of output channels takes them one by one,

    sums[j, o] = b[o] + sum over u, t of image[s i + u, s j C + t] * w[u, t, o].

The sums of a row stay in the first-level cache; what comes after them (a residual, a rectifier, pooling) is done on the
way from there to the arena, and is never written out in between.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from numba import njit

from kernels.simd import LANES, tile_fma, tile_load, tile_store

__all__ = ["COLUMNS", "Field", "Op", "panels", "run"]

COLUMNS = 2 * LANES
"""Output channels of a panel of weights; of a layer with at most LANES, half as many."""
_MANY, _FEW = (7, 14) if LANES == 16 else (6, 7)
"""Results in a tile of two vectors, and in one of one: as many sums as there are registers for."""


class Op(IntEnum):
    """What a step does."""

    INPUT, CONV, DEPTHWISE, LINEAR, RELU, ADD, MAXPOOL, MEAN, FLATTEN, OUTPUT = range(10)


class Field(IntEnum):
    """Columns of the table. Sizes with `IN` and `OUT` are without margins; `AT` is an offset of the arena."""

    OP = 0
    IN_AT, IN_H, IN_W, IN_C, IN_MH, IN_MW = range(1, 7)
    OUT_AT, OUT_H, OUT_W, OUT_C, OUT_MH, OUT_MW = range(7, 13)
    OTHER_AT, OTHER_MH, OTHER_MW = range(13, 16)
    WEIGHT, BIAS, K_H, K_W, S_H, S_W, P_H, P_W, D_H, D_W, GROUPS = range(16, 27)
    RELU, POOL = range(27, 29)


FIELDS = len(Field)
# plain integers, which a compiled function can freeze
(OP, IN_AT, IN_H, IN_W, IN_C, IN_MH, IN_MW, OUT_AT, OUT_H, OUT_W, OUT_C, OUT_MH, OUT_MW, OTHER_AT, OTHER_MH, OTHER_MW,
 WEIGHT, BIAS, K_H, K_W, S_H, S_W, P_H, P_W, D_H, D_W, GROUPS, RELU, POOL) = map(int, Field)  # fmt: skip
(INPUT, CONV, DEPTHWISE, LINEAR, RECTIFY, ADD, MAXPOOL, MEAN, FLATTEN, OUTPUT) = map(int, Op)


def panels(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights as the tiles read them: panels of output channels, in each filter row by row, the channels last.

    Parameters
    ----------
    weight : ndarray of shape (outputs, channels, height, width)
    bias : ndarray of shape (outputs,)

    Returns
    -------
    ndarray of shape (panels, height * width * channels, panel), ndarray of shape (panels * panel,)
        The channels that fill the last panel are zeros.

    Examples
    --------
    >>> packed, bias = panels(np.ones((3, 2, 1, 1), np.float32), np.ones(3, np.float32))
    >>> packed.shape == (1, 2, LANES), float(bias.sum())
    (True, 3.0)
    """
    outputs = len(weight)
    panel = LANES if outputs <= LANES else COLUMNS
    count = -(-outputs // panel)
    padded = np.zeros((count * panel, weight[0].size), np.float32)
    padded[:outputs] = weight.transpose(0, 2, 3, 1).reshape(outputs, -1)
    packed = padded.reshape(count, panel, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(packed), np.pad(bias.astype(np.float32), (0, count * panel - outputs))


def _tile(rows: int, vectors: int) -> Callable:
    @njit(cache=True, inline="always")
    def tile(arena, first, step, row_step, tap_step, k_h, k_w, channels, merged, params, w, b, scratch, q, span):
        """Sums of `rows` results in a row, each `step` after the one before, for one panel."""
        sums = tile_load(params, b, 0, rows, vectors, LANES)
        for u in range(k_h):
            for v in range(1 if merged else k_w):
                at = first + u * row_step + v * tap_step
                for t in range(channels * (k_w if merged else 1)):
                    sums = tile_fma(sums, arena, at + t, step, params, w)
                    w += vectors * LANES
        tile_store(sums, scratch, q, span)

    return tile


_many_two, _seven_two, _one_two = _tile(_MANY, 2), _tile(4, 2), _tile(1, 2)
_many_one, _seven_one, _one_one = _tile(_FEW, 1), _tile(7, 1), _tile(1, 1)


@njit(cache=True, inline="always")
def _row(arena, first, step, row_step, tap_step, k_h, k_w, channels, merged, params, w, b, scratch, to, count, outputs):
    """The sums of one row of `count` results, all output channels, to scratch[to:], channels last."""
    depth = k_h * k_w * channels
    if outputs <= LANES:
        j = 0
        while j < count:
            if count >= _FEW:
                i = min(j, count - _FEW)
                _many_one(arena, first + i * step, step, row_step, tap_step, k_h, k_w, channels, merged, params, w, b,
                          scratch, to + i * LANES, LANES)  # fmt: skip
                j = i + _FEW
            elif count >= 7:
                i = min(j, count - 7)
                _seven_one(arena, first + i * step, step, row_step, tap_step, k_h, k_w, channels, merged, params, w, b,
                           scratch, to + i * LANES, LANES)  # fmt: skip
                j = i + 7
            else:
                _one_one(arena, first + j * step, step, row_step, tap_step, k_h, k_w, channels, merged, params, w, b,
                         scratch, to + j * LANES, LANES)  # fmt: skip
                j += 1
        return
    span = (outputs + COLUMNS - 1) // COLUMNS * COLUMNS
    for o in range(0, span, COLUMNS):
        j = 0
        while j < count:
            if count >= _MANY:
                i = min(j, count - _MANY)
                _many_two(arena, first + i * step, step, row_step, tap_step, k_h, k_w, channels, merged, params,
                          w + o * depth, b + o, scratch, to + i * span + o, span)  # fmt: skip
                j = i + _MANY
            elif count >= 4:
                i = min(j, count - 4)
                _seven_two(arena, first + i * step, step, row_step, tap_step, k_h, k_w, channels, merged, params,
                           w + o * depth, b + o, scratch, to + i * span + o, span)  # fmt: skip
                j = i + 4
            else:
                _one_two(arena, first + j * step, step, row_step, tap_step, k_h, k_w, channels, merged, params,
                         w + o * depth, b + o, scratch, to + j * span + o, span)  # fmt: skip
                j += 1


@njit(cache=True, inline="always")
def _clear_margin(arena, s):
    """Zeros around an image that is about to be written."""
    mh, mw, c = s[OUT_MH], s[OUT_MW], s[OUT_C]
    width = (s[OUT_W] + 2 * mw) * c
    at, rows = s[OUT_AT], s[OUT_H] + 2 * mh
    if mh or mw:
        arena[at : at + mh * width] = 0
        arena[at + (rows - mh) * width : at + rows * width] = 0
        for r in range(mh, rows - mh):
            arena[at + r * width : at + r * width + mw * c] = 0
            arena[at + (r + 1) * width - mw * c : at + (r + 1) * width] = 0


@njit(cache=True, inline="always")
def _rectified(x):
    return np.float32(0) if x < 0 else x


@njit(cache=True)
def _convolution(s, arena, params, scratch):
    groups = s[GROUPS]
    channels, outputs = s[IN_C] // groups, s[OUT_C] // groups
    pool = s[POOL]
    count = s[OUT_W] * pool
    lanes = LANES if outputs <= LANES else COLUMNS
    span = (outputs + lanes - 1) // lanes * lanes
    width, out_width = (s[IN_W] + 2 * s[IN_MW]) * s[IN_C], (s[OUT_W] + 2 * s[OUT_MW]) * s[OUT_C]
    other_width = (s[OUT_W] + 2 * s[OTHER_MW]) * s[OUT_C]
    depth = s[K_H] * s[K_W] * channels
    merged = groups == 1 and s[D_W] == 1
    for g in range(groups):
        corner = s[IN_AT] + (s[IN_MH] - s[P_H]) * width + (s[IN_MW] - s[P_W]) * s[IN_C] + g * channels
        for i in range(s[OUT_H]):
            for a in range(pool):
                _row(arena, corner + (i * pool + a) * s[S_H] * width, s[S_W] * s[IN_C], s[D_H] * width,
                     s[D_W] * s[IN_C], s[K_H], s[K_W], channels, merged, params, s[WEIGHT] + g * span * depth,
                     s[BIAS] + g * span, scratch, a * count * span, count, outputs)  # fmt: skip
            out = s[OUT_AT] + (i + s[OUT_MH]) * out_width + s[OUT_MW] * s[OUT_C] + g * outputs
            other = s[OTHER_AT] + (i + s[OTHER_MH]) * other_width + s[OTHER_MW] * s[OUT_C] + g * outputs
            for j in range(s[OUT_W]):
                to, at, beside = out + j * s[OUT_C], j * pool * span, other + j * s[OUT_C]
                if pool == 1:
                    if s[OTHER_AT] >= 0:
                        for o in range(outputs):
                            arena[to + o] = scratch[at + o] + arena[beside + o]
                    else:
                        for o in range(outputs):
                            arena[to + o] = scratch[at + o]
                else:
                    for o in range(outputs):
                        arena[to + o] = scratch[at + o]
                    for a in range(pool):
                        for b in range(pool):
                            next_at = (a * count + j * pool + b) * span
                            for o in range(outputs):
                                x = scratch[next_at + o]
                                arena[to + o] = x if (x > arena[to + o] or x != x) else arena[to + o]
                if s[RELU]:
                    for o in range(outputs):
                        arena[to + o] = _rectified(arena[to + o])


@njit(cache=True)
def _depthwise(s, arena, params):
    c = s[OUT_C]
    width, out_width = (s[IN_W] + 2 * s[IN_MW]) * c, (s[OUT_W] + 2 * s[OUT_MW]) * c
    corner = s[IN_AT] + (s[IN_MH] - s[P_H]) * width + (s[IN_MW] - s[P_W]) * c
    for i in range(s[OUT_H]):
        for j in range(s[OUT_W]):
            to = s[OUT_AT] + (i + s[OUT_MH]) * out_width + (j + s[OUT_MW]) * c
            at = corner + i * s[S_H] * width + j * s[S_W] * c
            arena[to : to + c] = params[s[BIAS] : s[BIAS] + c]
            for u in range(s[K_H]):
                for v in range(s[K_W]):
                    w, here = s[WEIGHT] + (u * s[K_W] + v) * c, at + u * s[D_H] * width + v * s[D_W] * c
                    for o in range(c):
                        arena[to + o] += params[w + o] * arena[here + o]
            if s[RELU]:
                for o in range(c):
                    arena[to + o] = _rectified(arena[to + o])


@njit(cache=True)
def _elementwise(s, arena):
    """Add two images, or rectify one; each has margins of its own."""
    run = s[OUT_W] * s[OUT_C]
    for i in range(s[OUT_H]):
        to = s[OUT_AT] + (i + s[OUT_MH]) * (run + 2 * s[OUT_MW] * s[OUT_C]) + s[OUT_MW] * s[OUT_C]
        at = s[IN_AT] + (i + s[IN_MH]) * (run + 2 * s[IN_MW] * s[OUT_C]) + s[IN_MW] * s[OUT_C]
        if s[OP] == ADD:
            other = s[OTHER_AT] + (i + s[OTHER_MH]) * (run + 2 * s[OTHER_MW] * s[OUT_C]) + s[OTHER_MW] * s[OUT_C]
            for o in range(run):
                arena[to + o] = arena[at + o] + arena[other + o]
        else:
            for o in range(run):
                arena[to + o] = _rectified(arena[at + o])


@njit(cache=True)
def _maxpool(s, arena):
    c = s[OUT_C]
    width, out_width = (s[IN_W] + 2 * s[IN_MW]) * c, (s[OUT_W] + 2 * s[OUT_MW]) * c
    for i in range(s[OUT_H]):
        for j in range(s[OUT_W]):
            to = s[OUT_AT] + (i + s[OUT_MH]) * out_width + (j + s[OUT_MW]) * c
            arena[to : to + c] = -np.inf
            for u in range(max(0, s[P_H] - i * s[S_H]), min(s[K_H], s[IN_H] + s[P_H] - i * s[S_H])):
                for v in range(max(0, s[P_W] - j * s[S_W]), min(s[K_W], s[IN_W] + s[P_W] - j * s[S_W])):
                    row, column = i * s[S_H] + u - s[P_H] + s[IN_MH], j * s[S_W] + v - s[P_W] + s[IN_MW]
                    at = s[IN_AT] + row * width + column * c
                    for o in range(c):
                        x = arena[at + o]
                        arena[to + o] = x if (x > arena[to + o] or x != x) else arena[to + o]


@njit(cache=True)
def _mean(s, arena):
    c = s[OUT_C]
    width = (s[IN_W] + 2 * s[IN_MW]) * c
    share = np.float32(1) / np.float32(s[IN_H] * s[IN_W])
    arena[s[OUT_AT] : s[OUT_AT] + c] = 0
    for i in range(s[IN_H]):
        for j in range(s[IN_W]):
            at = s[IN_AT] + (i + s[IN_MH]) * width + (j + s[IN_MW]) * c
            for o in range(c):
                arena[s[OUT_AT] + o] += arena[at + o]
    for o in range(c):
        arena[s[OUT_AT] + o] *= share


@njit(cache=True)
def _transposed(s, source, at, inner, inside, target, to, outer, outside):
    """Channels last to channels first: from rows at distance `inside` of pixels at distance `inner`, and back."""
    for i in range(s[OUT_H]):
        for j in range(s[OUT_W]):
            for c in range(s[OUT_C]):
                target[to + i * outside + j * outer[0] + c * outer[1]] = source[
                    at + i * inside + j * inner[0] + c * inner[1]
                ]


@njit(cache=True)
def run(steps, params, arena, scratch, x, y):
    """Take all steps for each item of x (items, numbers), and write the results to y (items, numbers)."""
    for item in range(x.shape[0]):
        for k in range(steps.shape[0]):
            s = steps[k]
            op = s[OP]
            if op != OUTPUT:
                _clear_margin(arena, s)
            plane, c = s[OUT_H] * s[OUT_W], s[OUT_C]
            if op == INPUT:
                width = (s[OUT_W] + 2 * s[OUT_MW]) * c
                to = s[OUT_AT] + s[OUT_MH] * width + s[OUT_MW] * c
                _transposed(s, x[item], 0, (1, plane), s[OUT_W], arena, to, (c, 1), width)
            elif op in (CONV, LINEAR):
                _convolution(s, arena, params, scratch)
            elif op == DEPTHWISE:
                _depthwise(s, arena, params)
            elif op in (RECTIFY, ADD):
                _elementwise(s, arena)
            elif op == MAXPOOL:
                _maxpool(s, arena)
            elif op == MEAN:
                _mean(s, arena)
            else:  # channels first again, into the arena for what reads a vector, or out of it
                width = (s[OUT_W] + 2 * s[IN_MW]) * c
                at = s[IN_AT] + s[IN_MH] * width + s[IN_MW] * c
                target, to = (y[item], 0) if op == OUTPUT else (arena, s[OUT_AT])
                _transposed(s, arena, at, (c, 1), width, target, to, (1, plane), s[OUT_W])
