"""Forms of kernels and layers that pay on CPUs only; the plain forms are their oracles in tests."""
