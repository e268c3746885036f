"""Compact convolution: blocks that mix space and channels with fewer products."""
