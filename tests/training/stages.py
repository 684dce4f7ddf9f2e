"""The train state of a stage on one device."""

from typing import Any

import jax

from stepaudio_jax.config import Config, MeshConfig, ModelConfig
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.train_state import (
    ModelDef,
    TrainState,
    abstract_train_state,
    init_train_state,
)


def init_stage(
    config: Config, index: int, model: ModelConfig, params: ModelParams
) -> tuple[ModelDef, Any, TrainState]:
    """Returns model definition, optimizer and initial state of a stage."""
    start = abstract_train_state(config, index, model, make_mesh(MeshConfig(), jax.devices()[:1]))
    return (
        start.model_def,
        start.optimizer,
        init_train_state(config, index, model, start, params),
    )
