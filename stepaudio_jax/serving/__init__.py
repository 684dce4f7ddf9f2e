"""Serving: an OpenAI-compatible server around the generation engine, and what is mounted on it."""

from stepaudio_jax.serving.settings import ServingSettings

__all__ = ["ServingSettings"]
