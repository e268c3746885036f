"""Operators on random operands: error against float64, time beside a baseline and peers, bytes moved.

A shape names its task: a product (`m`, `n`, `k`), a sparse product (a `density` besides) or a convolution
(`in_channels`, `size`, ...). One operand is constant, as a layer's weights are: the right one of a product, the sparse
one, the filters. It is prepared outside the time; whatever an operator does to the other operand is inside. Of a
technique's first variant the product of two unprepared operands is timed too (`unprepared`), which is what a BLAS does.

Work is that of the task, two flop for each multiply-add whose constant operand is not zero, and the same for
every contestant. The fraction of the machine's peak is derived on reading, from the limits kept with each record.

Bytes moved are compulsory: the constant operand as stored, the other one and the result, once each. Where the operator
models its passes (`memory_access`) the model counts, at the `cache_bytes` that the technique's settings name. Energy is
that of the multiply-adds in FP32 and of those bytes from DRAM. The memory footprint is the constant operand as stored,
the other one, and what numpy allocates at most at one moment of a call, the result included, in whole KiB.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.peers.operator import INSTALL, PEERS
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Missing, Protocol, Trial, Values

__all__ = ["OperatorProtocol", "Task", "protocol", "stored_bytes"]

Shape = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What one shape asks of an operator, with operands drawn from a seed.

    Attributes
    ----------
    name : {"product", "sparse product", "convolution"}
    shape : dict
    constant, varying : ndarray of float32
        Normally distributed; of a sparse one, as many entries as the density says, at random places.
    """

    name: str
    shape: Shape
    constant: np.ndarray
    varying: np.ndarray

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Task:
        rng = np.random.default_rng(seed)

        def normal(*size: int) -> np.ndarray:
            return rng.standard_normal(size, np.float32)

        if "in_channels" in shape:
            each, kernel, size = shape["in_channels"] // shape["groups"], shape["kernel"], shape["size"]
            filters = normal(shape["out_channels"], each, kernel, kernel)
            return cls("convolution", shape, filters, normal(1, shape["in_channels"], size, size))
        m, n, k = (shape[name] for name in "mnk")
        if "density" not in shape:
            return cls("product", shape, normal(k, n), normal(m, k))
        sparse = normal(m, k)
        sparse.flat[rng.permutation(m * k)[round(shape["density"] * m * k) :]] = 0
        return cls("sparse product", shape, sparse, normal(k, n))

    def prepared(self, operator: Any) -> Any:
        """The constant operand in the operator's own form."""
        if self.name == "convolution":
            return operator.prepare(self.constant, groups=self.shape["groups"])
        return operator.prepare(self.constant)

    def call(self, operator: Any, constant: Any) -> Callable[[], np.ndarray]:
        """The operator's verb on both operands."""
        x = self.varying
        if self.name == "convolution":
            options = {name: self.shape[name] for name in ("stride", "padding", "groups")}
            return lambda: operator.conv2d(x, constant, **options)
        if self.name == "product":
            return lambda: operator.matmul(x, constant)
        return lambda: operator.matmul(constant, x)

    def exact(self) -> np.ndarray:
        """The result in float64."""
        constant, varying = self.constant.astype(np.float64), self.varying.astype(np.float64)
        return np.asarray(PEERS[self.name]["torch"](constant, varying, self.shape)())

    def macs(self) -> tuple[int, int]:
        """Multiply-adds of the task, and those whose constant operand is not zero."""
        results = np.prod(self.result_shape, dtype=int)
        if self.name == "convolution":
            all_ = int(results) * self.constant[0].size
            return all_, all_
        all_ = int(results) * self.shape["k"]
        return all_, int(np.count_nonzero(self.constant)) * self.varying.shape[1] if "density" in self.shape else all_

    @property
    def result_shape(self) -> tuple[int, ...]:
        if self.name != "convolution":
            return self.shape["m"], self.shape["n"]
        size = (self.shape["size"] + 2 * self.shape["padding"] - self.shape["kernel"]) // self.shape["stride"] + 1
        return 1, self.shape["out_channels"], size, size


