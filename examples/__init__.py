"""Runnable examples: the quickstart, the reward trap, and the synthetic speech that both use."""

ON_INTERRUPT = "finished parts are kept; the same command resumes"
"""What the programs of the examples print at Ctrl-C."""
