"""Operators on random operands and in trained networks: error, answers, time beside a baseline and peers, bytes moved.

A setting of operands names its task (`taxonomy.measure.tasks`): a product, a sparse product, a convolution, ... One
operand is constant, as a layer's weights are: the right one of a product, the sparse one, the filters. It is prepared
outside the time; whatever an operator does to the other operand is inside. Of a technique's first variant the product
of two unprepared operands is timed too (`unprepared`), which is what a BLAS does; not of an operator that learns.

On a network every convolution and linear layer is computed by the operator, batch norm folded, biases in FP32: accuracy
on the first `items` of the test split, and the error of their logits against FP32. An operator with a `fit` is fitted
to each layer on training items. The setting `seeds` repeats it for an operator that draws (`seed` among its fields).

A circuit of few bits is measured on all its operands (`circuit_bits`), by the errors that it says itself.

Emulated arithmetic is not timed: its time would be the emulation's. Nor are variants that the setting `untimed` names
by one of their values. Those figures are missing, with that reason.

Work is that of the task, two flop for each multiply-add whose constant operand is not zero, and the same for
every contestant. The fraction of the machine's peak is derived on reading, from the limits kept with each record; an
operator whose arithmetic is no multiply-add (`arithmetic` says what it is) has none.

Bytes moved are compulsory: the constant operand as stored, the other one and the result, once each; an operator whose
operands are no FP32 says their width (`operand_bits`). Where the operator models its passes (`memory_access`) the model
counts, at the `cache_bytes` that the technique's settings name. Energy is that of the multiply-adds and of those bytes
from DRAM: in FP32, in the `operand_format` that an operator names, or what its own `energy(macs, moved)` says; where
the cited table has no coefficient they raise KeyError, and there is none. The memory footprint is the constant operand
as stored, the other one, and what numpy allocates at most at one moment of a call, the result included, in whole KiB.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from math import inf, log10
from typing import Any

import numpy as np
import torch

from datasets import accuracy
from kernels import counting
from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.figures import layer_inputs
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values
from taxonomy.measure.protocols.number_format import weights_of
from taxonomy.measure.stack import CALIBRATION, fold, operate
from taxonomy.measure.tasks import Circuit, Shape, Task, task_of

__all__ = ["OperatorProtocol", "protocol", "stored_bytes"]

TIMED = ("latency", "throughput", "core_utilization")
EMULATED = "emulated: its time would be that of the emulation"


class OperatorProtocol(Protocol):
    """The operator beside its baseline and its peers on one thread; in a network, beside FP32."""

    kind = "operator"
    metrics = ("max_error", "latency", "throughput", "core_utilization", "memory_access")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        settings = technique.settings
        if hasattr(workload, "trained"):
            items = min(settings.get("items", inf), len(workload.data().test))
            return [Trial({"items": items}, seed) for seed in range(settings.get("seeds", 1))]
        cache = {name: settings[name] for name in ("cache_bytes",) if name in settings}
        return [
            Trial(shape if timing else {**shape, **cache}, seed, timing)
            for shape in workload.settings
            if not any(_too_large(technique, name, shape) for name in variant.values())
            for timing in ((False, True) if _timed(technique, variant) and not Circuit.answers(shape) else (False,))
            for seed in range(1 if Circuit.answers(shape) else REPETITIONS)
        ]

    def quality(self, case: Case) -> Values:
        values = self._network(case) if hasattr(case.workload, "trained") else self._operands(case)
        if not _timed(case.technique, case.variant):
            values["self"].update(dict.fromkeys(TIMED, Missing(EMULATED)))
        return values

    def _operands(self, case: Case) -> Values:
        subject = _seeded(case)
        if Circuit.answers(case.setting):
            return {who: dict(figures) for who, figures in Circuit.figures(subject).items()}
        task = task_of({name: value for name, value in case.setting.items() if name != "cache_bytes"}, case.seed)
        exact = task.exact()
        prepared = task.prepared(subject)
        macs, effective = task.macs()
        stored = stored_bytes(prepared)
        call = task.call(subject, prepared)
        result = call()  # compiled, and whatever it caches is there
        values: Values = {
            "self": {
                "max_error": _error(result, exact),
                "memory_footprint": _footprint(task, call, stored)
                if _timed(case.technique, case.variant)
                else Missing("emulated: what the emulation allocates says nothing of the arithmetic"),
                **_moved(task, case, subject, stored, effective),
                "macs": macs,
                "effective_macs": effective,
            }
        }
        naive = LoopTiling(rung="naive") if case.technique.baseline == "naive" else None
        values["baseline"] = {**_moved(task, case, naive, task.constant.nbytes, macs)}
        values["self"].update(task.figures(subject, result))
        for who, other in self._others(case, task)[0].items():
            result = other()
            values.setdefault(who, {}).update({"max_error": _error(result, exact), **task.figures(None, result)})
        return values

    def _network(self, case: Case) -> Values:
        data, subject = case.workload.data(), _seeded(case)
        network, test = fold(case.workload.trained()), data.test[: case.setting["items"]]
        x = torch.tensor(test.x)
        computed = operate(network, subject, torch.tensor(data.train.x[:CALIBRATION]))
        with torch.no_grad():
            exact = network(x).numpy().astype(np.float64)
        remembered = _Once(computed)
        right = accuracy(remembered, test)
        logits = remembered.logits().numpy().astype(np.float64)
        noise = float(np.sum((exact - logits) ** 2))
        sqnr = 10 * log10(np.sum(exact**2) / noise) if noise else Missing("infinite: the logits are those of FP32")
        macs, plain = counting.macs(network, x[:1]), _network_bytes(network, x[:1], 32)
        moved = _network_bytes(network, x[:1], getattr(subject, "operand_bits", 32))
        return {
            "self": {
                "accuracy": right,
                "sqnr": sqnr,
                "max_error": _error(logits, exact),
                "macs": macs,
                "memory_access": moved,
                "energy": _energy(subject, macs, moved),
            },
            "baseline": {
                "accuracy": accuracy(network, test),
                "macs": macs,
                "memory_access": plain,
                "energy": _energy(None, macs, plain),
            },
        }

    def contest(self, case: Case) -> Contest:
        task, subject = task_of(case.setting, case.seed), _seeded(case)
        contestants = {"self": task.call(subject, task.prepared(subject))}
        learns = hasattr(subject, "fit")
        if task.times_unprepared and not learns and dict(case.variant) == dict(case.technique.variants[0]):
            contestants["unprepared"] = task.call(subject, task.constant)
        values: Values = {}
        if other := getattr(subject, "arithmetic", None):
            no_share = Missing(f"a share of the peak of multiply-adds; it does none, but {other}")
            values = {who: {"core_utilization": no_share} for who in contestants}
        others, missing = self._others(case, task)
        return Contest({**contestants, **others}, 2.0 * task.macs()[1], "flop", values, missing)

    def _others(self, case: Case, task: Task) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
        """Baseline and peers as calls, and those that cannot take part with the reason."""
        calls: dict[str, Callable[[], Any]] = {}
        missing: dict[str, str] = {}
        baseline = case.technique.baseline
        if _too_large(case.technique, baseline, task.shape):
            missing["baseline"] = "plain loops take too long at this size"
        else:
            calls["baseline"] = task.baseline(baseline)(task.constant, task.varying, task.shape)
        for name in case.technique.peers:
            if name not in task.peers:
                missing[name] = f"it offers no {task.name}"
                continue
            try:
                calls[name] = task.peers[name](task.constant, task.varying, task.shape)
            except ImportError:
                missing[name] = f"not installed: pip install {name}"
            except ValueError as error:
                missing[name] = str(error)
        return calls, missing


def stored_bytes(prepared: Any) -> int:
    """The bytes of a prepared operand: what it says itself, else those of its arrays.

    Examples
    --------
    >>> stored_bytes(LoopTiling(storage="bfloat16").prepare(np.ones((512, 64))))
    65536
    """
    if hasattr(prepared, "nbytes"):
        return int(prepared.nbytes)
    arrays = (getattr(prepared, field.name) for field in fields(prepared))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


class _Once(torch.nn.Module):
    """A network that keeps the logits it gave."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.given = network, []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(self.network(x))
        return self.given[-1]

    def logits(self) -> torch.Tensor:
        return torch.cat(self.given)


