r"""Averaged low-precision SGD: train with every number in a few bits, and end with the mean of the iterates in FP32.

SWALP (Yang et al. 2019) trains by stochastic gradient descent in which weights, activations, errors, gradients and the
momentum are rounded by chance to W bits with one exponent for each block,

    Q(x) = clip(⌊x / δ⌋ + Bernoulli(x / δ - ⌊x / δ⌋), -2^(W-1), 2^(W-1) - 1) δ,      δ = 2^(⌊log₂ max |x|⌋ - W + 2)

    v ← Q(ρ v + Q(∇f(Q(w)))),        w ← Q(w - α v)

with a rate α that does not fall, and from step S on averages what it walks through, every c steps, in high precision:

    w̄ ← (m w̄ + w) / (m + 1),         m ← m + 1.

A low-precision iterate cannot come closer to the optimum than its grid and the noise of its rounding allow. Rounding by
chance is right on average, so the mean can: the noise cancels, and the mean needs no grid.

Source: G. Yang, T. Zhang, P. Kirichenko, J. Bai, A. G. Wilson and C. De Sa, "SWALP: Stochastic Weight Averaging in
Low-Precision Training", ICML 2019, algorithms 1 and 2 and section 3.1 (block floating point).

Examples
--------
>>> torch.sort(SharedExponent(4).round(torch.full((1000,), 0.3)).unique()).values      # 0.3 is between two numbers
tensor([0.2500, 0.3125])
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernels.arithmetic.mixed_precision.low_precision import Precision, train_in

__all__ = ["AveragedLowPrecisionSGD", "LowPrecisionSGD", "SharedExponent", "refresh_batch_norm", "running_mean"]

MOMENTUM = 0.9
Trace = list[dict[str, Any]]


@dataclass(frozen=True)
class SharedExponent:
    """Block floating point of W bits, rounded by chance: Q of the module's head.

    Parameters
    ----------
    bits : int
        W, the sign among them.
    seed : int

    Notes
    -----
    A block is what shares the first index (a sample of activations and errors, an output of weights), a vector or a
    scalar the whole of it: the paper's small-block design. The exponent itself (eight bits) is not limited here.

    Source: Yang et al. 2019, section 3.1.

    Examples
    --------
    >>> SharedExponent(8).round(torch.tensor([[1.0, -0.5], [100.0, 0.0]]))
    tensor([[  1.0000,  -0.5000],
            [100.0000,   0.0000]])
    """

    bits: int = 8
    seed: int = 0
    rounding = "stochastic"  # without annotation: a constant, not a field

    def round(self, x: Tensor) -> Tensor:
        """To the grid of each block, up or down by chance.

        Parameters
        ----------
        x : Tensor of float32

        Returns
        -------
        Tensor of the shape of `x`
            A NaN stays where it is; a block that holds one or an infinity is rounded to the grid of numbers below one.
        """
        if not x.numel():
            return x.clone()
        largest = x.abs().flatten(1).amax(1).view(-1, *(1 for _ in x.shape[1:])) if x.ndim > 1 else x.abs().max()
        exponent = torch.frexp(largest)[1] - 1
        delta = torch.ldexp(torch.ones_like(largest), (exponent - self.bits + 2).clamp(min=-126))
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(self.seed))
        limit = 2 ** (self.bits - 1)
        steps = x / delta
        below = torch.floor(steps)
        up = noise >= 1 - (steps - below)  # not floor(steps + noise): that sum rounds, and moves what is on the grid
        return (below + up).clamp(-limit, limit - 1) * delta


class LowPrecisionSGD(torch.optim.Optimizer):
    """v ← Q(ρ v + g + λ w), w ← w - α v; the rounding of w is the engine's.

    Parameters
    ----------
    parameters : iterable of Tensor
    lr, momentum, weight_decay : float
        α, ρ and λ.
    format : optional
        Q, anything with ``round(tensor)`` and ``seed``; None keeps v in FP32.
    settled : callable of int, optional
        The share of the rate at an update, counted from zero; one by default.

    Examples
    --------
    >>> w = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> w.grad = torch.tensor([0.5, 0.25])
    >>> LowPrecisionSGD([w], lr=1.0).step()
    >>> w.detach()
    tensor([0.5000, 1.7500])
    """

    def __init__(
        self, parameters: Any, lr: float, momentum: float = MOMENTUM, weight_decay: float = 0.0, format: Any = None,
        settled: Callable[[int], float] = lambda update: 1.0,
    ) -> None:  # fmt: skip
        self.format, self.settled, self.count, self.updates = format, settled, 0, 0
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One update."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        share = self.settled(self.updates)
        self.updates += 1
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = w.grad.add(w, alpha=group["weight_decay"])
                v = self.state[w].get("v")
                v = g if v is None else v.mul(group["momentum"]).add(g)
                if self.format is not None:
                    self.count += 1
                    # a hash: seeds that follow each other must not share their numbers, shifted by one
                    drawn = zlib.crc32(repr((self.format.seed, self.count)).encode())
                    v = replace(self.format, seed=drawn).round(v)
                self.state[w]["v"] = v
                w.add_(v, alpha=-group["lr"] * share)
        return loss


def running_mean(mean: Tensor, new: Tensor, count: int) -> Tensor:
    """The mean of count + 1 tensors from that of the first `count`: (m w̄ + w) / (m + 1), the plain statement.

    Examples
    --------
    >>> running_mean(torch.tensor(3.0), torch.tensor(5.0), 1)
    tensor(4.)
    """
    return (count * mean + new) / (count + 1)


def refresh_batch_norm(network: nn.Module, x: Tensor, batch: int = 256) -> None:
    """The running statistics of batch norm anew, as the mean over the batches of one pass, for weights that never ran.

    Parameters
    ----------
    network : nn.Module
        Changed in place; left in evaluation mode.
    x : Tensor
        The training items.
    batch : int
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
        network.train()
        with torch.no_grad():
            for some in x.split(batch):
                network(some)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    network.eval()


