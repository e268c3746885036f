"""FFT convolution: transform tiles of the image and the filters, multiply in frequency, transform back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.implementation.convolution.lowered import Convolution, Geometry

__all__ = ["FFTConvolution", "plain_fft"]


def plain_fft(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution theorem for one channel, in float64: correlation is a product with the conjugate.

    Examples
    --------
    >>> np.round(plain_fft(np.arange(9.0).reshape(3, 3), np.ones((2, 2))), 9)
    array([[ 8., 12.],
           [20., 24.]])
    """
    spectrum = np.fft.rfft2(x) * np.conj(np.fft.rfft2(w, x.shape))
    rows, columns = (s - k + 1 for s, k in zip(x.shape, w.shape, strict=True))
    return np.fft.irfft2(spectrum, x.shape)[:rows, :columns]


@dataclass(frozen=True)
class FFTConvolution(Convolution):
    r"""A convolution as products of spectra, tile by tile.

    .. math:: y_o = \mathcal F^{-1} \sum_c \mathcal F(x_c)\; \overline{\mathcal F(w_{oc})}

    The image is cut into overlapping tiles of T x T, of which each gives (T - k + 1)² results. A filter's spectrum is
    taken once (`prepare`), a channel's once for all filters; per frequency what remains is a complex product of
    matrices, filters by channels by tiles. It takes about 4 T (T/2 + 1) real multiplications for (T - k + 1)² results
    and each pair of channel and filter, whatever k is: the larger the kernel, the more that saves. Rounding grows
    with log T only; the results' error stays within some 2^-20 of the largest.

    Parameters
    ----------
    tile : int
        T.

    Source: Mathieu, Henaff and LeCun, "Fast Training of Convolutional Networks through FFTs", arXiv 1312.5851;
    Vasilache et al., "Fast Convolutional Nets With fbfft", arXiv 1412.7580, for small tiles.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> np.round(FFTConvolution().conv2d(x, np.ones((1, 1, 3, 3)), padding=1))
    array([[[[ 8., 15., 12.],
             [21., 36., 27.],
             [20., 33., 24.]]]], dtype=float32)
    """

    tile: int = 16

    def __post_init__(self) -> None:
        if not (isinstance(self.tile, int) and self.tile >= 2):
            raise ValueError(f"tile: expected an integer of at least 2, got {self.tile!r}")

    def _permits(self, kernel: Any, stride: Any, dilation: Any) -> str | None:
        if tuple(stride) != (1, 1) or tuple(dilation) != (1, 1):
            return (
                f"stride, dilation: expected 1, got {tuple(stride)}, {tuple(dilation)}: "
                "the transform computes every result, and a dilated filter is as large as its reach"
            )
        if max(kernel) > self.tile:
            return f"w: expected a kernel of at most the tile's {self.tile}, got {tuple(kernel)}"
        return None

    def effective_macs(self, channels: int, outputs: int, kernel: tuple[int, int], shape: tuple[int, int]) -> float:
        """Real multiplications of the products in frequency for one image; the transforms themselves not counted."""
        tiles = np.prod([-(-shape[a] // (self.tile - kernel[a] + 1)) for a in (0, 1)])
        return float(4 * self.tile * (self.tile // 2 + 1) * channels * outputs * tiles)

    def _form(self, w: np.ndarray) -> np.ndarray:
        if max(w.shape[2:]) > self.tile:
            raise ValueError(f"w: expected a kernel of at most the tile's {self.tile}, got {w.shape[2:]}")
        spectrum = np.conj(np.fft.rfft2(w, (self.tile, self.tile))).astype(np.complex64)
        return np.ascontiguousarray(
            spectrum.transpose(2, 3, 0, 1).reshape(self.tile * (self.tile // 2 + 1), *w.shape[:2])
        )

    def _apply(self, image: np.ndarray, form: np.ndarray, geometry: Geometry) -> np.ndarray:
        tile, (rows, columns) = self.tile, geometry.shape
        step = [tile - k + 1 for k in geometry.kernel]
        count = [-(-rows // step[0]), -(-columns // step[1])]
        reach = [step[a] * (count[a] - 1) + tile for a in (0, 1)]
        padded = np.zeros((len(image), *reach), np.float32)
        (top, left), (height, width) = geometry.padding, geometry.size
        fits = min(height, reach[0] - top), min(width, reach[1] - left)
        padded[:, top : top + fits[0], left : left + fits[1]] = image[:, : fits[0], : fits[1]]
        tiles = np.lib.stride_tricks.sliding_window_view(padded, (tile, tile), (1, 2))[:, :: step[0], :: step[1]]
        spectra = np.fft.rfft2(tiles).astype(
            np.complex64, copy=False
        )  # channels, tiles down, tiles across, frequencies
        channels = len(image)
        columns_of = np.ascontiguousarray(spectra.transpose(3, 4, 0, 1, 2)).reshape(
            len(form), channels, count[0] * count[1]
        )
        products = np.matmul(form, columns_of).reshape(tile, tile // 2 + 1, form.shape[1], *count)
        results = np.fft.irfft2(products.transpose(2, 3, 4, 0, 1), (tile, tile))[..., : step[0], : step[1]]
        laid = results.transpose(0, 1, 3, 2, 4).reshape(len(results), count[0] * step[0], count[1] * step[1])
        return np.ascontiguousarray(laid[:, :rows, :columns], np.float32)
