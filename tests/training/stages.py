"""The first step of a stage on one device."""

from typing import Any

import jax

from stepaudio_jax.config import Config, MeshConfig, ModelConfig
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training.start import describe_stage, start_stage
from stepaudio_jax.training.step import ModelDefinition, TrainState


def begin(config: Config, index: int, model: ModelConfig, parameters: Parameters) -> tuple[ModelDefinition, Any, TrainState]:
    """Definition, optimizer and state of a stage, before its first step."""
    start = describe_stage(config, index, model, make_mesh(MeshConfig(), jax.devices()[:1]))
    return start.definition, start.optimizer, start_stage(config, index, model, start, parameters)
