"""Loops: in which order, and on which tiles, the same arithmetic is done."""
