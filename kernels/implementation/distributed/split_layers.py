"""Two linear layers whose products are divided among workers, with one sum forward and one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kernels.implementation.distributed.workers import Group

__all__ = ["SplitPair", "passed"]


class _SumForward(torch.autograd.Function):
    """A result that all workers add to: summed on the way forward; its gradient is every part's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.all_reduce(x.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient, None


class _SumBackward(torch.autograd.Function):
    """An input that all workers read: as it is on the way forward; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.group.all_reduce(gradient.contiguous().clone()), None


class SplitPair(nn.Module):
    r"""This worker's part of ``second(activation(first(x)))``.

    The first layer's weights are cut by outputs, the second's by inputs. An activation function works on each number by
    itself, so that nothing need be sent between the layers:

    .. math:: y = \sum_{k=1}^n \sigma(x A_k) B_k .

    Parameters
    ----------
    first, second : nn.Linear
        Their weights are copied; `second` takes what `first` gives.
    activation : nn.Module
        Elementwise.
    group : Group

    Raises
    ------
    ValueError
        If the layers do not fit.

    Source: Shoeybi et al., "Megatron-LM", arXiv 1909.08053, section 3.

    Examples
    --------
    >>> first, second, x = nn.Linear(4, 6), nn.Linear(6, 2), torch.randn(3, 4)
    >>> own = SplitPair(first, nn.GELU(), second, Group())
    >>> torch.allclose(own(x), second(nn.functional.gelu(first(x))), atol=1e-6)
    True
    """

    def __init__(self, first: nn.Linear, activation: nn.Module, second: nn.Linear, group: Group) -> None:
        super().__init__()
        if first.out_features != second.in_features:
            raise ValueError(
                f"second: expected a layer of {first.out_features} inputs, as many as the first gives, "
                f"got {second.in_features}"
            )
        own = torch.arange(first.out_features).tensor_split(group.size)[group.rank]
        self.group, self.activation = group, activation
        self.rows = nn.Parameter(first.weight.detach()[own])
        self.rows_bias = None if first.bias is None else nn.Parameter(first.bias.detach()[own])
        self.columns = nn.Parameter(second.weight.detach()[:, own])
        self.bias = None if second.bias is None else nn.Parameter(second.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        between = nn.functional.linear(_SumBackward.apply(x, self.group), self.rows, self.rows_bias)
        y = _SumForward.apply(nn.functional.linear(self.activation(between), self.columns), self.group)
        return y if self.bias is None else y + self.bias


def passed(
    group: Group, first: nn.Linear, activation: nn.Module, second: nn.Linear, x: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Forward and backward through a `SplitPair`, for `Workers.call`.

    Returns
    -------
    y, x_gradient : Tensor
        The same in every worker.
    gradients : dict of Tensor
        Of this worker's own weights.
    """
    pair, x = SplitPair(first, activation, second, group), x.detach().requires_grad_()
    y = pair(x)
    y.backward(gradient)
    assert x.grad is not None
    return y.detach(), x.grad, {name: p.grad for name, p in pair.named_parameters() if p.grad is not None}
