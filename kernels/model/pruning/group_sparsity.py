"""Group sparsity: train with a penalty on the norms of whole channels, and remove those that it drives to zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.channels import RECURRENT, Channels, Group, weakest
from kernels.model.pruning.filter_pruning import filter_norms
from kernels.model.pruning.removal import RandomChannels, channels_of, removable

__all__ = ["GroupSparsity", "PrunedAfterwards", "Structure", "structures"]

Trace = list[dict[str, Any]]
CHOICES = ("norm", "random")


class Structure:
    r"""Disjoint groups of numbers, spread over slices of parameters.

    Parameters
    ----------
    units : sequence of int
        A group for each.
    """

    def __init__(self, units: Sequence[int]) -> None:
        self.units = list(units)
        self._place = {unit: i for i, unit in enumerate(self.units)}
        self._parts: list[tuple[nn.Parameter, int, Tensor]] = []
        self.sizes = torch.zeros(len(self.units))

    def add(self, parameter: nn.Parameter | None, axis: int, units: Iterable[int]) -> None:
        """Enter slices of a parameter along an axis, each into the group of its unit, if that has one."""
        if parameter is None:
            return
        places = [self._place.get(unit, len(self.units)) for unit in units][: parameter.shape[axis]]
        self._parts.append((parameter, axis, torch.tensor(places, dtype=torch.int64)))
        for place in places:
            if place < len(self.units):
                self.sizes[place] += parameter.numel() // parameter.shape[axis]

    @torch.no_grad()
    def norms(self) -> Tensor:
        """The Euclidean norm of each group."""
        squares = torch.zeros(len(self.units) + 1)
        for parameter, axis, places in self._parts:
            squares.index_add_(0, places, parameter.movedim(axis, 0).reshape(len(places), -1).square().sum(1))
        return squares[:-1].sqrt()

    @torch.no_grad()
    def shrink(self, amount: float) -> None:
        r"""Move every group towards zero by `amount` times the root of its size, in place; a nearer one becomes zero.

        .. math:: w_g \leftarrow w_g \max\Big(0, 1 - \frac{\eta\lambda\sqrt{n_g}}{\|w_g\|_2}\Big)
           = \arg\min_v \tfrac12 \|v - w_g\|_2^2 + \eta\lambda\sqrt{n_g} \|v\|_2

        Examples
        --------
        >>> w, rows = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]])), Structure([7, 9])
        >>> rows.add(w, 0, [7, 9])
        >>> rows.shrink(0.5**0.5)
        >>> w.data
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
        """
        norms, by = self.norms(), amount * self.sizes.sqrt()
        kept = torch.where(norms > by, 1 - by / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
        factors = torch.cat([kept, torch.ones(1)])
        for parameter, axis, places in self._parts:
            shape = [1] * parameter.ndim
            shape[axis] = -1
            parameter.mul_(factors[places].view(shape))


def structures(network: nn.Module, channels: Channels, groups: Sequence[Group]) -> tuple[Structure, Structure]:
    """What makes each unit, and what reads it: either, at zero, makes it idle.

    What makes it is its filter or row in every layer that gives it, with the bias, and the scale and shift of the norms
    behind, for a filter at zero is not silent before a norm that shifts. What reads it is its slice of the weights of
    every reader.

    Raises
    ------
    ValueError
        If a recurrent layer makes or reads one.
    """
    units = [unit for group in groups for unit in group.units]
    made, read = Structure(units), Structure(units)
    for name, own in channels.out.items():
        layer: Any = network.get_submodule(name)
        if isinstance(layer, RECURRENT) and set(units) & {*own, *channels.into[name]}:
            raise ValueError(f"network: expected convolutions and linear layers, but {name!r} is recurrent")
        if isinstance(layer, RECURRENT):
            continue
        made.add(layer.weight, 0, own)
        made.add(layer.bias, 0, own)
        if getattr(layer, "groups", 1) == 1 or layer.groups < layer.in_channels:  # a depthwise layer mixes nothing
            read.add(layer.weight, 1, channels.into[name])
    for name, own in channels.norms.items():
        norm: Any = network.get_submodule(name)
        made.add(norm.weight, 0, own)
        made.add(norm.bias, 0, own)
    return made, read


class _Proximal:
    """An optimizer, each of whose steps is followed by `Structure.shrink`."""

    def __init__(self, inner: Any, parts: tuple[Structure, Structure], penalty: float) -> None:
        self.inner, self.parts, self.penalty = inner, parts, penalty
        self.param_groups, self.zero_grad = inner.param_groups, inner.zero_grad

    def step(self, closure: Any) -> Any:
        value = self.inner.step(closure)
        if self.penalty:
            for part in self.parts:
                part.shrink(self.param_groups[0]["lr"] * self.penalty)
        return value


@dataclass(frozen=True)
class GroupSparsity:
    r"""Train with the group lasso on filters and on channels; remove those at or near zero; train on without it.

    .. math:: L = \frac1n \sum_i \ell(f(x_i), y_i) + \lambda \Big(\sum_{l, j} \sqrt{n} \|W^{(l)}_{j}\|_2
       + \sum_{l, i} \sqrt{n} \|W^{(l)}_{\cdot i}\|_2\Big)

    with W_j the filter j of layer l, W_·i the slice of its weights that reads channel i, and n the numbers in it. A
    norm that is not squared has a slope as steep near zero as far from it, so that whole groups end at zero and not
    merely near it.

    Parameters
    ----------
    macs : float
        Share of the multiply-accumulates that remains at most, 0 < macs <= 1.
    penalty : float
        λ.

    Notes
    -----
    The penalty is applied as a step of its own after each update, its proximal one (`Structure.shrink`), so that groups
    become zero exactly, and no optimizer rescales it; the paper adds its gradient and rounds to zero below a threshold.
    The roots of the sizes, which it does not have, make one λ fit layers of different widths. Groups are filters and
    channels of convolutions, and neurons of linear layers, which the paper leaves out; its shapes and depth are not
    taken. The penalty acts in all but the last quarter of the epochs. Then what is zero goes, and of each layer as many
    more of the weakest as the wanted share asks for: how many groups one λ takes to zero changes suddenly with λ, from
    hardly any to all of a layer. A unit is as weak as the weaker of what makes and what reads it. The narrow network
    trains for the rest.

    Source: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, section 3, equations 3 and 4.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = GroupSparsity().train(digits.network(), digits.data(), datasets.Recipe(epochs=8))
    >>> [layer.out_features for layer in network if isinstance(layer, nn.Linear)][:2] < [64, 32]
    True
    """

    macs: float = 0.25
    penalty: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ValueError(f"macs: expected 0 < macs <= 1, got {self.macs}")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty: expected a number of at least 0, got {self.penalty}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, narrower in the end.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            Of plain layers; as many updates as the recipe has.

        Raises
        ------
        TypeError, ValueError
            If the network holds a layer that channels cannot be followed through (named), or nothing to remove.
        """
        network = copy.deepcopy(network)
        channels = channels_of(network, data)
        groups = removable(network, channels)
        parts = structures(network, channels, groups)

        def optimizer(*arguments: Any, **options: Any) -> _Proximal:
            return _Proximal(recipe.optimizer(*arguments, **options), parts, self.penalty)

        trace = replace(_first(recipe), optimizer=optimizer).train(network, data, seed=seed)
        strength = torch.minimum(*(part.norms() / part.sizes.sqrt() for part in parts))
        scores = list(strength.split([len(group) for group in groups]))
        removed = set(weakest(channels, groups, scores, self.macs)) | _idle(groups, scores)
        network = channels.without(network, removed)
        return network, trace + recipe.fine_tuning.train(network, data, seed=seed)

    def by_norm(self) -> PrunedAfterwards:
        """Trained as long without the penalty; as much removed by the norm of filters."""
        return PrunedAfterwards(self, "norm")

    def blind(self) -> PrunedAfterwards:
        """Trained as long without the penalty; as much removed at random."""
        return PrunedAfterwards(self, "random")


