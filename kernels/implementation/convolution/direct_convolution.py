"""Direct convolution: the seven loops themselves, ordered and blocked for registers and caches.

    y[n, o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] x[n, g C + c, s i + d u - p, s j + d v - p]

for output channel o of group g with C input channels, stride s, dilation d and padding p, x being zero outside.
Nothing is unfolded: lowering to a matrix (im2col) would write every pixel once for each weight that meets it.

What makes the loops fast is one change of coordinates. An image is laid out once, with its margins, as *planes*: one
for each channel and each phase of the stride, rows at distance P. Output pixel (i, j) becomes position q = i P + j, and
each weight (u, v) a constant offset, so that

    y[o, q] = b[o] + sum over taps t of w[o, t] planes[q + offset[t]]

whatever stride, padding and dilation are: a matrix product whose right operand is read in place, with unit stride. Rows
share their margin (the zeros right of one row are those left of the next), so hardly a position is wasted.

A depthwise filter meets each pixel only once for each of its taps, so even that copy would show in its time. Where the
stride is one, its kernel reads the image as it lies: what a tile sees beyond an edge is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from kernels.arrays import as_array, describe, like
from kernels.simd import LANES, broadcast, fma, load, store, tile_fma, tile_load, tile_store, tile_zero

__all__ = ["DirectConvolution", "Filters", "seven_loops"]

# The register tile: output channels x at most three vectors of positions; its sums fill most of the registers.
CHANNELS = 8 if LANES == 16 else 4
ONES = np.ones(3 * LANES, np.float32)
WIDE = 4 * LANES
# Depthwise, a tile is rows x 8 columns of one channel; 7 rows divide the maps of 56, 28, 14 and 7 that networks have.
ROWS = 7


def seven_loops(x, w, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """The convolution as the equation says it, in float64.

    Examples
    --------
    >>> seven_loops(np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3)), padding=(1, 1))
    array([[[[4., 4.],
             [4., 4.]]]])
    """
    images, _, height, width = x.shape
    outputs, channels, kernel_height, kernel_width = w.shape
    rows = (height + 2 * padding[0] - dilation[0] * (kernel_height - 1) - 1) // stride[0] + 1
    columns = (width + 2 * padding[1] - dilation[1] * (kernel_width - 1) - 1) // stride[1] + 1
    y = np.zeros((images, outputs, rows, columns))
    if bias is not None:
        y += np.reshape(bias, (-1, 1, 1))
    for n, o, i, j in np.ndindex(y.shape):
        first = o // (outputs // groups) * channels
        for c, u, v in np.ndindex(channels, kernel_height, kernel_width):
            r = stride[0] * i + dilation[0] * u - padding[0]
            s = stride[1] * j + dilation[1] * v - padding[1]
            if 0 <= r < height and 0 <= s < width:
                y[n, o, i, j] += float(w[o, c, u, v]) * float(x[n, first + c, r, s])
    return y


# --- the planes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Planes:
    """Where pixels and weights lie once an image is laid out for a convolution."""

    pitch: int
    """Distance of rows."""
    size: int
    """Numbers in a plane, one row more than is used: margins may reach beyond the last one."""
    rows: np.ndarray
    """For each row phase that a tap needs: the first pixel row in it, and its row in the plane; int64, shape (., 2)."""
    columns: np.ndarray
    """The same for columns."""
    taps: np.ndarray
    """The offset of each weight of a filter's channel, int64, shape (kernel height * kernel width,)."""
    shape: tuple[int, int]
    """Rows and columns of the output."""

    def workspace(self, channels: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Planes of zeros for so many input channels and sums for so many output channels, with a vector more."""
        positions = (self.shape[0] - 1) * self.pitch + self.shape[1] + WIDE
        planes = channels * len(self.rows) * len(self.columns) * self.size + self.pitch + WIDE
        return np.zeros(planes, np.float32), np.empty(outputs * positions, np.float32)


@lru_cache(maxsize=256)
def _planes(image, kernel, stride, padding, dilation) -> _Planes:
    shape = tuple((image[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    pitch = -(-(image[1] + padding[1]) // stride[1])
    size = (-(-(image[0] + 2 * padding[0]) // stride[0]) + 1) * pitch
    starts: list[np.ndarray] = []
    phases, steps = [], []
    for a in (0, 1):
        step, phase = np.divmod(dilation[a] * np.arange(kernel[a]), stride[a])
        needed, phase = np.unique(phase, return_inverse=True)
        first = (needed - padding[a]) % stride[a]
        starts.append(np.stack([first, (first + padding[a]) // stride[a]], axis=1))
        phases.append(phase)
        steps.append(step)
    plane = phases[0][:, None] * len(starts[1]) + phases[1]
    taps = plane * size + steps[0][:, None] * pitch + steps[1]
    return _Planes(pitch, size, starts[0], starts[1], taps.reshape(-1), (shape[0], shape[1]))


@njit(cache=True, inline="always")
def _copy(source, i, source_step, target, j, target_step, rows, columns):
    """Copy a rectangle in tiles; those at its edges lie over others."""
    if rows >= ROWS and columns >= 8:
        for first in range(0, rows, ROWS):
            r = min(first, rows - ROWS)
            for left in range(0, columns, 8):
                c = min(left, columns - 8)
                tile = tile_load(source, i + r * source_step + c, source_step, ROWS, 1, 8)
                tile_store(tile, target, j + r * target_step + c, target_step)
    else:
        for r in range(rows):
            for c in range(columns):
                store(load(source, i + r * source_step + c, 1), target, j + r * target_step + c)


@njit(cache=True, inline="always")
def _lay(x, first, height, width, planes, base, size, pitch, rows, columns, stride):
    """Write the channel at x[first] into its planes; their margins are zero already."""
    for a in range(rows.shape[0]):
        count = (height - rows[a, 0] + stride[0] - 1) // stride[0]
        for b in range(columns.shape[0]):
            pixel = first + rows[a, 0] * width + columns[b, 0]
            line = base + (a * columns.shape[0] + b) * size + rows[a, 1] * pitch + columns[b, 1]
            if stride[1] == 1:
                _copy(x, pixel, stride[0] * width, planes, line, pitch, count, width)
            else:
                wide = (width - columns[b, 0] + stride[1] - 1) // stride[1]
                for r in range(count):
                    for c in range(wide):
                        store(load(x, pixel + r * stride[0] * width + c * stride[1], 1), planes, line + r * pitch + c)


# --- the loops -----------------------------------------------------------------------------------------------------


def _tile_kernel(vectors: int) -> Callable:
    @njit(cache=True, inline="always")
    def tile_of_sums(level, weights, first, planes, offsets, q, sums, span):
        """The sums of CHANNELS output channels at `vectors` vectors of positions from q on."""
        tile = tile_fma(tile_zero(CHANNELS, vectors, LANES), level, 0, 1, ONES, 0)
        for t in range(offsets.size):
            tile = tile_fma(tile, weights, first + t * CHANNELS, 1, planes, offsets[t] + q)
        tile_store(tile, sums, q, span)

    return tile_of_sums


_one, _two, _three = (_tile_kernel(vectors) for vectors in (1, 2, 3))


@njit(cache=True)
def _standard(x, w, bias, y, shape, taps, size, pitch, rows, columns, stride, planes, sums):
    """Convolution of x (images, groups, C, height, width) with packed w (groups, blocks, C * taps, CHANNELS)."""
    images, groups, channels, height, width = x.shape
    outputs, high, wide = shape
    positions = (high - 1) * pitch + wide
    span = (positions + LANES - 1) // LANES * LANES
    planes_each = rows.shape[0] * columns.shape[0]
    offsets = np.empty(channels * taps.size, np.int64)
    for c in range(channels):
        for t in range(taps.size):
            offsets[c * taps.size + t] = c * planes_each * size + taps[t]
    level = np.empty(CHANNELS, np.float32)
    blocks, depth = w.shape[1:3]
    x, w = x.reshape(-1), w.reshape(-1)
    for n in range(images):
        for g in range(groups):
            for c in range(channels):
                pixels = ((n * groups + g) * channels + c) * height * width
                _lay(x, pixels, height, width, planes, c * planes_each * size, size, pitch, rows, columns, stride)
            for block in range(blocks):
                first = (g * blocks + block) * depth * CHANNELS
                for o in range(CHANNELS):
                    level[o] = bias[g, min(block * CHANNELS + o, outputs - 1)]
                for q in range(0, span, 3 * LANES):
                    if q + 3 * LANES <= span:
                        _three(level, w, first, planes, offsets, q, sums, span)
                    elif q + 2 * LANES <= span:
                        _two(level, w, first, planes, offsets, q, sums, span)
                    else:
                        _one(level, w, first, planes, offsets, q, sums, span)
                for o in range(block * CHANNELS, min(outputs, (block + 1) * CHANNELS)):
                    channel = ((n * groups + g) * outputs + o) * high * wide
                    _copy(sums, o % CHANNELS * span, pitch, y, channel, wide, high, wide)


@njit(cache=True)
def _depthwise(x, w, bias, y, shape, taps, size, pitch, rows, columns, stride, planes, sums):
    """Convolution of x (images, groups, 1, height, width) with w (groups, outputs, taps), channel by channel."""
    images, groups, _, height, width = x.shape
    outputs, high, wide = shape
    positions, depth = (high - 1) * pitch + wide, taps.size
    x, w = x.reshape(-1), w.reshape(-1)
    for image in range(images * groups):
        _lay(x, image * height * width, height, width, planes, 0, size, pitch, rows, columns, stride)
        for o in range(outputs):
            channel, first = image * outputs + o, (image % groups * outputs + o) * depth
            for q in range(0, positions, WIDE):
                part = broadcast(bias[image % groups, o], WIDE)
                for t in range(depth):
                    part = fma(broadcast(w[first + t], WIDE), load(planes, taps[t] + q, WIDE), part)
                store(part, sums, q)
            _copy(sums, 0, pitch, y, channel * high * wide, wide, high, wide)


# --- depthwise, stride 1: no copy at all ---------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def _slide(typingctx, tile, w, i, side, x, first, height, width, row, column, outside):
    """Correlate the image (height, width) at x[first], zero outside, with the side x side filter at w[i], into a tile
    of one column whose corner meets pixel (row, column). A row of pixels is loaded once for all it is multiplied with;
    lanes outside are masked, rows outside read `outside`, zeros of a vector and a filter's length."""

    def build(context, builder, sig, args):
        value, filters, i, _, pixels, first, height, width, row, column, zeros = args
        lanes, count, word = tile.vector.lanes, side.literal_value, ir.IntType(32)
        vector, words = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(word, lanes)

        def data(array, value, index):
            return builder.gep(context.make_array(array)(context, builder, value).data, [index])

        def spread(number):
            empty = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
            return builder.shuffle_vector(builder.insert_element(empty, number, word(0)), empty, words([0] * lanes))

        def call(name, *operands):
            signature = ir.FunctionType(vector, [operand.type for operand in operands])
            return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), operands)

        rows, sums = [], [builder.extract_value(value, r) for r in range(tile.rows)]
        for r in range(tile.rows + count - 1):
            here = builder.add(row, row.type(r))
            corner = builder.add(builder.add(first, column), builder.mul(here, width))
            inside = builder.icmp_unsigned("<", here, height)
            rows.append(builder.select(inside, data(x, pixels, corner), data(outside, zeros, row.type(0))))
        for v in range(count):
            columns = builder.add(spread(builder.trunc(column, word)), words([lane + v for lane in range(lanes)]))
            mask = builder.icmp_unsigned("<", columns, spread(builder.trunc(width, word)))
            taps = [spread(builder.load(data(w, filters, builder.add(i, i.type(u * count + v))))) for u in range(count)]
            for r, at in enumerate(rows):
                at = builder.bitcast(builder.gep(at, [word(v)]), vector.as_pointer())
                loaded = call(f"llvm.masked.load.v{lanes}f32.p0", at, word(4), mask, vector([0.0] * lanes))
                for u in range(max(0, r - tile.rows + 1), min(count, r + 1)):
                    sums[r - u] = call(f"llvm.fma.v{lanes}f32", taps[u], loaded, sums[r - u])
        for r, total in enumerate(sums):
            value = builder.insert_value(value, total, r)
        return value

    where = [types.intp] * 5
    return tile(tile, w, types.intp, side, x, *where, outside), build


