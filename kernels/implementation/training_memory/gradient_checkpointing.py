"""Gradient checkpointing: keep the input of each segment only, and compute the rest again in the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.chain import links
from kernels.implementation.training_memory.revolve import split

__all__ = ["Checkpointed", "GradientCheckpointing", "Revolved", "recomputed"]


@contextmanager
def lent_buffers(module: nn.Module) -> Iterator[None]:
    """Let the module write to copies of its buffers.

    A segment that is computed again must not count a batch twice in batch norm's running statistics.
    """
    kept = [(part, dict(part._buffers)) for part in module.modules()]
    for part, buffers in kept:
        part._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.update(buffers)


def contexts(segment: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Around the first pass, and around the one that computes again."""
    return nullcontext(), lent_buffers(segment)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, segment: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.segment, ctx.random = segment, torch.random.get_rng_state()
        ctx.save_for_backward(x)
        return segment(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        x = kept.detach().requires_grad_(kept.requires_grad)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), lent_buffers(ctx.segment):
            torch.random.set_rng_state(ctx.random)
            y = ctx.segment(x)
        torch.autograd.backward(y, gradient)  # adds to the parameters' gradients itself
        return None, x.grad, *(None for _ in ctx.segment.parameters())


def recomputed(segment: nn.Module, x: Tensor) -> Tensor:
    """``segment(x)``, of which only x is kept: the plain statement.

    Forward runs without a graph. Backward runs the segment again, with a graph and the same random numbers, and goes
    back through that.

    Parameters
    ----------
    segment : nn.Module
    x : torch.Tensor

    Examples
    --------
    >>> layer, x = nn.Linear(3, 3), torch.ones(1, 3)
    >>> recomputed(layer, x).sum().backward()
    >>> layer.weight.grad.sum()
    tensor(9.)
    """
    return _Recomputed.apply(segment, x, *segment.parameters())


class Checkpointed(nn.Module):
    """A chain whose segments, but for the last, are computed again in the backward pass.

    The parameters are the chain's own. What the last segment computes is wanted at once, so it is kept. Recomputation
    is torch's, which stops as soon as the last tensor that is needed is there. Without gradients the chain just runs.
    """

    def __init__(self, network: nn.Module, segments: int) -> None:
        super().__init__()
        chain = links(network)
        cuts = [round(i * len(chain) / segments) for i in range(segments + 1)]
        self.segments = nn.ModuleList(nn.Sequential(*chain[a:b]) for a, b in pairwise(cuts))

    def forward(self, x: Tensor) -> Tensor:
        *earlier, last = self.segments
        for segment in earlier:
            x = _forgotten(segment, x)
        return last(x)


class Revolved(nn.Module):
    """A chain that keeps at most so many states beside its input, and computes layers again as rarely as can be.

    The parameters are the chain's own. Where to keep a state is `revolve.split`'s choice, within each part anew.
    """

    def __init__(self, network: nn.Module, slots: int) -> None:
        super().__init__()
        self.part = _Part(nn.Sequential(*links(network)), slots)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class _Part(nn.Module):
    """A part of a chain: the first m layers are computed again, from their input, when the others are done with."""

    chain: nn.Sequential

    def __init__(self, chain: nn.Sequential, slots: int) -> None:
        super().__init__()
        self.chain, self.slots = chain, slots

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.chain)
        if n == 1:
            return self.chain(x)
        m, layers = split(n, self.slots), [*self.chain]
        x = _forgotten(_Part(nn.Sequential(*layers[:m]), self.slots), x)
        return _Part(nn.Sequential(*layers[m:]), max(0, self.slots - 1))(x)


def _forgotten(segment: nn.Module, x: Tensor) -> Tensor:
    """``segment(x)``, of which only x is kept where there will be a backward pass."""
    if torch.is_grad_enabled():
        return checkpoint(segment, x, use_reentrant=False, context_fn=partial(contexts, segment))
    return segment(x)


@dataclass(frozen=True)
class GradientCheckpointing:
    r"""Train in k segments; of all but the last only the input is kept.

    For n layers of equal size the backward pass needs at once

        k inputs of segments + n / k activations of the segment that is computed again,

    which is smallest for k = √n, at the price of one more forward pass. With less memory than that, layers must run
    more often: given s places for states, the optimal schedule (`revolve`) says which to keep when. Weights, gradients
    and batch norm's running statistics come out as in plain training, to the last bit.

    Parameters
    ----------
    segments : int or "sqrt"
        k, at most the number of modules of the chain; "sqrt" is the integer nearest to the root of that number.
    slots : int, optional
        s, the states kept at one moment beside the input; if given, segments are those of the optimal schedule.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, sections 4.1 and 4.2;
    Griewank and Walther, "Algorithm 799: revolve", 2000.

    Examples
    --------
    >>> chain = nn.Sequential(*(nn.Linear(8, 8) for _ in range(9)))
    >>> [len(segment) for segment in GradientCheckpointing(segments="sqrt").wrap(chain).segments]
    [3, 3, 3]
    """

    segments: int | str = 2
    slots: int | None = None

    def __post_init__(self) -> None:
        if self.slots is not None and not (isinstance(self.slots, int) and self.slots >= 1):
            raise ValueError(f"slots: expected None or a positive number of states, got {self.slots!r}")
        if self.segments != "sqrt" and not (isinstance(self.segments, int) and self.segments >= 1):
            raise ValueError(f"segments: expected a positive integer or 'sqrt', got {self.segments!r}")

    def wrap(self, network: nn.Module) -> Checkpointed | Revolved:
        """The network with its own parameters, computed in segments.

        Parameters
        ----------
        network : nn.Sequential

        Raises
        ------
        TypeError
            If the network is not a chain.
        ValueError
            If it has fewer modules than there are segments.
        """
        if self.slots is not None:
            return Revolved(network, self.slots)
        n = len(links(network))
        k = max(1, isqrt(4 * n) + 1 >> 1) if self.segments == "sqrt" else int(self.segments)
        if k > n:
            raise ValueError(f"segments: expected at most the {n} modules of the chain, got {k}")
        return Checkpointed(network, k)

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe.

        Parameters
        ----------
        recipe : datasets.Recipe
            Anything whose ``train(network, data)`` trains in place and gives a trace.
        network : nn.Sequential
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
            The trained copy, a plain chain again.
        trace : list of dict
            What the recipe reports.
        """
        network = copy.deepcopy(network)
        trace = recipe.train(self.wrap(network), data)
        network.train(False)
        return network, trace
