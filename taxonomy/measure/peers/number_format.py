"""Rounding by other libraries: float32 to the format and back, or to codes alone.

Each peer takes the format, an array and what is to be done, and gives a call that returns the numbers (or codes),
written to memory that is there already where the library can do so. That is numpy's in every case: it asks for large
pages, PyTorch's own does not, which would be a comparison of pages. A peer
raises ImportError where the library is not installed, and ValueError, with the reason, where the library has no such
format. What a format is called elsewhere is read from its class and its fields.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache, partial
from importlib import import_module
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from taxonomy.store import HERE

__all__ = ["INSTALL", "PEERS", "Fixed", "Float", "contestant", "described"]

Peer = Callable[[Any, np.ndarray, str], Callable[[], Any]]
PARTS = ((2**14, 3e6), (2**20, 150e6))
"""Who rounds fewer numbers a second than the second is given an array of only so many as the first."""
INSTALL: dict[str, str] = {"qtorch_plus": "qtorch-plus"}
"""Packages whose name is not the peer's."""


def contestant(name: str, operation: str, subject: Any, x: np.ndarray) -> tuple[Callable[[], Any], float]:
    """A peer's call and how many elements it does: all, or as many as a slow one does in a short time.

    Parameters
    ----------
    name : str
        A key of `PEERS`.
    operation : {"round", "encode"}
    subject : NumberFormat
        Fitted to the part that is rounded.
    x : ndarray of float32
    """
    for size, rate in PARTS:
        rows = size // (x.size // len(x))
        if rows >= len(x):
            continue
        call = PEERS[name](subject.fit(x[:rows]), x[:rows], operation)
        call()
        start = perf_counter()
        call()
        if x[:rows].size / (perf_counter() - start) < rate:
            return call, float(x[:rows].size)
    return PEERS[name](subject.fit(x), x, operation), float(x.size)


class Float(NamedTuple):
    """A float of so many exponent and fraction bits, bias and subnormals as usual."""

    exponent_bits: int
    mantissa_bits: int
    specials: str
    """What the last exponent is: "ieee", infinity and NaN; "nan", numbers but for one NaN; "none", numbers."""


class Fixed(NamedTuple):
    """Integers from `low` to `high` less `zero`, times `step`; both may differ from row to row."""

    step: float | np.ndarray
    zero: int | np.ndarray
    low: int
    high: int
    bits: int


FLOATS = {
    "bfloat16": Float(8, 7, "ieee"), "fp16": Float(5, 10, "ieee"), "fp32": Float(8, 23, "ieee"),
    "tf32": Float(8, 10, "ieee"), "fp8-e4m3": Float(4, 3, "nan"), "fp8-e5m2": Float(5, 2, "ieee"),
    "fp6-e2m3": Float(2, 3, "none"), "fp6-e3m2": Float(3, 2, "none"), "fp4-e2m1": Float(2, 1, "none"),
}  # fmt: skip
NAMES = {
    Float(8, 7, "ieee"): "bfloat16", Float(5, 10, "ieee"): "float16", Float(8, 23, "ieee"): "float32",
    Float(4, 3, "nan"): "float8_e4m3fn", Float(5, 2, "ieee"): "float8_e5m2", Float(4, 3, "ieee"): "float8_e4m3",
    Float(3, 4, "ieee"): "float8_e3m4", Float(2, 3, "none"): "float6_e2m3fn", Float(3, 2, "none"): "float6_e3m2fn",
    Float(2, 1, "none"): "float4_e2m1fn",
}  # fmt: skip
"""What ml_dtypes and torch call a float."""


