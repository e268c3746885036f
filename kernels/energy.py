"""Energy modelled from counts: joules an operation and a memory access cost in a 45 nm process at 0.9 V.

The numbers are those of one table and are never measured here; they rank designs, they do not predict a chip. A format
or a memory that the table does not hold has no energy: asking for it raises `KeyError`, and the figure is null.

Source: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014.

Examples
--------
>>> f"{mac_energy('fp32') / mac_energy('int8'):.1f}"
'15.3'
>>> f"{DRAM_ENERGY * 4 / mac_energy('int8'):.0f}"    # one word from DRAM costs as much as so many INT8 MACs
'2167'
"""

from __future__ import annotations

__all__ = [
    "ADD_ENERGY",
    "DRAM_ENERGY",
    "MULTIPLY_ENERGY",
    "OPERAND_BYTES",
    "SRAM_ACCESS_ENERGY",
    "mac_energy",
    "sram_energy",
]

ADD_ENERGY = {"int8": 0.03e-12, "int16": 0.05e-12, "int32": 0.1e-12, "fp16": 0.4e-12, "fp32": 0.9e-12}
"""Joules of one addition."""

MULTIPLY_ENERGY = {"int8": 0.2e-12, "int32": 3.1e-12, "fp16": 1.1e-12, "fp32": 3.7e-12}
"""Joules of one multiplication."""

SRAM_ACCESS_ENERGY = {8: 10e-12, 32: 20e-12, 1024: 100e-12}
"""Joules of one 64-bit access to a cache of so many KiB."""

DRAM_ENERGY = 1.3e-9 / 8
"""Joules a byte from DRAM. The table gives 1.3 to 2.6 nJ for 64 bits; this is its lower end."""

OPERAND_BYTES = {"int8": 1, "int32": 4, "fp16": 2, "fp32": 4}
"""Bytes of one operand of the formats that `mac_energy` knows."""

_ACCUMULATOR = {"int8": "int32", "int32": "int32", "fp16": "fp32", "fp32": "fp32"}


def mac_energy(format: str) -> float:
    """Joules of one multiply-accumulate: a product of two operands, added in 32 bits.

    Parameters
    ----------
    format : {"int8", "int32", "fp16", "fp32"}
        The operands' format; integers accumulate in INT32, floats in FP32.

    Raises
    ------
    KeyError
        If the table holds no coefficient for the format.

    Examples
    --------
    >>> f"{mac_energy('int8'):.1e}"
    '3.0e-13'
    >>> mac_energy("bfloat16")
    Traceback (most recent call last):
    ...
    KeyError: "no cited energy for a 'bfloat16' multiplication; the table holds int8, int32, fp16, fp32"
    """
    if format not in MULTIPLY_ENERGY:
        raise KeyError(f"no cited energy for a {format!r} multiplication; the table holds {', '.join(MULTIPLY_ENERGY)}")
    return MULTIPLY_ENERGY[format] + ADD_ENERGY[_ACCUMULATOR[format]]


def sram_energy(kib: float) -> float:
    """Joules a byte from an on-chip memory: that of the smallest one in the table which is large enough.

    Parameters
    ----------
    kib : float
        Capacity in KiB.

    Raises
    ------
    KeyError
        If the table holds no memory as large.

    Examples
    --------
    >>> sram_energy(64) == sram_energy(1024) > sram_energy(32)
    True
    """
    for size, joules in SRAM_ACCESS_ENERGY.items():
        if kib <= size:
            return joules / 8
    raise KeyError(f"no cited energy for a memory of {kib} KiB; the table's largest has {max(SRAM_ACCESS_ENERGY)}")
