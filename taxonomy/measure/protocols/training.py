"""How training methods are measured: what the same network learns, and what the learning costs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from datasets import Recipe, Workload, accuracy
from datasets.workloads.recipe import CrossEntropy
from kernels import counting
from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.model.transform import bake
from taxonomy.measure.figures import bit_operations, costs, keeps_codes, one_item, operand_bits, traffic
from taxonomy.measure.protocol import REPETITIONS, Case, Missing, Protocol, Trial, Values

__all__ = ["TrainingProtocol", "protocol", "recipe_of"]

SMOOTHING = 0.1
BACKWARD = 3
"""A training pass is a forward one and two products of the same size: gradients of inputs and of weights."""


class TrainingProtocol(Protocol):
    """Train by the technique and by others: same start, same updates, same order.

    A technique's settings say the conditions. `network`: which of the workload's networks learns, its own (network, the
    default) or its smaller one (student). `recipes`: names of conditions and what they change of the
    recipe, see `recipe_of`; each is a setting of its own. `epochs`: by workload, instead of the recipe's. `first_only`:
    workloads, too slow for more, on which the first variant alone is measured; `only`: the variants that a workload is
    given, where it is not given all.

    Beside the technique and the plain recipe in FP32 (baseline) learn the technique's `peers`: label-smoothing; the
    teacher, if it was used; any other name is a method of the technique that gives a technique, such as `without`. If
    that has a `finish`, it is the plain recipe and then ``finish(network, data)``: the baseline's network is taken.

    A technique that says the bits of what training keeps (`cost_bits`) has bytes and joules of training, by counting;
    joules by the cited energy of the format it names (`mac_format`, else `format`). One that writes into its trace the
    ``bits`` of its forward and backward products has bit operations; one that trains another network than it is given
    says there the ``macs`` of each update, its teacher's included. One that leaves constraints which keep codes on
    the trained network (`figures.stored_bits`) has the bytes and joules of running that network, and its bit operations
    where codes or quantizers of inputs say their bits. One that freezes a part of the network (`adapted(network)`) has
    the parameters that learn, and the bytes that training keeps.
    """

    kind = "training"
    version = 1
    metrics = ("accuracy", "steps", "training_macs", "parameters", "macs")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        conditions = getattr(technique, "settings", {})
        name = getattr(workload, "id", "")
        if name in conditions.get("first_only", ()) and variant != dict(technique.variants[0]):
            return []
        if dict(variant) not in conditions.get("only", {}).get(name, [dict(variant)]):
            return []
        recipes = conditions.get("recipes", ())
        settings = [{"recipe": name} for name in recipes] or [{}]
        return [Trial(setting, seed) for setting in settings for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        workload, settings = case.workload, case.technique.settings
        which, recipe = settings.get("network", "network"), recipe_of(case)
        values: Values = {}
        own, lessons = _taught(case.subject, workload, which, case.seed, recipe)
        values["self"] = own
        values["baseline"] = {**_plain(workload, which, case.seed, 0.0, recipe)}
        for who in case.technique.peers:
            if who == "label-smoothing":
                values[who] = {**_plain(workload, which, case.seed, SMOOTHING, recipe)}
            elif who == "teacher":
                if lessons:
                    values[who] = {**_figures(workload.trained(), workload)}
            else:
                values[who] = {**_beside(getattr(case.subject, who)(), workload, which, case.seed, recipe)}
        if hasattr(case.subject, "cost_bits"):
            values["baseline"] |= _resources(None, workload, which, recipe)
        elif hasattr(case.subject, "adapted"):
            values["baseline"] |= _learning(getattr(workload, which)(case.seed), workload, recipe.batch)
        elif "memory_access" in own and not hasattr(workload, "figures"):
            plain = getattr(workload, which)(case.seed)
            values["baseline"] |= traffic(plain, workload)
            if "bit_operations" in own:
                values["baseline"]["bit_operations"] = bit_operations(plain, workload)
        if "bit_operations" in own and "bit_operations" not in values["baseline"]:
            values["baseline"]["bit_operations"] = _bit_operations(own["macs"], [(32, 32)])
        if "core_utilization" in getattr(case.technique, "improves", ()) and "core_utilization" not in own:
            own["core_utilization"] = Missing("the layers run in FP32 here; operators on codes are timed by themselves")
        return values


def recipe_of(case: Case) -> Recipe:
    """The workload's recipe under the conditions that the setting names.

    They are the technique's `settings`: of its `recipes`, ``rate`` multiplies the learning rate, ``loss`` the loss, and
    any field of a recipe replaces the recipe's own.
    """
    recipe, settings = case.workload.recipe, case.technique.settings
    if (epochs := settings.get("epochs", {}).get(case.workload.id)) is not None:
        recipe = replace(recipe, epochs=epochs)
    conditions = dict(settings["recipes"][case.setting["recipe"]]) if "recipe" in case.setting else {}
    rate, factor = conditions.pop("rate", 1), conditions.pop("loss", None)
    if conditions or rate != 1:
        recipe = replace(recipe, **{"learning_rate": recipe.learning_rate * rate, **conditions})
    if factor is not None:
        recipe = replace(recipe, loss=CrossEntropy(factor))
    return recipe


def _taught(
    subject: Any, workload: Workload, which: str, seed: int, recipe: Recipe
) -> tuple[dict[str, Any], list[int]]:
    """Figures of a network that a technique trained, and the items of each call of the teacher."""
    network, teacher = getattr(workload, which)(seed), workload.trained()
    meter = _Meter()
    meter.watch(network, workload)
    lessons = meter.watch(teacher, workload)
    trained, trace = subject.train(network, workload.data(), recipe, teacher, seed=seed)
    # before the network is evaluated, under the meter's eye; a network of another shape counts for itself
    spent = sum(update["macs"] for update in trace) if trace and "macs" in trace[0] else meter.macs
    cost = {"steps": len(trace), "training_macs": spent}
    values: dict[str, Any] = {**_kept(trained, workload), **cost}
    if hasattr(subject, "cost_bits"):
        values |= _resources(subject, workload, which, recipe)
    if hasattr(subject, "adapted"):
        values |= _learning(subject.adapted(getattr(workload, which)(seed)), workload, recipe.batch)
    if trace and "bits" in trace[0]:
        values["bit_operations"] = _bit_operations(values["macs"], [update["bits"] for update in trace])
        values["energy"] = Missing("the cited table holds no energy of products of these widths")
    return values, lessons


@cache
def _beside(subject: Any, workload: Workload, which: str, seed: int, recipe: Recipe) -> dict[str, Any]:
    """A contestant's figures; remembered, because variants may share it."""
    if not hasattr(subject, "finish"):
        return _taught(subject, workload, which, seed, recipe)[0]
    network, cost = _learnt(workload, which, seed, 0.0, recipe)
    return _kept(subject.finish(network, workload.data()), workload) | cost


