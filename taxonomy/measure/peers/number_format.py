"""Rounding by other libraries: float32 to the format and back, or to codes alone.

Each peer takes the format, an array and what is to be done, and gives a call that returns the numbers (or codes). It
raises ImportError where the library is not installed, and ValueError, with the reason, where the library has no such
format. What a format is called elsewhere is read from its class and its fields.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

__all__ = ["INSTALL", "PEERS", "contestant", "element"]

Peer = Callable[[Any, np.ndarray, str], Callable[[], Any]]
PARTS = ((2**14, 3e6), (2**20, 150e6))
"""Who rounds fewer numbers a second than the second is given an array of only so many as the first."""
INSTALL: dict[str, str] = {}
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


def element(number_format: Any) -> str | None:
    """The name that ml_dtypes and torch give to a float of these fields, or None where they have no such float.

    Examples
    --------
    >>> from kernels.arithmetic.floating_point.bfloat16 import BFloat16
    >>> element(BFloat16())
    'bfloat16'
    """
    kind = type(number_format).__name__
    _rounds_to_nearest(number_format)
    if kind in ("BFloat16", "FP16", "FP32"):
        return {"BFloat16": "bfloat16", "FP16": "float16", "FP32": "float32"}[kind]
    if kind in ("FP8", "FP4"):
        names = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "e2m1": "float4_e2m1fn"}
        return names.get(number_format.format)
    if kind == "Minifloat":
        e, m, standard = (
            number_format.exponent_bits,
            number_format.mantissa_bits,
            2 ** (number_format.exponent_bits - 1),
        )
        if not number_format.subnormals or number_format.bias not in (None, standard - 1):
            return None
        return {
            (8, 7, "ieee"): "bfloat16", (5, 10, "ieee"): "float16", (5, 2, "ieee"): "float8_e5m2",
            (4, 3, "ieee"): "float8_e4m3", (3, 4, "ieee"): "float8_e3m4", (4, 3, "nan"): "float8_e4m3fn",
            (2, 3, "none"): "float6_e2m3fn", (3, 2, "none"): "float6_e3m2fn", (2, 1, "none"): "float4_e2m1fn",
        }.get((e, m, number_format.specials))  # fmt: skip
    return None


def torch_cast(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """PyTorch's cast; both results preallocated where it goes there and back."""
    import torch

    narrow_type = getattr(torch, element(number_format) or "", None)
    if narrow_type is None:
        raise ValueError(f"PyTorch converts to no such format as {number_format}")
    source = torch.from_numpy(x)
    if operation == "encode":
        return lambda: source.to(narrow_type)
    narrow, back = source.to(narrow_type), torch.empty_like(source)
    return lambda: back.copy_(narrow.copy_(source))


def ml_dtypes_cast(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """ml_dtypes as a numpy type; both results preallocated where it goes there and back."""
    import ml_dtypes

    name = element(number_format)
    narrow_type = np.float16 if name == "float16" else getattr(ml_dtypes, name or "", None)
    if narrow_type is None:
        raise ValueError(f"ml_dtypes has no such format as {number_format}")
    if operation == "encode":
        return lambda: x.astype(narrow_type)
    narrow, back = np.empty(x.shape, narrow_type), np.empty_like(x)

    def call() -> np.ndarray:
        np.copyto(narrow, x, casting="unsafe")
        np.copyto(back, narrow, casting="unsafe")
        return back

    return call


def _rounds_to_nearest(number_format: Any) -> None:
    rounding = getattr(number_format, "rounding", "nearest-even")
    if rounding != "nearest-even":
        raise ValueError(f"it rounds to nearest even only, not {rounding}")


def softposit_cast(number_format: Any, x: np.ndarray, operation: str) -> Callable[[], Any]:
    """SoftPosit through its Python binding, number by number."""
    _only_rounds(operation, "SoftPosit through Python")
    convert = softposit(number_format.bits, number_format.es)
    return lambda: [convert(number) for number in x.ravel().tolist()]


def _only_rounds(operation: str, library: str) -> None:
    if operation != "round":
        raise ValueError(f"{library} gives rounded numbers, not codes")


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
    "ml_dtypes": ml_dtypes_cast,
    "softposit": softposit_cast,
    "torch": torch_cast,
}
