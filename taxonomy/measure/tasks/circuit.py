"""A circuit on every pair of operands: nothing is drawn, and all figures are exact."""

from __future__ import annotations

from typing import Any

from taxonomy.measure.tasks.task import Shape

__all__ = ["Circuit"]


class Circuit:
    """All pairs of unsigned operands of `circuit_bits` bits; the operator says its errors over them (`errors`)."""

    name = "circuit"
    keys = frozenset({"circuit_bits"})

    @staticmethod
    def answers(shape: Shape) -> bool:
        """Whether a setting asks for this."""
        return Circuit.keys <= set(shape)

    @staticmethod
    def figures(operator: Any) -> dict[str, dict[str, float]]:
        """Of the operator, and of an exact circuit."""
        own = operator.errors()
        return {"self": own, "baseline": dict.fromkeys(own, 0)}
