"""Training memory: what a training step keeps, and what it computes again instead."""
