"""Dataflow: which operand stays in the array while the others stream past."""
