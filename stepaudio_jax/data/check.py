"""A look at the data before a run begins, so that a mistake in it stops the run before anything is written."""

import dataclasses
import os

from stepaudio_jax.config import AuxiliaryConfig, DataConfig, ModelConfig
from stepaudio_jax.data.jsonl import JsonlSource, require_audio
from stepaudio_jax.data.order import Visit
from stepaudio_jax.data.preparation import Preparation
from stepaudio_jax.text import Tokenizer


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
    sources = tuple(JsonlSource(source) for source in config.sources)
    preparation = Preparation(config, tokenizer, model, auxiliary, sources, seed=0)
    reports = []
    for number, source in enumerate(sources):
        seen, skipped = min(read, len(source)), 0
        for index in range(seen):
            if index < prepare:
                skipped += bool(preparation(Visit(number, index, epoch=0)).skipped)
            elif config.on_bad_audio == "error":
                require_audio(source[index])
            else:
                clips = [clip.path for message in source[index].messages for clip in message.audio]
                skipped += not all(map(os.path.isfile, clips))
        reports.append(SourceReport(source.name, len(source), seen, min(prepare, seen), skipped))
    return tuple(reports)
