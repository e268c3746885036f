"""Convolution on codes: an image is coded once, and its patches are gathered as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.approximate_arithmetic.codes import Coded, CodedProduct, InCodes, code_rows
from kernels.arithmetic.prepared_product import Prepared
from kernels.arrays import as_array, describe, like

__all__ = ["CodedConvolution", "CodedFilters", "patches"]


@njit(cache=True, nogil=True)
def patches(codes, kernel, stride, padding, dilation, shape, fill, out, sums):
    """Write the patch of every output pixel as a row of bytes, channel by channel; places outside are `fill`.

    codes (channels, height, width), out (rows, at least channels * kernel area), sums of each row.
    """
    channels, height, width = codes.shape
    for i in range(shape[0]):
        for j in range(shape[1]):
            row, at, total = i * shape[1] + j, 0, 0
            for c in range(channels):
                for u in range(kernel[0]):
                    y = i * stride[0] + u * dilation[0] - padding[0]
                    for v in range(kernel[1]):
                        x = j * stride[1] + v * dilation[1] - padding[1]
                        code = codes[c, y, x] if 0 <= y < height and 0 <= x < width else fill
                        out[row, at] = code
                        total += code
                        at += 1
            sums[row] = total


@dataclass(frozen=True, eq=False)
class CodedFilters(Prepared):
    """Filters in codes, group by group; made by `prepare`."""

    groups: tuple[InCodes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales."""
        return sum(group.nbytes for group in self.groups)


class CodedConvolution(CodedProduct):
    """An operator on codes that convolves too: each image with one scale, each filter with one."""

    def prepare(self, w: Any, groups: int = 1) -> Any:
        """Round a constant operand, once.

        Parameters
        ----------
        w : array_like or torch.Tensor
            A right operand of shape (k, n), or filters of shape (outputs, channels of a group, height, width).
        groups : int
            Of filters.

        Raises
        ------
        TypeError, ValueError
            If `w` is neither, or holds infinity or NaN, or the groups do not divide the filters.
        """
        if np.ndim(w) != 4:
            return self._matrix(w)
        filters = as_array(w, "w", ndim=4, dtype=np.float32)
        if groups < 1 or len(filters) % groups:
            raise ValueError(f"groups: expected a divisor of the {len(filters)} filters, got {groups!r}")
        each = len(filters) // groups
        parts = [filters[g * each : (g + 1) * each].reshape(each, -1).T for g in range(groups)]
        return CodedFilters(self, filters.shape, tuple(map(self._matrix, parts)))  # type: ignore[arg-type]

    def _matrix(self, w: Any) -> Any:
        """A right operand in form."""
        return super().prepare(w)

    def conv2d(
        self, x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        """Convolution of images, padded with zeros.

        Parameters
        ----------
        x : array_like or torch.Tensor of shape (images, channels, height, width)
        w : array_like, torch.Tensor or CodedFilters of shape (outputs, channels of a group, height, width)
        bias : array_like of shape (outputs,), optional
        stride, padding, dilation : int or (int, int)
        groups : int

        Returns
        -------
        numpy.ndarray or torch.Tensor of shape (images, outputs, rows, columns), float32
            A tensor where x is one.

        Raises
        ------
        TypeError, ValueError
            If an operand is none that the operator can take, or shapes do not fit.
        """
        filters = w if isinstance(w, CodedFilters) else self.prepare(w, groups)
        if not isinstance(filters, CodedFilters) or filters.operator != self or len(filters.groups) != groups:
            raise ValueError(f"w: expected filters of {groups} groups prepared by {self}, got {type(w).__name__}")
        images = as_array(x, "x", ndim=4, dtype=np.float32)
        outputs, channels = filters.shape[:2]
        kernel: tuple[int, ...] = filters.shape[2:]
        if images.shape[1] != channels * groups:
            raise ValueError(f"x: expected {channels * groups} channels, as the filters take, got {describe(x)}")
        stride, padding, dilation = (_pair(v) for v in (stride, padding, dilation))
        shape = tuple(
            (images.shape[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
        )
        if min(shape) < 1:
            raise ValueError(f"x: expected images that the kernel {kernel} fits, got {describe(x)}")
        geometry = (kernel, stride, padding, dilation, shape)
        y = np.empty((len(images), outputs, *shape), np.float32)
        for n, image in enumerate(images):
            y[n] = self._convolved(image, filters, geometry, channels)
        if bias is not None:
            y += as_array(bias, "bias", ndim=1, dtype=np.float32)[:, None, None]
        return like(y, x)

    def _convolved(self, image: np.ndarray, filters: CodedFilters, geometry: Any, channels: int) -> np.ndarray:
        """One image, group by group."""
        coded = code_rows(image.reshape(1, -1), self.input_bits, "x", self.signed_inputs)
        codes = coded.codes[0, : image.size].reshape(image.shape)
        products = []
        for g, right in enumerate(filters.groups):
            part = np.ascontiguousarray(codes[g * channels : (g + 1) * channels])
            product = self._multiplied(self._rows(part, coded, geometry), right)
            products.append((product + self._outside(coded, right, image.shape[1:], geometry, channels)).T)
        return np.concatenate(products).reshape(-1, *geometry[-1])

    def _rows(self, codes: np.ndarray, coded: Coded, geometry: Any) -> Coded:
        """The patches of a coded image, as rows with its scale."""
        kernel, stride, padding, dilation, shape = geometry
        depth = len(codes) * kernel[0] * kernel[1]
        rows = shape[0] * shape[1]
        out = np.zeros((rows, -(-depth // 64) * 64), np.uint8)
        sums = np.empty(rows, np.int64)
        patches(codes, kernel, stride, padding, dilation, shape, self._fill(coded), out, sums)
        return Coded(out, np.full(rows, coded.scales[0]), sums, depth, coded.bits, coded.step, coded.zero)

    @staticmethod
    def _fill(coded: Coded) -> int:
        """The code of a zero; of a sign there is none."""
        return coded.zero if coded.step == 1 else 0

    def _outside(self, coded: Coded, w: InCodes, size: Any, geometry: Any, channels: int) -> Any:
        """What places outside the image added by mistake, taken back: signs have no zero, so they were coded as -1."""
        if coded.step == 1 or not any(geometry[2]):
            return 0.0
        kernel, stride, padding, dilation, shape = geometry
        out = np.zeros((shape[0] * shape[1], channels * kernel[0] * kernel[1]), np.uint8)
        sums = np.empty(len(out), np.int64)
        inside = np.zeros((channels, *size), np.uint8)
        patches(inside, kernel, stride, padding, dilation, shape, 1, out, sums)
        weights = w.coded.integers().astype(np.float32)
        return (out.astype(np.float32) @ weights.T) * (coded.scales[0] * w.coded.scales)

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer in a number format runs here as that format: none does; scales are the operator's own."""
        return False


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
