"""Weights to and from Hugging Face, streaming: memory does not grow with the model."""

from stepaudio_jax.hub.adapter import ADAPTER, Adapter, adapter_from, host_matrices, read_adapter
from stepaudio_jax.hub.checkpoint import checkpoint_adapter, is_checkpoint, require_checkpoint, write_checkpoint_config
from stepaudio_jax.hub.errors import CheckpointError
from stepaudio_jax.hub.fingerprint import fingerprint
from stepaudio_jax.hub.inventory import Inventory, inspect_folder
from stepaudio_jax.hub.new_folder import require_absent
from stepaudio_jax.hub.parameter_reader import ArrayReader, ParameterReader, StoredReader
from stepaudio_jax.hub.random_weights import write_random_weights
from stepaudio_jax.hub.read_weights import (
    read_model_config,
    read_parameters,
    read_weights_adapter,
    weight_sources,
    weights_adapter,
)
from stepaudio_jax.hub.save_checkpoint import save_checkpoint, save_shape
from stepaudio_jax.hub.tokenizer_files import load_tokenizer, require_vocabulary
from stepaudio_jax.hub.weight_export import MAX_SHARD_BYTES, export_adapter, export_parameters, export_weights
from stepaudio_jax.hub.weight_import import import_weights

__all__ = [
    "ADAPTER",
    "MAX_SHARD_BYTES",
    "Adapter",
    "ArrayReader",
    "CheckpointError",
    "Inventory",
    "ParameterReader",
    "StoredReader",
    "adapter_from",
    "checkpoint_adapter",
    "export_adapter",
    "export_parameters",
    "export_weights",
    "fingerprint",
    "host_matrices",
    "import_weights",
    "inspect_folder",
    "is_checkpoint",
    "load_tokenizer",
    "read_adapter",
    "read_model_config",
    "read_parameters",
    "read_weights_adapter",
    "require_absent",
    "require_checkpoint",
    "require_vocabulary",
    "save_checkpoint",
    "save_shape",
    "weight_sources",
    "weights_adapter",
    "write_checkpoint_config",
    "write_random_weights",
]