def described(number_format: Any) -> Float | Fixed | None:
    """A format as other libraries would describe it, read from its class and fields; None where they could not.

    Examples
    --------
    >>> from kernels.arithmetic.floating_point.bfloat16 import BFloat16
    >>> described(BFloat16())
    Float(exponent_bits=8, mantissa_bits=7, specials='ieee')
    """
    kind, name = type(number_format).__name__, getattr(number_format, "format", "")
    if getattr(number_format, "scaled", False):
        return None
    if kind in ("BFloat16", "FP16", "FP32"):
        return FLOATS[kind.lower()]
    if kind in ("FP8", "FP4", "TF32"):
        return FLOATS.get(name if kind == "TF32" else f"{kind.lower()}-{name}")
    if kind == "Minifloat":
        usual = number_format.bias in (None, 2 ** (number_format.exponent_bits - 1) - 1) and number_format.subnormals
        own = Float(number_format.exponent_bits, number_format.mantissa_bits, number_format.specials)
        return own if usual else None
    if kind == "StochasticRounding" and name in FLOATS:
        return FLOATS[name]
    if hasattr(number_format, "fraction_bits"):
        top = 2 ** (number_format.bits - 1)
        return Fixed(2.0**-number_format.fraction_bits, 0, -top, top - 1, number_format.bits)
    if kind == "DynamicFixedPoint":
        top = 2 ** (number_format.bits - 1)
        return Fixed(2.0**number_format.exponent, 0, -top, top - 1, number_format.bits)
    if kind == "Int8":
        step, zero = number_format.scale, number_format.zero_point or 0
        if isinstance(step, tuple):
            step = np.array(step, np.float32)
            zero = np.zeros(len(step), np.int32) if zero == 0 else np.array(zero, np.int32)
        return Fixed(step, zero, -127 if number_format.symmetric else -128, 127, 8)
    return None


def rounding_of(number_format: Any) -> str:
    """How it rounds: to nearest even unless its class or its field says otherwise."""
    stochastic = type(number_format).__name__ == "StochasticRounding"
    return "stochastic" if stochastic else getattr(number_format, "rounding", "nearest-even")


def _to_nearest(number_format: Any, library: str) -> None:
    if rounding_of(number_format) != "nearest-even":
        raise ValueError(f"{library} rounds to nearest even only, not {rounding_of(number_format)}")


def _only_rounds(operation: str, library: str) -> None:
    if operation != "round":
        raise ValueError(f"{library} gives rounded numbers, not codes")


