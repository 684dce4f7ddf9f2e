"""Runnable examples: the quickstart, the reward trap, and the synthetic speech they share."""
