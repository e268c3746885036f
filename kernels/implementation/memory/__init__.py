"""Memory: how weights are laid out, moved and protected."""
