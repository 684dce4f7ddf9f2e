"""Data: files of dialogues -> records -> packed, padded batches of static shape.

Read `record` first (the types), then `loader` (the story), `preprocessing`, `packing` and `batch`.
"""

from stepaudio_jax.data.batch import (
    Array,
    AuxiliaryLabels,
    Batch,
    abstract_batch,
    batch_shape,
    check_sizes,
    collate,
)
from stepaudio_jax.data.checking import (
    BadRecord,
    DataChecker,
    RecordChecker,
    check_records,
    data_fingerprint,
    num_records_to_check,
    raise_for_bad_records,
)
from stepaudio_jax.data.loader import (
    BatchIterator,
    batches,
    evaluation_batches,
    merge_states,
    training_streams,
)
from stepaudio_jax.data.preprocessing import Preprocessor
from stepaudio_jax.data.record import Criterion, Record, Visit, record_error_context, skip_reason
from stepaudio_jax.data.source import (
    Source,
    open_source,
    open_sources,
    read_records,
    source_names,
)
from stepaudio_jax.data.split_source import open_stage_sources

__all__ = [
    "Array",
    "AuxiliaryLabels",
    "BadRecord",
    "Batch",
    "BatchIterator",
    "Criterion",
    "DataChecker",
    "Preprocessor",
    "Record",
    "RecordChecker",
    "Source",
    "Visit",
    "abstract_batch",
    "batch_shape",
    "batches",
    "check_records",
    "check_sizes",
    "collate",
    "data_fingerprint",
    "evaluation_batches",
    "merge_states",
    "num_records_to_check",
    "open_source",
    "open_sources",
    "open_stage_sources",
    "raise_for_bad_records",
    "read_records",
    "record_error_context",
    "skip_reason",
    "source_names",
    "training_streams",
]
