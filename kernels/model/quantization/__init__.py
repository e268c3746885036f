"""Quantization: networks whose weights, and often activations, take few distinct values."""
