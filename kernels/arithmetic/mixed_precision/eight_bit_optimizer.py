r"""AdamW whose two moments are kept in eight bits: block-wise quantization to a grid that is dense near zero.

A moment is cut into blocks of B numbers. With N_b the largest magnitude of block b, each number is kept as the index of
the nearest entry q of a table of 256 numbers of at most one,

    c_bi = argmin_j |q_j - x_bi / N_b|,        x_bi ≈ N_b q_c,

and each update reads a block, moves on in FP32, and writes it again in eight bits: a byte and 4 / B bytes a number in
place of four. One number that is far larger than all others spoils its own block only.

The table is *dynamic tree* quantization: the zeros after the sign bit say a power of ten, the first one ends them, and
what bits remain are a fraction, spread evenly from 0.1 to 1.

Source: T. Dettmers, M. Lewis, S. Shleifer and L. Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", ICLR
2022, sections 1.2, 2.1 and 2.2.

Examples
--------
>>> table = code("dynamic", signed=True)
>>> table.size, table[[0, 127, 128, 129, 255]]
(256, array([-9.9296874e-01,  0.0000000e+00,  5.4999998e-07,  3.2500000e-06,
        1.0000000e+00], dtype=float32))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from kernels.arrays import as_array, describe

__all__ = ["AdamW8bit", "EightBitOptimizer", "adamw_update", "code", "dequantize", "quantize"]

CODES = ("dynamic", "linear")
LOWEST, MANTISSA = -24, 7
"""Magnitudes below 2^LOWEST share a bucket; above, 2^MANTISSA of them an octave hold one decision point each."""
BUCKETS = (1 - LOWEST << MANTISSA) + 1
FIRST = (127 + LOWEST) << MANTISSA
"""Of an octave's buckets, in the upper bits of a float32's pattern."""


def code(name: str, signed: bool, zero: bool = True) -> np.ndarray:
    """The table of 256 numbers, ascending: what a code stands for, as a share of its block's largest magnitude.

    Parameters
    ----------
    name : {"dynamic", "linear"}
        Dynamic tree quantization, or equal steps.
    signed : bool
        The second moment has no sign; its sign bit becomes one bit more of the fraction.
    zero : bool
        Without it, what rounded to zero goes to the smallest magnitude that there is (of tables without sign).

    Returns
    -------
    ndarray of 256 float32
        Of the dynamic tables, 2^i numbers (2^(i+1) without sign) of each sign in the decade below 10^(i - 6), i from 0
        to 6: the middles of so many equal parts of it. Zero and one besides. The signed linear table leaves one code
        unused; it stands for one twice.

    Examples
    --------
    >>> code("linear", signed=False)[:3] * 255
    array([0., 1., 2.], dtype=float32)
    """
    if name not in CODES:
        raise ValueError(f"code: expected {' or '.join(CODES)}, got {name!r}")
    if not zero:
        table = code(name, signed=False)
        return np.append(table[1], table[1:])
    if name == "linear":
        steps = np.append(np.arange(-127, 128) / 127, 1.0) if signed else np.arange(256) / 255
        return steps.astype(np.float32)
    positive: list[float] = []
    for i in range(7):
        parts = 2 ** (i + (not signed))
        edges = np.linspace(0.1, 1, parts + 1)
        positive += list((edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6))
    negative = [-q for q in positive] if signed else []
    return np.sort(np.array([*negative, 0.0, *positive, 1.0], np.float32))


@lru_cache(maxsize=8)
def _tables(name: str, signed: bool, zero: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table; the middles between neighbours; and for each bucket of float32 patterns how many middles lie below.

    A bucket holds the floats with the same sign, exponent and upper MANTISSA bits of the fraction.
    """
    table = code(name, signed, zero)
    middles = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    starts = (np.arange(BUCKETS, dtype=np.uint32) + np.uint32(FIRST)) << np.uint32(23 - MANTISSA)
    ends = starts + np.uint32((1 << (23 - MANTISSA)) - 1)
    starts[0] = 0
    low, high = starts.view(np.float32), ends.view(np.float32)
    up = np.searchsorted(middles, low), np.searchsorted(middles, high)
    down = np.searchsorted(middles, -high), np.searchsorted(middles, -low)
    for first, last in (up, down):
        assert np.all(last - first <= 1)
    below = np.concatenate([up[0], down[0]]).astype(np.uint8)
    return table, np.append(middles, np.float32(np.inf)), below


