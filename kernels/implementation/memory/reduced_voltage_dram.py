r"""Main memory outside its specification: tensors that tolerate flipped bits go to DRAM at a reduced voltage.

DRAM is specified with margins. A lower supply voltage saves energy, shorter waiting times save time, and both flip
bits. A module can be worked in partitions: one as specified, one reduced at a bit-error rate r. Three things make it of
use.

- **Mapping.** Which tensors go to the reduced partition is found on validation data: one after the other, the largest
  first, each joins unless the accuracy, in the mean over draws of faults in all that have joined, falls by more than is
  allowed.
- **Implausible values.** Trained weights of a tensor lie within its own range; what reads outside is a flipped exponent
  bit and is taken as zero:

.. math:: \hat w = \tilde w\,[\,\min w \le \tilde w \le \max w\,].

- **Retraining**: fine-tuning with faults drawn anew at each step, at a rate that grows to that of the memory; the
  gradient of the weights as read is taken for that of the weights.

Source: Koppula et al., "EDEN: Enabling Energy-Efficient, High-Performance Deep Neural Network Inference Using
Approximate DRAM", MICRO 2019, arXiv 1910.05340; its mapping has several reduced partitions, this one has one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from statistics import fmean
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from kernels.implementation.memory.zero_space_ecc import Protected, ZeroSpaceEcc
from kernels.model.transform import bake, constrain, layer_weights

__all__ = ["Bounded", "ReducedVoltageDram"]


@dataclass(frozen=True, eq=False)
class Bounded:
    """Weights as they lie in memory, beside the range that they had when they were written.

    Parameters
    ----------
    stored : Protected
    low, high : float
        Smallest and largest value as stored; kept apart from the weights and never corrupted.
    """

    stored: Protected
    low: float
    high: float

    @property
    def words(self) -> np.ndarray:
        """The stored bits."""
        return self.stored.words


@dataclass(frozen=True)
class ReducedVoltageDram:
    """Store weights in DRAM of which one partition is worked below its voltage.

    Parameters
    ----------
    format : {"float32", "int8", "bfloat16"}
        How weights are stored. INT8 codes are symmetric with one scale a tensor.
    bound : bool
        Whether values outside the tensor's own range read as zero.
    mapping : bool
        Whether `mapped` keeps tensors that do not tolerate the faults in the partition as specified.
    reduced : bool
        Whether this tensor lies in the reduced partition; otherwise its bits do not flip.
    loss : float
        Of accuracy on validation data, what mapping may cost.
    retrain : bool
        Whether the network is to be `retrained` before it is mapped.

    Raises
    ------
    ValueError
        If the format is unknown, or the loss no number from 0 to 1.

    Source: Koppula et al., arXiv 1910.05340.

    Examples
    --------
    >>> w = np.array([0.5, -0.25, 0.1], np.float32)
    >>> dram = ReducedVoltageDram()
    >>> stored = dram.protect(w)
    >>> stored.words[2] ^= 1 << 30                             # an exponent bit flips: 0.1 would read 3e37
    >>> dram.recover(stored)
    array([ 0.5 , -0.25,  0.  ], dtype=float32)
    """

    format: str = "float32"
    bound: bool = True
    mapping: bool = True
    reduced: bool = True
    loss: float = 0.01
    retrain: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss: expected a share of accuracy, 0 to 1, got {self.loss!r}")
        self.store  # noqa: B018  # an unknown format is refused at once

    @cached_property
    def store(self) -> ZeroSpaceEcc:
        """How the words are encoded, without check bits."""
        return ZeroSpaceEcc(self.format, "none")

    def unprotected(self) -> ReducedVoltageDram:
        """Everything in the reduced partition, read as it is."""
        return replace(self, bound=False, mapping=False, retrain=False)

    def others(self) -> dict[str, ReducedVoltageDram]:
        """Everything in the reduced partition, implausible values read as zero; the same after retraining."""
        return {
            "bounded": replace(self, bound=True, mapping=False, retrain=False),
            "retrained": replace(self, bound=True, mapping=False, retrain=True),
        }

    def retrained(self, network: nn.Module, data: Any, recipe: Any, rate: float, seed: int = 0) -> nn.Module:
        """A copy of the network, fine-tuned while the weights of its layers are read with faults, bounded.

        Parameters
        ----------
        network : nn.Module
            Trained.
        data : datasets.Data
        recipe : datasets.Recipe
            Its fine-tuning schedule is used.
        rate : float in [0, 1]
            The bit-error rate at the last step; it grows from zero in proportion to the steps.
        seed : int
            Of the order of the data, and of the faults.
        """
        network = copy.deepcopy(network)
        store = replace(self, bound=True, reduced=True)
        faults = [_Faults(store, (seed, i)) for i, _ in enumerate(layer_weights(network))]
        for (layer, name), own in zip(list(layer_weights(network)), faults, strict=True):
            constrain(layer, name, own)
        steps = recipe.fine_tuning.steps(data)

        def grow(step: int, _: nn.Module) -> None:
            for own in faults:
                own.rate, own.step = rate * (step + 1) / steps, step + 1

        recipe.finetune(network, data, seed=seed, on_step=grow)
        return bake(network)

    def mapped(
        self, network: nn.Module, accuracy: Callable[[nn.Module], float], rate: float, draws: int = 5, seed: int = 0
    ) -> tuple[ReducedVoltageDram, ...]:
        """A store for each parameter tensor, in order: in the reduced partition, or in the one as specified.

        Parameters
        ----------
        network : nn.Module
            Trained; untouched.
        accuracy : callable
            A network's accuracy on validation data.
        rate : float in [0, 1]
            The bit-error rate of the reduced partition.
        draws : int
            Of faults, over which accuracy is averaged.
        seed : int

        Examples
        --------
        >>> layer = nn.Linear(4, 2)
        >>> kept = layer.weight.detach().clone()
        >>> stores = ReducedVoltageDram().mapped(layer, lambda net: float(torch.equal(net.weight, kept)), rate=0.5)
        >>> [store.reduced for store in stores]                # flips in the weight are noticed, those in the bias not
        [False, True]
        """
        sizes = [parameter.numel() for parameter in network.parameters()]
        stores = [replace(self, reduced=not self.mapping)] * len(sizes)
        if not self.mapping:
            return tuple(stores)
        floor = accuracy(network) - self.loss
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            tried = [*stores[:i], replace(self, reduced=True), *stores[i + 1 :]]
            found = (accuracy(_read(network, tried, rate, (seed, draw))) for draw in range(draws))
            if fmean(found) >= floor:
                stores = tried
        return tuple(stores)

    def protect(self, weights: Any) -> Bounded:
        """Weights in the stored format, and their range.

        Parameters
        ----------
        weights : array_like of any shape, float32

        Raises
        ------
        ValueError
            If a weight is not finite, or too large for bfloat16.
        """
        stored = self.store.protect(weights)
        written = self.store.recover(stored)
        return Bounded(stored, float(written.min(initial=0)), float(written.max(initial=0)))

    def corrupt(self, protected: Bounded, rate: float, seed: int | Sequence[int]) -> Bounded:
        """A copy in which, in the reduced partition, every stored bit has flipped with probability `rate`.

        Parameters
        ----------
        protected : Bounded
        rate : float in [0, 1]
        seed : int or sequence of int
            The same seed flips the same bits, whatever is done about them.

        Raises
        ------
        ValueError
            If the rate is out of range.
        """
        flipped = self.store.corrupt(protected.stored, rate, seed)
        return replace(protected, stored=flipped) if self.reduced else protected

    def recover(self, protected: Bounded) -> np.ndarray:
        """The weights as read, implausible ones zero.

        Returns
        -------
        ndarray of the weights' shape, float32
            Finite where they are bounded.
        """
        read = self.store.recover(protected.stored)
        if not self.bound:
            return read
        plausible = (read >= protected.low) & (read <= protected.high)  # NaN is neither
        return np.where(plausible, read, np.float32(0))

    def stored_bits(self, shape: Sequence[int]) -> int:
        """Bits in memory for weights of this shape, two bounds of 32 bits included where they are kept."""
        return self.store.stored_bits(shape) + 64 * self.bound

    def relaxed_bits(self, shape: Sequence[int]) -> int:
        """Of the weights' own bits, those that lie in the reduced partition."""
        return 8 * np.dtype(self.store.layout.dtype).itemsize * prod(shape) * self.reduced

    def energy(self, bits: int, rate: float) -> NoReturn:
        """None: at which voltage a DRAM loses how many bits, no source that could be checked says.

        Raises
        ------
        LookupError
            Always, with that reason.
        """
        raise LookupError("at which voltage a DRAM flips how many bits no source that could be checked says")


class _Faults(nn.Module):
    """A constraint: weights as they are read in training, and as they are otherwise."""

    def __init__(self, store: ReducedVoltageDram, seed: tuple[int, ...]) -> None:
        super().__init__()
        self.store, self.seed, self.rate, self.step = store, seed, 0.0, 0

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return weight
        stored = self.store.corrupt(self.store.protect(weight.detach()), self.rate, (*self.seed, self.step))
        return weight + (torch.from_numpy(self.store.recover(stored)) - weight).detach()


def _read(network: nn.Module, stores: Sequence[ReducedVoltageDram], rate: float, seed: tuple[int, ...]) -> nn.Module:
    """A copy of the network as it is read back, each tensor from its own store."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for i, (parameter, store) in enumerate(zip(network.parameters(), stores, strict=True)):
            if store.reduced:
                read = store.recover(store.corrupt(store.protect(parameter), rate, (*seed, i)))
                parameter.copy_(torch.from_numpy(read))
    return network
