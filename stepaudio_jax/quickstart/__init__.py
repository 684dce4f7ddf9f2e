"""The two demonstrations: the small base model, made from nothing, and the quickstart, which teaches it to answer."""

from stepaudio_jax.quickstart.spoken_answers import run_quickstart
from stepaudio_jax.quickstart.tiny_base import make_tiny_base

__all__ = ["make_tiny_base", "run_quickstart"]
