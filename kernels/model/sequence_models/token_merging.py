"""Token merging: between attention and what follows it, the most similar steps of a sequence become one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import counting
from kernels.model.sequence_models.attention import ROTARY_BASE, continues_text, joined, standard

__all__ = ["MergingTransformer", "TokenMerging", "merged", "proportional_attention", "rotated_at", "soft_matching"]

CHOICES = ("similar", "random", "oldest")


def soft_matching(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""Which steps to merge into which: bipartite soft matching.

    The steps but the last are dealt out in turn to two sets. Each of the first set proposes to the most similar of the
    second, by the cosine of their keys; the `count` most similar pairs are merged.

    Parameters
    ----------
    keys : Tensor of shape (batch, steps, d)
    count : int
        At most half of the steps but the last, rounded up.

    Returns
    -------
    sources, targets : Tensor of shape (batch, count), int64
        Steps; a target may occur more than once.

    Source
    ------
    Bolya et al., "Token Merging: Your ViT But Faster", 2023, section 3: the last step takes the place of the class
    token, which is left alone.

    Examples
    --------
    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0], [0.0, 0.0]]])
    >>> soft_matching(keys, 1)  # step 2 looks like step 1
    (tensor([[2]]), tensor([[1]]))
    """
    directions = functional.normalize(keys, dim=-1)
    first, second = directions[:, :-1:2], directions[:, 1:-1:2]
    best, partner = (first @ second.mT).max(-1)
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return 2 * chosen, 2 * partner.gather(1, chosen) + 1


