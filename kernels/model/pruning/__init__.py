"""Pruning: networks with fewer weights."""
