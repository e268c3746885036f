"""What convolutions by other means share: the checks, groups and images, and what an algorithm does for one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arrays import as_array, describe, like

__all__ = ["Convolution", "Geometry", "PreparedFilters", "copy_run", "fold", "unfold"]


@dataclass(frozen=True)
class Geometry:
    """Where a filter meets an image.

    Attributes
    ----------
    kernel, stride, padding, dilation : (int, int)
    size : (int, int)
        Rows and columns of the image.

    Examples
    --------
    >>> Geometry((3, 3), (2, 2), (1, 1), (1, 1), (56, 56)).shape
    (28, 28)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        rows, columns = (
            (self.size[a] + 2 * self.padding[a] - self.dilation[a] * (self.kernel[a] - 1) - 1) // self.stride[a] + 1
            for a in (0, 1)
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class PreparedFilters:
    """Filters in the form that one operator reads, group by group; made by `prepare`."""

    operator: Any
    shape: tuple[int, int, int, int]
    forms: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the forms."""
        return sum(int(form.nbytes) for form in self.forms)


class Convolution(ABC):
    """A two-dimensional convolution in float32 on one thread; operators are frozen dataclasses.

    A subclass says how one group's filters are brought into form (`_form`) and how they meet one image (`_apply`).
    """

    def prepare(self, w: Any, groups: int = 1) -> PreparedFilters:
        """Bring constant filters into form, once.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (outputs, channels of a group, height, width)
        groups : int

        Raises
        ------
        TypeError, ValueError
            If `w` is no such array, its kernel is empty, or the groups do not divide its outputs.
        """
        filters = as_array(w, "w", ndim=4, dtype=np.float32)
        outputs, channels, height, width = filters.shape
        if 0 in (height, width):
            raise ValueError(f"w: expected a kernel of at least one weight, got {describe(w)}")
        if groups < 1 or outputs % groups:
            raise ValueError(f"groups: expected a divisor of w's {outputs} output channels, got {groups}")
        each = outputs // groups
        forms = tuple(self._form(np.ascontiguousarray(filters[g * each : (g + 1) * each])) for g in range(groups))
        return PreparedFilters(self, (outputs, channels, height, width), forms)

    def conv2d(
        self, x: Any, w: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        """Convolve a batch of images, padded with zeros.

        Parameters
        ----------
        x : array_like or torch.Tensor of shape (images, channels, height, width)
        w : PreparedFilters, or what `prepare` takes
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
            If an operand is none that the operator can take, shapes do not fit, or the algorithm does not permit the
            stride or dilation, with the reason.
        """
        filters = w if isinstance(w, PreparedFilters) else self.prepare(w, groups)
        if filters.operator != self or len(filters.forms) != groups:
            raise ValueError(
                f"w: it was prepared by {filters.operator} for {len(filters.forms)} groups, not by {self} for {groups}"
            )
        images = as_array(x, "x", ndim=4, dtype=np.float32)
        geometry = self._geometry(x, images.shape, filters.shape, stride, padding, dilation, groups)
        outputs, channels = filters.shape[:2]
        each, shape = outputs // groups, geometry.shape
        images = np.ascontiguousarray(images)
        if len(images) == groups == 1:
            y = self._apply(images[0], filters.forms[0], geometry).reshape(1, outputs, *shape)
        else:
            y = np.empty((len(images), outputs, *shape), np.float32)
            for n, g in np.ndindex(len(images), groups):
                part = images[n, g * channels : (g + 1) * channels]
                y[n, g * each : (g + 1) * each] = self._apply(part, filters.forms[g], geometry).reshape(each, *shape)
        if bias is not None:
            added = as_array(bias, "bias", ndim=1, dtype=np.float32)
            if len(added) != outputs:
                raise ValueError(f"bias: expected {outputs} numbers, one an output channel, got {describe(bias)}")
            y += added[:, None, None]
        return like(y, x)

    def supports(self, layer: Any, format: Any = None) -> bool:
        """Whether a layer can run here: `nn.Conv2d` with zeros as padding, given in numbers, in FP32."""
        from torch import nn

        return (
            isinstance(layer, nn.Conv2d)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and format in (None, "fp32")
            and self._permits(layer.kernel_size, layer.stride, layer.dilation) is None
        )

    def _geometry(
        self, x: Any, images: Any, filters: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Geometry:
        if images[1] != filters[1] * groups:
            raise ValueError(
                f"x: expected {filters[1] * groups} channels, as w of shape {tuple(filters)} takes in {groups} groups, "
                f"got {describe(x)}"
            )
        pairs = [pair(v, name, least) for v, name, least in
                 ((stride, "stride", 1), (padding, "padding", 0), (dilation, "dilation", 1))]  # fmt: skip
        reason = self._permits(tuple(filters[2:]), pairs[0], pairs[2])
        if reason:
            raise ValueError(reason)
        geometry = Geometry((filters[2], filters[3]), pairs[0], pairs[1], pairs[2], (images[2], images[3]))
        if min(geometry.shape) < 1:
            raise ValueError(f"x: expected images that the kernel {geometry.kernel} fits, got {describe(x)}")
        return geometry

    def _permits(self, kernel: Any, stride: Any, dilation: Any) -> str | None:
        """Why the algorithm cannot do it, or None."""
        return None

    @abstractmethod
    def _form(self, w: np.ndarray) -> Any:
        """Filters of one group, (outputs, channels, height, width), as `_apply` reads them."""

    @abstractmethod
    def _apply(self, image: np.ndarray, form: Any, geometry: Geometry) -> np.ndarray:
        """The results of one group for one image (channels, height, width): (outputs, rows * columns)."""


def pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """One integer or two, each at least `least`."""
    both = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(both) != 2 or any(isinstance(v, bool) or v != int(v) or v < least for v in both):
        raise ValueError(f"{name}: expected one or two integers of at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


@njit(cache=True, nogil=True, inline="always")
def copy_run(x, base, width, first, step, run, out, at):
    """out[at + t] = x[base + first + t step] for t < run, zeros where that leaves the row of `width` at x[base]."""
    if step == 1:
        low, high = max(0, -first), min(run, width - first)
        if low == 0 and high == run:
            for t in range(run):
                out[at + t] = x[base + first + t]
            return
        for t in range(run):
            out[at + t] = 0
        for t in range(low, high):
            out[at + t] = x[base + first + t]
    else:
        for t in range(run):
            z = first + t * step
            out[at + t] = x[base + z] if 0 <= z < width else 0


@njit(cache=True, nogil=True)
def _unfold(x, kernel, stride, padding, dilation, shape, first, count, out):
    channels, height, width = x.shape
    row, flat, line = 0, x.reshape(-1), out.reshape(-1)
    for c in range(channels):
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                at = 0
                i, j = first // shape[1], first % shape[1]
                base = row * count
                while at < count:  # row after row of the result, each a run of pixels at the distance of the stride
                    run = min(shape[1] - j, count - at)
                    y = i * stride[0] + u * dilation[0] - padding[0]
                    if 0 <= y < height:
                        left = j * stride[1] + v * dilation[1] - padding[1]
                        copy_run(flat, (c * height + y) * width, width, left, stride[1], run, line, base + at)
                    else:
                        for t in range(run):
                            line[base + at + t] = 0
                    at += run
                    i, j = i + 1, 0
                row += 1


@njit(cache=True, nogil=True)
def _fold(patches, kernel, stride, padding, dilation, shape, x):
    channels, height, width = x.shape
    row = 0
    for c in range(channels):
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                at = 0
                for i in range(shape[0]):
                    y = i * stride[0] + u * dilation[0] - padding[0]
                    for j in range(shape[1]):
                        z = j * stride[1] + v * dilation[1] - padding[1]
                        if 0 <= y < height and 0 <= z < width:
                            x[c, y, z] += patches[row, at]
                        at += 1
                row += 1


def unfold(x: np.ndarray, geometry: Geometry, first: int = 0, count: int | None = None) -> np.ndarray:
    """Patches of an image as columns: one for each output pixel, from `first` on, row by row; zeros outside.

    Parameters
    ----------
    x : ndarray of float32, shape (channels, height, width), C-contiguous

    Returns
    -------
    ndarray of float32, shape (channels * kernel height * kernel width, pixels)

    Examples
    --------
    >>> unfold(np.arange(9, dtype=np.float32).reshape(1, 3, 3), Geometry((2, 2), (1, 1), (0, 0), (1, 1), (3, 3)))
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]], dtype=float32)
    """
    rows, columns = geometry.shape
    count = rows * columns - first if count is None else count
    out = np.empty((len(x) * geometry.kernel[0] * geometry.kernel[1], count), np.float32)
    g = geometry
    _unfold(x, g.kernel, g.stride, g.padding, g.dilation, g.shape, first, count, out)
    return out


def fold(patches: np.ndarray, channels: int, geometry: Geometry) -> np.ndarray:
    """The adjoint of `unfold`: every patch is added where it came from.

    Examples
    --------
    >>> fold(np.ones((4, 4), np.float32), 1, Geometry((2, 2), (1, 1), (0, 0), (1, 1), (3, 3)))
    array([[[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]]], dtype=float32)
    """
    x = np.zeros((channels, *geometry.size), np.float32)
    g = geometry
    _fold(np.ascontiguousarray(patches, np.float32), g.kernel, g.stride, g.padding, g.dilation, g.shape, x)
    return x
