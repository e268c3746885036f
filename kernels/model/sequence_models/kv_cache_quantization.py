"""Key-value cache quantization: what decoding keeps is rounded to few bits, keys along channels, values along steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from kernels import counting
from kernels.model.sequence_models.attention import CausalAttention, attentions, continues_text
from kernels.model.sequence_models.decoding import advance

__all__ = ["KvCacheQuantization", "Packed", "QuantizedCache", "QuantizedNetwork", "packed", "quantize", "unpacked"]

SCALE_BITS = 16
BITS = (1, 2, 3, 4, 8)


@dataclass(frozen=True)
class Packed:
    """Codes of few bits, one after another in bytes, with the scale and the least value of each group, in FP16.

    Attributes
    ----------
    codes : Tensor of uint8
        The last axis packed.
    scale, least : Tensor of float16
        Of size one along the axis that a group lies on.
    bits : int
    """

    codes: Tensor
    scale: Tensor
    least: Tensor
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes that are stored."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scale, self.least))

    def decode(self) -> Tensor:
        """The rounded numbers, float32."""
        return unpacked(self.codes, self.bits) * self.scale.float() + self.least.float()


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes of so many bits, uint8, one after another, eight bits to a byte, the lowest first.

    Examples
    --------
    >>> packed(torch.tensor([1, 2, 3, 0, 0, 0, 0, 4], dtype=torch.uint8), 3)
    tensor([209,   0, 128], dtype=torch.uint8)
    """
    alone = (codes[..., None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    places = torch.arange(8, dtype=torch.uint8)
    return (alone.flatten(-2).unflatten(-1, (-1, 8)) << places).sum(-1, dtype=torch.uint8)


def unpacked(numbers: Tensor, bits: int) -> Tensor:
    """The codes that `packed` was given."""
    alone = (numbers[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    places = torch.arange(bits, dtype=torch.uint8)
    return (alone.flatten(-2).unflatten(-1, (-1, bits)) << places).sum(-1, dtype=torch.uint8)


def quantize(x: Tensor, bits: int, dim: int) -> Packed:
    r"""Round to 2^b evenly spaced numbers between the least and the largest along an axis.

    .. math:: Q(x) = \left\lfloor \frac{x - z}{s} \right\rceil, \quad z = \min x, \quad
              s = \frac{\max x - \min x}{2^b - 1}, \qquad \hat x = Q(x)\, s + z

    Parameters
    ----------
    x : Tensor
        The last axis such that its codes fill bytes.
    bits : {1, 2, 3, 4, 8}
    dim : int
        The axis that shares a scale.

    Source
    ------
    Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024.

    Examples
    --------
    >>> quantize(torch.tensor([[0.0, 1.0, 2.2, 3.0]]), bits=2, dim=1).decode()
    tensor([[0., 1., 2., 3.]])
    """
    least = x.amin(dim, keepdim=True).half()
    scale = ((x.amax(dim, keepdim=True) - least) / (2**bits - 1)).half()
    steps = (x - least.float()) / scale.float().clamp_min(torch.finfo(torch.half).tiny)
    codes = steps.round().clamp(0, 2**bits - 1).to(torch.uint8)
    return Packed(packed(codes, bits), scale, least, bits)


class QuantizedCache:
    """Keys and values of one layer of which the recent ones are whole, and those before packed.

    Keys wait until `residual` of them are together, then each channel of the group is rounded by itself; values are
    rounded one step after the other, when `residual` newer ones have come.

    Parameters
    ----------
    bits, residual : int
    key_axis : {"channel", "step"}
    """

    def __init__(self, bits: int, residual: int, key_axis: str = "channel") -> None:
        self.bits, self.residual, self.key_axis = bits, residual, key_axis
        self.packed_keys: list[Packed] = []
        self.packed_values: list[Packed] = []
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.steps = 0

    def __len__(self) -> int:
        return self.steps

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of one new step, (batch, heads, 1, d), and give those of all as they are kept.

        Raises
        ------
        ValueError
            If there is more than one step.
        """
        if k.shape[-2] != 1:
            raise ValueError(f"k: expected one step at a time, got {k.shape[-2]}")
        keys = k if self.keys is None else torch.cat([self.keys, k], -2)
        values = v if self.values is None else torch.cat([self.values, v], -2)
        if keys.shape[-2] == self.residual:
            self.packed_keys.append(quantize(keys, self.bits, -2 if self.key_axis == "channel" else -1))
            keys = keys[..., :0, :]
        if values.shape[-2] > self.residual:
            self.packed_values.append(quantize(values[..., :1, :], self.bits, -1))
            values = values[..., 1:, :]
        self.keys, self.values, self.steps = keys, values, self.steps + 1
        whole = ((self.packed_keys, keys), (self.packed_values, values))
        k, v = (torch.cat([*(part.decode() for part in packed), rest], -2) for packed, rest in whole)
        return k, v

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        whole = sum(t.numel() * t.element_size() for t in (self.keys, self.values) if t is not None)
        return whole + sum(part.nbytes for part in (*self.packed_keys, *self.packed_values))


class QuantizedAttention(CausalAttention):
    """Attention over whole windows with the numbers that a step-by-step decoder with a `QuantizedCache` would see."""

    def __init__(self, attention: Any, settings: KvCacheQuantization) -> None:
        nn.Module.__init__(self)
        self.heads, self.head_width, self.settings = attention.heads, attention.head_width, settings
        self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        steps, residual = q.shape[-2], self.settings.residual
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        rounded_k, rounded_v = self.settings.rounded(k, v)
        now, then = torch.arange(steps)[:, None], torch.arange(steps)
        packed_k, packed_v = then < (now + 1) // residual * residual, then < now + 1 - residual
        scores = torch.where(packed_k, q @ rounded_k.mT, q @ k.mT) / self.head_width**0.5
        weights = scores.masked_fill(then > now, -torch.inf).softmax(-1)
        return weights @ v + (weights * packed_v) @ (rounded_v - v)


class QuantizedNetwork(nn.Module):
    """A network for inference that keeps rounded keys and values.

    Parameters
    ----------
    network : Transformer
        Its copy decodes; over whole windows, `every` gives the same in one pass.
    settings : KvCacheQuantization
    """

    def __init__(self, network: Any, settings: KvCacheQuantization) -> None:
        super().__init__()
        self.settings, self.network = settings, copy.deepcopy(network)
        self.whole = [copy.deepcopy(network)]  # in a list, so that its parameters are not counted as this network's
        for name, attention in list(attentions(self.network)):
            self.network.set_submodule(name, QuantizedAttention(attention, settings))

    def every(self, x: Tensor) -> Tensor:
        """Logits of what follows each step, (batch, steps, classes)."""
        return self.network.every(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of what follows the last step, (batch, classes)."""
        return self.network(x)

    def caches(self) -> list[QuantizedCache]:
        """Empty ones, one a layer."""
        settings = self.settings
        return [QuantizedCache(settings.bits, settings.residual, settings.key_axis) for _ in self.network.layers]

    def decode(self, x: Tensor) -> tuple[Tensor, list[QuantizedCache]]:
        """Read windows step by step, for real: logits of what follows each step, and what is kept in the end."""
        caches = self.caches()
        logits = [advance(self.network, x[:, i : i + 1], caches) for i in range(x.shape[1])]
        return torch.cat(logits, 1), caches

    def cache_bytes(self, steps: int) -> int:
        """Bytes of one sequence's caches after so many steps, counted on real ones."""
        caches = self.caches()
        for (_, attention), cache in zip(attentions(self.network), caches, strict=True):
            step = torch.zeros(1, attention.k.out_features // attention.head_width, 1, attention.head_width)
            for _ in range(steps):
                cache.append(step, step)
        return sum(cache.nbytes for cache in caches)

    def figures(self, x: Tensor) -> dict[str, float]:
        """What decoding computes of items like x: the products of the network as it was; none is saved.

        `forward` computes more than a decoder: each score with the whole and with the rounded key.
        """
        network = self.whole[0]
        return {
            "macs": counting.macs(network, x),
            "effective_macs": counting.effective_macs(network, x),
            "peak_activation_bytes": counting.peak_activation_bytes(network, x),
        }


@dataclass(frozen=True)
class KvCacheQuantization:
    r"""Keep keys and values of all but the most recent steps in few bits.

    .. math:: \hat x = \left\lfloor \frac{x - z}{s} \right\rceil s + z, \qquad z = \min x, \quad
              s = \frac{\max x - \min x}{2^b - 1}

    the least and the largest over the steps of a group, channel by channel, for keys; over the channels, step by step,
    for values. A few channels of keys are large at every step; a scale of their own keeps them from drowning the
    others. Values have no such channels, and an error at one step stays at that step.

    Parameters
    ----------
    bits : {1, 2, 3, 4, 8}
        b.
    residual : int
        Keys that are rounded together, and values that stay whole.
    key_axis : {"channel", "step"}
        What shares a scale among the keys; by step is what stands in comparison.

    Source
    ------
    Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> network = datasets.workload("shakespeare-transformer").trained()
    >>> [KvCacheQuantization(bits).apply(network).cache_bytes(64) for bits in (2, 4, 8)]
    [15360, 18944, 26112]
    """

    bits: int = 2
    residual: int = 16
    key_axis: str = "channel"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits: expected one of {BITS}, got {self.bits!r}")
        if not (isinstance(self.residual, int) and self.residual >= 1):
            raise ValueError(f"residual: expected a positive number of steps, got {self.residual!r}")
        if self.key_axis not in ("channel", "step"):
            raise ValueError(f"key_axis: expected channel or step, got {self.key_axis!r}")

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network`, for inference, that keeps rounded keys and values; nothing is trained.

        Parameters
        ----------
        network : Transformer
            Left as it is.
        data : optional
            Not needed.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module or has no causal attention, or the numbers of a head do not fill bytes; the
            message names the layer.
        """
        for name, attention in attentions(network):
            if attention.head_width * self.bits % 8:
                several, width = 8 // gcd(8, self.bits), attention.head_width
                raise ValueError(f"{name}: expected heads of a multiple of {several} numbers, got {width}")
        return QuantizedNetwork(continues_text(network), self).eval()

    def rounded(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values as they are once they are packed; keys of a group that is not full are left."""
        full = k.shape[-2] // self.residual * self.residual
        axis = -2 if self.key_axis == "channel" else -1
        groups = k[..., :full, :].unflatten(-2, (-1, self.residual))
        keys = quantize(groups, self.bits, axis).decode().flatten(-3, -2)
        return torch.cat([keys, k[..., full:, :]], -2), quantize(v, self.bits, -1).decode()
