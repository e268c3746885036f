"""Techniques of the implementation level: how and where it is computed."""
