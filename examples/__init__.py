"""Runnable examples: the quickstart, the reward trap, their synthetic speech, and short scripts."""

ON_INTERRUPT = "finished parts are kept; the same command resumes"
"""What the programs of the examples print at Ctrl-C."""
