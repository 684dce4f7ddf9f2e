"""Data: JSONL files of dialogues -> Record -> packed, padded, static-shape Batch."""

from stepaudio_jax.data.assembly import abstract_batch, batch_shape, outputs_per_chunk
from stepaudio_jax.data.batch import Array, AuxiliaryLabels, Batch
from stepaudio_jax.data.check import SourceReport, check_sources
from stepaudio_jax.data.jsonl import JsonlFile, JsonlSource, open_sources, read_jsonl, require_audio, source_names
from stepaudio_jax.data.order import Visit, training_streams
from stepaudio_jax.data.pipeline import BatchIterator, batches, evaluation_batches, merge_states
from stepaudio_jax.data.preparation import BadAudioError, TooLongError, check_sizes
from stepaudio_jax.data.record import Criterion, DataError, Record

__all__ = [
    "Array",
    "AuxiliaryLabels",
    "BadAudioError",
    "Batch",
    "BatchIterator",
    "Criterion",
    "DataError",
    "JsonlFile",
    "JsonlSource",
    "Record",
    "SourceReport",
    "TooLongError",
    "Visit",
    "abstract_batch",
    "batch_shape",
    "batches",
    "check_sizes",
    "check_sources",
    "evaluation_batches",
    "merge_states",
    "open_sources",
    "outputs_per_chunk",
    "read_jsonl",
    "require_audio",
    "source_names",
    "training_streams",
]
