"""Several precisions in one computation, each where it suffices."""
