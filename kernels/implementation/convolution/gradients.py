"""The backward pass of convolutions that multiply patches: gradients of the input and of the filters."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.arrays import as_array, describe, like
from kernels.implementation.convolution.lowered import Convolution, Geometry, fold, unfold

__all__ = ["PatchConvolution"]


class PatchConvolution(Convolution):
    r"""A convolution Y = W P of filters W by patches P, with its adjoints.

    .. math:: \frac{\partial L}{\partial P} = W^\top G, \qquad \frac{\partial L}{\partial W} = G P^\top

    for the gradient G of the results; the gradient of the image is that of its patches, each added where it came from.
    A subclass gives the three products.
    """

    def input_gradient(
        self, gradient: Any, w: Any, size: tuple[int, int], stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Any:  # fmt: skip
        """The gradient of the images.

        Parameters
        ----------
        gradient : array_like or torch.Tensor of shape (images, outputs, rows, columns)
        w : array_like or torch.Tensor of shape (outputs, channels of a group, height, width)
        size : (int, int)
            Rows and columns of the images.
        stride, padding, dilation, groups
            As in `conv2d`.

        Returns
        -------
        numpy.ndarray or torch.Tensor of shape (images, channels, height, width), float32

        Raises
        ------
        ValueError
            If the gradient's shape is not that of the results.
        """
        filters = as_array(w, "w", ndim=4, dtype=np.float32)
        given, geometry = self._backward(gradient, filters.shape, size, stride, padding, dilation, groups)
        outputs, channels = filters.shape[:2]
        each = outputs // groups
        x = np.empty((len(given), channels * groups, *geometry.size), np.float32)
        for n, g in np.ndindex(len(given), groups):
            rows = filters[g * each : (g + 1) * each].reshape(each, -1)
            block = np.ascontiguousarray(given[n, g * each : (g + 1) * each].reshape(each, -1))
            x[n, g * channels : (g + 1) * channels] = self._scattered(rows, block, channels, geometry)
        return like(x, gradient)

    def weight_gradient(
        self, x: Any, gradient: Any, kernel: tuple[int, int], stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> Any:  # fmt: skip
        """The gradient of the filters, summed over the images.

        Parameters
        ----------
        x : array_like or torch.Tensor of shape (images, channels, height, width)
        gradient : array_like or torch.Tensor of shape (images, outputs, rows, columns)
        kernel : (int, int)
            Height and width of the filters.
        stride, padding, dilation, groups
            As in `conv2d`.

        Returns
        -------
        numpy.ndarray or torch.Tensor of shape (outputs, channels of a group, height, width), float32

        Raises
        ------
        ValueError
            If the gradient's shape is not that of the results.
        """
        images = np.ascontiguousarray(as_array(x, "x", ndim=4, dtype=np.float32))
        channels, outputs = images.shape[1] // groups, np.shape(gradient)[1]
        shape = (outputs, channels, *kernel)
        given, geometry = self._backward(gradient, shape, images.shape[2:], stride, padding, dilation, groups)
        each = outputs // groups
        w = np.zeros((outputs, channels * kernel[0] * kernel[1]), np.float32)
        for n, g in np.ndindex(len(images), groups):
            block = np.ascontiguousarray(given[n, g * each : (g + 1) * each].reshape(each, -1))
            w[g * each : (g + 1) * each] += self._correlated(
                block, images[n, g * channels : (g + 1) * channels], geometry
            )
        return like(w.reshape(shape), x)

    def _backward(
        self, gradient: Any, filters: Any, size: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any:
        given = as_array(gradient, "gradient", ndim=4, dtype=np.float32)
        images = (len(given), filters[1] * groups, *size)
        geometry = self._geometry(np.empty(images, np.bool_), images, filters, stride, padding, dilation, groups)
        if given.shape[1:] != (filters[0], *geometry.shape):
            wanted = f"(images, {filters[0]}, {geometry.shape[0]}, {geometry.shape[1]})"
            raise ValueError(f"gradient: expected shape {wanted}, as the results have, got {describe(gradient)}")
        return given, geometry

    def _scattered(self, w: np.ndarray, gradient: np.ndarray, channels: int, geometry: Geometry) -> np.ndarray:
        """The image's gradient from filters (outputs, k) and results' gradients (outputs, pixels)."""
        return fold(self._product(w.T, gradient), channels, geometry)

    def _correlated(self, gradient: np.ndarray, image: np.ndarray, geometry: Geometry) -> np.ndarray:
        """The filters' gradient (outputs, k) from results' gradients and the image."""
        return self._product(gradient, unfold(image, geometry).T)

    def _product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """A plain product of matrices."""
        raise NotImplementedError
