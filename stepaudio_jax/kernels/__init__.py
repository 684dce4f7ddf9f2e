"""Kernels: attention and matrix products, in the form for each platform."""