def _seeded(case: Case) -> Any:
    """The operator, one that draws with another seed in each repetition."""
    own = getattr(case.subject, "seed", None)
    return case.subject if own is None else replace(case.subject, seed=own + case.seed)


def _timed(technique: Any, variant: Mapping[str, Any]) -> bool:
    untimed = technique.settings.get("untimed", ())
    return technique.runs == "native" and not any(value in untimed for value in variant.values())


def _too_large(technique: Any, name: Any, shape: Shape) -> bool:
    """Whether the technique's settings keep what has this name from shapes as large (`up_to: {naive: {k: 256}}`)."""
    limits = technique.settings.get("up_to", {}).get(name, {}) if isinstance(name, str) else {}
    return any(shape.get(dimension, 0) > limit for dimension, limit in limits.items())


def _error(result: Any, exact: np.ndarray) -> float:
    """The largest error over the largest finite number; infinite where an infinity or NaN is not the same in both."""
    result = np.asarray(result, np.float64)
    finite = np.isfinite(result) & np.isfinite(exact)
    if not np.array_equal(result[~finite], exact[~finite], equal_nan=True):
        return inf
    error, largest = (np.abs(x).max(initial=0.0) for x in (result[finite] - exact[finite], exact[finite]))
    return float(error / largest) if largest else inf if error else 0.0


def _footprint(task: Task, call: Callable[[], Any], stored: int) -> int:
    tracemalloc.start()
    try:
        call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    scratch = -(-peak // 1024) * 1024
    return stored + task.varying.nbytes + scratch


def _moved(task: Task, case: Case, operator: Any, stored: int, macs: int) -> dict[str, float | Missing]:
    if "cache_bytes" in case.setting and hasattr(operator, "memory_access"):
        moved = operator.memory_access(*(task.shape[name] for name in "mnk"), case.setting["cache_bytes"])
    else:
        varying = _bytes([task.varying.size], getattr(operator, "operand_bits", 32))
        moved = stored + varying + 4 * int(np.prod(task.result_shape, dtype=int))
    return {"memory_access": moved, "energy": _energy(operator, macs, moved)}


def _energy(operator: Any, macs: int, moved: int) -> float | Missing:
    try:
        if hasattr(operator, "energy"):
            return operator.energy(macs, moved)
        return macs * mac_energy(getattr(operator, "operand_format", "fp32")) + moved * DRAM_ENERGY
    except KeyError as error:
        return Missing(error.args[0])


def _bytes(counts: Iterable[int], bits: int) -> int:
    return sum(-(-count * bits // 8) for count in counts)


def _network_bytes(network: torch.nn.Module, item: torch.Tensor, bits: int) -> int:
    """Bytes moved for one item: weights and inputs of the layers at so many bits, once each, the rest in FP32."""
    weights = [weight.numel() for weight in weights_of(network)]
    others = counting.parameters(network) - sum(weights)
    return _bytes([*weights, *(x.numel() for x in layer_inputs(network, item).values())], bits) + 4 * others


protocol = OperatorProtocol()