def _idle(groups: Sequence[Group], scores: Sequence[Tensor]) -> set[int]:
    """The units that nothing makes, or nobody reads; of a group that is idle as a whole the first stays."""
    gone = {
        unit for g, some in zip(groups, scores, strict=True) for unit, s in zip(g.units, some, strict=True) if s == 0
    }
    return gone - {group.units[0] for group in groups if gone >= set(group.units)}


@dataclass(frozen=True)
class PrunedAfterwards:
    """The recipe without a penalty, and as large a share of every layer removed at the same time.

    Parameters
    ----------
    rule : GroupSparsity
        Says the share of multiply-accumulates.
    choice : {"norm", "random"}
        Whether filters of the smallest l1 norm go, or drawn ones; every layer keeps one share.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.

    Examples
    --------
    >>> GroupSparsity(macs=0.5).by_norm().rule.macs
    0.5
    """

    rule: GroupSparsity
    choice: str = "norm"

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"choice: expected {' or '.join(CHOICES)}, got {self.choice!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """As `GroupSparsity.train`."""
        channels = channels_of(network, data)
        network = copy.deepcopy(network)
        trace = _first(recipe).train(network, data, seed=seed)
        groups = removable(network, channels)
        if self.choice == "norm":
            scores = [filter_norms(channels, network, group) for group in groups]
        else:
            scores = RandomChannels(seed=seed or 0).scores(network, channels, groups, data)
        network = channels.without(network, weakest(channels, groups, scores, self.rule.macs))
        return network, trace + recipe.fine_tuning.train(network, data, seed=seed)


def _first(recipe: Any) -> Any:
    """All epochs but those of the recipe's fine-tuning, with its own schedule."""
    return replace(recipe, epochs=max(0, recipe.epochs - recipe.fine_tuning.epochs))
