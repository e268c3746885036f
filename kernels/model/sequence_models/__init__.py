"""Attention and its cached keys and values, for less as the sequence grows."""
