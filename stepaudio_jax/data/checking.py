"""Checks a run's data before it begins: reads every line, renders it, and reads each clip's header.

`DataChecker` shares the work out over processes and remembers in the run folder what was checked.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import tqdm

from stepaudio_jax.config import DataConfig, ModelConfig, to_dict
from stepaudio_jax.data.record import Content, Record, skip_reason
from stepaudio_jax.data.split_source import AnySource, SplitSource
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.parallel import all_gather_json, broadcast_json
from stepaudio_jax.storage import (
    Path,
    fingerprint_file,
    read_json_lines,
    read_json_or_none,
    write_json,
    write_json_lines,
)
from stepaudio_jax.text import Tokenizer

logger = logging.getLogger(__name__)

CHECKED, SKIPPED_RECORDS = "data_check.json", "skipped_records.jsonl"  # in the run folder

_THREADS = 32  # a network file system answers slowly, but many requests at a time
_BLOCK_RECORDS = 128  # what a thread checks at a time
_DECODED_RECORDS = 64  # of each source, whose clips are decoded, at some milliseconds each
_MAX_ERRORS = 20  # after which a check ends
_PROGRESS_BAR_DELAY_S = 2.0
_CHECK_VERSION = 3  # raise it when more is checked, so that runs check their data again
# These settings do not decide which records can be used.
_IRRELEVANT_SETTINGS = (
    "batch_size",
    "packing_bins_per_seq",
    "threads",
    "workers",
    "prefetch_batches",
    "clip_cache_dir",
    "clip_cache_gb",
    "augmentation",
    "sources",
)


class RecordChecker(Protocol):
    """Returns what a record holds, or raises a DataError if it cannot be used.

    With `decode`, its clips are decoded too.
    """

    def __call__(self, record: Record, *, decode: bool) -> Content: ...


@dataclasses.dataclass(frozen=True, order=True)
class BadRecord:
    """Describes a record that cannot be used.

    Attributes:
        source: index of its source.
        record: its index in the source.
        source_name: as in metrics.
        skipped: why it is skipped, as in metrics ("bad_audio", "too_long", "bad_record"); None if
            it ends the run.
        message: `file:line`, and what is wrong.
    """

    source: int
    record: int
    source_name: str
    skipped: str | None
    message: str


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Holds what a check has found.

    Attributes:
        bad: the records that cannot be used, in order.
        contents: for each source, what its usable records hold.
    """

    bad: list[BadRecord]
    contents: list[Content]


@dataclasses.dataclass(frozen=True)
class CheckedData:
    """Holds what a check of some sources has found.

    Attributes:
        title: of what was checked: the stage, or its evaluation.
        sources: of `config`.
        config: of the data.
        result: of the check.
    """

    title: str
    sources: tuple[AnySource, ...]
    config: DataConfig
    result: CheckResult


