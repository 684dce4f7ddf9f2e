"""Serving: an OpenAI-compatible server around the generation engine, and what is mounted on it."""

from stepaudio_jax.serving.settings import EngineSettings, ServingSettings

__all__ = ["EngineSettings", "ServingSettings"]
