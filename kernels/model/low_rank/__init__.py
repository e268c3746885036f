"""Low-rank and structured matrices: reference implementations."""