def merged(values: Tensor, sizes: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    r"""Targets become the mean of themselves and of what is merged into them, by size; sources are left as they are.

    .. math:: x_t \leftarrow \frac{s_t x_t + \sum_{u \to t} s_u x_u}{s_t + \sum_{u \to t} s_u}

    Parameters
    ----------
    values : Tensor of shape (batch, steps, d)
    sizes : Tensor of shape (batch, steps)
        How many steps each stands for.
    """
    places = targets[..., None].expand(-1, -1, values.shape[-1])
    weighted = values * sizes[..., None]
    total = weighted.scatter_add(1, places, weighted.gather(1, sources[..., None].expand_as(places)))
    return total / sizes.scatter_add(1, targets, sizes.gather(1, sources))[..., None]


def proportional_attention(q: Tensor, k: Tensor, v: Tensor, places: Tensor, sizes: Tensor) -> Tensor:
    r"""Causal attention in which a step that stands for several weighs as much as these.

    .. math:: o_i = \sum_{p_j \le p_i} \mathrm{softmax}_j\!\left(\frac{q_i k_j^\top}{\sqrt d} + \log s_j\right) v_j

    Parameters
    ----------
    q, k, v : Tensor of shape (batch, heads, steps, d)
    places, sizes : Tensor of shape (batch, steps)
        p and s.

    Source: Bolya et al. 2023, equation 1.
    """
    ahead = places[:, None, None, :] > places[:, None, :, None]
    bias = sizes.log()[:, None, None, :].masked_fill(ahead, -torch.inf)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def rotated_at(x: Tensor, places: Tensor) -> Tensor:
    """`kernels.model.sequence_models.attention.rotate` for steps at any places, (batch, steps)."""
    width = x.shape[-1]
    rates = ROTARY_BASE ** (-torch.arange(width // 2, dtype=x.dtype) * 2 / width)
    angles = places[:, None, :, None] * rates
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class MergingTransformer(nn.Module):
    """A transformer that has ever fewer steps to work on.

    Parameters
    ----------
    network : Transformer
    settings : TokenMerging
    """

    def __init__(self, network: Any, settings: TokenMerging) -> None:
        super().__init__()
        self.network, self.settings = network, settings

    def logits(self, x: Tensor) -> Tensor:
        """Of what follows the last step, (batch, classes)."""
        h, settings = self.network.embedding(x.long()), self.settings
        places = torch.arange(x.shape[1], dtype=h.dtype).expand(len(x), -1)
        sizes, random = torch.ones_like(places), torch.Generator().manual_seed(settings.seed)
        for layer in self.network.layers:
            attention, z = layer.attention, layer.attention_norm(h)
            q, k, v = (f(z).unflatten(-1, (-1, attention.head_width)).transpose(1, 2)
                       for f in (attention.q, attention.k, attention.v))  # fmt: skip
            mixed = proportional_attention(rotated_at(q, places), rotated_at(k, places), v, places, sizes)
            h = h + attention.o(joined(mixed))
            h, places, sizes = self.fewer(h, places, sizes, k.mean(1), random)
            h = h + layer.feedforward(layer.feedforward_norm(h))
        return self.network.head(self.network.norm(h[:, -1]))

    def fewer(
        self, h: Tensor, places: Tensor, sizes: Tensor, keys: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, places and sizes of the steps that remain, in the order of their places."""
        count, steps = self.settings.merged, h.shape[1]
        if not count:
            return h, places, sizes
        if self.settings.choice == "oldest":
            return h[:, count:], places[:, count:], sizes[:, count:]
        if self.settings.choice == "random":
            keys = torch.randn(keys.shape, generator=random)
        sources, targets = soft_matching(keys, min(count, steps // 2))
        together = merged(torch.cat([h, places[..., None]], -1), sizes, sources, targets)
        sizes = sizes.scatter_add(1, targets, sizes.gather(1, sources))
        left = torch.ones_like(sizes, dtype=torch.bool).scatter(1, sources, False)
        h, places = together[..., :-1], together[..., -1]
        rest = left.nonzero()[:, 1].view(len(h), -1)
        rest = rest.gather(1, places.gather(1, rest).argsort(dim=-1, stable=True))
        return h.gather(1, rest[..., None].expand(-1, -1, h.shape[-1])), places.gather(1, rest), sizes.gather(1, rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of what follows, (batch, classes), and each item's multiply-accumulates, (batch,): all the same."""
        return self.logits(x), torch.full((len(x),), float(counting.macs(_Alone(self), x[:1])))


class _Alone(nn.Module):
    def __init__(self, network: MergingTransformer) -> None:
        super().__init__()
        self.merging = network

    def forward(self, x: Tensor) -> Tensor:
        return self.merging.logits(x)


@dataclass(frozen=True)
class TokenMerging:
    r"""Merge so many pairs of steps in each layer, the most similar first; nothing is trained.

    .. math:: x_t \leftarrow \frac{s_t x_t + \sum_{u \to t} s_u x_u}{s_t + \sum_{u \to t} s_u}, \qquad
              \mathrm{softmax}\!\left(\frac{q k^\top}{\sqrt d} + \log s\right)

    All that comes after works on fewer steps: the feedforward part of the same layer, and the layers behind it. A step
    that stands for several weighs as much as these in attention, and lies at the mean of their places.

    Parameters
    ----------
    merged : int
        Pairs a layer.
    choice : {"similar", "random", "oldest"}
        Which pairs; "oldest" merges nothing and leaves as many of the first steps out.
    seed : int
        Of random pairs.

    Source
    ------
    Bolya et al., "Token Merging: Your ViT But Faster", 2023, section 3.

    Examples
    --------
    >>> import datasets
    >>> workload = datasets.workload("shakespeare-transformer")
    >>> network, x = workload.trained(), torch.tensor(workload.data().validation.x[:4])
    >>> [int(TokenMerging(merged=count).apply(network)(x)[1][0]) for count in (0, 8, 16)]
    [7344320, 6331904, 5304640]
    """

    merged: int = 8
    choice: str = "similar"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.merged < 0:
            raise ValueError(f"merged: expected none or a positive number of pairs, got {self.merged}")
        if self.choice not in CHOICES:
            raise ValueError(f"choice: expected one of {', '.join(CHOICES)}, got {self.choice!r}")

    def apply(self, network: nn.Module, data: Any = None) -> MergingTransformer:
        """The network, copied, with steps that merge.

        Parameters
        ----------
        network : Transformer
            Left as it is.
        data : optional
            Not needed.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, none that continues text, or a layer's attention is not standard.
        """
        standard(network)
        return MergingTransformer(copy.deepcopy(continues_text(network)), self).eval()

    def at_random(self, seed: int) -> TokenMerging:
        """As many pairs, chosen blindly."""
        return replace(self, choice="random", seed=seed)
