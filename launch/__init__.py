"""The programs people start: argument parsing, and nothing else."""

from launch.large_pages import restart_with_large_pages

restart_with_large_pages()