def ml_dtypes_cast(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """ml_dtypes as a numpy type."""
    import ml_dtypes

    _to_nearest(number_format, "ml_dtypes")
    name = NAMES.get(described(number_format), "")  # type: ignore[arg-type]
    narrow_type = getattr(ml_dtypes, name, None) or getattr(np, name or "none", None)
    if narrow_type is None:
        raise ValueError(f"ml_dtypes has no such format as {number_format}")
    narrow, back = np.empty(x.shape, narrow_type), np.empty_like(x)

    def encode() -> np.ndarray:
        np.copyto(narrow, x, casting="unsafe")
        return narrow

    def both() -> np.ndarray:
        np.copyto(narrow, x, casting="unsafe")
        np.copyto(back, narrow, casting="unsafe")
        return back

    return encode if operation == "encode" else both


def _tensor(x: np.ndarray, dtype: Any) -> Any:
    """A tensor of the shape of `x` in memory of numpy's."""
    import torch

    return torch.from_numpy(np.empty(x.size * dtype.itemsize, np.uint8)).view(dtype).view(x.shape)


def torch_rounding(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """PyTorch: a cast there and back, a fake quantization, or random bits added and the lower ones masked away."""
    import torch

    source, own = torch.from_numpy(x), described(number_format)
    if isinstance(own, Fixed):
        _to_nearest(number_format, "PyTorch")
        return _torch_fixed(own, source, operation)
    if rounding_of(number_format) == "stochastic" and own == FLOATS["bfloat16"]:
        _only_rounds(operation, "what PyTorch's operators make of it")
        pattern, noise = source.view(torch.int32), _tensor(x, torch.int32)

        def call() -> Any:
            noise.random_(0, 2**16)
            return noise.add_(pattern).bitwise_and_(-(2**16)).view(torch.float32)

        return call
    _to_nearest(number_format, "PyTorch")
    narrow_type = getattr(torch, NAMES.get(own, "none"), None)  # type: ignore[arg-type]
    if narrow_type is None:
        raise ValueError(f"PyTorch converts to no such format as {number_format}")
    narrow = _tensor(x, narrow_type)
    if operation == "encode":
        return lambda: narrow.copy_(source)
    back = _tensor(x, torch.float32)
    return lambda: back.copy_(narrow.copy_(source))


def _torch_fixed(own: Fixed, source: Any, operation: str) -> Callable[[], Any]:
    import torch

    if isinstance(own.step, np.ndarray):
        _only_rounds(operation, "PyTorch's fake quantization")
        steps, zeros = torch.from_numpy(own.step), torch.from_numpy(np.asarray(own.zero, np.int32))
        return lambda: torch.fake_quantize_per_channel_affine(source, steps, zeros, 0, own.low, own.high)
    step, zero = float(own.step), int(own.zero)
    if operation == "encode":
        if own.bits != 8:
            raise ValueError(f"PyTorch quantizes to 8 bits, not {own.bits}")
        return lambda: torch.quantize_per_tensor(source, step, zero, torch.qint8)
    return lambda: torch.fake_quantize_per_tensor_affine(source, step, zero, own.low, own.high)


def numpy_rounding(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """numpy's own functions, one after the other into one preallocated array."""
    own = described(number_format)
    _to_nearest(number_format, "numpy.rint")
    if isinstance(own, Float):
        return ml_dtypes_cast(number_format, x, operation) if own == FLOATS["fp16"] else _no_numpy(number_format)
    if not isinstance(own, Fixed) or number_format.dtype is not np.float32:
        return _no_numpy(number_format)
    rows = (-1, *(1,) * (x.ndim - 1))
    step, zero = (np.float32(v).reshape(rows) if isinstance(v, np.ndarray) else np.float32(v) for v in own[:2])
    up, out = np.float32(1) / step, np.empty_like(x)
    codes = np.empty(x.shape, np.int8 if own.bits <= 8 else np.int16 if own.bits <= 16 else np.int32)

    def call() -> np.ndarray:
        np.multiply(x, up, out=out)
        np.rint(out, out=out)
        if np.any(zero):
            np.add(out, zero, out=out)
        np.clip(out, own.low, own.high, out=out)
        if operation == "encode":
            np.copyto(codes, out, casting="unsafe")
            return codes
        if np.any(zero):
            np.subtract(out, zero, out=out)
        return np.multiply(out, step, out=out)

    return call


def _no_numpy(number_format: Any) -> Any:
    raise ValueError(f"numpy has no type and no function for {number_format}")


@cache
def _compiled(name: str) -> Any:
    """A library that compiles itself when it is imported, by itself without optimization: here with it.

    In a folder of its own, since two give theirs one name.
    """
    from torch.utils import cpp_extension

    folder = HERE.parent / "torch_extensions" / name
    folder.mkdir(parents=True, exist_ok=True)
    plain = cpp_extension.load
    cpp_extension.load = partial(plain, extra_cflags=["-O3"], build_directory=str(folder))
    try:
        with redirect_stdout(sys.stderr):
            return import_module(f"{name}.quant")
    except RuntimeError as error:
        raise ImportError(f"{name} cannot be compiled here: {error}") from error
    finally:
        cpp_extension.load = plain


def qtorch_rounding(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """QPyTorch, whose floats have subnormals and no infinities, and whose ties go away from zero."""
    _only_rounds(operation, "QPyTorch")
    kind, own, mode = type(number_format).__name__, described(number_format), rounding_of(number_format)
    rounding = {"nearest-even": "nearest", "stochastic": "stochastic"}.get(mode)
    if rounding is None:
        raise ValueError(f"QPyTorch rounds to nearest or stochastically, not {mode}")
    library = _compiled("qtorch")
    import torch

    source = torch.from_numpy(x)
    if isinstance(own, Fixed) and not isinstance(own.step, np.ndarray) and kind != "Int8":
        word, fraction = own.bits, -round(float(np.log2(own.step)))
        return lambda: library.fixed_point_quantize(source, word, fraction, rounding=rounding)
    if isinstance(own, Float) and own.mantissa_bits <= 22:
        exponent, mantissa = own.exponent_bits, own.mantissa_bits
        return lambda: library.float_quantize(source, exponent, mantissa, rounding=rounding)
    if kind == "BlockFloatingPoint" and number_format.block != "tensor" and x.shape[-1] % number_format.block == 0:
        blocks, word = source.reshape(-1, number_format.block), number_format.mantissa_bits
        return lambda: library.block_quantize(blocks, word, dim=0, rounding=rounding).reshape(source.shape)
    raise ValueError(f"QPyTorch has no such format as {number_format}")


def qtorch_plus_posit(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """QPyTorch+, which adds posits."""
    _only_rounds(operation, "QPyTorch+")
    if type(number_format).__name__ != "Posit":
        raise ValueError("asked for posits only")
    bits, es = number_format.bits, number_format.es
    if bits > 16:
        raise ValueError(f"QPyTorch+ has posits of at most 16 bits, not {bits}")
    library = _compiled("qtorch_plus")
    import torch

    source = torch.from_numpy(x)
    return lambda: library.posit_quantize(source, nsize=bits, es=es)


def torchao_mx(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """torchao's MX tensors, made and brought back."""
    elements = {"fp8-e4m3": "float8_e4m3fn", "fp8-e5m2": "float8_e5m2", "fp4-e2m1": "float4_e2m1fn_x2"}
    if type(number_format).__name__ != "Microscaling" or number_format.element not in elements:
        raise ValueError(f"torchao has MX formats with {', '.join(elements)}, not {number_format}")
    import torch

    mx_formats = import_module("torchao.prototype.mx_formats.mx_tensor")
    source, element = torch.from_numpy(x), getattr(torch, elements[number_format.element])
    if operation == "encode":
        return lambda: mx_formats.to_mx(source, element, number_format.block)
    return lambda: mx_formats.MXTensor.to_mx(source, element, number_format.block).dequantize(torch.float32)


def bitsandbytes_nf4(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """bitsandbytes' NF4 on the processor; its second quantization of scales is another one."""
    if type(number_format).__name__ != "NormalFloat":
        raise ValueError("asked for NF4 only")
    functional = import_module("bitsandbytes.functional")
    import torch

    source = torch.from_numpy(x)
    options = {"blocksize": number_format.block, "quant_type": "nf4"}
    options["compress_statistics"] = number_format.double_quantization
    if operation == "encode":
        return lambda: functional.quantize_4bit(source, **options)
    return lambda: functional.dequantize_4bit(*functional.quantize_4bit(source, **options))


def softposit_cast(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """SoftPosit through its Python binding, number by number."""
    if type(number_format).__name__ != "Posit":
        raise ValueError("SoftPosit has posits only")
    _only_rounds(operation, "SoftPosit through Python")
    convert = softposit(number_format.bits, number_format.es)
    return lambda: [convert(number) for number in x.ravel().tolist()]


def softposit(bits: int, es: int) -> Callable[[float], float]:
    """SoftPosit's rounding of one number; infinities where its formats say NaR.

    Raises
    ------
    ImportError
        If it is not installed.
    ValueError
        If it has no such posit.
    """
    import softposit as library

    if es == 2:
        return lambda number: library.convertPX2ToDouble(library.convertDoubleToPX2(number, bits))
    if (bits, es) == (8, 0):
        return lambda number: library.convertP8ToDouble(library.convertDoubleToP8(number))
    if (bits, es) == (16, 1):
        return lambda number: library.convertP16ToDouble(library.convertDoubleToP16(number))
    raise ValueError(f"bits, es: SoftPosit has 8, 0; 16, 1 and any bits with 2; got {bits}, {es}")


PEERS: dict[str, Peer] = {
    "bitsandbytes": bitsandbytes_nf4,
    "ml_dtypes": ml_dtypes_cast,
    "numpy": numpy_rounding,
    "qtorch": qtorch_rounding,
    "qtorch_plus": qtorch_plus_posit,
    "softposit": softposit_cast,
    "torch": torch_rounding,
    "torchao": torchao_mx,
}
