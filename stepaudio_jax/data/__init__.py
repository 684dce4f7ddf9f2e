"""Data: JSONL files of dialogues -> Record -> packed, padded, static-shape Batch."""

from stepaudio_jax.data.assembly import abstract_batch, batch_shape, outputs_per_chunk
from stepaudio_jax.data.batch import Array, AuxiliaryLabels, Batch
from stepaudio_jax.data.check import (
    BadRecord,
    CheckRecord,
    count_checked,
    find_bad_records,
    fingerprint,
    raise_mistakes,
)
from stepaudio_jax.data.jsonl import JsonlFile, JsonlSource, open_sources, read_jsonl, source_names
from stepaudio_jax.data.order import Visit, training_streams
from stepaudio_jax.data.pipeline import BatchIterator, batches, evaluation_batches, merge_states
from stepaudio_jax.data.preparation import (
    BadAudioError,
    Preparation,
    TooLongError,
    check_sizes,
    defect_kind,
    naming_record,
    skip_reason,
)
from stepaudio_jax.data.record import Criterion, DataError, Record

__all__ = [
    "Array",
    "AuxiliaryLabels",
    "BadAudioError",
    "BadRecord",
    "Batch",
    "BatchIterator",
    "CheckRecord",
    "Criterion",
    "DataError",
    "JsonlFile",
    "JsonlSource",
    "Preparation",
    "Record",
    "TooLongError",
    "Visit",
    "abstract_batch",
    "batch_shape",
    "batches",
    "check_sizes",
    "count_checked",
    "defect_kind",
    "evaluation_batches",
    "find_bad_records",
    "fingerprint",
    "merge_states",
    "naming_record",
    "open_sources",
    "outputs_per_chunk",
    "raise_mistakes",
    "read_jsonl",
    "skip_reason",
    "source_names",
    "training_streams",
]
