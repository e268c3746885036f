"""Dynamic inference: each input gets the computation that it needs."""