@dataclass(frozen=True)
class AveragedLowPrecisionSGD:
    r"""Stochastic gradient descent in few bits at a rate that does not fall, and the mean of its iterates.

    .. math:: w_{t+1} = Q\big(w_t - \alpha\, v_{t+1}\big), \qquad
       \bar w \leftarrow \frac{m\, \bar w + w_t}{m + 1} \quad \text{every } c \text{ steps from step } S \text{ on}

    Parameters
    ----------
    bits : int
        W of activations, errors, gradients and momentum; 32 rounds nothing.
    weights : int
        W of the weights, as they are kept and multiplied.
    rate : float
        α.
    settled : float
        The share of α that is left when averaging begins, at a rate that is constant from then on.
    start : float
        S, as a share of all steps.
    cycle : int
        c.

    Notes
    -----
    Adapted: the rate falls once, where the paper's falls gradually before averaging begins; weights may have fewer bits
    than the other numbers; batch norm's statistics are gathered anew for the mean by one pass over the training items,
    as stochastic weight averaging does. Bit centering (HALP) is left out: its inner loop needs the full gradient
    of SVRG, for which these workloads are not made.

    Source: Yang et al. 2019, algorithm 2.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> technique = AveragedLowPrecisionSGD()
    >>> network, trace = technique.train(digits.network(), digits.data(), datasets.Recipe(epochs=4))
    >>> trace[-1]["averaged"]
    38
    """

    bits: int = 8
    weights: int = 8
    rate: float = 0.05
    settled: float = 0.2
    start: float = 0.5
    cycle: int = 1
    averaged = True  # without annotation: a constant, not a field

    def __post_init__(self) -> None:
        for name in ("bits", "weights"):
            if not (isinstance(bits := getattr(self, name), int) and 2 <= bits <= 32):
                raise ValueError(f"{name}: expected 2 to 32, got {bits!r}")
        if not self.rate > 0:
            raise ValueError(f"rate: expected a positive number, got {self.rate!r}")
        if not 0 < self.settled <= 1:
            raise ValueError(f"settled: expected a share above 0 up to 1, got {self.settled!r}")
        if not 0 <= self.start < 1:
            raise ValueError(f"start: expected a share from 0 to below 1, got {self.start!r}")
        if not (isinstance(self.cycle, int) and self.cycle >= 1):
            raise ValueError(f"cycle: expected a positive integer, got {self.cycle!r}")

    @property
    def precision(self) -> Precision:
        """Of the four kinds of array: weights in their own width, as multiplied and as kept."""
        form, own = (None if bits == 32 else SharedExponent(bits) for bits in (self.bits, self.weights))
        return Precision(own, form, form, own)

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` on the recipe's batches.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
            Says epochs, batches and their order; its optimizer, rate and weight decay have no part.
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The network holds the mean, in FP32; each update says how many iterates are ``averaged``.
        """
        seed = recipe.seed if seed is None else seed
        first = int(self.start * recipe.steps(data))
        means: dict[str, Tensor] = {}
        counts: list[int] = []

        def look(step: int, network: nn.Module) -> None:
            if self.averaged and step >= first and (step - first) % self.cycle == 0:
                seen = counts[-1] if counts else 0
                for name, w in network.named_parameters():
                    now = w.detach().double()
                    means[name] = running_mean(means[name], now, seen) if seen else now.clone()
                counts.append(seen + 1)
            else:
                counts.append(counts[-1] if counts else 0)

        optimizer = partial(
            LowPrecisionSGD, format=None if self.bits == 32 else SharedExponent(self.bits, seed),
            settled=lambda update: self.settled if self.averaged and update >= first else 1.0,
        )  # fmt: skip
        schedule = "constant" if self.averaged else recipe.schedule
        own = replace(recipe, learning_rate=self.rate, weight_decay=0.0, schedule=schedule, optimizer=optimizer)
        trained, trace = train_in(self.precision, network, data, own, seed=seed, on_step=look)
        if means:
            with torch.no_grad():
                for name, w in trained.named_parameters():
                    w.copy_(means[name])
            refresh_batch_norm(trained, torch.tensor(data.train.x))
        for entry, count in zip(trace, counts, strict=True):
            entry["averaged"] = count
        return trained, trace

    def without(self) -> AveragedLowPrecisionSGD:
        """The same descent in as many bits under the recipe's falling rate, its last iterate and no mean."""
        return _LastIterate(self.bits, self.weights, self.rate, self.settled, self.start, self.cycle)

    def cost_bits(self) -> dict[str, float]:
        """Bits of an element: the momentum beside the weights, and the FP32 mean where there is one.

        The protocol counts two numbers of state for each weight; the two here are of different widths.
        """
        mean = 32 if self.averaged else 0
        kinds = {"weights": self.weights, "activations": self.bits, "gradients": self.bits, "stored": self.weights}
        return {**kinds, "state": (self.bits + mean) / 2}

    @property
    def mac_format(self) -> str:
        """Products within two blocks are products of integers."""
        if self.bits == self.weights:
            return f"int{self.bits}" if self.bits < 32 else "fp32"
        return f"int{self.weights} by int{self.bits}"

    format = mac_format


@dataclass(frozen=True)
class _LastIterate(AveragedLowPrecisionSGD):
    averaged = False
