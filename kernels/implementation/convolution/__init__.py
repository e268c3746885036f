"""Ways to carry out a convolution: directly, as a matrix product, or in a transformed domain."""
