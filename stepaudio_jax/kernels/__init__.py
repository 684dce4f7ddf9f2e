"""Attention: one entry point, and behind it the kernels for TPU, GPU and CPU."""
