"""Rounding by other libraries: float32 to the format and back.

Each peer takes the format and an array, and gives a call and how many elements that call rounds: one that handles a
number at a time, in Python, gets few of them. It raises ImportError where the library is not installed, and ValueError
where the library has no such format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["PEERS"]

Peer = tuple[Callable[[], Any], int]
FEW = 2048


def torch_cast(number_format: Any, x: np.ndarray) -> Peer:
    """PyTorch, both results preallocated."""
    import torch

    _rounds_to_nearest(number_format)
    source = torch.from_numpy(x)
    narrow, back = source.to(torch.bfloat16), torch.empty_like(source)

    def call() -> None:
        narrow.copy_(source)
        back.copy_(narrow)

    return call, x.size


def ml_dtypes_cast(number_format: Any, x: np.ndarray) -> Peer:
    """ml_dtypes as a numpy type, both results preallocated."""
    import ml_dtypes

    _rounds_to_nearest(number_format)
    narrow, back = np.empty(x.shape, ml_dtypes.bfloat16), np.empty_like(x)

    def call() -> None:
        np.copyto(narrow, x, casting="unsafe")
        np.copyto(back, narrow, casting="unsafe")

    return call, x.size


def _rounds_to_nearest(number_format: Any) -> None:
    if number_format.rounding != "nearest-even":
        raise ValueError(f"its bfloat16 is rounded to nearest even only, not {number_format.rounding}")


def softposit_cast(number_format: Any, x: np.ndarray) -> Peer:
    """SoftPosit through its Python binding, number by number."""
    convert = softposit(number_format.bits, number_format.es)
    few = x.ravel()[:FEW].tolist()
    return lambda: [convert(number) for number in few], len(few)


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


PEERS: dict[str, Callable[[Any, np.ndarray], Peer]] = {
    "torch": torch_cast,
    "ml_dtypes": ml_dtypes_cast,
    "softposit": softposit_cast,
}
