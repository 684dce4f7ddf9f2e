"""The model: a Whisper-style encoder, an adaptor and a Qwen2-family decoder.

They are Flax NNX modules, used functionally: split into a graph definition and plain nested dicts.
"""

from stepaudio_jax.kernels.attention import supports_shared_prefix
from stepaudio_jax.kernels.decode_attention import padded_cache_len
from stepaudio_jax.kernels.dense import dense_kernel_grad
from stepaudio_jax.kernels.kv_cache import CACHE_AXES, CacheDtype, LayerCache, cache_bytes
from stepaudio_jax.kernels.partitioning import activation_spec, constrain, current_mesh
from stepaudio_jax.models.decoder import Decoder
from stepaudio_jax.models.encoder import Encoder
from stepaudio_jax.models.lora import (
    AbstractLoRA,
    abstract_lora,
    attach_lora,
    combine_lora,
    extract_lora,
    init_lora,
    is_lora_kernel,
    lora_paths,
    merge_lora,
    replace_lora,
)
from stepaudio_jax.models.quantization import (
    barrier_dequantization,
    is_quantized,
    merge_per_layer,
    quantize_weights,
    quantized_shardings,
    unstack_layers,
)
from stepaudio_jax.models.step_audio import (
    Parameters,
    StepAudio,
    abstract_model,
    abstract_parameters,
    init_parameters,
    logical_axes,
    parameter_metadata,
)

__all__ = [
    "CACHE_AXES",
    "AbstractLoRA",
    "CacheDtype",
    "Decoder",
    "Encoder",
    "LayerCache",
    "Parameters",
    "StepAudio",
    "abstract_lora",
    "abstract_model",
    "abstract_parameters",
    "activation_spec",
    "attach_lora",
    "barrier_dequantization",
    "cache_bytes",
    "combine_lora",
    "constrain",
    "current_mesh",
    "dense_kernel_grad",
    "extract_lora",
    "init_lora",
    "init_parameters",
    "is_lora_kernel",
    "is_quantized",
    "logical_axes",
    "lora_paths",
    "merge_lora",
    "merge_per_layer",
    "padded_cache_len",
    "parameter_metadata",
    "quantize_weights",
    "quantized_shardings",
    "replace_lora",
    "supports_shared_prefix",
    "unstack_layers",
]
