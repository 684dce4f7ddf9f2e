"""Kernels that pay on CPUs only; the plain forms are their oracles."""
