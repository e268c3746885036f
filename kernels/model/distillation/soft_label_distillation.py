"""Soft-label distillation: a small network learns the probabilities that a large one gives, not only the labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SoftLabelDistillation", "soft_label_loss"]


def soft_label_loss(student: Tensor, teacher: Tensor, y: Tensor, temperature: float, weight: float) -> Tensor:
    r"""Cross-entropy with the labels and divergence from the teacher's softened probabilities.

    .. math:: L = (1 - w) \, H(y, q(1)) + w \, T^2 \, \mathrm{KL}(p(T) \,\|\, q(T)),
       \qquad q_i(T) = \frac{e^{z_i / T}}{\sum_j e^{z_j / T}}

    with p(T) the same of the teacher's logits. The gradient of the second term with respect to the student's logits is
    w T (q(T) - p(T)); without the factor T² it would fade as 1/T² when the temperature rises.

    Parameters
    ----------
    student, teacher : Tensor of shape (batch, classes)
        Logits.
    y : Tensor of shape (batch,), int64
        Labels.
    temperature, weight : float
        T and w.

    Returns
    -------
    Tensor
        A scalar, the mean over the batch.

    Source
    ------
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The cross-entropy with
    soft targets written there differs from the divergence by the teacher's entropy, which has no gradient.

    Examples
    --------
    >>> logits, y = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    >>> float(soft_label_loss(logits, logits, y, temperature=4.0, weight=1.0))
    0.0
    """
    q = functional.log_softmax(student / temperature, dim=1)
    p = functional.log_softmax(teacher / temperature, dim=1)
    soft = functional.kl_div(q, p, reduction="batchmean", log_target=True)
    return (1 - weight) * functional.cross_entropy(student, y) + weight * temperature**2 * soft


@dataclass(frozen=True)
class SoftLabelDistillation:
    """Train a student on labels and on a teacher's probabilities at a temperature.

    Parameters
    ----------
    temperature : float
        T > 0; the higher, the more the small probabilities of wrong classes count.
    weight : float
        0 <= w <= 1, the share of the teacher's term.

    Source
    ------
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> recipe = datasets.Recipe(epochs=1)
    >>> student, trace = SoftLabelDistillation().train(digits.student(), digits.data(), recipe, digits.trained())
    >>> len(trace)
    19
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight: expected a number from 0 to 1, got {self.weight}")

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
            Trained, with the same classes; runs in evaluation mode and learns nothing.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace

        Raises
        ------
        ValueError
            Without a teacher.
        """
        if not isinstance(teacher, nn.Module):
            raise ValueError(
                f"teacher: expected a trained torch.nn.Module to learn from, got {type(teacher).__name__};"
                " train(network, data, recipe, teacher=...)"
            )
        student, teacher = copy.deepcopy(network), copy.deepcopy(teacher).eval()

        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                targets = teacher(x)
            return soft_label_loss(network(x), targets, y, self.temperature, self.weight)

        return student, replace(recipe, loss=loss).train(student, data, seed=seed)
