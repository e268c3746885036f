"""How adaptive inference is measured: accuracy against what the mean item costs, one point of the curve a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets import Data, Workload, accuracy
from kernels import counting, energy
from taxonomy.measure.figures import one_item
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values
from taxonomy.measure.protocols.transform import BATCHES, is_timed

__all__ = ["AdaptiveProtocol", "inference", "protocol"]

ITEMS = 64
"""Test items of one timed call, as one batch or one after the other: a single item would be all easy or all hard."""


class AdaptiveProtocol(Protocol):
    """Run every test item; beside it the trained network, which spends the same on all.

    Where the module offers every exit's logits (``exits(x)``), `random` deals the same exits to items by chance: what
    the choice of items is worth, at equal cost. Its accuracy is the expected one, each exit's own in proportion to
    those who leave there, so nothing is drawn. Where the technique offers `at_random(seed)`, that is `random`. A module
    that offers `figures()` adds its own, of `self` and `baseline`, after it has run. Peers that are methods of the
    technique give another technique, such as `fixed`, which goes the same way. Energy is that of the
    multiply-accumulates alone, in FP32.

    A technique's settings may name the variants that are `timed`; workloads, too slow for more, on which the
    `first_only` is measured; in how many `orders` it is taught, one where none has a part; and the parameter that is a
    `dial`, which may be turned while the network runs: one network is then taught for all its values. The seed is the
    technique's own where it has one, else it draws the order of the training items, which at 0 lie as they are. Timed
    is the technique as it stands.
    """

    kind = "adaptive"
    version = 1
    metrics = ("accuracy", "macs", "parameters", "energy", "latency")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        only = technique.settings.get("first_only", ())
        if getattr(workload, "id", "") in only and variant != dict(technique.variants[0]):
            return []
        timed = BATCHES if is_timed(technique, variant) else ()
        seeds = range(technique.settings.get("orders", 1))
        latency = [Trial({"batch": b}, seed, timing=True) for b in timed for seed in range(REPETITIONS)]
        return [*(Trial(seed=seed) for seed in seeds), *latency]

    def quality(self, case: Case) -> Values:
        data, static = case.workload.data(), case.workload.trained()
        module = _taught(case, case.subject)
        x, y = torch.tensor(data.test.x), torch.tensor(data.test.y)
        own, cost = _ran(module, x, y)
        values: Values = {
            "self": own,
            "baseline": _figures(
                accuracy(static, data.test),
                counting.macs(static, one_item(case.workload)),
                counting.parameters(static),
            ),
        }
        if hasattr(module, "figures"):  # of what ran, beside that of the trained network in the same terms
            for who, figures in module.figures().items():
                values[who] |= figures
                values[who] |= {"energy": energy.mac_energy("fp32") * values[who]["macs"]}  # type: ignore[operator]
        if hasattr(case.subject, "at_random"):  # a blind choice of the same strength
            values["random"], _ = _ran(_taught(case, case.subject.at_random(case.seed)), x, y)
        if hasattr(module, "exits"):
            with torch.no_grad():
                every, _ = module.exits(x)
            shares = (cost[:, None] == torch.tensor(module.costs)).double().mean(0)
            expected = sum(float(share) * _right(exit, y) for share, exit in zip(shares, every, strict=True))
            values["random"] = _figures(expected, float(cost.double().mean()), counting.parameters(module))
        for who in getattr(case.technique, "peers", ()):
            if hasattr(case.subject, who):
                values[who], _ = _ran(_taught(case, getattr(case.subject, who)()), x, y)
        if not is_timed(case.technique, case.variant):
            values["self"]["latency"] = Missing(case.technique.settings["untimed"])
        return values

    def contest(self, case: Case) -> Contest:
        data, batch = case.workload.data(), case.setting["batch"]
        networks = {"self": case.subject.apply(case.workload.trained(), data), "baseline": case.workload.trained()}
        parts = torch.tensor(data.test.x[:ITEMS]).split(batch)
        contestants = {who: inference(network, parts) for who, network in networks.items()}
        return Contest(contestants, work=sum(map(len, parts)), unit="items")


def _taught(case: Case, subject: Any) -> Any:
    """A technique's network, with what it learned under the seed, its dial turned to where the variant has it."""
    dial = case.technique.settings.get("dial")
    if dial is None:
        return _learned(subject, case.workload, case.seed)
    network = _learned(replace(subject, **{dial: getattr(type(subject), dial)}), case.workload, case.seed)
    setattr(network, dial, getattr(subject, dial))
    return network


@cache
def _learned(subject: Any, workload: Workload, seed: int) -> Any:
    """Remembered, because variants may share it."""
    data = workload.data()
    if hasattr(subject, "seed"):
        subject = replace(subject, seed=seed)
    elif seed:
        data = _shuffled(data, seed)
    return subject.apply(workload.trained(), data)


def _shuffled(data: Data, seed: int) -> Data:
    return replace(data, train=data.train[np.random.default_rng(seed).permutation(len(data.train))])


def _ran(network: Any, x: Tensor, y: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Figures of a network on the test items, and what each of them cost."""
    with torch.no_grad():
        logits, cost = network(x)
    return _figures(_right(logits, y), float(cost.double().mean()), counting.parameters(network)), cost


def _right(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())


def _figures(right: float, macs: float, parameters: int) -> dict[str, Any]:
    return {"accuracy": right, "macs": macs, "parameters": parameters, "energy": macs * energy.mac_energy("fp32")}


def inference(network: nn.Module, parts: tuple[Tensor, ...]) -> Callable[[], None]:
    """A call that computes the items part by part."""
    network.eval()

    def call() -> None:
        with torch.inference_mode():
            for part in parts:
                network(part)

    return call


protocol = AdaptiveProtocol()
