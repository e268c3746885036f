"""What ways of distillation share: a teacher that only answers, and what happens inside networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation, soft_label_loss

__all__ = ["Guided", "SoftLabels", "activations", "answering", "embedded", "one_pass_through", "pairs", "watched"]


def answering(teacher: Any) -> nn.Module:
    """A copy of the teacher in evaluation mode, which learns nothing.

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
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def activations(network: nn.Module) -> list[str]:
    """The paths of its rectifiers, in order: where features are looked at.

    Examples
    --------
    >>> activations(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    ['1']
    """
    return [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]


def pairs(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Rectifiers of the two that stand for one another: the last with the last, and so on towards the input.

    Raises
    ------
    ValueError
        If either has none.
    """
    ours, theirs = activations(student), activations(teacher)
    for who, found in (("network", ours), ("teacher", theirs)):
        if not found:
            raise ValueError(f"{who}: expected a network with torch.nn.ReLU, whose outputs are features; it has none")
    return list(zip(reversed(ours), reversed(theirs), strict=False))[::-1]


@contextmanager
def watched(network: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """What these modules give, by their paths, after each pass within."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def embedded(network: nn.Module) -> Iterator[list[Tensor]]:
    """What the last linear layer is given, in each pass within: how the network sees items.

    Raises
    ------
    ValueError
        If there is no linear layer.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("network: expected one that ends in a torch.nn.Linear, whose inputs are the embedding")
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


class Guided(nn.Module):
    """A student with helpers that learn beside it and are left behind when it is taught.

    Parameters
    ----------
    student : nn.Module
    helpers : nn.Module
        Trained with the student, by a loss that knows of them.
    """

    def __init__(self, student: nn.Module, helpers: nn.Module) -> None:
        super().__init__()
        self.student, self.helpers = student, helpers

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def one_pass_through(network: nn.Module, data: Any) -> None:
    """Let one item pass, so that what watches the network sees it; its statistics stay."""
    training = network.training
    with torch.no_grad():
        network.eval()(torch.tensor(data.train.x[:1]))
    network.train(training)


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """The loss of soft-label distillation at its defaults, with this teacher."""

    teacher: nn.Module

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.teacher(x)
        own = SoftLabelDistillation()
        return soft_label_loss(network(x), targets, y, own.temperature, own.weight)