class _Meter:
    """Multiply-accumulates of everything that watched networks, and copies of them, compute."""

    def __init__(self) -> None:
        self.macs = 0

    def watch(self, network: nn.Module, workload: Workload) -> list[int]:
        """Meter a network from now on; the list holds the items of each call."""
        macs = counting.macs(network, one_item(workload))
        # a network that continues text learns at every step, by `every`, which its layers see and its hooks do not
        watched: Any = network.layers if hasattr(network, "every") else network
        counts = WeakKeyDictionary({watched: macs})
        items: list[int] = []

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # a copy need not be as wide; it is counted before it computes, so that nothing it keeps of a pass is lost
            if torch.is_grad_enabled() and module not in counts and watched is network:
                with _unhooked(module):  # a copy may compute in another precision
                    counts[module] = counting.macs(module, one_item(workload).to(inputs[0].dtype))

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            items.append(len(inputs[0]))
            self.macs += items[-1] * counts.get(module, macs) * (BACKWARD if torch.is_grad_enabled() else 1)

        watched.register_forward_pre_hook(look)
        watched.register_forward_hook(hook)
        return items


@contextmanager
def _unhooked(network: nn.Module) -> Iterator[None]:
    """Nothing that watches the network's layers sees what it computes meanwhile."""
    kept = [(layer, layer._forward_pre_hooks, layer._forward_hooks) for layer in network.modules()]
    for layer, _, _ in kept:
        layer._forward_pre_hooks, layer._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for layer, before, after in kept:
            layer._forward_pre_hooks, layer._forward_hooks = before, after


@cache
def _plain(workload: Workload, which: str, seed: int, smoothing: float, recipe: Recipe) -> dict[str, float]:
    """The recipe with nothing added but smoothed labels; remembered, because all variants share it."""
    network, cost = _learnt(workload, which, seed, smoothing, recipe)
    return {**_figures(network, workload), **cost}


