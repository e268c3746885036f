"""Techniques of the model level: what is computed."""
