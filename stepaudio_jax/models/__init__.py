"""The model: a Whisper-style encoder, an adaptor and a Qwen2-family decoder, as Flax NNX modules used functionally."""

from stepaudio_jax.models.constraints import constrain, mesh_in_use
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import Encoder, adaptor_outputs
from stepaudio_jax.models.kv_cache import CacheDtype, LayerCache, cache_bytes
from stepaudio_jax.models.step_audio import (
    Parameters,
    StepAudio,
    abstract_model,
    abstract_parameters,
    initial_parameters,
    logical_axes,
    parameter_metadata,
)
from stepaudio_jax.models.unstacked import merge_unstacked, unstack

__all__ = [
    "CacheDtype",
    "Decoder",
    "Encoder",
    "LayerCache",
    "Parameters",
    "StepAudio",
    "abstract_model",
    "abstract_parameters",
    "adaptor_outputs",
    "cache_bytes",
    "constrain",
    "initial_parameters",
    "logical_axes",
    "merge_unstacked",
    "mesh_in_use",
    "parameter_metadata",
    "unstack",
]
