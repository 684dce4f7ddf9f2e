"""Runnable examples: the quickstart, the reward trap, and the synthetic speech that both use."""
