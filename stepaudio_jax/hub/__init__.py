"""Weights to and from Hugging Face, streaming: memory does not grow with the model."""

from stepaudio_jax.hub.adapter import (
    ADAPTER,
    Adapter,
    adapter_matrices_on_host,
    combine_adapters,
    read_adapter,
)
from stepaudio_jax.hub.checkpoint import (
    check_is_checkpoint,
    checkpoint_lora_config,
    is_checkpoint,
    write_checkpoint_config,
)
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.fingerprint import fingerprint_folder
from stepaudio_jax.hub.inventory import FolderSummary, inspect_folder
from stepaudio_jax.hub.new_folder import check_output_available
from stepaudio_jax.hub.parameter_reader import ArrayReader, OrbaxReader, ParameterReader
from stepaudio_jax.hub.random_weights import write_random_weights
from stepaudio_jax.hub.read_weights import (
    read_model_config,
    read_parameters,
    read_source_adapter,
    source_lora_config,
    weight_sources,
)
from stepaudio_jax.hub.save_checkpoint import save_checkpoint, save_config_and_tokenizer
from stepaudio_jax.hub.tokenizer_files import check_vocab_size, load_tokenizer
from stepaudio_jax.hub.weight_export import (
    MAX_SHARD_BYTES,
    export_adapter,
    export_parameters,
    export_weights,
)
from stepaudio_jax.hub.weight_import import import_weights

__all__ = [
    "ADAPTER",
    "MAX_SHARD_BYTES",
    "Adapter",
    "ArrayReader",
    "CheckpointError",
    "FolderSummary",
    "OrbaxReader",
    "ParameterReader",
    "adapter_matrices_on_host",
    "check_is_checkpoint",
    "check_output_available",
    "check_vocab_size",
    "checkpoint_lora_config",
    "combine_adapters",
    "export_adapter",
    "export_parameters",
    "export_weights",
    "fingerprint_folder",
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
