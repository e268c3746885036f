"""A convolution of one image, the filters constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from taxonomy.measure.protocol import Missing
from taxonomy.measure.tasks.task import Shape, Task, onednn

__all__ = ["Convolution"]

OPTIONS = ("stride", "padding", "groups")


def torch_convolution(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """PyTorch on images as they come: channels, rows, columns."""
    import torch
    from torch.nn.functional import conv2d

    images, filters = torch.from_numpy(x), torch.from_numpy(w)
    options = {name: shape[name] for name in OPTIONS}
    return lambda: conv2d(images, filters, **options)


def channels_last(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """PyTorch on images and weights with the channels last; they are brought into that order outside the time."""
    import torch
    from torch.nn.functional import conv2d

    images, filters = (torch.from_numpy(t).to(memory_format=torch.channels_last) for t in (x, w))
    options = {name: shape[name] for name in OPTIONS}
    return lambda: conv2d(images, filters, **options)


def packed(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """oneDNN as PyTorch's compiler calls it: the same images, the filters packed once for such images."""
    import torch

    options = [[shape["padding"]] * 2, [shape["stride"]] * 2, [1, 1], shape["groups"]]
    images, filters = (torch.from_numpy(t).to(memory_format=torch.channels_last) for t in (x, w))
    onednn(torch)
    ready = torch._C._nn.mkldnn_reorder_conv2d_weight(filters.to_mkldnn(), *options, list(x.shape))  # type: ignore
    return lambda: torch.ops.mkldnn._convolution_pointwise(images, ready, None, *options, "none", [], "")


class Convolution(Task):
    """A layer of `in_channels` to `out_channels`, square images and square filters."""

    name = "convolution"
    keys = frozenset({"in_channels", "out_channels", "size", "kernel", *OPTIONS})
    peers: ClassVar = {"torch": torch_convolution, "torch-channels-last": channels_last, "torch-packed": packed}

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng = np.random.default_rng(seed)
        each, kernel, size = shape["in_channels"] // shape["groups"], shape["kernel"], shape["size"]
        filters = rng.standard_normal((shape["out_channels"], each, kernel, kernel), np.float32)
        return cls(shape, filters, rng.standard_normal((1, shape["in_channels"], size, size), np.float32))

    def prepared(self, operator: Any) -> Any:
        return operator.prepare(self.constant, groups=self.shape["groups"])

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        options = {name: self.shape[name] for name in OPTIONS}
        return lambda: operator.conv2d(self.varying, constant, **options)

    def figures(self, operator: Any, result: Any) -> dict[str, float | Missing]:
        """Of an operator that multiplies less often than the equation says (`effective_macs`), how often."""
        if not hasattr(operator, "effective_macs"):
            return {}
        outputs, channels, *kernel = self.constant.shape
        return {"effective_macs": operator.effective_macs(channels, outputs, tuple(kernel), self.result_shape[2:])}

    def exact(self) -> np.ndarray:
        constant, varying = self.constant.astype(np.float64), self.varying.astype(np.float64)
        return np.asarray(torch_convolution(constant, varying, self.shape)())

    def macs(self) -> tuple[int, int]:
        macs = int(np.prod(self.result_shape, dtype=int)) * self.constant[0].size
        return macs, macs

    @property
    def result_shape(self) -> tuple[int, ...]:
        size = (self.shape["size"] + 2 * self.shape["padding"] - self.shape["kernel"]) // self.shape["stride"] + 1
        return 1, self.shape["out_channels"], size, size
