"""Finds the records that a run could not use, before it begins: every line is read and rendered, every clip's header read."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import tqdm

from stepaudio_jax.config import DataConfig, to_dict
from stepaudio_jax.data.preprocessing import skip_reason
from stepaudio_jax.data.record import Record
from stepaudio_jax.data.sources.jsonl import JsonlSource
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import open_read

_THREADS = 32  # a network's file system answers slowly, and many at a time
_BLOCK_RECORDS = 128  # what a thread checks in one go
_DECODED_RECORDS = 64  # of each source: their clips are decoded, some milliseconds each
_MAX_ERRORS = 20  # after which a check ends
_PROGRESS_BAR_DELAY_S = 2.0
_CHECK_VERSION = 1  # of what is checked: another one makes what was checked before worth nothing
# These settings do not decide which records can be used.
_IRRELEVANT_SETTINGS = (
    "batch_size",
    "packing_bins_per_seq",
    "threads",
    "prefetch_batches",
    "augmentation",
    "sources",
)


class RecordChecker(Protocol):
    """Raises a DataError where a record cannot be used; with `decode`, its clips are decoded too."""

    def __call__(self, record: Record, *, decode: bool) -> None: ...


@dataclasses.dataclass(frozen=True, order=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
        source: index of its source.
        record: its index in the source.
        source_name: as in metrics.
        skipped: why it is left out, as the metrics have it ("bad_audio", "too_long", "bad_record");
        None where it ends the run.
        message: `file:line`, and what is wrong.
    """

    source: int
    record: int
    source_name: str
    skipped: str | None
    message: str


def num_records_to_check(source: JsonlSource, config: DataConfig) -> int:
    """Returns how many records of a source are checked."""
    return len(source) if config.check == "all" else min(config.check, len(source))


def find_bad_records(
    sources: Sequence[JsonlSource],
    config: DataConfig,
    check: RecordChecker,
    *,
    shard: tuple[int, int] = (0, 1),
    title: str = "",
) -> list[BadRecord]:
    """Checks the records that `config.check` asks for.

    Args:
        sources: of `config`.
        config: how many records are checked, and which mistakes are skipped.
        check: what is asked of a record.
        shard: (index, count): this process checks blocks index, index + count, .. of all.
        title: of the progress bar that a long check shows; none where it is empty.

    Returns:
        The records that cannot be used, in order; at most a few of those that end the run, for the
        check ends early.

    Raises:
        ConfigError: `check` did.
    """
    index, count = shard
    blocks = [
        (number, range(start, min(start + _BLOCK_RECORDS, checked)))
        for number, source in enumerate(sources)
        for checked in [num_records_to_check(source, config)]
        for start in range(0, checked, _BLOCK_RECORDS)
    ][index::count]

    def check_block(block: tuple[int, range]) -> list[BadRecord]:
        number, records = block
        found = []
        for record in records:
            try:
                check(sources[number][record], decode=record < _DECODED_RECORDS)
            except DataError as error:
                reason = skip_reason(error, config)
                found.append(BadRecord(number, record, sources[number].name, reason, str(error)))
        return found

    bad: list[BadRecord] = []
    total = sum(len(records) for _, records in blocks)
    bar = tqdm.tqdm(
        total=total,
        desc=f"checking {title}",
        unit="record",
        delay=_PROGRESS_BAR_DELAY_S,
        leave=False,
        disable=not title,
    )
    with bar, ThreadPoolExecutor(_THREADS, thread_name_prefix="stepaudio-check") as pool:
        try:
            for (_, records), found in zip(blocks, pool.map(check_block, blocks), strict=True):
                bad += found
                bar.update(len(records))
                if sum(record.skipped is None for record in bad) >= _MAX_ERRORS:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    return bad


def raise_for_bad_records(
    bad: Sequence[BadRecord], sources: Sequence[JsonlSource], config: DataConfig
) -> None:
    """Raises the first of the mistakes that end a run, if there is any, and says how many there are.

    Raises:
        DataError: naming `file:line` of the first, and the lines of the next ones.
    """
    mistakes = [record for record in sorted(bad) if record.skipped is None]
    if mistakes:
        raise DataError(_message(mistakes, sources))
    for number, source in enumerate(sources):
        skipped = [record for record in bad if record.source == number]
        if len(skipped) == len(source):
            raise DataError(
                f"{source.path}: all {len(source)} records would be skipped; the first: {skipped[0].message}"
            )


def data_fingerprint(
    sources: Sequence[JsonlSource], config: DataConfig, settings: Mapping[str, Any]
) -> str:
    """Returns a hash of all that decides what a check finds, but for the clips themselves.

    Args:
        sources: of `config`; their files are read to the end.
        config: of the data.
        settings: what else decides, JSON-ready: of the model, the tokenizer, the rewards.
    """
    asked = {
        name: value for name, value in to_dict(config).items() if name not in _IRRELEVANT_SETTINGS
    }
    digest = hashlib.sha256(json.dumps([_CHECK_VERSION, asked, settings], sort_keys=True).encode())
    for source in sources:
        for file in source.files:
            digest.update(json.dumps([file.path]).encode())
            with open_read(file.path) as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _message(mistakes: Sequence[BadRecord], sources: Sequence[JsonlSource]) -> str:
    first, *others = mistakes
    if not others:
        return first.message
    count = f"at least {len(others)}" if len(mistakes) >= _MAX_ERRORS else str(len(others))
    lines = ", ".join(sources[record.source].origin(record.record) for record in others[:5])
    more = ", .." if len(others) > 5 else ""
    skipping = "data.on_bad_record, on_bad_audio and on_too_long can say 'skip'"
    return f"{first.message} (and {count} more that cannot be used: {lines}{more}; {skipping})"
