"""How transforms of a trained network are measured: what is left of accuracy, what is left of cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets import Workload, accuracy
from kernels.model.transform import bake
from taxonomy.measure.figures import (
    answers,
    costs,
    decibels,
    keeps_codes,
    layer_errors,
    middle_and_worst,
    one_item,
    share,
    traffic,
)  # fmt: skip
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values

__all__ = ["BATCHES", "LARGE", "TransformProtocol", "forward_pass", "is_timed", "protocol", "timing_trials"]

BATCHES = (1, 64)
LARGE = ("efficientnet-lite0",)
"""Networks on which one draw has to do."""


class TransformProtocol(Protocol):
    """Transform the trained network, fine-tune it by the workload's recipe, bake it; beside it the untouched network.

    `fine-tuned` is the network that was trained as long as the transformed one, and not transformed: what fine-tuning
    alone gains or loses is none of the technique's doing. Where the implementation offers `at_random(seed)`, a blind
    transform of the same strength goes the same way; so do all of its `rivals(seed)`, by their names. A network whose
    constraints keep codes (`figures.stored_bits`) has bytes moved and energy too. A network for inference alone is not
    fine-tuned; torch's counters may see nothing of what it does, so it says its own `figures()`, bytes moved among
    them. A technique's settings may name the variants that are `timed`, why the others are `untimed`, metrics that are
    `unmeasured`, with the reason, the `only` variants that a workload is given, where it is not given all, and how many
    `seeds`, one where nothing is drawn.

    A technique with the setting `fine_tuned: false` works after training: it is not fine-tuned, nor is anything beside
    it. What it is given are the training items in an order that the seed draws, so that those it takes first are a
    sample of its own.

    On a network trained elsewhere there are no labels and no recipe. Nothing is fine-tuned, a transform is given the
    workload's calibration items in the place of training items, and its answers are compared with those of the
    untouched network, over all and layer by layer. Nothing is timed. A technique opts in by its `workloads`, and has a
    grid for them where its `variants` are too strong without fine-tuning, `elsewhere`. A peer that draws does so five
    times, but once on the networks that are `LARGE`.
    """

    kind = "transform"
    version = 2
    metrics = (
        "accuracy",
        "accuracy_before_finetuning",
        "parameters",
        "nonzero_parameters",
        "stored_bits",
        "macs",
        "effective_macs",
        "peak_activation_bytes",
        "latency",
    )

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        only = technique.settings.get("only", {}).get(getattr(workload, "id", None))
        if only is not None and dict(variant) not in only:
            return []
        if not hasattr(workload, "recipe"):
            again = "random" in technique.peers and workload.id not in LARGE
            return [Trial(seed=seed) for seed in range(REPETITIONS if again else 1)]
        quality = [Trial(seed=seed) for seed in range(technique.settings.get("seeds", REPETITIONS))]
        return quality + timing_trials(technique, variant)

    def quality(self, case: Case) -> Values:
        if not hasattr(case.workload, "recipe"):
            values = _beside_untouched(case)
        elif case.technique.settings.get("fine_tuned", True):
            values = _with_finetuning(case)
        else:
            values = _after_training(case)
        if not is_timed(case.technique, case.variant):
            values["self"]["latency"] = Missing(case.technique.settings["untimed"])
        elif not hasattr(case.workload, "recipe"):
            values["self"]["latency"] = Missing("networks trained elsewhere are not timed")
        for metric, reason in case.technique.settings.get("unmeasured", {}).items():
            values["self"][metric] = Missing(reason)
        return values

    def contest(self, case: Case) -> Contest:
        data, untouched = case.workload.data(), case.workload.trained()
        network = case.subject.apply(case.workload.trained(), data)
        network = network if hasattr(network, "figures") else bake(network)
        return forward_pass({"self": network, "baseline": untouched}, data, case.setting["batch"])


def _contestants(subject: Any, seed: int) -> dict[str, Any]:
    blind = {"random": subject.at_random(seed)} if hasattr(subject, "at_random") else {}
    return {"self": subject, **blind, **(subject.rivals(seed) if hasattr(subject, "rivals") else {})}


def _with_finetuning(case: Case) -> Values:
    workload = case.workload
    data, untouched = workload.data(), workload.trained()
    values: Values = {
        "baseline": {"accuracy": accuracy(untouched, data.test), **costs(untouched, workload)},
        "fine-tuned": {**_finetuned(workload, case.seed)},
    }
    for who, transform in _contestants(case.subject, case.seed).items():
        network = transform.apply(workload.trained(), data)
        if hasattr(network, "figures"):
            values[who] = _inference_only(network, workload)
            if not hasattr(network, "every"):
                values["baseline"] |= traffic(untouched, workload)
            continue
        before = accuracy(network, data.test)
        workload.recipe.finetune(network, data, seed=case.seed)
        baked = bake(network)
        values[who] = {
            "accuracy": accuracy(baked, data.test),
            "accuracy_before_finetuning": before,
            **costs(network, workload),
        }
        if keeps_codes(network):
            values[who] |= traffic(network, workload)
            values["baseline"] |= traffic(untouched, workload)
    return values


def _after_training(case: Case) -> Values:
    workload = case.workload
    data, untouched = workload.data(), workload.trained()
    order = np.random.default_rng(case.seed).permutation(len(data.train))
    sampled = replace(data, train=data.train[order])
    values: Values = {
        "baseline": {
            "accuracy": accuracy(untouched, data.test), **costs(untouched, workload), **traffic(untouched, workload),
        }
    }  # fmt: skip
    for who, transform in _contestants(case.subject, case.seed).items():
        network = transform.apply(workload.trained(), sampled)
        values[who] = {
            "accuracy": accuracy(network, data.test),
            "accuracy_before_finetuning": Missing("nothing is fine-tuned: the method works after training"),
            **_kept_and_moved(network, workload),
        }
    return values


def _beside_untouched(case: Case) -> Values:
    workload = case.workload
    untouched, items = workload.trained(), torch.tensor(workload.items)
    calibration = SimpleNamespace(train=SimpleNamespace(x=workload.calibration))
    exact = answers(untouched, items)
    values: Values = {"baseline": {**costs(untouched, workload), **traffic(untouched, workload)}}
    for who, transform in _contestants(case.subject, case.seed).items():
        network = transform.apply(workload.trained(), calibration).eval()
        got = answers(network, items)
        values[who] = {
            "agreement": share(workload.decide(got) == workload.decide(exact)),
            "output_sqnr": decibels(float((exact.double() ** 2).sum()), float(((exact - got).double() ** 2).sum())),
            **middle_and_worst(layer_errors(untouched, network, items[: workload.few])),
            **_kept_and_moved(network, workload),
        }
    return values


def _kept_and_moved(network: nn.Module, workload: Any) -> dict[str, float | Missing]:
    return {**costs(network, workload), **traffic(network, workload)}


def _inference_only(network: nn.Module, workload: Workload) -> dict[str, float | Missing]:
    if hasattr(network, "every"):  # it continues text, and says what a decoder computes, which its one pass does not
        figures = {**costs(network, workload), **network.figures(one_item(workload))}  # type: ignore[operator]
        figures["memory_footprint"] = -(-figures["stored_bits"] // 8) + figures["peak_activation_bytes"]
    else:
        figures = network.figures()  # type: ignore[operator]
    return {
        "accuracy": accuracy(network, workload.data().test),
        "accuracy_before_finetuning": Missing("nothing is fine-tuned: the network is for inference alone"),
        **figures,
    }


@cache
def _finetuned(workload: Workload, seed: int) -> dict[str, float]:
    """The untouched network after fine-tuning; remembered, because all variants share it."""
    network = workload.trained()
    workload.recipe.finetune(network, workload.data(), seed=seed)
    return {"accuracy": accuracy(network, workload.data().test), **costs(network, workload)}


def is_timed(technique: Any, variant: Mapping[str, Any]) -> bool:
    """Whether a variant's latency is measured: every one's is, unless the technique's settings name those that are."""
    return dict(variant) in getattr(technique, "settings", {}).get("timed", [dict(variant)])


def timing_trials(technique: Any, variant: Mapping[str, Any]) -> list[Trial]:
    """Latency of one item and of a batch, each in fresh processes."""
    if not is_timed(technique, variant):
        return []
    return [Trial({"batch": batch}, seed, timing=True) for batch in BATCHES for seed in range(REPETITIONS)]


def forward_pass(networks: Mapping[str, nn.Module], data: Any, batch: int) -> Contest:
    """Inference of each network on the same test items."""
    x = torch.tensor(data.test.x[:batch])

    def inference(network: nn.Module) -> Any:
        network.eval()

        def call() -> torch.Tensor:
            with torch.inference_mode():
                return network(x)

        return call

    return Contest({who: inference(network) for who, network in networks.items()}, work=len(x), unit="items")


protocol = TransformProtocol()
