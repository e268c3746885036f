"""Attention for less than the square of the length: few steps, steps summed up, or running sums of features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.sequence_models.attention import AttentionBlock, AttentionSpec, CausalAttention

__all__ = [
    "EfficientAttention", "causal_sums", "elu_features", "local_attention", "numbers_moved", "plain_masked",
    "positive_features", "strided_attention", "summed_attention",
]  # fmt: skip

PATTERNS = ("local", "strided", "low-rank", "linear", "random-features")
CHUNK = 16


def plain_masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """softmax over the keys that `seen`, (steps, steps), allows, as it is written: what sparse attention computes.

    Examples
    --------
    >>> one = torch.ones(1, 1, 2, 1)
    >>> plain_masked(one, one, torch.tensor([[[[2.0], [4.0]]]]), torch.tensor([[1, 0], [1, 1]]).bool()).flatten()
    tensor([2., 3.])
    """
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def local_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    r"""Each step sees itself and the `window` - 1 steps before it.

    .. math:: o_i = \sum_{j=i-w+1}^{i} \mathrm{softmax}_j\!\left(\frac{q_i k_j^\top}{\sqrt d}\right) v_j

    Computed in blocks of w queries on 2 w keys, their own block's and the one before: 4 n w d products in place of
    2 n² d.

    Parameters
    ----------
    q, k, v : Tensor of shape (batch, heads, steps, d)

    Source
    ------
    Child et al., "Generating Long Sequences with Sparse Transformers", 2019, section 4: the first of the two heads of
    the strided pattern.
    """
    steps, width = q.shape[-2:]
    q, k, v = (_blocks(t, window) for t in (q, k, v))
    k, v = (torch.cat([functional.pad(t, (0, 0, 0, 0, 1, 0))[..., :-1, :, :], t], -2) for t in (k, v))
    here, there = torch.arange(window)[:, None] + window, torch.arange(2 * window)
    seen = (there <= here) & (there > here - window)
    seen = seen & ((torch.arange(q.shape[-3]) > 0)[:, None, None] | (there >= window))
    scores = (q @ k.mT / width**0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).flatten(-3, -2)[..., :steps, :]


def strided_attention(q: Tensor, k: Tensor, v: Tensor, stride: int) -> Tensor:
    r"""Each step sees itself and every `stride`-th step before it.

    .. math:: o_i = \sum_{j \le i,\; (i - j) \bmod l = 0} \mathrm{softmax}_j\!\left(\frac{q_i k_j^\top}{\sqrt d}\right)
              v_j

    Steps of the same remainder attend to each other: l times attention over n / l steps, 2 n² d / l products.

    Parameters
    ----------
    q, k, v : Tensor of shape (batch, heads, steps, d)

    Source
    ------
    Child et al., "Generating Long Sequences with Sparse Transformers", 2019, section 4: the second head.
    """
    steps = q.shape[-2]
    q, k, v = (_blocks(t, stride).transpose(-3, -2) for t in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(-3, -2).flatten(-3, -2)[..., :steps, :]


def summed_attention(q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor) -> Tensor:
    r"""Each step sees its own block up to itself, and of each block before a few weighted sums of keys and values.

    .. math:: o_i = \mathrm{softmax}\!\left(\frac{q_i [E K_1;\, \dots;\, E K_{t-1};\, K_t]^\top}{\sqrt d}\right)
              [F V_1;\, \dots;\, F V_{t-1};\, V_t]

    With one block, and no step hidden from another, the sums alone are Linformer's. There E and F cover the whole
    sequence, which a model that must not see what comes later cannot have.

    Parameters
    ----------
    q, k, v : Tensor of shape (batch, heads, steps, d)
    e, f : Tensor of shape (r, b)
        Weights of the sums over the b steps of a block, of keys and of values.

    Source
    ------
    Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, equation 7, block by block.
    """
    (steps, width), block = q.shape[-2:], e.shape[1]
    q, k, v = (_blocks(t, block) for t in (q, k, v))
    sums_k, sums_v = ((w @ t).flatten(-3, -2)[..., None, :, :] for w, t in ((e, k), (f, v)))
    blocks = q.shape[-3]
    before = torch.arange(blocks).repeat_interleave(len(e)) < torch.arange(blocks)[:, None, None]
    far = (q @ sums_k.mT / width**0.5).masked_fill(~before, -torch.inf)
    future = torch.ones(block, block, dtype=torch.bool).triu(1)
    near = (q @ k.mT / width**0.5).masked_fill(future, -torch.inf)
    weights = torch.cat([far, near], -1).softmax(-1)
    mixed = weights[..., : far.shape[-1]] @ sums_v + weights[..., far.shape[-1] :] @ v
    return mixed.flatten(-3, -2)[..., :steps, :]


def causal_sums(q: Tensor, k: Tensor, v: Tensor, chunk: int = CHUNK) -> Tensor:
    r"""Attention whose weights are products of non-negative features: running sums take the place of the scores.

    .. math:: o_i = \frac{\phi(q_i)^\top S_i}{\phi(q_i)^\top z_i}, \qquad
              S_i = \sum_{j \le i} \phi(k_j) v_j^\top, \quad z_i = \sum_{j \le i} \phi(k_j)

    The sums are carried from chunk to chunk; inside one the products are formed as usual.

    Parameters
    ----------
    q, k : Tensor of shape (batch, heads, steps, m)
        Features, phi of queries and of keys.
    v : Tensor of shape (batch, heads, steps, d)
    chunk : int

    Source
    ------
    Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", 2020,
    equations 9 to 12.
    """
    steps = q.shape[-2]
    q, k, v = (_blocks(t, chunk) for t in (q, k, functional.pad(v, (0, 1), value=1.0)))  # the ones sum up to z
    sums = (k.mT @ v).cumsum(-3)
    carried = functional.pad(sums, (0, 0, 0, 0, 1, 0))[..., :-1, :, :]
    mixed = q @ carried + (q @ k.mT).tril() @ v
    return (mixed[..., :-1] / mixed[..., -1:]).flatten(-3, -2)[..., :steps, :]


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive everywhere.

    Source: Katharopoulos et al. 2020, equation 7.
    """
    return functional.elu(x) + 1


