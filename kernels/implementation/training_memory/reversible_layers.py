"""Reversible layers: inputs are computed from outputs in the backward pass, so that none need be kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.implementation.training_memory.gradient_checkpointing import lent_buffers
from kernels.model.block import ConvSpec

__all__ = ["Coupling", "ReversibleChain", "ReversibleLayers"]


class Coupling(nn.Module):
    """y₁ = x₁ + F(x₂), y₂ = x₂ + G(y₁): a residual step that can be taken back.

    Parameters
    ----------
    f, g : nn.Module
        Any functions between the two halves of the channels (dimension 1).

    Examples
    --------
    >>> step, x = Coupling(nn.Linear(2, 2), nn.Linear(2, 2)).double(), torch.randn(3, 4, dtype=torch.float64)
    >>> torch.allclose(step.inverse(step(x)), x)
    True
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = _halves(x)
        y1 = x1 + self.f(x2)
        return torch.cat((y1, x2 + self.g(y1)), 1)

    def inverse(self, y: Tensor) -> Tensor:
        """The input of which `y` is the output: x₂ = y₂ - G(y₁), x₁ = y₁ - F(x₂)."""
        y1, y2 = _halves(y)
        x2 = y2 - self.g(y1)
        return torch.cat((y1 - self.f(x2), x2), 1)


class _Reversed(torch.autograd.Function):
    """A chain of couplings that keeps its output alone."""

    @staticmethod
    def forward(ctx: Any, chain: nn.Sequential, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.chain = chain
        y = chain(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        gradients: dict[Tensor, Tensor] = {}
        for step in reversed(ctx.chain):
            with lent_buffers(step):  # batch norm saw this batch in the forward pass
                y, gradient = _step_back(step, y, gradient, gradients)
        return None, gradient, *(gradients.get(p) for p in ctx.chain.parameters())


def _step_back(step: Any, y: Tensor, gradient: Tensor, gradients: dict[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A coupling's input and its gradient from its output and that one's: algorithm 1 of the paper."""
    (y1, y2), (d1, d2) = _halves(y), _halves(gradient)
    g_y1, d_y1 = _through(step.g, y1, d2, gradients)
    z1, x2 = d1 + d_y1, y2 - g_y1
    f_x2, d_x2 = _through(step.f, x2, z1, gradients)
    return torch.cat((y1 - f_x2, x2), 1), torch.cat((z1, d2 + d_x2), 1)


def _through(f: nn.Module, x: Tensor, gradient: Tensor, gradients: dict[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """f(x), and the gradient of x; those of f's parameters go to `gradients`."""
    x, parameters = x.detach().requires_grad_(), [p for p in f.parameters() if p.requires_grad]
    with torch.enable_grad():
        y = f(x)
    found, *own = torch.autograd.grad(y, [x, *parameters], gradient, allow_unused=True)
    for parameter, value in zip(parameters, own, strict=True):
        if value is not None:
            gradients[parameter] = gradients[parameter] + value if parameter in gradients else value
    return y.detach(), torch.zeros_like(x) if found is None else found


class ReversibleChain(nn.Sequential):
    """Couplings one after the other; their inputs are recovered in the backward pass, and none is kept.

    Functions of the couplings must be functions: of state, batch norm's running statistics are taken care of, random
    numbers (dropout) are not.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if torch.is_grad_enabled():
            return _Reversed.apply(nn.Sequential(*self), x, *self.parameters())
        return super().forward(x)


@dataclass(frozen=True)
class ReversibleLayers:
    r"""A convolution and n reversible residual steps behind it, in place of a convolution.

    .. math::
        y_1 = x_1 + F(x_2), \quad y_2 = x_2 + G(y_1)
        \qquad\Longleftrightarrow\qquad
        x_2 = y_2 - G(y_1), \quad x_1 = y_1 - F(x_2)

    Activations kept for the backward pass do not grow with n; the price is that F and G run once more. In floating
    point the recovered input differs from the true one by rounding, and so does the gradient.

    Parameters
    ----------
    depth : int
        n, the number of steps. F and G are batch norm, ReLU and a 3 x 3 convolution on half of the channels.
    recover : bool
        Whether inputs are recovered. If not, the same layers keep them, as layers usually do.

    Source: Gomez et al., "The Reversible Residual Network: Backpropagation Without Storing Activations", NeurIPS 2017,
    equations 6 and 7, algorithm 1.

    Examples
    --------
    >>> block = ReversibleLayers(depth=2).build(ConvSpec(3, 8, 3, stride=2))
    >>> block(torch.zeros(1, 3, 9, 9)).shape
    torch.Size([1, 8, 4, 4])
    """

    depth: int = 2
    recover: bool = True

    def __post_init__(self) -> None:
        if not (isinstance(self.depth, int) and self.depth >= 1):
            raise ValueError(f"depth: expected a positive integer, got {self.depth!r}")

    def kept(self) -> ReversibleLayers:
        """The same layers, which keep their activations: what the saving is measured against."""
        return replace(self, recover=False)

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec

        Returns
        -------
        nn.Sequential
            The convolution as specified, then the steps.

        Raises
        ------
        ValueError
            If there are fewer than two output channels: they are divided in halves.
        """
        if spec.out_channels < 2:
            raise ValueError(f"spec: expected at least 2 output channels, to be halved, got {spec.out_channels}")
        first = (spec.out_channels + 1) // 2
        halves = first, spec.out_channels - first
        steps = [Coupling(_branch(*halves[::-1]), _branch(*halves)) for _ in range(self.depth)]
        chain = ReversibleChain(*steps) if self.recover else nn.Sequential(*steps)
        return nn.Sequential(nn.Conv2d(**asdict(spec)), chain)


def _branch(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, outside, 3, padding=1, bias=False))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, 1)
    return first, second
