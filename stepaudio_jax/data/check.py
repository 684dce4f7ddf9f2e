"""A look at the data before a run begins, so that a mistake in it stops the run before anything is written."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from stepaudio_jax.config import AuxiliaryConfig, DataConfig, ModelConfig
from stepaudio_jax.data.jsonl import JsonlSource, open_sources, require_audio
from stepaudio_jax.data.order import Visit
from stepaudio_jax.data.preparation import Preparation
from stepaudio_jax.data.record import DataError
from stepaudio_jax.text import Tokenizer

_THREADS, _AT_ONCE = 32, 128  # a network's file system answers slowly, and many at a time


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """What was seen of one source.

    Attributes:
        name: the source.
        records: in the source.
        read: records of which each line was parsed, and each clip found.
        prepared: records that were decoded and rendered as well.
        skipped: of `read`, those that will be skipped, as far as seen.
    """

    name: str
    records: int
    read: int
    prepared: int
    skipped: int


def check_sources(
    config: DataConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    auxiliary: AuxiliaryConfig | None = None,
    read: int = 100_000,
    prepare: int = 64,
) -> tuple[SourceReport, ...]:
    """Reads the beginning of every source.

    Args:
        config, tokenizer, model, auxiliary: as of `batches`.
        read: so many records of a source are parsed and their clips looked for: about 20 microseconds each.
        prepare: so many of them are decoded and rendered as well, as for training: some milliseconds each.

    Raises:
        DataError: the first mistake, in the order of the files, that the configuration does not say to skip.
        ConfigError: the sizes contradict the model.
    """
    sources = open_sources(config.sources)
    preparation = Preparation(config, tokenizer, model, auxiliary, sources, seed=0)
    reports = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, source in enumerate(sources):
            seen, prepared = min(read, len(source)), min(prepare, len(source), read)
            skipped = sum(bool(preparation(Visit(number, index, epoch=0)).skipped) for index in range(prepared))
            starts = range(prepared, seen, _AT_ONCE)
            parts = [range(start, min(start + _AT_ONCE, seen)) for start in starts]
            look = functools.partial(_without_audio, source, skip=config.on_bad_audio == "skip")
            try:
                skipped += sum(pool.map(look, parts))
            except DataError:
                pool.shutdown(cancel_futures=True)
                raise
            reports.append(SourceReport(source.name, len(source), seen, prepared, skipped))
    return tuple(reports)


def _without_audio(source: JsonlSource, indices: Iterable[int], *, skip: bool) -> int:
    """How many of these records name a clip that is no file; where they are not to be skipped, the first is an error."""
    missing = 0
    for record in map(source.__getitem__, indices):
        if skip:
            missing += not all(os.path.isfile(clip.path) for message in record.messages for clip in message.audio)
        else:
            require_audio(record)
    return missing