def quantize(x: Any, table: np.ndarray, block: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """The plain statement: each block's largest magnitude, and for each number the index of the nearest in the table.

    Parameters
    ----------
    x : array_like or torch.Tensor of real numbers, any shape
        Flattened in the order of its indices; the last block may be shorter.
    table : ndarray of 256 float32, ascending
    block : int
        Numbers of a block; 0 takes the whole array as one.

    Returns
    -------
    codes : ndarray of uint8, flat
    scales : ndarray of float32, one a block
        Zero where a block holds nothing but zeros; NaN where it holds a NaN. Half-way goes to the smaller number.

    Examples
    --------
    >>> codes, scales = quantize([0.0, 2.0, -1.0], code("linear", signed=True))
    >>> codes, scales
    (array([127, 254,  63], dtype=uint8), array([2.], dtype=float32))
    """
    flat, block = _blocks(x, block)
    middles = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    codes, scales = np.empty(flat.size, np.uint8), np.empty(-(-flat.size // block), np.float32)
    for b in range(scales.size):
        part = flat[b * block : (b + 1) * block]
        scales[b] = np.abs(part).max()
        with np.errstate(invalid="ignore"):
            shares = np.clip(part / scales[b] if scales[b] != 0 else np.zeros_like(part), -1, 1)
        codes[b * block : (b + 1) * block] = np.searchsorted(middles, np.nan_to_num(shares))
    return codes, scales


def dequantize(codes: np.ndarray, scales: np.ndarray, table: np.ndarray, block: int = 2048) -> np.ndarray:
    """The numbers that codes stand for, flat: each table entry times the scale of its block.

    Examples
    --------
    >>> table = code("dynamic", signed=False)
    >>> dequantize(*quantize([1e-3, 1.0, 30.0], table), table)
    array([1.1437500e-03, 9.9609375e-01, 3.0000000e+01], dtype=float32)
    """
    return table[codes] * np.repeat(scales, block or max(1, codes.size))[: codes.size]


def adamw_update(
    parameter: Tensor, gradient: Tensor, m: Tensor, v: Tensor, *,
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """The plain statement of AdamW, in place and in torch's order of operations: bit for bit `torch.optim.AdamW`.

    m ← β₁ m + (1 - β₁) g,  v ← β₂ v + (1 - β₂) g²,  θ ← θ - η λ θ - η (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)

    Parameters
    ----------
    parameter, gradient, m, v : Tensor
    step : int
        t, from one.

    Examples
    --------
    >>> p, m, v = torch.ones(1), torch.zeros(1), torch.zeros(1)
    >>> adamw_update(p, torch.tensor([3.0]), m, v, step=1, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    >>> p
    tensor([0.9000])
    """
    parameter.mul_(1 - lr * weight_decay)
    m.lerp_(gradient, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    first, second = 1 - betas[0] ** step, 1 - betas[1] ** step
    parameter.addcdiv_(m, (v.sqrt() / second**0.5).add_(eps), value=-(lr / first))


class AdamW8bit(torch.optim.Optimizer):
    """AdamW, its moments kept in eight bits; in place of `torch.optim.AdamW`.

    Parameters
    ----------
    parameters : iterable of Tensor or of dict
        On the CPU.
    lr, betas, eps, weight_decay
        As of `torch.optim.AdamW`.
    block, code, zero, minimum
        As of `EightBitOptimizer`.

    Examples
    --------
    >>> layer = nn.Linear(64, 64)
    >>> optimizer = AdamW8bit(layer.parameters(), lr=0.01)
    >>> layer(torch.ones(1, 64)).sum().backward()
    >>> optimizer.step()
    >>> {name: (value.dtype, len(value)) for name, value in optimizer.state[layer.weight].items() if name != "step"}
    {'m': (torch.uint8, 4096), 'm_scales': (torch.float32, 2), 'v': (torch.uint8, 4096), 'v_scales': (torch.float32, 2)}
    """

    def __init__(
        self, parameters: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, block: int = 2048, code: str = "dynamic", zero: bool = True, minimum: int = 0,
    ) -> None:  # fmt: skip
        self.block, self.minimum = block, minimum
        self.tables = {"m": _tables(code, True), "v": _tables(code, False, zero)}
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, options)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        state = self.state[parameter]
        narrow = parameter.numel() >= self.minimum
        if not state:
            state.update(self._zeros(parameter) if narrow else _fp32_zeros(parameter))
        state["step"] += 1
        if not narrow:
            adamw_update(parameter, gradient, state["m"], state["v"], step=state["step"], **options)
            return
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise TypeError(f"parameters: expected float32 on the CPU, got {parameter.dtype} on {parameter.device}")
        weights = parameter.detach().contiguous().view(-1)
        lr, (beta1, beta2), eps, decay = (options[name] for name in ("lr", "betas", "eps", "weight_decay"))
        t = state["step"]
        _fused(
            weights.numpy(), gradient.contiguous().view(-1).numpy(), self.block or max(1, weights.numel()),
            state["m"].numpy(), state["m_scales"].numpy(), *self.tables["m"],
            state["v"].numpy(), state["v_scales"].numpy(), *self.tables["v"],
            np.float32(1 - lr * decay), np.float32(1 - beta1), np.float32(beta2), np.float32(1 - beta2),
            np.float32(lr / (1 - beta1**t)), np.float32((1 - beta2**t) ** 0.5), np.float32(eps),
        )  # fmt: skip
        if weights.data_ptr() != parameter.data_ptr():
            parameter.copy_(weights.view(parameter.shape))

    def _zeros(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {"step": 0}
        for moment, (table, _, _) in self.tables.items():
            state[moment] = torch.full((parameter.numel(),), int(np.searchsorted(table, 0)), dtype=torch.uint8)
            state[f"{moment}_scales"] = torch.zeros(-(-parameter.numel() // (self.block or max(1, parameter.numel()))))
        return state


@dataclass(frozen=True)
class EightBitOptimizer:
    r"""Train by AdamW with both moments in eight bits, block by block.

    .. math:: c_{bi} = \arg\min_j \left| q_j - \frac{x_{bi}}{N_b} \right|, \qquad N_b = \max_i |x_{bi}|,
       \qquad x_{bi} \approx N_b \, q_{c_{bi}}

    Parameters
    ----------
    block : int
        Numbers that share a scale; 0 gives each tensor one scale.
    code : {"dynamic", "linear"}
        The table q: dynamic tree quantization, or equal steps, which lose all that is small in a block.
    zero : bool
        Whether a second moment may become zero. Where it does and the first moment does not, the update is a number
        over ε, and the weight jumps: so it happens to weights whose gradients come seldom and are small in their
        block. Li et al. leave zero out of the table.
    minimum : int
        Tensors of fewer numbers keep FP32 moments; 0 makes no exception. (The authors' library has 4096.)

    Notes
    -----
    Adapted: Adam with decoupled weight decay, which is what the recipes use. The paper's stable embedding layer has no
    place in networks without embeddings.

    Source: Dettmers et al. 2022, sections 2.1 (block-wise) and 1.2 (dynamic tree), with 2.2's table without sign; B. Li
    et al., "Memory Efficient Optimizers with 4-bit States", 2023, for the table without zero.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> system = EightBitOptimizer()
    >>> network, trace = system.run(datasets.Recipe(epochs=1), digits.network(), digits.data())
    >>> bool(trace[-1]["loss"] < trace[0]["loss"])
    True
    >>> system.resident_bytes(network) / sum(4 * p.numel() for p in network.parameters())    # FP32: 4
    2.502130898021309
    """

    block: int = 2048
    code: str = "dynamic"
    zero: bool = True
    minimum: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.block, int) and self.block >= 0):
            raise ValueError(f"block: expected 0 or a positive integer, got {self.block!r}")
        if not (isinstance(self.minimum, int) and self.minimum >= 0):
            raise ValueError(f"minimum: expected 0 or a positive integer, got {self.minimum!r}")
        code(self.code, signed=True)

    def optimizer(self, parameters: Iterable[Any], **options: Any) -> AdamW8bit:
        """The optimizer itself, for a training loop of one's own; options as of `torch.optim.AdamW`."""
        own: dict[str, Any] = {"block": self.block, "code": self.code, "zero": self.zero, "minimum": self.minimum}
        return AdamW8bit(parameters, **own, **options)

    def resident_bytes(self, network: nn.Module) -> int:
        """Bytes that training keeps from step to step: weights, gradients, and the moments with their scales."""
        total = 0
        for parameter in network.parameters():
            n, size = parameter.numel(), parameter.element_size()
            narrow = n >= self.minimum
            total += 2 * n * size + 2 * (n + 4 * -(-n // (self.block or max(1, n))) if narrow else n * size)
        return total

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe, whose AdamW is replaced by the one in eight bits.

        Parameters
        ----------
        recipe : datasets.Recipe
        network : nn.Module
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
        trace : list of dict
            What the recipe reports.
        """
        network = copy.deepcopy(network)
        return network, replace(recipe, optimizer=self.optimizer).train(network, data)


def _fp32_zeros(parameter: Tensor) -> dict[str, Any]:
    return {"step": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}


def _blocks(x: Any, block: int) -> tuple[np.ndarray, int]:
    array = as_array(x, "x")
    if not (isinstance(block, int) and block >= 0):
        raise ValueError(f"block: expected 0 or a positive integer, got {block!r} for {describe(x)}")
    return array.reshape(-1).astype(np.float32, copy=False), block or max(1, array.size)


@njit(cache=True, nogil=True)
def _scale(x):
    """The largest magnitude; NaN where there is one."""
    largest, nan = np.float32(0), np.float32(0)
    for i in range(x.size):
        largest = max(largest, abs(x[i]))
        nan += x[i] * np.float32(0)
    return largest + nan if nan != nan and largest != np.float32(np.inf) else largest


@njit(cache=True, nogil=True)
def _encode(x, codes, scale, middles, below, buffer):
    """Codes of one block: the bucket of a share tells its code or the one after."""
    inverse = scale if scale > 0 else np.float32(1)
    for i in range(x.size):
        buffer[i] = x[i] / inverse
    pattern = buffer.view(np.int32)
    shift, buckets, first = 23 - MANTISSA, BUCKETS, FIRST
    for i in range(x.size):
        bucket = ((pattern[i] & 0x7FFFFFFF) >> shift) - first
        bucket = min(max(bucket, 0), buckets - 1) + (buckets if pattern[i] < 0 else 0)
        guess = below[bucket]
        codes[i] = guess + (buffer[i] > middles[guess])


@njit(cache=True, nogil=True)
def _fused(
    weights, gradient, block,
    m_codes, m_scales, m_table, m_middles, m_below,
    v_codes, v_scales, v_table, v_middles, v_below,
    keep, share1, beta2, share2, rate, root2, eps,
):  # fmt: skip
    """One update, block by block: what is wide of the moments is one block, in the cache."""
    m, v, buffer = np.empty((3, min(block, weights.size)), np.float32)
    for b in range(m_scales.size):
        start, end = b * block, min((b + 1) * block, weights.size)
        w, g = weights[start:end], gradient[start:end]
        mb, vb = m[: end - start], v[: end - start]
        mc, vc = m_codes[start:end], v_codes[start:end]
        for i in range(w.size):
            mb[i] = m_table[mc[i]] * m_scales[b]
            vb[i] = v_table[vc[i]] * v_scales[b]
        for i in range(w.size):
            mb[i] += share1 * (g[i] - mb[i])
            vb[i] = beta2 * vb[i] + share2 * g[i] * g[i]
            w[i] = w[i] * keep - rate * mb[i] / (np.sqrt(vb[i]) / root2 + eps)
        m_scales[b], v_scales[b] = _scale(mb), _scale(vb)
        _encode(mb, mc, m_scales[b], m_middles, m_below, buffer[: end - start])
        _encode(vb, vc, v_scales[b], v_middles, v_below, buffer[: end - start])
