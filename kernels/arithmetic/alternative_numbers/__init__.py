"""Alternative number systems: neither plain fixed point nor IEEE floating point."""
