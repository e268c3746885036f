"""Shared key-value heads: many heads of queries look at few heads of keys and values."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.sequence_models.attention import AttentionBlock, AttentionSpec, CausalAttention, attentions

__all__ = ["GroupedAttention", "SharedKeyValueHeads", "grouped_attention", "pooled"]


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r"""Causal attention in which h heads of queries share g heads of keys and values, as it is written.

    .. math:: o_i = \mathrm{softmax}\!\left(\frac{q_i k_{\lfloor ig/h \rfloor}^\top}{\sqrt d}\right)
              v_{\lfloor ig/h \rfloor}

    Parameters
    ----------
    q : Tensor of shape (batch, h, steps, d)
    k, v : Tensor of shape (batch, g, steps, d)
        g divides h.

    Returns
    -------
    Tensor of shape (batch, h, steps, d)

    Source
    ------
    Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023,
    section 2.2; one head, g = 1: Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019.
    """
    steps, width = q.shape[-2:]
    grouped = q.unflatten(1, (k.shape[1], -1))
    scores = grouped @ k[:, :, None].mT / width**0.5
    future = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, :, None]).flatten(1, 2)


class GroupedAttention(CausalAttention):
    """Attention whose layers for keys and values have fewer heads than that for queries.

    Parameters
    ----------
    width, heads, head_width : int
        As for standard attention.
    key_value_heads : int
        Divides `heads`.
    """

    def __init__(self, width: int, heads: int, head_width: int, key_value_heads: int) -> None:
        super().__init__(width, heads, head_width)
        self.key_value_heads = key_value_heads
        self.k = nn.Linear(width, key_value_heads * head_width, bias=False)
        self.v = nn.Linear(width, key_value_heads * head_width, bias=False)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same as `grouped_attention`, by PyTorch's kernel, which repeats nothing in memory."""
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@dataclass(frozen=True)
class SharedKeyValueHeads(AttentionBlock):
    r"""Let the heads of queries share `key_value_heads` heads of keys and values, in groups of neighbours.

    .. math:: o_i = \mathrm{softmax}\!\left(\frac{q_i k_{\lfloor ig/h \rfloor}^\top}{\sqrt d}\right)
              v_{\lfloor ig/h \rfloor}

    What decoding keeps of a step falls from 2 h d numbers to 2 g d: the share g/h. Products of scores and values stay.

    Parameters
    ----------
    key_value_heads : int
        g; 1 is multi-query attention, as many as there are heads of queries the standard one.

    Source
    ------
    Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019, section 3; Ainslie et al., "GQA:
    Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023, sections 2.1 and 2.2.

    Examples
    --------
    >>> from kernels.model.sequence_models.attention import cache_numbers
    >>> standard = CausalAttention(64, heads=4, head_width=16)
    >>> shared = SharedKeyValueHeads(1).within(standard)
    >>> cache_numbers(standard, 100), cache_numbers(shared, 100)
    (12800, 3200)
    """

    key_value_heads: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.key_value_heads, int) and self.key_value_heads >= 1):
            raise ValueError(f"key_value_heads: expected a positive integer, got {self.key_value_heads!r}")

    def build(self, spec: AttentionSpec) -> nn.Module:
        """Untrained attention of the specification's shapes.

        Raises
        ------
        ValueError
            If the heads cannot be divided into as many groups.
        """
        if spec.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads: expected a divisor of {spec.heads} heads, got {self.key_value_heads}")
        return GroupedAttention(spec.width, spec.heads, spec.head_width, self.key_value_heads)

    def convert(self, network: nn.Module) -> nn.Module:
        """A copy of a trained `network` whose keys and values are the means of each group's; train it a little more.

        Source: Ainslie et al. 2023, section 2.1: mean pooling did better than choosing one head, or starting anew.

        Parameters
        ----------
        network : nn.Module
            With standard attention; left as it is.

        Raises
        ------
        TypeError, ValueError
            As for `within`.
        """
        converted = self.within(network)
        for (_, old), (_, new) in zip(attentions(network), attentions(converted), strict=True):
            for name in ("q", "o"):
                setattr(new, name, copy.deepcopy(getattr(old, name)))
            for name in ("k", "v"):
                weight = pooled(getattr(old, name).weight, self.key_value_heads, old.head_width)
                getattr(new, name).weight = nn.Parameter(weight.detach().clone())
        return converted.train(network.training)


def pooled(weight: Tensor, groups: int, head_width: int) -> Tensor:
    """Rows of the heads of a projection, (heads x head_width, width), averaged over the heads of each group.

    Examples
    --------
    >>> pooled(torch.tensor([[1.0], [2.0], [3.0], [6.0]]), groups=2, head_width=1).flatten()
    tensor([1.5000, 4.5000])
    """
    return weight.unflatten(0, (groups, -1, head_width)).mean(1).flatten(0, 1)
