"""What techniques of attention share: the attention that one stands in for, how it comes there, and what it keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AttentionBlock", "AttentionSpec", "CausalAttention", "attentions", "cache_numbers", "continues_text",
    "next_token_loss", "replace_attention", "rotate", "standard",
]  # fmt: skip

ROTARY_BASE = 100.0


@torch.fx.wrap
def rotate(x: Tensor, start: int = 0) -> Tensor:
    r"""Rotary positions: each pair of a head's numbers is turned by an angle in proportion to its step.

    .. math:: (x_i, x_{i + d/2}) \mapsto R(t\,b^{-2i/d}) \, (x_i, x_{i + d/2})

    Parameters
    ----------
    x : Tensor of shape (..., steps, d)
    start : int
        The step of the first.

    Source
    ------
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34.
    """
    steps, width = x.shape[-2:]
    rates = ROTARY_BASE ** (-torch.arange(width // 2, dtype=x.dtype) * 2 / width)
    angles = torch.arange(start, start + steps, dtype=x.dtype)[:, None] * rates
    cosine, sine = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


class CausalAttention(nn.Module):
    """Causal attention of several heads: a linear layer each for queries, keys, values, and for what comes out.

    What techniques build, and how they know attention in a network of the reader's own: a module that has these four
    layers, `heads`, `head_width` and `project`.

    Parameters
    ----------
    width : int
        Of the vectors that come in and go out.
    heads, head_width : int
        Queries, keys and values of a head have `head_width` numbers.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k = nn.Linear(width, heads * head_width, bias=False)
        self.v = nn.Linear(width, heads * head_width, bias=False)
        self.o = nn.Linear(heads * head_width, width)

    def project(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, steps, head_width), of vectors whose first step is `start`."""
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return rotate(q, start), rotate(k, start), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q kᵀ / √d) v, a query seeing the keys up to its own step."""
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(joined(self.mix(*self.project(x))))


@dataclass(frozen=True)
class AttentionSpec:
    """Standard causal attention: what a block has to stand in for.

    Parameters
    ----------
    width : int
        Of the vectors that come in and go out.
    heads, head_width : int

    Examples
    --------
    >>> AttentionSpec.of(CausalAttention(64, heads=4, head_width=16))
    AttentionSpec(width=64, heads=4, head_width=16)
    """

    width: int
    heads: int
    head_width: int

    @classmethod
    def of(cls, attention: Any) -> AttentionSpec:
        """The specification of a module."""
        return cls(attention.o.out_features, attention.heads, attention.head_width)


class Builder(Protocol):
    """What gives a module in place of standard attention."""

    def build(self, spec: AttentionSpec) -> nn.Module:
        """An untrained module with the attention's input and output shapes."""


class AttentionBlock:
    """A block that stands in for attention, not for a convolution."""

    def within(self: Any, network: nn.Module) -> nn.Module:
        """A copy of `network` whose attention is built by this block, untrained."""
        return replace_attention(network, self)


def attentions(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attention modules of a network, and their names: those with the parts of `CausalAttention`.

    Raises
    ------
    TypeError, ValueError
        If `network` is no module, or has no such attention.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    found = [
        (name, module)
        for name, module in network.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in "qkvo") and hasattr(module, "project")
    ]
    if not found:
        raise ValueError(f"network: expected one with causal attention; {type(network).__name__} has none")
    yield from found


def standard(network: nn.Module) -> list[tuple[str, Any]]:
    """The attention modules of a network, all of them standard.

    Raises
    ------
    TypeError, ValueError
        As for `attentions`, or if a technique has changed one already; the message names it.
    """
    found = list(attentions(network))
    for name, attention in found:
        if isinstance(attention, CausalAttention) and type(attention) is not CausalAttention:
            raise ValueError(f"{name}: expected standard attention, got {type(attention).__name__}")
    return found


def continues_text(network: nn.Module) -> Any:
    """The network, if it embeds codes, and says what follows each of them (`every`), layer by layer.

    Raises
    ------
    TypeError, ValueError
        If `network` is no module, has no attention, or is none such.
    """
    list(attentions(network))
    if not all(hasattr(network, part) for part in ("embedding", "layers", "norm", "head", "every")):
        raise ValueError(f"network: expected one that continues text, got {type(network).__name__}")
    return network


def next_token_loss(network: Any, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of what follows each step: the next one, and the label y after the last; the mean."""
    follows = torch.cat([x[:, 1:].long(), y[:, None]], 1)
    return functional.cross_entropy(network.every(x).flatten(0, 1), follows.flatten())


def replace_attention(network: nn.Module, block: Builder) -> nn.Module:
    """A copy of `network` whose standard attention is built by `block`, untrained.

    Parameters
    ----------
    network : nn.Module
        Left as it is.
    block : with `build`

    Raises
    ------
    TypeError, ValueError
        If `network` is no module or has no attention, or one is not standard; the message names it.
    """
    network = copy.deepcopy(network)
    for name, attention in standard(network):
        built = block.build(AttentionSpec.of(attention))
        if not name:
            return built
        network.set_submodule(name, built)
    return network


def cache_numbers(network: nn.Module, steps: int) -> int:
    """Numbers that decoding keeps of `steps` steps of one sequence: keys and values, or what stands for them.

    A module that keeps something else than every step's keys and values says so, ``kept(steps)``.

    Examples
    --------
    >>> cache_numbers(CausalAttention(64, heads=4, head_width=16), 10)  # keys and values of 4 x 16 numbers
    1280
    """
    return sum(
        attention.kept(steps)
        if hasattr(attention, "kept")
        else steps * (attention.k.out_features + attention.v.out_features)
        for _, attention in attentions(network)
    )


def joined(heads: torch.Tensor) -> torch.Tensor:
    """(batch, heads, steps, d) to (batch, steps, heads x d)."""
    return heads.transpose(1, 2).flatten(2)
