"""Weights to and from Hugging Face, streaming: memory does not grow with the model."""

from stepaudio_jax.hub.checkpoint import (
    check_is_checkpoint,
    check_vocab_size,
    checkpoint_lora_config,
    is_checkpoint,
    load_tokenizer,
    save_checkpoint,
    save_config_and_tokenizer,
    write_checkpoint_config,
)
from stepaudio_jax.hub.convert import (
    export_adapter,
    export_parameters,
    export_weights,
    import_weights,
)
from stepaudio_jax.hub.inspect import FolderSummary, inspect_folder
from stepaudio_jax.hub.load import (
    read_model_config,
    read_parameters,
    read_source_adapter,
    source_lora_config,
    weight_sources,
)
from stepaudio_jax.hub.orbax_io import ArrayReader, OrbaxReader, ParameterReader
from stepaudio_jax.hub.peft_adapter import (
    ADAPTER,
    Adapter,
    adapter_matrices_on_host,
    combine_adapters,
    read_adapter,
)
from stepaudio_jax.hub.random_weights import has_random_weights, write_random_weights
from stepaudio_jax.hub.safetensors import MAX_SHARD_BYTES

__all__ = [
    "ADAPTER",
    "MAX_SHARD_BYTES",
    "Adapter",
    "ArrayReader",
    "FolderSummary",
    "OrbaxReader",
    "ParameterReader",
    "adapter_matrices_on_host",
    "check_is_checkpoint",
    "check_vocab_size",
    "checkpoint_lora_config",
    "combine_adapters",
    "export_adapter",
    "export_parameters",
    "export_weights",
    "has_random_weights",
    "import_weights",
    "inspect_folder",
    "is_checkpoint",
    "load_tokenizer",
    "read_adapter",
    "read_model_config",
    "read_parameters",
    "read_source_adapter",
    "save_checkpoint",
    "save_config_and_tokenizer",
    "source_lora_config",
    "weight_sources",
    "write_checkpoint_config",
    "write_random_weights",
]
