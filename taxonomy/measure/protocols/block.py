"""How blocks are measured: the same network with other blocks, trained from scratch at the same budget."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from datasets import Recipe, Workload, accuracy
from kernels import counting
from kernels.model.block import StandardConvolution, fused, substitute
from taxonomy.measure.figures import costs
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values
from taxonomy.measure.protocols.training import recipe_of
from taxonomy.measure.protocols.transform import forward_pass, is_timed, timing_trials

__all__ = ["BlockProtocol", "protocol"]


class BlockProtocol(Protocol):
    """Every standard convolution is built by the block, or stays as it is: `self` and `baseline`, five seeds each.

    A block whose `whole` is true builds the network instead. What it trains as and what it infers as may differ: a
    module that offers `fuse()` is measured as what that gives. The setting `only` names variants for a workload, on
    which no others are measured; `epochs` by workload that it and what stands beside it learn instead of the recipe's.
    A block that stands in for something else than a convolution puts itself there, ``within(network)``.

    Of a block that recovers what others keep for the backward pass, the peak bytes of a training step at the recipe's
    batch are counted too; beside it the same layers, which keep it (`kept`, from its method of that name). Where the
    implementation offers `at_random(seed)`, a blind block of as many parameters is trained too. Other peers of the
    technique are methods of the implementation that give a block, such as `untied`.
    """

    kind = "block"
    version = 2
    metrics = ("accuracy", "parameters", "stored_bits", "macs", "peak_activation_bytes", "latency")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        if dict(variant) not in technique.settings.get("only", {}).get(workload.id, [dict(variant)]):
            return []
        quality = [Trial(seed=seed) for seed in range(REPETITIONS)]
        return quality + timing_trials(technique, variant)

    def quality(self, case: Case) -> Values:
        values: Values = {
            "self": _trained(case.subject, case.workload, case.seed, recipe_of(case)),
            "baseline": _trained(StandardConvolution(), case.workload, case.seed, recipe_of(case)),
        }
        if hasattr(case.subject, "at_random"):
            values["random"] = _trained(case.subject.at_random(case.seed), case.workload, case.seed, recipe_of(case))
        for who in getattr(case.technique, "peers", ()):
            if who not in values:
                values[who] = _trained(getattr(case.subject, who)(), case.workload, case.seed, recipe_of(case))
        if hasattr(case.subject, "kept"):
            blocks = {"self": case.subject, "kept": case.subject.kept(), "baseline": StandardConvolution()}
            for who, block in blocks.items():
                values.setdefault(who, {})["training_peak_bytes"] = _training_peak(block, case.workload, case.seed)
        if not is_timed(case.technique, case.variant):
            values["self"]["latency"] = Missing(case.technique.settings["untimed"])
        return values

    def contest(self, case: Case) -> Contest:
        networks = {
            "self": fused(_drawn(case.subject, case.workload, case.seed).eval()),
            "baseline": _drawn(StandardConvolution(), case.workload, case.seed),
        }
        return forward_pass(networks, case.workload.data(), case.setting["batch"])


def _drawn(block: Any, workload: Workload, seed: int) -> nn.Module:
    """The workload's untrained network; with its standard convolutions built by `block`, unless they stay standard."""
    network = workload.network(seed)
    if isinstance(block, StandardConvolution):
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(~seed)  # the network's own seed would start the first block with its first layer's numbers
        if hasattr(block, "within"):
            return block.within(network)
        return substitute(network, block, workload.input_shape)


@cache
def _figures(block: Any, workload: Workload, seed: int, recipe: Recipe) -> dict[str, float]:
    """Accuracy and costs after training; remembered, because all variants share one baseline."""
    network = _drawn(block, workload, seed)
    recipe.train(network, workload.data(), seed=seed)
    network = fused(network)
    return {"accuracy": accuracy(network, workload.data().test), **costs(network, workload)}


def _trained(block: Any, workload: Workload, seed: int, recipe: Recipe) -> dict[str, float | Missing]:
    return {**_figures(block, workload, seed, recipe)}


def _training_peak(block: Any, workload: Workload, seed: int) -> int:
    """Of one step of the untrained network, by the recipe's loss and batch."""
    network, train = _drawn(block, workload, seed).train(), workload.data().train[: workload.recipe.batch]
    x, y = torch.tensor(train.x), torch.tensor(train.y)
    return counting.training_peak_bytes(network, lambda: workload.recipe.loss(network, x, y).backward())


protocol = BlockProtocol()
