"""The executable half of the taxonomy: protocols, timing, the runner; what is light stays outside."""
