"""The product of two matrices, the right one constant: C = A B with A of shape (m, k) and B of shape (k, n).

Entries are normally distributed, around `mean` where the setting says one: sums of numbers with a mean grow with their
length, those of numbers without only with its root.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.protocol import Missing
from taxonomy.measure.tasks.task import Shape, Task, onednn

__all__ = ["Product"]


def naive(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """Three nested loops, compiled."""
    return lambda: LoopTiling(rung="naive").matmul(x, w)


def openblas(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """numpy's BLAS."""
    return lambda: x @ w


def torch_product(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    import torch

    left, right = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: left @ right


def packed(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """oneDNN as PyTorch's compiler calls it, the constant operand packed once for so many rows."""
    import torch

    onednn(torch)
    left, rows = torch.from_numpy(x), len(x)
    right = torch.ops.mkldnn._reorder_linear_weight(torch.from_numpy(w).t().contiguous(), rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


def torch_int8(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """PyTorch's linear layer on bytes: weights rounded and packed once, inputs in every call; the x86 engine."""
    import torch

    torch.backends.quantized.engine = "x86"
    weights = torch.from_numpy(np.ascontiguousarray(w.T))
    scales = weights.abs().amax(1) / 127
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():  # torch wants torchao, which has no such engine
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_channel(weights, scales, zeros, 0, torch.qint8)
        packed_weights = torch.ops.quantized.linear_prepack(rounded, None)
    left = torch.from_numpy(x)
    return lambda: torch.ops.quantized.linear_dynamic(left, packed_weights)


def onnxruntime(w: np.ndarray, x: np.ndarray, shape: Shape) -> Callable[[], Any]:
    """onnxruntime's integer product: weights rounded beforehand, column by column, inputs in every call."""
    import onnxruntime as runtime
    from onnx import TensorProto, helper, numpy_helper

    scales = np.abs(w).max(0) / 127
    constants = {"w": np.rint(w / scales).astype(np.int8), "scales": scales.astype(np.float32)}
    steps = (
        ("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        ("MatMulInteger", ["codes", "w", "zero"], ["sums"]),
        ("Cast", ["sums"], ["real"]), ("Mul", ["scale", "scales"], ["both"]), ("Mul", ["real", "both"], ["y"]),
    )  # fmt: skip
    nodes = [
        helper.make_node(kind, inputs, outputs, to=TensorProto.FLOAT if kind == "Cast" else None)
        for kind, inputs, outputs in steps
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", list(x.shape)), ("y", [len(x), w.shape[1]]))
    ]
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


class Product(Task):
    """A dense product."""

    name = "product"
    keys = frozenset("mnk")
    peers: ClassVar = {
        "openblas": openblas,
        "torch": torch_product,
        "torch-packed": packed,
        "torch-int8": torch_int8,
        "onnxruntime": onnxruntime,
    }
    baselines: ClassVar = {"naive": naive, "dense": openblas, "fp32": openblas}
    times_unprepared = True

    @classmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        rng, mean = np.random.default_rng(seed), np.float32(shape.get("mean", 0))
        m, n, k = (shape[name] for name in "mnk")
        return cls(
            shape, rng.standard_normal((k, n), np.float32) + mean, rng.standard_normal((m, k), np.float32) + mean
        )

    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        return lambda: operator.matmul(self.varying, constant)

    def figures(self, operator: Any, result: Any) -> dict[str, float | Missing]:
        """Of an operator that multiplies less often than the equation says (`effective_macs`), how often."""
        if not hasattr(operator, "effective_macs"):
            return {}
        return {"effective_macs": operator.effective_macs(self.varying, self.constant)}

    def exact(self) -> np.ndarray:
        return np.asarray(
            torch_product(self.constant.astype(np.float64), self.varying.astype(np.float64), self.shape)()
        )

    def macs(self) -> tuple[int, int]:
        macs = self.shape["m"] * self.shape["n"] * self.shape["k"]
        return macs, macs

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.shape["m"], self.shape["n"]
