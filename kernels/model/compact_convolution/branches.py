"""Parallel branches, each a convolution with its batch norm, whose sum is one convolution once training is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import Pair, centred, geometry, keeps_size

__all__ = ["Branches", "folded", "identity_fits"]


class Branches(nn.Module):
    r"""The sum of normalized branches, which one convolution equals in inference.

    .. math::
        y = \sum_b \mathrm{BN}_b(w_b * x) = w * x + \beta, \qquad
        w = \sum_b \frac{\gamma_b}{\sigma_b} \bar w_b, \quad
        \beta = \sum_b \Big(\beta_b - \frac{\gamma_b \mu_b}{\sigma_b}\Big)

    where the kernel of a branch, padded with zeros to the size of the largest, is written with a bar; that of the
    identity is 1 in the middle of channel n of filter n.

    Parameters
    ----------
    spec : ConvSpec
        What the sum stands in for.
    kernels : sequence of pair of int
        A convolution each.
    identity : bool
        Whether x itself, normalized, is a branch.
    """

    def __init__(self, spec: ConvSpec, kernels: Sequence[Pair], identity: bool) -> None:
        super().__init__()
        self.spec, self.kernels = spec, [*kernels]
        self.convolutions = nn.ModuleList(centred(spec, kernel) for kernel in kernels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(spec.out_channels) for _ in kernels)
        self.identity = nn.BatchNorm2d(spec.in_channels) if identity else None

    def forward(self, x: Tensor) -> Tensor:
        branches = [norm(f(x)) for f, norm in zip(self.convolutions, self.norms, strict=True)]
        if self.identity is not None:
            branches.append(self.identity(x))
        return sum(branches[1:], start=branches[0])

    def fuse(self) -> nn.Conv2d:
        """The one convolution that all branches together are in evaluation mode."""
        fused = nn.Conv2d(**(asdict(self.spec) | {"bias": True})).to(self.convolutions[0][-1].weight)  # type: ignore[index]
        whole = geometry(self.spec).kernel
        parts = [
            folded(embedded(f[-1].weight, whole), norm)  # type: ignore[index]
            for f, norm in zip(self.convolutions, self.norms, strict=True)
        ]
        if self.identity is not None:
            parts.append(folded(nn.init.dirac_(torch.empty_like(fused.weight)), self.identity))
        with torch.no_grad():
            fused.weight.copy_(sum(weight for weight, _ in parts))  # type: ignore[arg-type]
            fused.bias.copy_(sum(bias for _, bias in parts))  # type: ignore[union-attr, arg-type]
        return fused.train(self.training)


def folded(weight: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    r"""Weight and bias of the convolution that equals one without bias and the batch norm behind it.

    .. math:: w'_n = \frac{\gamma_n}{\sqrt{v_n + \epsilon}} w_n, \qquad
              b'_n = \beta_n - \frac{\gamma_n}{\sqrt{v_n + \epsilon}} \mu_n

    Computed in float64, rounded once.

    Parameters
    ----------
    weight : Tensor of shape (N, ...)
    norm : batch norm of N channels, with its running mean and variance
    """
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale, shift = torch.rsqrt(variance + norm.eps), torch.zeros_like(mean)
    if norm.weight is not None:
        scale, shift = scale * norm.weight.detach().double(), norm.bias.detach().double()
    scaled = weight.detach().double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), (shift - scale * mean).to(weight.dtype)


def embedded(weight: Tensor, kernel: Pair) -> Tensor:
    """A smaller kernel in the middle of zeros."""
    down, across = ((whole - part) // 2 for whole, part in zip(kernel, weight.shape[2:], strict=True))
    return nn.functional.pad(weight, (across, across, down, down))


def identity_fits(spec: ConvSpec) -> bool:
    """Whether the convolution could be the identity: as many channels, maps as large, a kernel with a middle."""
    return spec.in_channels == spec.out_channels and keeps_size(spec) and all(k % 2 for k in geometry(spec).kernel)
