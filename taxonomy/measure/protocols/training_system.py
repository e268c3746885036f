"""How training systems are measured: the same training, run another way, must end in the same place for less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from datasets import Data, Recipe, Workload, accuracy
from kernels import counting
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values
from taxonomy.measure.protocols.transform import is_timed

__all__ = ["OneBatch", "TrainingSystemProtocol", "chain", "protocol"]

DEEP = {"depth": 16, "batch": 8}
"""A chain much deeper than the workload's network: what a system saves on many layers."""

RESIDENT = 4
"""Numbers kept for each parameter by AdamW: weight, gradient and two moments. A system that keeps something else says
so by ``resident_bytes(network)``."""

ITEMS = 1024
"""Items that a system of several processes is trained on: every update waits for messages, and the cores are few."""


SIMULATED = "the workers are simulated in one process: what one of them holds is not measured"
AVERAGED = "clients train by the plain recipe and send weights: their steps are those of the recipe"


class TrainingSystemProtocol(Protocol):
    """Train by the system and plainly, from the same start; compare one batch's gradient, memory and time.

    The setting `epochs` trains the workload's network for a quarter of its recipe. The setting of a `depth` and a
    `batch` takes one forward and backward pass of a chain of so many convolutions on the workload's items.

    A system of several processes (one that offers ``start``) is measured where it runs. What it holds is that of the
    worker that holds most, what it sends that of the worker that sends most, and its time that of a whole update. Its
    training is shorter, and takes the first `items` of the workload.

    Workers that are simulated in one process send messages in place of gradients (`bytes_sent` of the network as it was
    wrapped); beside them stand workers that send gradients in FP32, and their time is that of all, one after another.
    Clients that average weights train for the whole recipe, since a round counts for few steps; their bytes are those
    of a round over its steps, beside a gradient in FP32 at each step.

    A technique's settings may name the variants that are `timed`, and why the others are `untimed`.
    """

    kind = "training-system"
    version = 1
    metrics = ("accuracy", "gradient_error", "training_peak_bytes", "memory_footprint", "bytes_sent", "latency")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        seeds = range(REPETITIONS)
        if technique is not None and hasattr(technique.reference(**variant), "clients"):
            return [Trial({"epochs": workload.recipe.epochs}, seed) for seed in seeds]
        training = {"epochs": max(1, workload.recipe.epochs // 4)}
        if technique is not None and hasattr(technique.reference(**variant), "start"):
            training = {"epochs": max(2, workload.recipe.epochs // 10), "items": ITEMS}
        return [
            *(Trial(training, seed) for seed in seeds),
            Trial(DEEP),
            *(
                Trial(setting, seed, timing=True)
                for setting in ({"batch": workload.recipe.batch}, DEEP)
                for seed in (seeds if is_timed(technique, variant) else ())
            ),
        ]

    def quality(self, case: Case) -> Values:
        if hasattr(case.subject, "clients"):
            return _averaged_weights(case)
        plain = _one_batch(case, plain=True)
        values: Values = {
            "self": _several(case, plain) if hasattr(case.subject, "start") else _single(case, plain),
            "baseline": {**plain.figures(), "gradient_error": 0.0},
        }
        if hasattr(case.subject, "gathered_bytes"):
            values["baseline"]["bytes_sent"] = case.subject.gathered_bytes(plain.network)
        if "epochs" in case.setting:
            workload, data = case.workload, _data(case)
            recipe = replace(workload.recipe, epochs=case.setting["epochs"], seed=case.seed)
            trained, _ = case.subject.run(recipe, workload.network(case.seed), data)
            values["self"]["accuracy"] = accuracy(trained, data.test)
            values["baseline"]["accuracy"] = _plain_accuracy(workload, recipe, len(data.train))
        if not is_timed(case.technique, case.variant):
            values["self"]["latency"] = Missing(case.technique.settings["untimed"])
        return values

    def contest(self, case: Case) -> Contest:
        if hasattr(case.subject, "start"):
            steps = {
                "self": case.subject.start(*_start(case)),
                "baseline": _one_batch(case, plain=True).step(case.workload.recipe.optimizer),
            }
            return Contest(steps, work=case.setting["batch"], unit="items")
        own = getattr(case.subject, "optimizer", None)
        contestants = {
            "self": _one_batch(case).step(own),
            "baseline": _one_batch(case, plain=True).step(own and torch.optim.AdamW),
        }
        return Contest(contestants, work=case.setting["batch"], unit="items")


@dataclass(frozen=True)
class OneBatch(Recipe):
    """A recipe that goes forward and backward once over the whole training set, updates nothing, and looks on."""

    seen: dict[str, Any] = field(default_factory=dict, compare=False)

    def train(self, network: nn.Module, data: Data, **options: Any) -> list[dict[str, Any]]:
        x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
        network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            peak = counting.training_peak_bytes(network, lambda: self.loss(network, x, y).backward())
        gradient = [parameter.grad for parameter in network.parameters()]
        self.seen.update(network=network, peak=peak, gradient=gradient, x=x, y=y)
        return []

    @property
    def network(self) -> nn.Module:
        """What the system really trained: the network as it wrapped it."""
        return self.seen["network"]

    @property
    def gradient(self) -> Tensor:
        """The gradient of all parameters, flat."""
        return torch.cat([g.flatten().double() for g in self.seen["gradient"] if g is not None])

    def figures(self, system: Any = None) -> dict[str, Any]:
        """Bytes that the step makes, and those with all that training keeps resident."""
        if hasattr(system, "resident_bytes"):
            resident = system.resident_bytes(self.network)
        else:
            resident = RESIDENT * sum(p.numel() * p.element_size() for p in self.network.parameters())
        return {"training_peak_bytes": self.seen["peak"], "memory_footprint": resident + self.seen["peak"]}

    def step(self, optimizer: Callable[..., Any] | None = None) -> Callable[[], None]:
        """One forward and backward pass, and an update by an optimizer where there is one, to be timed."""
        network, x, y = self.network.train(), self.seen["x"], self.seen["y"]
        update = optimizer(network.parameters(), lr=self.learning_rate) if optimizer else None

        def call() -> None:
            network.zero_grad()
            self.loss(network, x, y).backward()
            if update is not None:
                update.step()

        return call


def chain(shape: tuple[int, ...], classes: int, depth: int, width: int = 16) -> nn.Module:
    """`depth` convolutions with batch norm and ReLU at the items' full resolution, then a linear classifier."""
    layers: list[nn.Module] = []
    for channels in [shape[0], *[width] * (depth - 1)]:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _single(case: Case, plain: OneBatch) -> dict[str, Any]:
    own = _one_batch(case)
    figures = {
        **own.figures(case.subject),
        "gradient_error": _relative(own.gradient, plain.gradient),
        "bytes_sent": Missing("one process: nothing is sent"),
    }
    if hasattr(own.network, "bytes_sent"):
        figures |= dict.fromkeys(("training_peak_bytes", "memory_footprint"), Missing(SIMULATED))
        figures["bytes_sent"] = own.network.bytes_sent
    return figures


def _averaged_weights(case: Case) -> Values:
    """Accuracy after all rounds, and the bytes that a client sends, spread over the steps that it takes."""
    workload = case.workload
    network, data = workload.network(case.seed), workload.data()
    recipe = replace(workload.recipe, epochs=case.setting["epochs"], seed=case.seed)
    trained, trace = case.subject.run(recipe, network, data)
    sent = sum(turn["bytes_sent"] for turn in trace) / sum(turn["steps"] for turn in trace)
    rest = dict.fromkeys(
        ("gradient_error", "training_peak_bytes", "memory_footprint", "latency"), Missing(AVERAGED)
    )  # fmt: skip
    plain = _plain_accuracy(workload, recipe, len(data.train))
    return {
        "self": {"accuracy": accuracy(trained, data.test), "bytes_sent": sent, **rest},
        "baseline": {"accuracy": plain, "bytes_sent": 4.0 * counting.parameters(network)},
    }


def _several(case: Case, plain: OneBatch) -> dict[str, Any]:
    with case.subject.start(*_start(case)) as stepping:
        step = stepping.look()
        stepping()
        held = zip(stepping.resident_bytes(), step.peak_bytes, strict=True)
        figures: dict[str, Any] = {
            "training_peak_bytes": max(step.peak_bytes),
            "memory_footprint": max(map(sum, held)),
            "gradient_error": _relative(step.gradient, plain.gradient),
            "bytes_sent": max(step.sent),
        }
    if hasattr(case.subject, "core_utilization"):
        figures["core_utilization"] = case.subject.core_utilization(*_start(case)[1:3])
    return figures


def _data(case: Case) -> Data:
    """The workload's data, with as many items to train on as the setting says."""
    data = case.workload.data()
    return replace(data, train=data.train[: case.setting.get("items", len(data.train))])


def _start(case: Case) -> tuple[Recipe, nn.Module, Tensor, Tensor]:
    """A recipe, an untrained network, and one batch."""
    workload, setting = case.workload, case.setting
    data = workload.data()
    if "depth" in setting:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            network = chain(workload.input_shape, data.classes, setting["depth"])
    else:
        network = workload.network(case.seed)
    batch = data.train[: setting.get("batch", workload.recipe.batch)]
    recipe = replace(workload.recipe, batch=len(batch), seed=case.seed)
    return recipe, network, torch.tensor(batch.x), torch.tensor(batch.y)


def _one_batch(case: Case, plain: bool = False) -> OneBatch:
    recipe, network, x, _ = _start(case)
    looking = OneBatch(batch=recipe.batch, seed=case.seed)
    data = case.workload.data()
    batch = replace(data, train=data.train[: len(x)])
    if plain:
        looking.train(network, batch)
    else:
        case.subject.run(looking, network, batch)
    return looking


def _relative(own: Tensor, plain: Tensor) -> float:
    return float((own - plain).norm() / plain.norm())


@cache
def _plain_accuracy(workload: Workload, recipe: Recipe, items: int) -> float:
    """Remembered, because all variants share it."""
    network, data = workload.network(recipe.seed), workload.data()
    recipe.train(network, replace(data, train=data.train[:items]))
    return accuracy(network, data.test)


protocol = TrainingSystemProtocol()
