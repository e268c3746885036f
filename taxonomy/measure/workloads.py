"""From the name of a workload to one that can be run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Operands", "resolve"]


@dataclass(frozen=True)
class Operands:
    """Shapes and densities that operands are made of."""

    id: str
    settings: tuple[dict[str, Any], ...]


def resolve(tx: Any, identifier: str) -> Any:
    """A `datasets.Workload` or its like, or `Operands` with their `settings`."""
    node = tx.workloads[identifier]
    if node.kind == "operands":
        return Operands(identifier, tuple(dict(setting) for setting in node.settings))
    import datasets

    return datasets.workload(identifier)