def _sliding_kernel(side: int) -> Callable:
    @njit(cache=True)
    def depthwise(x, w, bias, y, shape, padding):
        """Depthwise convolution with square filters of stride and dilation 1, straight from x to y.

        A tile of ROWS rows by eight columns may reach over its channel's edge; what it writes there is overwritten by
        what is computed next, since rows rise and columns fall. After the last channel, y has room for that.
        """
        images, groups, _, height, width = x.shape
        outputs, high, wide = shape
        x, w, level, outside = x.reshape(-1), w.reshape(-1), np.empty(8, np.float32), np.zeros(8 + side, np.float32)
        for image in range(images * groups):
            for o in range(outputs):
                channel, first = image * outputs + o, (image % groups * outputs + o) * side * side
                store(broadcast(bias[image % groups, o], 8), level, 0)
                for i in range(0, high, ROWS):
                    for j in range((wide - 1) // 8 * 8, -1, -8):
                        sums = tile_load(level, 0, 0, ROWS, 1, 8)
                        sums = _slide(
                            sums,
                            w,
                            first,
                            side,
                            x,
                            image * height * width,
                            height,
                            width,
                            i - padding[0],
                            j - padding[1],
                            outside,
                        )
                        tile_store(sums, y, (channel * high + i) * wide + j, wide)

    return depthwise


_SLIDING = {side: _sliding_kernel(side) for side in (3, 5)}


# --- the operator --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Filters:
    """Weights packed in the order in which the kernel reads them, immutable."""

    packed: np.ndarray
    shape: tuple[int, int, int, int]
    groups: int

    @property
    def depthwise(self) -> bool:
        """Whether every group has a single input channel, so that no sum runs over channels."""
        return self.shape[1] == 1 and self.groups > 1


def _pair(value: Any, name: str, least: int) -> tuple[int, int]:
    if type(value) is int and value >= least:
        return value, value
    pair = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(pair) != 2 or any(isinstance(v, bool) or v != int(v) or v < least for v in pair):
        raise ValueError(f"{name}: expected one or two integers of at least {least}, got {value!r}")
    return int(pair[0]), int(pair[1])


@dataclass(frozen=True)
class DirectConvolution:
    """Two-dimensional convolution without lowering, in float32 on one thread.

    The channels of an output pixel are accumulated in registers from the first tap to the last; a tile of several
    output channels by several vectors of positions takes each input vector and each weight from memory once.

    Source
    ------
    Zhang, Franchetti and Low, High Performance Zero-Memory Overhead Direct Convolutions, 2018.
    Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures, 2018.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> DirectConvolution().conv2d(x, np.ones((1, 1, 3, 3)), padding=1)
    array([[[[ 8., 15., 12.],
             [21., 36., 27.],
             [20., 33., 24.]]]], dtype=float32)
    """

    def prepare(self, w: Any, groups: int = 1) -> Filters:
        """Weights in the kernel's order: blocks of output channels, and within one tap after tap.

        Parameters
        ----------
        w : array_like or torch.Tensor, shape (out_channels, in_channels / groups, kernel height, kernel width)
        groups : int

        Raises
        ------
        ValueError
            If `w` has not four dimensions or an empty kernel, or `groups` does not divide its output channels.
        """
        if isinstance(w, Filters):
            if groups not in (1, w.groups):
                raise ValueError(f"groups: expected {w.groups}, for which w was prepared, got {groups}")
            return w
        weights = as_array(w, "w", ndim=4, dtype=np.float32)
        outputs, channels, *kernel = weights.shape
        if 0 in kernel:
            raise ValueError(f"w: expected a kernel of at least one weight, got {describe(w)}")
        if groups < 1 or outputs % groups:
            raise ValueError(f"groups: expected a divisor of w's {outputs} output channels, got {groups}")
        each, depth = outputs // groups, channels * kernel[0] * kernel[1]
        weights = weights.reshape(groups, each, depth)
        if channels > 1 or groups == 1:
            blocks = -(-each // CHANNELS)
            padded = np.zeros((groups, blocks * CHANNELS, depth), np.float32)
            padded[:, :each] = weights
            weights = padded.reshape(groups, blocks, CHANNELS, depth).transpose(0, 1, 3, 2)
        packed = weights.copy()
        packed.flags.writeable = False
        return Filters(packed, (outputs, channels, kernel[0], kernel[1]), groups)

    def conv2d(self, x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
               groups: int = 1) -> Any:  # fmt: skip
        """Convolve a batch of images.

        Parameters
        ----------
        x : array_like or torch.Tensor, shape (images, in_channels, height, width)
        w : Filters, or what `prepare` takes; shape (out_channels, in_channels / groups, kernel height, kernel width)
            Prepared weights know their groups.
        bias : array_like or torch.Tensor, shape (out_channels,), optional
        stride, padding, dilation : int or pair of ints
            In pixels, for rows and columns. The padding is zeros on both sides, which take part: against a weight
            that is NaN or infinite they give NaN.
        groups : int

        Returns
        -------
        ndarray of float32, or torch.Tensor where `x` is one; shape (images, out_channels, rows, columns)

        Raises
        ------
        ValueError
            If shapes do not fit or the kernel is larger than the padded image.
        TypeError
            If an operand is not real numbers.

        Notes
        -----
        Each of the s = in_channels / groups * kernel height * kernel width terms is added to its sum by a fused
        multiply-add and the bias last, so an output is within (s + 1) u / (1 - (s + 1) u) of |w| * |x| + |bias|, with
        u = 2^-24.
        """
        images = np.ascontiguousarray(as_array(x, "x", ndim=4, dtype=np.float32))
        stride, dilation = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
        padding = _pair(padding, "padding", 0)
        filters = self.prepare(w, groups)
        groups, (outputs, channels, *kernel) = filters.groups, filters.shape
        batch, inputs, height, width = images.shape
        if inputs != channels * groups:
            raise ValueError(
                f"x: expected {channels * groups} channels, as w of shape {filters.shape} takes in "
                f"{groups} group{'s' * (groups > 1)}, got {describe(x)}"
            )
        if bias is None:
            added = np.zeros(outputs, np.float32)
        else:
            added = np.ascontiguousarray(as_array(bias, "bias", ndim=1, dtype=np.float32))
            if added.size != outputs:
                raise ValueError(f"bias: expected {outputs} numbers, one an output channel, got {describe(bias)}")
        planes = _planes((height, width), tuple(kernel), stride, padding, dilation)
        if min(planes.shape) < 1:
            raise ValueError(
                "x: expected images of at least the kernel's size, "
                f"got {height} x {width} with padding "
                f"{padding} for a kernel of {kernel[0]} x {kernel[1]} with dilation {dilation}: "
                f"the output would be {planes.shape[0]} x {planes.shape[1]}"
            )
        each = outputs // groups
        shape = (batch, outputs, *planes.shape)
        size = batch * outputs * planes.shape[0] * planes.shape[1]
        # Room for a depthwise tile that reaches over the edge of the last channel.
        y = np.empty(size + ROWS * planes.shape[1] + 8, np.float32)
        if size:
            operands = (images.reshape(batch, groups, channels, height, width), filters.packed,
                        added.reshape(groups, each), y, (each, *planes.shape))  # fmt: skip
            if filters.depthwise and stride == dilation == (1, 1) and kernel[0] == kernel[1] and kernel[0] in _SLIDING:
                _SLIDING[kernel[0]](*operands, padding)
            else:
                (_depthwise if filters.depthwise else _standard)(
                    *operands, planes.taps, planes.size, planes.pitch, planes.rows, planes.columns, stride,
                    *planes.workspace(*(1, 1) if filters.depthwise else (channels, CHANNELS)),
                )  # fmt: skip
        return like(y[:size].reshape(shape), x)

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer can run here: `nn.Conv2d` with zeros as padding, given in numbers, in FP32."""
        from torch import nn

        return (
            isinstance(layer, nn.Conv2d)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and format in (None, "fp32")
        )
