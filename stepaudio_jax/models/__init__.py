"""The model: a Whisper-style encoder, an adaptor and a Qwen2-family decoder, as Flax NNX modules used functionally."""

from stepaudio_jax.models.attention import takes_prefixes
from stepaudio_jax.models.attention_cached import cache_slots
from stepaudio_jax.models.constraints import activation_spec, constrain, mesh_in_use
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import Encoder, adaptor_outputs
from stepaudio_jax.models.kv_cache import CACHE_LETTERS, CacheDtype, LayerCache, cache_bytes
from stepaudio_jax.models.layers import kernel_gradient
from stepaudio_jax.models.low_rank import (
    LowRankTree,
    combine_lora,
    fold_low_rank,
    initial_low_rank,
    is_low_rank,
    lora_matrices,
    low_rank_paths,
    low_rank_tree,
    replace_lora,
    with_low_rank,
)
from stepaudio_jax.models.quantized import expanded_anew, is_quantized, quantize_weights, quantized_shardings
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
    "CACHE_LETTERS",
    "CacheDtype",
    "Decoder",
    "Encoder",
    "LayerCache",
    "LowRankTree",
    "Parameters",
    "StepAudio",
    "abstract_model",
    "abstract_parameters",
    "activation_spec",
    "adaptor_outputs",
    "cache_bytes",
    "cache_slots",
    "combine_lora",
    "constrain",
    "expanded_anew",
    "fold_low_rank",
    "initial_low_rank",
    "initial_parameters",
    "is_low_rank",
    "is_quantized",
    "kernel_gradient",
    "logical_axes",
    "lora_matrices",
    "low_rank_paths",
    "low_rank_tree",
    "merge_unstacked",
    "mesh_in_use",
    "parameter_metadata",
    "quantize_weights",
    "quantized_shardings",
    "replace_lora",
    "takes_prefixes",
    "unstack",
    "with_low_rank",
]
