"""Checks the data of a run's stages before the run writes anything."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from stepaudio_jax.config import DataConfig, ModelConfig
from stepaudio_jax.data import (
    BadRecord,
    JsonlSource,
    RecordChecker,
    data_fingerprint,
    find_bad_records,
    num_records_to_check,
    raise_for_bad_records,
)
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.parallel import all_gather_json, broadcast_json
from stepaudio_jax.storage import (
    read_json_lines,
    read_json_or_none,
    write_json,
    write_json_lines,
)
from stepaudio_jax.text import Tokenizer

CHECKED, SKIPPED_RECORDS = "data_check.json", "skipped_records.jsonl"

logger = logging.getLogger(__name__)


class DataChecker:
    """Checks the data of a run's stages, and remembers in the run folder what has been checked.

    The records are shared out over the processes. Nothing is written before `write`, so that a
    mistake leaves no run folder behind.

    Args:
        run_dir: of the run; it need not exist.
        model, tokenizer: of the run.
    """

    def __init__(self, run_dir: pathlib.Path, model: ModelConfig, tokenizer: Tokenizer):
        self._run_dir, self._tokenizer = run_dir, tokenizer
        self._model_settings = [
            model.length_convention,
            model.decoder.max_positions,
            model.encoder.positions,
        ]
        self._checked: dict[str, str] = broadcast_json(_read_checked(run_dir / CHECKED))
        self._skipped: dict[str, list[BadRecord]] = {}

    def __call__(
        self,
        title: str,
        sources: Sequence[JsonlSource],
        config: DataConfig,
        check: RecordChecker,
        settings: Mapping[str, Any],
    ) -> bool:
        """Checks the records of `sources`, unless that was done before.

        Args:
            title: of what is checked: the stage, or its evaluation.
            sources: of `config`.
            config: how many records are checked, and which mistakes are skipped.
            check: what is asked of a record.
            settings: what else decides whether a record can be used, JSON-ready.

        Returns:
            Whether they were checked now.

        Raises:
            DataError: a record cannot be used, and `config` does not say to skip it; every process
            raises the same.
            ConfigError: `check` raised one.
        """
        all_settings = {
            "model": self._model_settings,
            "tokenizer": self._tokenizer.fingerprint(),
            **settings,
        }

        def fingerprint() -> str | None:
            if jax.process_index() != 0:
                return None
            return data_fingerprint(sources, config, all_settings)

        fingerprints = _run_on_all_processes(fingerprint)
        if self._checked.get(title) == fingerprints[0]:
            return False
        bad = _find_bad_records(title, sources, config, check)
        raise_for_bad_records(bad, sources, config)
        self._checked[title], self._skipped[title] = fingerprints[0], bad
        if bad and jax.process_index() == 0:
            checked = sum(num_records_to_check(source, config) for source in sources)
            logger.warning(
                "%s: %d of %d records will be skipped (%s); they are listed in %s; the first: %s",
                title,
                len(bad),
                checked,
                _count_reasons(bad),
                self._run_dir / SKIPPED_RECORDS,
                bad[0].message,
            )
        return True

    def write(self) -> None:
        """Writes what was checked, and which records will be skipped, into the run folder."""
        if jax.process_index() != 0 or not self._skipped:
            return
        listed = [
            {
                "checked": title,
                "source": record.source_name,
                "reason": record.skipped,
                "message": record.message,
            }
            for title, skipped in self._skipped.items()
            for record in skipped
        ]
        listing = self._run_dir / SKIPPED_RECORDS
        kept = [line for line in _read_skipped(listing) if line["checked"] not in self._skipped]
        if kept or listed or listing.exists():
            write_json_lines(listing, kept + listed)
        # Written last: without it the data is checked again.
        write_json(self._run_dir / CHECKED, self._checked)


def _find_bad_records(
    title: str, sources: Sequence[JsonlSource], config: DataConfig, check: RecordChecker
) -> list[BadRecord]:
    """Checks this process's share of the records; returns what all processes found."""
    process = jax.process_index()

    def check_share() -> list[tuple[Any, ...]]:
        bad = find_bad_records(
            sources,
            config,
            check,
            shard=(process, jax.process_count()),
            title=title if process == 0 else "",
        )
        return [dataclasses.astuple(record) for record in bad]

    shares = _run_on_all_processes(check_share)
    return sorted(BadRecord(*values) for share in shares for values in share)


def _run_on_all_processes(work: Callable[[], Any]) -> list[Any]:
    """Runs `work` in every process; returns the JSON-ready results in the order of processes.

    Raises:
        ConfigError, DataError: what one process raised, in all of them, so that none waits for one
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


def _count_reasons(bad: Sequence[BadRecord]) -> str:
    reasons = sorted({record.skipped or "" for record in bad})
    return ", ".join(
        f"{reason}: {sum(record.skipped == reason for record in bad)}" for reason in reasons
    )


def _read_checked(path: pathlib.Path) -> dict[str, str]:
    """Returns what was checked before; {} (all is checked again) without a readable file."""
    checked = read_json_or_none(path)
    return checked if isinstance(checked, dict) else {}


def _read_skipped(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the listed records; [] if the list, which is for people, is missing or damaged."""
    try:
        lines = [line.value for line in read_json_lines(path)]
    except OSError:
        return []
    return [line for line in lines if isinstance(line, dict) and "checked" in line]