class DataChecker:
    """Checks data for a run, and keeps in the run folder what has been checked.

    A restart does not check it again. Nothing is written before `write`, so that an error leaves
    no run folder behind.

    Args:
        run_dir: of the run; it need not exist. None checks everything, and writes nothing.
        model, tokenizer: of the run.

    Attributes:
        checked: what this object has checked, in order.
    """

    def __init__(self, run_dir: Path | None, model: ModelConfig, tokenizer: Tokenizer):
        self.checked: list[CheckedData] = []
        self._run_dir, self._tokenizer = run_dir, tokenizer
        self._model_settings = [
            model.length_convention,
            model.decoder.max_positions,
            model.encoder.positions,
        ]
        self._checked: dict[str, Any] = (
            {} if run_dir is None else broadcast_json(_read_checked(run_dir / CHECKED))
        )
        self._skipped: dict[str, list[BadRecord]] = {}

    def __call__(
        self,
        title: str,
        sources: Sequence[AnySource],
        config: DataConfig,
        check: RecordChecker,
        settings: Mapping[str, Any],
    ) -> bool:
        """Checks the records of `sources`, unless that was done before.

        Args:
            title: of what is checked: the stage, or its evaluation.
            sources: of `config`.
            config: how many records are checked, and which errors are skipped.
            check: is called with each record.
            settings: what else decides whether a record can be used, JSON-ready.

        Returns:
            Whether they were checked now.

        Raises:
            DataError: a record cannot be used, and `config` does not skip it; the same in every
                process.
            ConfigError: `check` raised one.
        """
        settings = {
            "model": self._model_settings,
            "tokenizer": self._tokenizer.fingerprint(),
            **settings,
        }
        key = _run_on_all_processes(
            lambda: (
                data_fingerprint(sources, config, settings) if jax.process_index() == 0 else None
            )
        )[0]
        if self._checked.get(title, {}).get("key") == key:
            _log_contents(title, self._checked[title]["contents"])
            return False
        result = _check_on_all_processes(title, sources, config, check)
        bad = result.bad
        self.checked.append(CheckedData(title, tuple(sources), config, result))
        raise_for_bad_records(bad, sources, config)
        for source in sources:
            if isinstance(source, SplitSource) and source.num_split and jax.process_index() == 0:
                logger.info("%s: %s: %s", title, source.path, source.describe_parts())
        contents = {
            f"{source.name} ({source.path})": dataclasses.asdict(content)
            for source, content in zip(sources, result.contents, strict=True)
        }
        self._checked[title] = {"key": key, "contents": contents}
        self._skipped[title] = bad
        if self._run_dir is None:
            return True
        _log_contents(title, contents)
        if bad and jax.process_index() == 0:
            logger.warning(
                "%s: %d of %d records will be skipped (%s); they are listed in %s; the first: %s",
                title,
                len(bad),
                sum(num_records_to_check(source, config) for source in sources),
                count_reasons(bad),
                self._run_dir / SKIPPED_RECORDS,
                bad[0].message,
            )
        return True

    def write(self) -> None:
        """Writes what was checked, and the records that will be skipped; process 0 does."""
        if jax.process_index() != 0 or not self._skipped or self._run_dir is None:
            return
        new_lines = [
            {
                "checked": title,
                "source": record.source_name,
                "reason": record.skipped,
                "message": record.message,
            }
            for title, skipped in self._skipped.items()
            for record in skipped
        ]
        path = self._run_dir / SKIPPED_RECORDS
        kept_lines = [line for line in _read_skipped(path) if line["checked"] not in self._skipped]
        if kept_lines or new_lines or path.exists():
            write_json_lines(path, kept_lines + new_lines)
        # Last: if the list could not be written, the data is checked again.
        write_json(self._run_dir / CHECKED, self._checked)


def check_records(
    sources: Sequence[AnySource],
    config: DataConfig,
    check: RecordChecker,
    *,
    shard: tuple[int, int] = (0, 1),
    title: str = "",
) -> CheckResult:
    """Checks the records that `config.check` asks for.

    Args:
        sources: of `config`.
        config: how many records are checked, and which errors are skipped.
        check: is called with each record.
        shard: (index, count): this process checks blocks index, index + count, .. of all.
        title: of the progress bar that a long check shows; none if it is empty.

    Returns:
        What it has found; it ends early after some records that end the run.

    Raises:
        ConfigError: `check` did.
    """
    shard_index, num_shards = shard
    blocks = [
        (number, range(start, min(start + _BLOCK_RECORDS, num_records)))
        for number, source in enumerate(sources)
        for num_records in [num_records_to_check(source, config)]
        for start in range(0, num_records, _BLOCK_RECORDS)
    ][shard_index::num_shards]

    def check_block(block: tuple[int, range]) -> tuple[list[BadRecord], Content]:
        number, indices = block
        bad, content = [], Content()
        for index in indices:
            try:
                content += check(sources[number][index], decode=index < _DECODED_RECORDS)
            except DataError as error:
                reason = skip_reason(error, config)
                bad.append(BadRecord(number, index, sources[number].name, reason, str(error)))
        return bad, content

    bad: list[BadRecord] = []
    contents = [Content()] * len(sources)
    bar = tqdm.tqdm(
        total=sum(len(indices) for _, indices in blocks),
        desc=f"checking {title}",
        unit="record",
        delay=_PROGRESS_BAR_DELAY_S,
        leave=False,
        disable=not title,
    )
    with bar, ThreadPoolExecutor(_THREADS, thread_name_prefix="stepaudio-check") as pool:
        try:
            results = pool.map(check_block, blocks)
            for (number, indices), (bad_in_block, content) in zip(blocks, results, strict=True):
                bad += bad_in_block
                contents[number] += content
                bar.update(len(indices))
                if sum(record.skipped is None for record in bad) >= _MAX_ERRORS:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    return CheckResult(bad, contents)


def num_records_to_check(source: AnySource, config: DataConfig) -> int:
    """Returns how many records of a source are checked."""
    return len(source) if config.check == "all" else min(config.check, len(source))


