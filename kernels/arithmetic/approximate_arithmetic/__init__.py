"""Adders, multipliers and products that give up exactness, or skip bits that do not matter, for cost."""
