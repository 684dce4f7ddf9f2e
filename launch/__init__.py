"""The programs people start: argument parsing, and nothing else."""
