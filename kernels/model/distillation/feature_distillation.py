"""Feature distillation: a student imitates what happens inside the teacher, not only what it answers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation
from kernels.model.distillation.teaching import Guided, SoftLabels, answering, one_pass_through, pairs, watched

__all__ = ["FeatureDistillation", "attention_loss", "attention_map"]

WAYS = ("attention", "hint")


def attention_map(features: Tensor) -> Tensor:
    r"""Where in space the channels are active together, as a vector of length one.

    .. math:: q = \frac{\mathrm{vec}(Q)}{\lVert \mathrm{vec}(Q) \rVert_2}, \qquad Q_{ij} = \sum_c a_{cij}^2

    Parameters
    ----------
    features : Tensor of shape (items, channels, rows, columns)

    Returns
    -------
    Tensor of shape (items, rows * columns)

    Examples
    --------
    >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]]))
    tensor([[0.9138, 0.4061]])
    """
    return functional.normalize(features.square().sum(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Half the distance of the two attention maps, the mean over the items: :math:`\frac12 \lVert q_S - q_T \rVert_2`.

    Parameters
    ----------
    student, teacher : Tensor of shape (items, channels, rows, columns)
        Of as many rows and columns; the channels may differ.
    """
    # the root's gradient at zero is infinite: two maps that agree have nothing to teach
    squared = (attention_map(student) - attention_map(teacher)).square().sum(1)
    return 0.5 * (squared + 1e-12).sqrt().mean()


@dataclass(frozen=True)
class FeatureDistillation:
    r"""Teach by the maps inside: by where the teacher is active, or by hints at what it computes half way.

    .. math:: L_{\text{attention}} = H(y, q) + \tfrac{\beta}{2} \sum_j
        \left\lVert \frac{Q_S^j}{\lVert Q_S^j \rVert} - \frac{Q_T^j}{\lVert Q_T^j \rVert} \right\rVert_2, \qquad
        L_{\text{hint}} = \tfrac12 \lVert a_T - r(a_S) \rVert^2

    Attention transfer adds, for each pair of rectifiers, the distance of the squared activations' maps. Hints come
    first: for a share of the epochs the student's lower half, through a regressor r of 1 x 1 that is then thrown
    away, learns to give the teacher's middle features; the rest of the epochs teaches the whole student soft labels.
    The budget is the recipe's.

    Parameters
    ----------
    way : {"attention", "hint"}
    weight : float
        β of attention, the sum over the pairs; positive.
    hint_share : float
        The share of the epochs that go to the hints, 0 < share < 1.

    Source
    ------
    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, by activations; Romero et al., "FitNets:
    Hints for Thin Deep Nets", ICLR 2015, its two stages.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> recipe = datasets.Recipe(epochs=1, batch=250)
    >>> student, trace = FeatureDistillation().train(noisy.student(), noisy.data(), recipe, noisy.trained())
    >>> type(student) is type(noisy.student())
    True
    """

    way: str = "attention"
    weight: float = 3.0
    hint_share: float = 0.3

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"way: expected one of {', '.join(WAYS)}, got {self.way!r}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight: expected a positive number, got {self.weight}")
        if not 0 < self.hint_share < 1:
            raise ValueError(f"hint_share: expected 0 < hint_share < 1, got {self.hint_share}")

    def without(self) -> SoftLabelDistillation:
        """The teacher's answers alone: what features have to add to."""
        return SoftLabelDistillation()

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of `network` by `recipe` with the teacher's help.

        Parameters
        ----------
        network : nn.Module
            The student; left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : nn.Module
            Trained; its rectifiers are paired with the student's, the last with the last.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace

        Raises
        ------
        ValueError
            Without a teacher, or where two layers that stand for one another differ in rows or columns, by their names.
        """
        student, guide = copy.deepcopy(network), answering(teacher)
        together = pairs(student, guide)
        self._check(student, guide, together, data)
        if self.way == "attention":
            return student, replace(recipe, loss=_Attention(guide, together, self.weight)).train(
                student, data, seed=seed
            )
        return self._by_hints(student, guide, together, data, recipe, seed)

    def _by_hints(
        self, student: nn.Module, guide: nn.Module, together: list[tuple[str, str]], data: Any, recipe: Any, seed: Any
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        ours, theirs = together[len(together) // 2]
        with watched(student, [ours]) as own, watched(guide, [theirs]) as other:
            one_pass_through(student, data)
            one_pass_through(guide, data)
            channels = own[ours].shape[1], other[theirs].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed if seed is None else seed)
            guided = Guided(student, nn.Conv2d(*channels, 1))
        first = min(max(1, round(self.hint_share * recipe.epochs)), max(recipe.epochs - 1, 1))
        hints = replace(recipe, epochs=first, loss=_Hint(guide, ours, theirs)).train(guided, data, seed=seed)
        rest = replace(recipe, epochs=recipe.epochs - first, loss=SoftLabels(guide))
        trace = rest.train(student, data, seed=seed)
        later = [{**update, "step": update["step"] + len(hints), "epoch": update["epoch"] + first} for update in trace]
        return student, hints + later

    def _check(self, student: nn.Module, guide: nn.Module, together: list[tuple[str, str]], data: Any) -> None:
        with watched(student, [a for a, _ in together]) as own, watched(guide, [b for _, b in together]) as other:
            one_pass_through(student, data)
            one_pass_through(guide, data)
        for ours, theirs in together:
            a, b = tuple(own[ours].shape[1:]), tuple(other[theirs].shape[1:])
            if len(a) != 3 or a[1:] != b[1:]:
                raise ValueError(
                    f"{ours}: expected maps of as many rows and columns as the teacher's {theirs}, got {a} and {b}"
                )


@dataclass(frozen=True, eq=False)
class _Attention:
    teacher: nn.Module
    together: list[tuple[str, str]]
    weight: float

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        ours, theirs = ([pair[side] for pair in self.together] for side in (0, 1))
        with watched(network, ours) as own, watched(self.teacher, theirs) as other:
            logits = network(x)
            with torch.no_grad():
                self.teacher(x)
        terms = [attention_loss(own[a], other[b]) for a, b in self.together]
        return functional.cross_entropy(logits, y) + self.weight * torch.stack(terms).sum()


@dataclass(frozen=True, eq=False)
class _Hint:
    teacher: nn.Module
    ours: str
    theirs: str

    def __call__(self, network: Any, x: Tensor, y: Tensor) -> Tensor:
        with watched(network.student, [self.ours]) as own, watched(self.teacher, [self.theirs]) as other:
            network(x)
            with torch.no_grad():
                self.teacher(x)
        return 0.5 * (other[self.theirs] - network.helpers(own[self.ours])).square().flatten(1).sum(1).mean()
