"""The model: a Whisper-style encoder, an adaptor and a Qwen2-family decoder, as Flax NNX modules used functionally."""

from stepaudio_jax.models.constraints import constrain, mesh_in_use
from stepaudio_jax.models.decoder import Decoder, KVCache
from stepaudio_jax.models.encoder import Encoder, adaptor_outputs
from stepaudio_jax.models.step_audio import (
    Parameters,
    StepAudio,
    abstract_model,
    abstract_parameters,
    initial_parameters,
    logical_axes,
    parameter_metadata,
)

__all__ = [
    "Decoder",
    "Encoder",
    "KVCache",
    "Parameters",
    "StepAudio",
    "abstract_model",
    "abstract_parameters",
    "adaptor_outputs",
    "constrain",
    "initial_parameters",
    "logical_axes",
    "mesh_in_use",
    "parameter_metadata",
]