@cache
def _learnt(
    workload: Workload, which: str, seed: int, smoothing: float, recipe: Recipe
) -> tuple[nn.Module, dict[str, float]]:
    """The network that came of that, not to be changed, and what it took."""
    network, meter = getattr(workload, which)(seed), _Meter()
    meter.watch(network, workload)
    if smoothing:
        recipe = replace(recipe, loss=replace(recipe.loss, smoothing=smoothing))  # type: ignore[type-var]
    trace = recipe.train(network, workload.data(), seed=seed)
    return network, {"steps": len(trace), "training_macs": meter.macs}


def _kept(network: nn.Module, workload: Workload) -> dict[str, Any]:
    """Figures of a network, and those of running it where it keeps codes."""
    values: dict[str, Any] = {**_figures(network, workload)}
    if keeps_codes(network):
        values |= traffic(network, workload)
        if any(min(bits) < 32 for bits in operand_bits(network).values()):
            values["bit_operations"] = bit_operations(network, workload)
    return values


def _figures(network: nn.Module, workload: Workload) -> dict[str, float]:
    return {"accuracy": accuracy(bake(network), workload.data().test), **costs(network, workload)}


# --- what training in a precision keeps, moves and takes, by counting ----------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """Of one update: parameters, elements into and out of layers with products, peak bytes in FP32, MACs of an item."""

    parameters: int
    into: int
    out: int
    peak: int
    macs: int


@cache
def _sizes(workload: Workload, which: str, batch: int) -> _Sizes:
    network, data = getattr(workload, which)(0), workload.data()
    x, y = torch.tensor(data.train.x[:batch]), torch.tensor(data.train.y[:batch])
    into, out = [], []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        into.append(inputs[0].numel())
        out.append((output[0] if isinstance(output, tuple) else output).numel())

    layers = counting.macs_by_layer(network, one_item(workload))
    hooks = [network.get_submodule(name).register_forward_hook(look) for name in layers]
    network.train()(x)
    for hook in hooks:
        hook.remove()
    peak = counting.training_peak_bytes(network, lambda: CrossEntropy()(network, x, y).backward())
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return _Sizes(parameters, sum(into), sum(out), peak, sum(layers.values()))


def _resources(subject: Any, workload: Workload, which: str, recipe: Recipe) -> dict[str, Any]:
    """Bytes that training keeps and that one update moves, joules an item; without a subject, of the plain recipe.

    Kept are the weights as the passes see them, those that are stored if they differ, gradients, the optimizer's two
    moments, and what the step makes. Moved are, forward, weights and inputs read and outputs written; backward,
    weights, inputs and gradients of outputs read and gradients of inputs written; then gradients written and read,
    stored weights and moments read and written, and the passes' weights written.
    """
    bits = {name: 32 for name in ("weights", "activations", "gradients", "stored", "state")}
    if subject is not None:
        bits |= subject.cost_bits()
    size = _sizes(workload, which, recipe.batch)
    w, a, g, kept, state = (bits[name] / 8 for name in ("weights", "activations", "gradients", "stored", "state"))
    copy = w if kept != w else 0
    resident = size.parameters * (copy + kept + g + 2 * state) + size.peak * a / 4
    moved = size.into * (2 * a + g) + size.out * (a + g)
    moved += size.parameters * (2 * w + 2 * g + 2 * kept + 4 * state + copy)
    found: dict[str, Any] = {"memory_footprint": resident, "memory_access": moved}
    try:
        mac = mac_energy(getattr(subject, "mac_format", getattr(subject, "format", "fp32")))
        found["energy"] = BACKWARD * size.macs * mac + moved / recipe.batch * DRAM_ENERGY
    except KeyError as error:
        found["energy"] = Missing(str(error.args[0]))
    found["core_utilization"] = Missing("emulated: no units of the format are at work here, so nothing is timed")
    return found


def _learning(network: nn.Module, workload: Workload, batch: int) -> dict[str, float]:
    """Of adapting a network of which only a part may learn: how much, and the bytes that training keeps, in FP32.

    Those are all parameters; of what learns gradients and the optimizer's two moments; and what a step makes.
    """
    data = workload.data()
    x, y = torch.tensor(data.train.x[:batch]), torch.tensor(data.train.y[:batch])
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    network.train()
    step = (lambda: workload.recipe.loss(network, x, y).backward()) if learned else lambda: network(x)
    peak = counting.training_peak_bytes(network, step)
    resident = 4 * counting.parameters(network) + 12 * learned + peak
    return {"trained_parameters": learned, "memory_footprint": resident}


def _bit_operations(macs: float, bits: list[tuple[int, int]]) -> float:
    """Of one item's three products: forward by forward, then twice forward by backward; mean over the updates."""
    return macs * sum(f * f + 2 * f * b for f, b in bits) / len(bits)


protocol = TrainingProtocol()
