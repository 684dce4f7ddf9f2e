"""Reports: the page of a run with its curves, and the tables of an evaluation."""

from stepaudio_jax.reports.evaluation_report import select_examples
from stepaudio_jax.reports.run_report import write_report

__all__ = ["select_examples", "write_report"]
