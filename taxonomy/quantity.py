"""A figure as a reader sees it: three digits, a prefix, a unit, its interval."""

from __future__ import annotations

import math

__all__ = ["interval", "quantity", "symbol"]

PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
PREFIXED = ("s", "B", "bit", "J", "MAC", "1/s")
"""Units that take a prefix; so does any rate, such as flop/s."""
SYMBOLS = {"fraction": "%", "ratio": "×", "count": "", "relative": ""}


def symbol(unit: str) -> str:
    """A unit as it is written beside a figure or an axis.

    Examples
    --------
    >>> symbol("fraction"), symbol("dB"), symbol("count")
    ('%', 'dB', '')
    """
    return SYMBOLS.get(unit, unit)


def quantity(value: float, unit: str) -> str:
    """A value with its unit.

    Parameters
    ----------
    value : float
        NaN is shown as a dash: there is no such figure.
    unit : str
        As in metrics.yml.

    Examples
    --------
    >>> quantity(0.9712, "fraction"), quantity(2048, "B"), quantity(3.21e-4, "s")
    ('97.1 %', '2.05 kB', '321 µs')
    >>> quantity(20351, "cycle"), quantity(1.2e-7, "relative"), quantity(2.5, "ratio")
    ('20,351 cycle', '1.2e-07', '2.50×')
    >>> quantity(float("nan"), "dB")
    '—'
    """
    return _write([value], unit)[0]


def interval(value: float, low: float, high: float, unit: str) -> str:
    """A value with its unit and interval, all three at one scale; one without an interval stands alone.

    Examples
    --------
    >>> interval(0.97, 0.965, 0.975, "fraction")
    '97.0 % (96.5 to 97.5)'
    >>> interval(0.5e6, float("nan"), float("nan"), "MAC")
    '500 kMAC'
    >>> interval(512, 512, 512, "bit")
    '512 bit'
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return quantity(value, unit)
    texts = _write([value, low, high], unit)
    if texts[0] == texts[1] == texts[2]:
        return texts[0]
    bare = [text.removesuffix("×").removesuffix(f" {_suffix(value, unit)}") for text in texts[1:]]
    return f"{texts[0]} ({bare[0]} to {bare[1]})"


def _write(values: list[float], unit: str) -> list[str]:
    first = values[0]
    suffix, scale = _suffix(first, unit), _scale(first, unit)
    joint = "" if suffix == "×" or not suffix else " "
    return [_number(value / scale, exact=scale == 1 and unit != "fraction") + joint + suffix
            if math.isfinite(value) else "—" if math.isnan(value) else "∞" for value in values]  # fmt: skip


def _scale(value: float, unit: str) -> float:
    if unit == "fraction":
        return 0.01
    return 10.0 ** _power(value, unit)


def _power(value: float, unit: str) -> int:
    if not (unit in PREFIXED or unit.endswith("/s")) or value == 0 or not math.isfinite(value):
        return 0
    return max(-12, min(12, 3 * math.floor(math.log10(abs(value) * 1.0005) / 3)))


def _suffix(value: float, unit: str) -> str:
    if unit == "1/s":
        return f"{PREFIXES[_power(value, unit)]}/s"
    return PREFIXES[_power(value, unit)] + symbol(unit)


def _number(value: float, exact: bool) -> str:
    if exact and value == round(value) and abs(value) < 1e7:
        return f"{round(value):,}"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.2g}"
    if size >= 1e4:
        return f"{float(f'{value:.4g}'):,.0f}"
    digits = 2 - math.floor(math.log10(size)) if size else 0
    return f"{value:,.{max(0, digits)}f}"
