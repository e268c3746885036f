"""A small causal transformer, its attention in four plain linear layers, and how it learns at every position.

A module for each part, so that a technique can take one out, put another in, or run them step by step with a cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.data import Split
from datasets.workloads.base import Workload
from datasets.workloads.recipe import one_thread

__all__ = ["Attention", "Layer", "NextCharacter", "TextWorkload", "Transformer", "bits_per_character", "rotate"]

ROTARY_BASE = 100.0


@torch.fx.wrap
def rotate(x: Tensor, start: int = 0) -> Tensor:
    r"""Rotary positions: each pair of a head's numbers is turned by an angle in proportion to its step.

    .. math:: (x_i, x_{i + d/2}) \mapsto R(t\,b^{-2i/d}) \, (x_i, x_{i + d/2})

    so that the product of a query and a key depends on how far apart they are, not on where.

    Parameters
    ----------
    x : Tensor of shape (..., steps, d)
    start : int
        The step of the first.

    Source
    ------
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34; the pairs lie half a
    head apart, which is the same up to the order of the numbers.
    """
    steps, width = x.shape[-2:]
    rates = ROTARY_BASE ** (-torch.arange(width // 2, dtype=x.dtype) * 2 / width)
    angles = torch.arange(start, start + steps, dtype=x.dtype)[:, None] * rates
    cosine, sine = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


class Attention(nn.Module):
    """Causal attention of several heads: a linear layer each for queries, keys, values, and for what comes out.

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
        return self.o(self.mix(*self.project(x)).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads, width // heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feedforward(self.feedforward_norm(x))


class Transformer(nn.Module):
    """From windows of character codes to logits of the next character.

    Parameters
    ----------
    classes, width, layers, heads, hidden : int
        Characters, width of the vectors, layers, heads of each, width inside the feedforward part.

    Examples
    --------
    >>> network = Transformer(classes=67, width=8, layers=1, heads=2, hidden=16)
    >>> x = torch.zeros(3, 64)
    >>> network(x).shape, network.every(x).shape
    (torch.Size([3, 67]), torch.Size([3, 64, 67]))
    """

    def __init__(self, classes: int, width: int = 64, layers: int = 2, heads: int = 4, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.layers = nn.Sequential(*(Layer(width, heads, hidden) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def hidden(self, x: Tensor) -> Tensor:
        """The vectors after the last layer, (batch, steps, width)."""
        return self.layers(self.embedding(x.long()))

    def every(self, x: Tensor) -> Tensor:
        """Logits of what follows each step, (batch, steps, classes)."""
        return self.head(self.norm(self.hidden(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of what follows the last step, (batch, classes)."""
        return self.head(self.norm(self.hidden(x)[:, -1]))


def following(x: Tensor, y: Tensor) -> Tensor:
    """What follows each step of a window: the next one, and the label after the last; (batch, steps), int64."""
    return torch.cat([x[:, 1:].long(), y[:, None]], 1)


@dataclass(frozen=True)
class NextCharacter:
    """Cross-entropy of the next character at every step of the windows, the mean.

    Parameters
    ----------
    smoothing : float
        The share of a label that is spread evenly over all classes.
    """

    smoothing: float = 0.0

    def __call__(self, network: Any, x: Tensor, y: Tensor) -> Tensor:
        logits = network.every(x)
        return functional.cross_entropy(logits.flatten(0, 1), following(x, y).flatten(), label_smoothing=self.smoothing)


def bits_per_character(network: Any, split: Split, batch: int = 256) -> float:
    """Mean of -log2 p(next character) over all steps of all windows.

    Parameters
    ----------
    network : nn.Module
        With `every`; evaluated in evaluation mode, and left in the mode it was in.
    split : Split
    batch : int
        Windows at a time.
    """
    x, y = torch.tensor(split.x), torch.tensor(split.y)
    was_training, loss = network.training, NextCharacter()
    network.eval()
    with one_thread(), torch.no_grad():
        nats = sum(
            float(loss(network, some, labels)) * len(labels)
            for some, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
    network.train(was_training)
    return nats / len(split) / math.log(2)


class TextWorkload(Workload):
    """A workload whose items are windows of text; its networks have figures beside accuracy."""

    def figures(self, network: nn.Module, split: Split | None = None) -> dict[str, float]:
        """Bits per character over every step of a split's windows (by default the test's)."""
        return {"bits_per_character": bits_per_character(network, self.data().test if split is None else split)}
