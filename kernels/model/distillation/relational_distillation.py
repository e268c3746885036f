"""Relational distillation: a student keeps how items stand to one another in the teacher's eyes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation
from kernels.model.distillation.teaching import Guided, answering, embedded, one_pass_through

__all__ = ["RelationalDistillation", "angles", "contrastive_loss", "distances", "relation_loss"]

TEMPERATURE = 0.1
"""Of the contrast, whose similarities are cosines."""
WIDTH = 32
"""Dimensions of the space in which the two embeddings are contrasted."""


def distances(items: Tensor) -> Tensor:
    r"""Distances of all pairs of items, over their mean: :math:`\psi_{ij} = \lVert t_i - t_j \rVert / \mu`.

    Parameters
    ----------
    items : Tensor of shape (n, dimensions)

    Returns
    -------
    Tensor of shape (n, n)

    Examples
    --------
    >>> distances(torch.tensor([[0.0], [1.0], [3.0]]))
    tensor([[0.0000, 0.5000, 1.5000],
            [0.5000, 0.0000, 1.0000],
            [1.5000, 1.0000, 0.0000]])
    """
    differences = items[:, None] - items[None]
    found = (differences.square().sum(2) + 1e-12).sqrt() * (1 - torch.eye(len(items)))
    apart = found[found > 1e-5]
    return found / apart.mean() if len(apart) else found


def angles(items: Tensor) -> Tensor:
    r"""Cosines of the angles in which each item sees all pairs of others, at :math:`[j, i, k]` that of i and k seen
    from j.

    Parameters
    ----------
    items : Tensor of shape (n, dimensions)

    Returns
    -------
    Tensor of shape (n, n, n)
    """
    towards = functional.normalize(items[None] - items[:, None], dim=2)
    return torch.bmm(towards, towards.transpose(1, 2))


def relation_loss(student: Tensor, teacher: Tensor, relation: Callable[[Tensor], Tensor]) -> Tensor:
    """Huber's loss of the two sets of relations, the mean over pairs or triples.

    Parameters
    ----------
    student, teacher : Tensor of shape (n, dimensions)
        The same items in two embeddings; the dimensions may differ.
    relation : callable
        `distances` or `angles`.
    """
    return functional.smooth_l1_loss(relation(student), relation(teacher))


def contrastive_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""How badly each item is told from the others of the batch by what the other network says of it.

    .. math:: L = -\frac1{2n} \sum_i \left( \log \frac{e^{s_i \cdot t_i / \tau}}{\sum_j e^{s_i \cdot t_j / \tau}} +
        \log \frac{e^{s_i \cdot t_i / \tau}}{\sum_j e^{s_j \cdot t_i / \tau}} \right)

    Parameters
    ----------
    student, teacher : Tensor of shape (n, dimensions)
        In one space, of length one.
    """
    similar, own = student @ teacher.T / TEMPERATURE, torch.arange(len(student))
    return 0.5 * (functional.cross_entropy(similar, own) + functional.cross_entropy(similar.T, own))


RELATIONS: dict[str, Callable[[Tensor], Tensor]] = {"distance": distances, "angle": angles}


@dataclass(frozen=True)
class RelationalDistillation:
    r"""Teach which items are near one another, from which side they see one another, or which ones are the same.

    .. math:: L = H(y, q) + \lambda \sum_{(i, j)} l_\delta\big(\psi(s_i, s_j), \psi(t_i, t_j)\big)

    with s and t the embeddings (what the classifier is given) of student and teacher, ψ the relation, and Huber's
    loss. Nothing asks the student's space to be the teacher's, nor of its dimension. The contrast instead maps both
    into one space by two linear layers that learn along, and asks each item of the one to be nearest its own in the
    other.

    Parameters
    ----------
    relation : {"distance", "angle", "contrast"}
    weight : float
        λ > 0.

    Source
    ------
    Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019; Tian, Krishnan and Isola,
    "Contrastive Representation Distillation", ICLR 2020, here with the batch's other items as the negatives in place
    of a bank of thousands.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> recipe = datasets.Recipe(epochs=1, batch=250)
    >>> student, trace = RelationalDistillation().train(noisy.student(), noisy.data(), recipe, noisy.trained())
    >>> len(trace) == recipe.steps(noisy.data())
    True
    """

    relation: str = "angle"
    weight: float = 2.0

    def __post_init__(self) -> None:
        known = (*RELATIONS, "contrast")
        if self.relation not in known:
            raise ValueError(f"relation: expected one of {', '.join(known)}, got {self.relation!r}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight: expected a positive number, got {self.weight}")

    def without(self) -> SoftLabelDistillation:
        """The teacher's answers alone: what relations stand beside."""
        return SoftLabelDistillation()

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of `network` by `recipe` with the teacher's help.

        Parameters
        ----------
        network : nn.Module
            The student, which ends in a linear layer; left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : nn.Module
            Trained, ends in a linear layer.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace

        Raises
        ------
        ValueError
            Without a teacher, or if either network has no linear layer.
        """
        student, guide = copy.deepcopy(network), answering(teacher)
        with embedded(student) as ours, embedded(guide) as theirs:
            one_pass_through(student, data)
            one_pass_through(guide, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed if seed is None else seed)
            maps = nn.ModuleList([nn.Linear(found[-1].shape[1], WIDTH) for found in (ours, theirs)])
        learner: nn.Module = Guided(student, maps) if self.relation == "contrast" else student
        trace = replace(recipe, loss=_Relational(guide, self.relation, self.weight)).train(learner, data, seed=seed)
        student.eval()
        return student, trace


@dataclass(frozen=True, eq=False)
class _Relational:
    teacher: nn.Module
    relation: str
    weight: float

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        student = network.student if isinstance(network, Guided) else network
        with embedded(student) as ours, embedded(self.teacher) as theirs:
            logits = network(x)
            with torch.no_grad():
                self.teacher(x)
        if isinstance(network, Guided):
            own, other = (
                functional.normalize(into(seen[-1]), dim=1)
                for into, seen in zip(network.helpers, (ours, theirs), strict=True)  # type: ignore[call-overload]
            )
            term = contrastive_loss(own, other)
        else:
            term = relation_loss(ours[-1], theirs[-1], RELATIONS[self.relation])
        return functional.cross_entropy(logits, y) + self.weight * term
