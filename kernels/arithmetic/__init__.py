"""Arithmetic-level techniques: how numbers are represented and what that costs in exactness."""
