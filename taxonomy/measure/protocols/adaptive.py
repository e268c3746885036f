"""How adaptive inference is measured: accuracy against what the mean item costs, one point of the curve a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datasets import accuracy
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
    that offers `figures()` adds its own, of `self` and `baseline`, after it has run. A technique's settings may name
    the variants that are `timed`. Energy is that of the multiply-accumulates alone, in FP32.
    """

    kind = "adaptive"
    version = 1
    metrics = ("accuracy", "macs", "parameters", "energy", "latency")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        timed = BATCHES if is_timed(technique, variant) else ()
        return [Trial(), *(Trial({"batch": b}, seed, timing=True) for b in timed for seed in range(REPETITIONS))]

    def quality(self, case: Case) -> Values:
        data, static = case.workload.data(), case.workload.trained()
        module = case.subject.apply(case.workload.trained(), data)
        x, y = torch.tensor(data.test.x), torch.tensor(data.test.y)
        with torch.no_grad():
            logits, cost = module(x)
        size = counting.parameters(module)
        values: Values = {
            "self": _figures(_right(logits, y), float(cost.double().mean()), size),
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
            blind = case.subject.at_random(case.seed).apply(case.workload.trained(), data)
            with torch.no_grad():
                guessed, spent = blind(x)
            values["random"] = _figures(_right(guessed, y), float(spent.double().mean()), size)
        if hasattr(module, "exits"):
            with torch.no_grad():
                every, _ = module.exits(x)
            shares = (cost[:, None] == torch.tensor(module.costs)).double().mean(0)
            expected = sum(float(share) * _right(exit, y) for share, exit in zip(shares, every, strict=True))
            values["random"] = _figures(expected, float(cost.double().mean()), size)
        if not is_timed(case.technique, case.variant):
            values["self"]["latency"] = Missing(case.technique.settings["untimed"])
        return values

    def contest(self, case: Case) -> Contest:
        data, batch = case.workload.data(), case.setting["batch"]
        networks = {"self": case.subject.apply(case.workload.trained(), data), "baseline": case.workload.trained()}
        parts = torch.tensor(data.test.x[:ITEMS]).split(batch)
        contestants = {who: inference(network, parts) for who, network in networks.items()}
        return Contest(contestants, work=sum(map(len, parts)), unit="items")


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
