"""Continuing a text step by step: keys and values of what was read are kept, and only what is new is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.model.sequence_models.attention import joined

__all__ = ["Cache", "advance"]


class Cache:
    """Keys and values of one layer, as they come.

    Examples
    --------
    >>> cache = Cache()
    >>> _ = cache.append(torch.zeros(1, 4, 10, 16), torch.zeros(1, 4, 10, 16))
    >>> len(cache), cache.nbytes
    (10, 5120)
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of new steps, (batch, heads, new, d), and give those of all."""
        self.keys = k if self.keys is None else torch.cat([self.keys, k], -2)
        self.values = v if self.values is None else torch.cat([self.values, v], -2)
        return self.keys, self.values

    def truncate(self, steps: int) -> None:
        """Forget all but the first `steps` steps."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[..., :steps, :], self.values[..., :steps, :]

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values) if t is not None)


def advance(network: Any, x: Tensor, caches: Sequence[Any]) -> Tensor:
    """Read new characters after those that the caches hold.

    Parameters
    ----------
    network : nn.Module
        With `embedding`, `layers`, `norm` and `head`, as `datasets.workloads.transformer.Transformer` has them.
    x : Tensor of shape (batch, new)
        Codes of characters.
    caches : sequence
        One for each layer, with `append` and a length; they grow by the new steps.

    Returns
    -------
    Tensor of shape (batch, new, classes)
        Logits of what follows each.

    Examples
    --------
    >>> from datasets.workloads.transformer import Transformer
    >>> network = Transformer(classes=7, width=8, layers=2, heads=2, hidden=16)
    >>> x, caches = torch.tensor([[1, 2, 3, 4, 5]]), [Cache(), Cache()]
    >>> step_by_step = torch.cat([advance(network, x[:, i : i + 1], caches) for i in range(5)], 1)
    >>> bool(torch.allclose(step_by_step, network.every(x), atol=1e-5))
    True
    """
    h, start, new = network.embedding(x.long()), len(caches[0]), x.shape[1]
    seen = torch.arange(start + new) <= torch.arange(start, start + new)[:, None]
    for layer, cache in zip(network.layers, caches, strict=True):
        q, k, v = layer.attention.project(layer.attention_norm(h), start)
        k, v = cache.append(k, v)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=None if new == 1 else seen, enable_gqa=k.shape[1] != q.shape[1]
        )
        h = h + layer.attention.o(joined(mixed))
        h = h + layer.feedforward(layer.feedforward_norm(h))
    return network.head(network.norm(h))
