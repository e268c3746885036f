"""Implicit GEMM: the product of im2col, its patches gathered only for the block that is being multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.implementation.convolution.gradients import PatchConvolution
from kernels.implementation.convolution.lowered import Geometry, copy_run, fold, unfold
from kernels.implementation.loops import packed_gemm
from kernels.implementation.loops.loop_tiling import LoopTiling
from kernels.simd import LANES, load, store

__all__ = ["ImplicitGEMM"]

MC, KC = LoopTiling().mc, LoopTiling().kc
WIDTH = packed_gemm.tile_shape(LANES)[1] * LANES


@njit(cache=True, nogil=True)
def _pack_patches(x, kernel, stride, padding, dilation, shape, first, count, deep, kc, out):
    """Patches of `count` output pixels from `first` on, straight into the panels that the product reads."""
    channels, height, width_x = x.shape
    area, flat = kernel[0] * kernel[1], x.reshape(-1)
    depth = channels * area
    wide = (count + WIDTH - 1) // WIDTH * WIDTH
    for p0 in range(0, deep, kc):
        kb = min(kc, deep - p0)
        for p in range(kb):
            place = p0 + p
            c, tap = place // area, place % area
            u, v = tap // kernel[1], tap % kernel[1]
            left = v * dilation[1] - padding[1]
            i, j = first // shape[1], first % shape[1]
            q = 0
            while q < wide:  # runs end with a row of the result, with a panel, and with the pixels
                into = q % WIDTH
                at = p0 * wide + (q - into) * kb + p * WIDTH + into
                if place >= depth or q >= count:
                    run = WIDTH - into
                    for t in range(run):
                        out[at + t] = 0
                else:
                    run = min(shape[1] - j, WIDTH - into, count - q)
                    y = i * stride[0] + u * dilation[0] - padding[0]
                    z = j * stride[1] + left
                    if run == WIDTH and stride[1] == 1 and 0 <= y < height and 0 <= z <= width_x - WIDTH:
                        store(load(flat, (c * height + y) * width_x + z, WIDTH), out, at)
                    elif 0 <= y < height:
                        copy_run(flat, (c * height + y) * width_x, width_x, z, stride[1], run, out, at)
                    else:
                        for t in range(run):
                            out[at + t] = 0
                    j += run
                    if j == shape[1]:
                        i, j = i + 1, 0
                q += run


@dataclass(frozen=True)
class ImplicitGEMM(PatchConvolution):
    r"""The product Y = W P without ever holding P.

    Patches are gathered for a block of output pixels, straight into the panels in which the product's micro-kernel
    reads them, and are gone when the block is done. The copy that im2col makes, and the one that a product makes of
    its operand, are one; the memory is that of the block, k² C x `block` numbers, whatever the image.

    Parameters
    ----------
    block : int
        Output pixels multiplied at one time.

    Source: Dukhan, "The Indirect Convolution Algorithm", arXiv 1907.02129, and Cho and Brand, "MEC", arXiv
    1706.06873, for the patches that need not be there; Chetlur et al., "cuDNN", arXiv 1410.0759, section 3, for
    gathering them tile by tile.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> ImplicitGEMM().conv2d(x, np.ones((1, 1, 3, 3)), padding=1)
    array([[[[ 8., 15., 12.],
             [21., 36., 27.],
             [20., 33., 24.]]]], dtype=float32)
    """

    block: int = 256

    def __post_init__(self) -> None:
        if not (isinstance(self.block, int) and self.block >= 1):
            raise ValueError(f"block: expected a positive number of pixels, got {self.block!r}")

    def _form(self, w: np.ndarray) -> Any:
        return _Form(packed_gemm.pack(w.reshape(len(w), -1), LANES, LANES, KC))

    def _apply(self, image: np.ndarray, form: Any, geometry: Geometry) -> np.ndarray:
        rows, columns = geometry.shape
        y = np.empty((form.panels.outer, rows * columns), np.float32)
        for first in range(0, rows * columns, self.block):
            count = min(self.block, rows * columns - first)
            y[:, first : first + count] = packed_gemm.product(
                form.panels, self._gathered(image, geometry, first, count), LANES, MC, KC
            )
        return y

    def _gathered(self, image: np.ndarray, g: Geometry, first: int, count: int) -> packed_gemm.Panels:
        depth = len(image) * g.kernel[0] * g.kernel[1]
        deep, wide = -(-depth // LANES) * LANES, -(-count // WIDTH) * WIDTH
        data = packed_gemm._aligned(deep * wide, np.float32)
        _pack_patches(image, g.kernel, g.stride, g.padding, g.dilation, g.shape, first, count, deep, KC, data)
        return packed_gemm.Panels(data, count, depth, WIDTH)

    def _scattered(self, w: np.ndarray, gradient: np.ndarray, channels: int, geometry: Geometry) -> np.ndarray:
        return fold(self._product(w.T, gradient), channels, geometry)

    def _correlated(self, gradient: np.ndarray, image: np.ndarray, geometry: Geometry) -> np.ndarray:
        total = np.zeros((len(gradient), len(image) * geometry.kernel[0] * geometry.kernel[1]), np.float32)
        for first in range(0, gradient.shape[1], self.block):
            count = min(self.block, gradient.shape[1] - first)
            patches = unfold(image, geometry, first, count)
            total += self._product(np.ascontiguousarray(gradient[:, first : first + count]), patches.T)
        return total

    def _product(self, a: np.ndarray, b: np.ndarray) -> Any:
        return LoopTiling().matmul(a, b)


@dataclass(frozen=True, eq=False)
class _Form:
    panels: packed_gemm.Panels

    @property
    def nbytes(self) -> int:
        return self.panels.data.nbytes
