"""Data-free distillation: a generator, taught by the teacher alone, draws the items that the student learns from."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.distillation.teaching import answering, embedded

__all__ = ["DataFreeDistillation", "Generator", "generator_losses"]

CODE = 32
"""Random numbers that a generated item is made of."""
RATE = 0.01
"""The generator's learning rate, with Adam, while the student's follows the recipe."""


def generator_losses(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""What the teacher's answers to generated items say of the generator: three losses, each the lower the better.

    .. math:: L_{oh} = \frac1n \sum_i H(\arg\max_c y_c^i,\, p^i), \qquad L_a = -\frac1n \sum_i \lVert f^i \rVert_1,
    \qquad
        L_{ie} = \sum_c \bar p_c \log \bar p_c

    Items should be sure cases of some class, excite the features of the teacher, and belong to all classes equally
    often.

    Parameters
    ----------
    logits : Tensor of shape (n, classes)
    features : Tensor of shape (n, ...)
        The mean over their entries is taken, so that the loss does not grow with their number.

    Returns
    -------
    one_hot, activation, information : Tensor
        Scalars.

    Examples
    --------
    >>> one_hot, activation, information = generator_losses(torch.eye(2) * 100, torch.ones(2, 3))
    >>> round(float(one_hot), 3), float(activation), round(float(information), 3)  # ln 2
    (0.0, -1.0, -0.693)
    """
    one_hot = functional.cross_entropy(logits, logits.argmax(1))
    activation = -features.abs().flatten(1).mean(1).mean()
    mean = logits.softmax(1).mean(0)
    return one_hot, activation, (mean * mean.clamp_min(1e-12).log()).sum()


class Generator(nn.Module):
    """Items of a shape from random codes: a linear layer, a convolution or two, and a norm without scale of its own.

    Parameters
    ----------
    shape : tuple of int
        (channels, rows, columns), the latter two even.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, rows, columns = shape
        self.start = 16, rows // 2, columns // 2
        self.linear = nn.Linear(CODE, math.prod(self.start))
        self.paint = nn.Sequential(
            nn.BatchNorm2d(16), nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
            nn.Conv2d(16, channels, 3, padding=1), nn.BatchNorm2d(channels, affine=False),
        )  # fmt: skip

    def forward(self, codes: Tensor) -> Tensor:
        """From (n, CODE) to (n, channels, rows, columns), of mean nought and variance one in each channel."""
        return self.paint(self.linear(codes).reshape(-1, *self.start))


@dataclass(frozen=True)
class DataFreeDistillation:
    r"""Train a student without a single true item, from a teacher and its own inventions.

    .. math:: L_G = L_{oh} + \alpha L_a + \beta L_{ie}, \qquad L_S = \mathrm{KL}\big(p_T(G(z)) \,\|\, p_S(G(z))\big)

    At each step the generator G draws a batch from random codes z; the teacher's answers give the losses of both the
    generator and the student. Of the data only what anyone must know who uses the teacher: the shape of an item and the
    mean and spread of its numbers; and the number of items, for the length of training.

    Parameters
    ----------
    activation : float
        α >= 0.
    information : float
        β >= 0.
    source : {"generator", "noise"}
        Where items come from; normally distributed noise is the trivial way.

    Source
    ------
    Chen et al., "Data-Free Learning of Student Networks" (DAFL), ICCV 2019.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> recipe = datasets.Recipe(epochs=1, batch=250)
    >>> student, trace = DataFreeDistillation().train(noisy.student(), noisy.data(), recipe, noisy.trained())
    >>> len(trace) == recipe.steps(noisy.data())
    True
    """

    activation: float = 0.1
    information: float = 1.0
    source: str = "generator"

    def __post_init__(self) -> None:
        for name in ("activation", "information"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        if self.source not in ("generator", "noise"):
            raise ValueError(f"source: expected generator or noise, got {self.source!r}")

    def noise(self) -> DataFreeDistillation:
        """The teacher's answers to noise: what the generator has to beat."""
        return replace(self, source="noise")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of `network` by `recipe`, every batch replaced by as many generated items.

        Parameters
        ----------
        network : nn.Module
            The student; left as it is.
        data : datasets.Data
            Its items give the batches' sizes and shapes and their scale, no more.
        recipe : datasets.Recipe
        teacher : nn.Module
            Trained; ends in a linear layer, whose inputs are the features.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace

        Raises
        ------
        ValueError
            Without a teacher, or if items are no images of even height and width.
        """
        student, guide = copy.deepcopy(network), answering(teacher)
        shape = tuple(data.train.x.shape[1:])
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"data: expected images of even height and width, got items of shape {shape}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed if seed is None else seed)
            generator = Generator(shape)
        optimizer = torch.optim.Adam(generator.parameters(), lr=RATE)
        scale = float(data.train.x.mean()), float(data.train.x.std())
        loss = _Invented(guide, generator, optimizer, self, scale)
        return student, replace(recipe, loss=loss).train(student, data, seed=seed)


@dataclass(frozen=True, eq=False)
class _Invented:
    teacher: nn.Module
    generator: Generator
    optimizer: torch.optim.Optimizer
    method: DataFreeDistillation
    scale: tuple[float, float]

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The student's loss on invented items, after the generator has learned from what the teacher says of them."""
        mean, spread = self.scale
        if self.method.source == "noise":
            items = mean + spread * torch.randn(x.shape)
        else:
            items = mean + spread * self.generator(torch.randn(len(x), CODE))
            with embedded(self.teacher) as seen:
                logits = self.teacher(items)
            one_hot, activation, information = generator_losses(logits, seen[-1])
            self.optimizer.zero_grad()
            (one_hot + self.method.activation * activation + self.method.information * information).backward()
            self.optimizer.step()
            items = items.detach()
        with torch.no_grad():
            targets = self.teacher(items)
        own, other = network(items).log_softmax(1), targets.log_softmax(1)
        return functional.kl_div(own, other, reduction="batchmean", log_target=True)