def positive_features(x: Tensor, directions: Tensor) -> Tensor:
    r"""Random positive features, whose products are the exponential kernel in the mean.

    .. math:: \phi(x) = \frac{e^{-|x|^2 / 2}}{\sqrt m} \left(e^{\omega_1^\top x}, \dots, e^{\omega_m^\top x}\right),
              \qquad \mathbb E\, \phi(x)^\top \phi(y) = e^{x^\top y}

    Parameters
    ----------
    x : Tensor of shape (..., d)
        Queries or keys, divided by the fourth root of d.
    directions : Tensor of shape (m, d)

    Source
    ------
    Choromanski et al., "Rethinking Attention with Performers", 2020, lemma 1.
    """
    return (x @ directions.mT - x.square().sum(-1, keepdim=True) / 2).exp() / len(directions) ** 0.5


def orthogonal_directions(count: int, width: int, seed: int) -> Tensor:
    """Normal directions, those of each block of `width` orthogonal to each other; (count, width).

    Source: Choromanski et al. 2020: less variance than independent ones, and no bias.
    """
    random = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(-(-count // width)):
        q, r = torch.linalg.qr(torch.randn(width, width, generator=random))
        blocks.append(q * r.diagonal().sign())  # without the signs not uniform over the rotations
    lengths = torch.randn(count, width, generator=random).norm(dim=1, keepdim=True)
    return torch.cat([block.mT for block in blocks])[:count] * lengths


def _blocks(x: Tensor, size: int) -> Tensor:
    """(..., steps, d) to (..., blocks, size, d), filled up at the end, where nothing that counts can see it."""
    return functional.pad(x, (0, 0, 0, -x.shape[-2] % size)).unflatten(-2, (-1, size))


class PatternAttention(CausalAttention):
    """Attention with another way to mix; `block` says which, see `EfficientAttention`."""

    def __init__(self, spec: AttentionSpec, block: EfficientAttention) -> None:
        super().__init__(spec.width, spec.heads, spec.head_width)
        self.block = block
        if block.pattern == "low-rank":
            # sums that begin as means over equal parts of a block
            means = torch.eye(block.rank).repeat_interleave(block.window // block.rank, 1) * block.rank / block.window
            self.e, self.f = nn.Parameter(means.clone()), nn.Parameter(means.clone())
        if block.pattern == "random-features":
            self.register_buffer("directions", orthogonal_directions(block.features, spec.head_width, block.seed))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pattern, window = self.block.pattern, self.block.window
        if pattern == "local":
            return local_attention(q, k, v, window)
        if pattern == "strided":
            near = -(-self.heads // 2)
            first, second = ([t[:, :near] for t in (q, k, v)], [t[:, near:] for t in (q, k, v)])
            return torch.cat([
                local_attention(*first, window),  # type: ignore[call-arg, arg-type]
                strided_attention(*second, window),  # type: ignore[call-arg, arg-type]
            ], 1)  # fmt: skip
        if pattern == "low-rank":
            return summed_attention(q, k, v, self.e, self.f)
        if pattern == "linear":
            return causal_sums(elu_features(q), elu_features(k), v)
        q, k = (t / self.head_width**0.25 for t in (q, k))
        return causal_sums(*(positive_features(t, self.directions) for t in (q, k)), v)  # type: ignore[arg-type, call-arg]

    def kept(self, steps: int) -> int:
        """Numbers that decoding keeps of so many steps."""
        width, window = self.head_width, self.block.window
        near = min(steps, window) * 2 * width
        if self.block.pattern == "local":
            return self.heads * near
        if self.block.pattern == "strided":
            half = self.heads // 2
            return (self.heads - half) * near + half * steps * 2 * width
        if self.block.pattern == "low-rank":
            return self.heads * 2 * width * ((steps - 1) // window * self.block.rank + (steps - 1) % window + 1)
        features = width if self.block.pattern == "linear" else self.block.features
        return self.heads * features * (width + 1)


@dataclass(frozen=True)
class EfficientAttention(AttentionBlock):
    r"""Attention that looks at less than every pair of steps, or at none.

    .. math:: o_i = \sum_{j \in S_i} \mathrm{softmax}_j\!\left(\frac{q_i k_j^\top}{\sqrt d}\right) v_j
              \qquad \text{or} \qquad
              o_i = \frac{\sum_{j \le i} \phi(q_i)^\top \phi(k_j)\, v_j}{\sum_{j \le i} \phi(q_i)^\top \phi(k_j)}

    Sparse patterns choose the steps S_i that a query sees: near ones (`local_attention`), or half of the heads near
    ones and the other half every l-th (`strided_attention`). Low rank keeps all steps, but those of earlier blocks only
    in a few learned sums (`summed_attention`). Features split the weight into a product, so that sums can be carried
    along and no pair is formed (`causal_sums`): fixed ones (`elu_features`), or random ones whose product is the
    softmax's exponential in the mean (`positive_features`).

    Parameters
    ----------
    pattern : {"local", "strided", "low-rank", "linear", "random-features"}
    window : int
        Steps of the window, the stride, or the block.
    rank : int
        Sums that low rank keeps of a block; divides `window`.
    features : int
        Random features of a query or key.
    seed : int
        Of the random features.

    Source
    ------
    Child et al. 2019 (local, strided); Wang et al. 2020, Linformer (low rank); Katharopoulos et al. 2020 (linear);
    Choromanski et al. 2020, Performer (random features).

    Examples
    --------
    >>> from kernels.counting import macs
    >>> spec = AttentionSpec(64, heads=4, head_width=16)
    >>> for steps in (64, 1024):
    ...     x = torch.zeros(1, steps, 64)
    ...     print([macs(EfficientAttention(pattern).build(spec), x) // steps for pattern in ("local", "linear")],
    ...           macs(CausalAttention(64, heads=4, head_width=16), x) // steps)
    [20480, 20672] 24576
    [20480, 20672] 147456
    """

    pattern: str = "local"
    window: int = 16
    rank: int = 4
    features: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)}, got {self.pattern!r}")
        for name in ("window", "rank", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, got {getattr(self, name)}")
        if self.window % self.rank:
            raise ValueError(f"rank: expected a divisor of the window, {self.window}, got {self.rank}")

    def build(self, spec: AttentionSpec) -> nn.Module:
        """Untrained attention of the specification's shapes."""
        return PatternAttention(spec, self)


def numbers_moved(block: EfficientAttention, steps: int, width: int) -> int:
    """Numbers that one head reads and writes past the caches, operation by operation.

    As in `kernels.implementation.loops.fused_attention.memory_access`, which counts the same of full attention,
    queries, keys and values are read and results written once, and each weight of a query on a key, or on a sum, is
    written and read twice. Local attention writes and reads its keys and values again, beside those of the block
    before; features are written and read, and so are the sums of each chunk.

    Parameters
    ----------
    block : EfficientAttention
    steps, width : int
        n, and the numbers d of a query; n a multiple of the window.

    Examples
    --------
    >>> [numbers_moved(EfficientAttention("local", window=64), steps, 64) // steps for steps in (1024, 65536)]
    [1280, 1280]
    """
    ends, blocks = 4 * steps * width, math.ceil(steps / block.window)
    if block.pattern == "local":
        return ends + 8 * steps * width + 4 * steps * 2 * block.window
    if block.pattern == "strided":  # the mean of a head of near steps and one of far ones
        return ends + 4 * steps * width + 2 * steps * (2 * block.window + blocks)
    if block.pattern == "low-rank":
        return ends + 4 * blocks * block.rank * width + 4 * steps * (block.window + blocks * block.rank)
    features = width if block.pattern == "linear" else block.features
    return ends + 4 * steps * features + math.ceil(steps / CHUNK) * 4 * features * (width + 1) + 4 * steps * CHUNK