def raise_for_bad_records(
    bad: Sequence[BadRecord], sources: Sequence[AnySource], config: DataConfig
) -> None:
    """Raises the first of the errors that end a run, if there are any, and says how many.

    Raises:
        DataError: names `file:line` of the first, and the lines of the next ones; or every record
            of a source would be skipped.
    """
    fatal = [record for record in sorted(bad) if record.skipped is None]
    if fatal:
        raise DataError(_format_errors(fatal, sources))
    for number, source in enumerate(sources):
        skipped = [record for record in bad if record.source == number]
        if len(skipped) == len(source):
            raise DataError(
                f"{source.path}: all {len(source)} records would be skipped;"
                f" the first: {skipped[0].message}"
            )


def data_fingerprint(
    sources: Sequence[AnySource], config: DataConfig, settings: Mapping[str, Any]
) -> str:
    """Returns a hash of all that decides the result of a check, except the clips themselves.

    Args:
        sources: of `config`; their files are read, large ones at both ends only.
        config: of the data.
        settings: what else decides, JSON-ready: of the model, the tokenizer, the rewards.
    """
    relevant = {
        name: value for name, value in to_dict(config).items() if name not in _IRRELEVANT_SETTINGS
    }
    text = json.dumps([_CHECK_VERSION, relevant, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for source in sources:
        digest.update(json.dumps([source.path, source.settings]).encode())
        for path in source.files:
            digest.update(json.dumps([path, fingerprint_file(path)]).encode())
    return digest.hexdigest()


def _format_errors(fatal: Sequence[BadRecord], sources: Sequence[AnySource]) -> str:
    first, *others = fatal
    if not others:
        return first.message
    count = f"at least {len(others)}" if len(fatal) >= _MAX_ERRORS else str(len(others))
    lines = ", ".join(sources[record.source].origin(record.record) for record in others[:5])
    more = ", .." if len(others) > 5 else ""
    skipping = "data.on_bad_record, on_bad_audio and on_too_long can say 'skip'"
    return f"{first.message} (and {count} more that cannot be used: {lines}{more}; {skipping})"


def _check_on_all_processes(
    title: str, sources: Sequence[AnySource], config: DataConfig, check: RecordChecker
) -> CheckResult:
    """Checks this process's shard, and returns what all have found."""
    shard = jax.process_index(), jax.process_count()

    def check_shard() -> list[list[tuple[Any, ...]]]:
        result = check_records(
            sources, config, check, shard=shard, title=title if shard[0] == 0 else ""
        )
        return [
            [dataclasses.astuple(record) for record in result.bad],
            [dataclasses.astuple(content) for content in result.contents],
        ]

    bad: list[BadRecord] = []
    contents = [Content()] * len(sources)
    for bad_in_shard, contents_of_shard in _run_on_all_processes(check_shard):
        bad += [BadRecord(*values) for values in bad_in_shard]
        of_shard = [Content(*counts) for counts in contents_of_shard]
        contents = [mine + theirs for mine, theirs in zip(contents, of_shard, strict=True)]
    return CheckResult(sorted(bad), contents)


def _log_contents(title: str, contents: Mapping[str, Mapping[str, int]]) -> None:
    """Logs what each source holds; process 0 does."""
    if jax.process_index() == 0:
        for source, counts in contents.items():
            logger.info("%s: %s: %s", title, source, Content(**counts))


def _run_on_all_processes(work: Callable[[], Any]) -> list[Any]:
    """Runs `work` in every process; returns the JSON-ready results in the order of processes.

    Raises:
        ConfigError, DataError: in all processes, what it raised in one of them: none waits for one
            that has failed.
    """
    result, problem, kind = None, "", ""
    try:
        result = work()
    except (ConfigError, DataError, OSError) as error:
        problem, kind = str(error), "config" if isinstance(error, ConfigError) else "data"
    reports = all_gather_json([result, problem, kind])
    for _, problem, kind in reports:
        if problem:
            raise ConfigError(problem) if kind == "config" else DataError(problem)
    return [result for result, _, _ in reports]


def count_reasons(bad: Sequence[BadRecord]) -> str:
    """Returns why records will be skipped, and how many for each reason."""
    reasons = sorted({record.skipped or "" for record in bad})
    return ", ".join(
        f"{reason}: {sum(record.skipped == reason for record in bad)}" for reason in reasons
    )


def _read_checked(path: Path) -> dict[str, Any]:
    """Returns what was checked before: nothing if the file is missing or damaged."""
    checked = read_json_or_none(path)
    if not isinstance(checked, dict):
        return {}
    return {title: value for title, value in checked.items() if isinstance(value, dict)}


def _read_skipped(path: Path) -> list[dict[str, Any]]:
    """Returns what was listed before: nothing if the file is missing or damaged."""
    try:
        lines = [line.value for line in read_json_lines(path)]
    except OSError:
        return []
    return [line for line in lines if isinstance(line, dict) and "checked" in line]
