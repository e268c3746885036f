"""im2col: write every patch of the image as a column, and multiply by one large product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.implementation.convolution.gradients import PatchConvolution
from kernels.implementation.convolution.lowered import Geometry, unfold
from kernels.implementation.loops.loop_tiling import LoopTiling, Prepared

__all__ = ["Im2col", "plain_im2col"]


def plain_im2col(x: np.ndarray, w: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """The definition in numpy, for one image: patches as columns, then W P, in float64.

    Examples
    --------
    >>> plain_im2col(np.ones((1, 3, 3)), np.ones((2, 1, 2, 2)))[0]
    array([[4., 4.],
           [4., 4.]])
    """
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding,) * 2, (padding,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (1, 2))[:, ::stride, ::stride]
    rows, columns = windows.shape[1:3]
    patches = windows.transpose(0, 3, 4, 1, 2).reshape(-1, rows * columns)
    return (w.reshape(len(w), -1).astype(np.float64) @ patches).reshape(-1, rows, columns)


@dataclass(frozen=True)
class Im2col(PatchConvolution):
    r"""A convolution as one matrix product.

    .. math:: Y = W P, \qquad P_{(c, u, v),\,(i, j)} = X_{c,\; s i + d u - p,\; s j + d v - p}

    The patches P repeat every pixel once for each weight that meets it, k² times the image for a k x k kernel: that
    is what it costs in memory. What it buys is that nothing is left but a product, the best known kernel of all. The
    error is that of the product, whatever the order of its sums: γ_K |W| |P| with K = channels x k².

    Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing",
    2006; Chetlur et al., "cuDNN", arXiv 1410.0759, section 3.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> Im2col().conv2d(x, np.ones((1, 1, 3, 3)), padding=1)
    array([[[[ 8., 15., 12.],
             [21., 36., 27.],
             [20., 33., 24.]]]], dtype=float32)
    """

    def _form(self, w: np.ndarray) -> Prepared:
        return LoopTiling().prepare(w.reshape(len(w), -1), "left")

    def _apply(self, image: np.ndarray, form: Prepared, geometry: Geometry) -> Any:
        return LoopTiling().matmul(form, unfold(image, geometry))

    def _product(self, a: np.ndarray, b: np.ndarray) -> Any:
        return LoopTiling().matmul(a, b)