class OperatorProtocol(Protocol):
    """The operator beside its baseline and its peers on one thread."""

    kind = "operator"
    metrics = ("max_error", "latency", "throughput", "core_utilization", "memory_access")

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        cache = {name: technique.settings[name] for name in ("cache_bytes",) if name in technique.settings}
        return [
            Trial(shape if timing else {**shape, **cache}, seed, timing)
            for shape in workload.settings
            if not any(_too_large(technique, name, shape) for name in variant.values())
            for timing in (False, True)
            for seed in range(REPETITIONS)
        ]

    def quality(self, case: Case) -> Values:
        shape = {name: value for name, value in case.setting.items() if name != "cache_bytes"}
        task = Task.of(shape, case.seed)
        exact = task.exact()
        prepared = task.prepared(case.subject)
        macs, effective = task.macs()
        values: Values = {
            "self": {
                **_figures(task, exact, task.call(case.subject, prepared), stored_bytes(prepared)),
                **_moved(task, case, case.subject, stored_bytes(prepared), effective),
                "macs": macs,
                "effective_macs": effective,
            }
        }
        for who, call in self._others(case, task)[0].items():
            values[who] = {"max_error": _error(call(), exact)}
        if case.technique.baseline == "naive":
            baseline = LoopTiling(rung="naive")
            values.setdefault("baseline", {}).update(_moved(task, case, baseline, task.constant.nbytes, macs))
        else:
            values["baseline"].update(_moved(task, case, None, task.constant.nbytes, macs))
        return values

    def contest(self, case: Case) -> Contest:
        task = Task.of(case.setting, case.seed)
        contestants = {"self": task.call(case.subject, task.prepared(case.subject))}
        if task.name == "product" and dict(case.variant) == dict(case.technique.variants[0]):
            contestants["unprepared"] = task.call(case.subject, task.constant)
        others, missing = self._others(case, task)
        return Contest({**contestants, **others}, work=2.0 * task.macs()[1], unit="flop", missing=missing)

    def _others(self, case: Case, task: Task) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
        """Baseline and peers as calls, and those that cannot take part with the reason."""
        calls: dict[str, Callable[[], Any]] = {}
        missing: dict[str, str] = {}
        baseline = case.technique.baseline
        if baseline == "naive" and _too_large(case.technique, "naive", task.shape):
            missing["baseline"] = "plain loops take too long at this size"
        elif baseline == "naive":
            calls["baseline"] = task.call(LoopTiling(rung="naive"), task.constant)
        else:
            peer = {"dense": "openblas"}.get(baseline, baseline)
            calls["baseline"] = PEERS[task.name][peer](task.constant, task.varying, task.shape)
        for name in case.technique.peers:
            if name not in PEERS[task.name]:
                missing[name] = f"it offers no {task.name}"
                continue
            try:
                calls[name] = PEERS[task.name][name](task.constant, task.varying, task.shape)
            except ImportError:
                missing[name] = f"not installed: pip install {INSTALL.get(name, name)}"
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


def _too_large(technique: Any, name: Any, shape: Shape) -> bool:
    """Whether the technique's settings keep what has this name from shapes as large (`up_to: {naive: {k: 256}}`)."""
    limits = technique.settings.get("up_to", {}).get(name, {}) if isinstance(name, str) else {}
    return any(shape.get(dimension, 0) > limit for dimension, limit in limits.items())


def _error(result: Any, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(result, np.float64) - exact).max() / np.abs(exact).max())


def _figures(task: Task, exact: np.ndarray, call: Callable[[], Any], stored: int) -> dict[str, float | Missing]:
    error = _error(call(), exact)  # compiled, and whatever it caches is there
    tracemalloc.start()
    try:
        call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    scratch = -(-peak // 1024) * 1024
    return {"max_error": error, "memory_footprint": stored + task.varying.nbytes + scratch}


def _moved(task: Task, case: Case, operator: Any, stored: int, macs: int) -> dict[str, float | Missing]:
    if "cache_bytes" in case.setting and hasattr(operator, "memory_access"):
        moved = operator.memory_access(*(task.shape[name] for name in "mnk"), case.setting["cache_bytes"])
    else:
        moved = stored + task.varying.nbytes + 4 * int(np.prod(task.result_shape, dtype=int))
    return {"memory_access": moved, "energy": macs * mac_energy("fp32") + moved * DRAM_ENERGY}


protocol = OperatorProtocol()
