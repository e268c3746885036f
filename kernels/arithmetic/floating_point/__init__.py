"""Floating-point formats: a sign, an exponent field and a mantissa field of fixed widths."""
