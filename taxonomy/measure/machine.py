"""What this machine is, and what it can do at most: the limits that stand beside every time."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from taxonomy.measure.timing import interleave
from taxonomy.statistics import median

__all__ = ["describe", "limits", "multiply_adds"]


@lru_cache(maxsize=1)
def describe() -> dict[str, Any]:
    """Processor, cores, and the versions of what computes."""
    libraries = {name: version(name) for name in ("torch", "numba", "numpy")}
    return {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version(), **libraries}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        named = {name.strip(): value.strip() for name, value in fields.items()}
        wide = "avx512f" in named.get("flags", "").split()
        return f"{named['model name']}, {'AVX-512' if wide else 'AVX2' if 'avx2' in named['flags'] else 'SSE'}"
    except (OSError, KeyError, ValueError):
        return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def limits() -> dict[str, float]:
    """The peak multiply rate (flop/s, one core) and the bandwidth of a copy (bytes/s, read and written).

    The rate is that of `multiply_adds`; the copy moves 64 MiB, more than any cache.
    """
    import numpy as np

    call, flop = multiply_adds()
    source, target = np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32)
    times = interleave({"fma": call, "copy": lambda: np.copyto(target, source)}, 7)
    return {
        "peak_flops": round(flop / median(times["fma"])),
        "copy_bandwidth": round(2.0 * source.nbytes / median(times["copy"])),
    }


def multiply_adds() -> tuple[Callable[[], None], float]:
    """A call of independent fused multiply-adds on registers alone, with nothing to fetch, and its flop.

    Beside contestants, in the same rounds, it says what the core could do at most just then.
    """
    import numpy as np

    from kernels.simd import LANES

    seeds, steps, chains = np.ones(LANES * 12, np.float32), 20000, _compiled()
    return lambda: chains(seeds, steps), 2.0 * seeds.size * steps


@lru_cache(maxsize=1)
def _compiled() -> Any:
    from numba import njit

    from kernels.simd import LANES, tile_fma, tile_load, tile_store

    @njit
    def chains(seeds: Any, steps: int) -> None:
        # twelve independent chains hide the latency of one multiply-add on every core of the last decade
        tile: Any = tile_load(seeds, 0, LANES, 12, 1, LANES)  # type: ignore[call-arg]
        for _ in range(steps):
            tile = tile_fma(tile, seeds, 0, 0, seeds, 0)
        tile_store(tile, seeds, 0, LANES)

    return chains
