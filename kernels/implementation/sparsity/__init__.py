"""Products that skip the zeros: formats for sparse weights and the kernels that run on them."""
