"""Checks the data of a run's stages before anything is written, shared out over processes, and remembers what was checked."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from stepaudio_jax.config import ConfigError, DataConfig, ModelConfig
from stepaudio_jax.data import (
    BadRecord,
    DataError,
    JsonlSource,
    RecordChecker,
    data_fingerprint,
    find_bad_records,
    num_records_to_check,
    raise_for_bad_records,
)
from stepaudio_jax.parallel import all_gather_json, broadcast_json
from stepaudio_jax.storage import atomic_text_writer
from stepaudio_jax.text import Tokenizer

logger = logging.getLogger(__name__)

CHECKED, SKIPPED_RECORDS = "data_check.json", "skipped_records.jsonl"


class DataChecker:
    """Checks data for a run, and keeps in the run folder what has been checked, so that a restart does not do it again.

    Nothing is written before `write`, so that a mistake leaves no run folder behind.

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
        self._checked: dict[str, str] = broadcast_json(_read(run_dir / CHECKED))
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
        decides = {
            "model": self._model_settings,
            "tokenizer": self._tokenizer.fingerprint(),
            **settings,
        }
        key = self._run_on_all_processes(
            lambda: data_fingerprint(sources, config, decides) if jax.process_index() == 0 else None
        )[0]
        if self._checked.get(title) == key:
            return False
        bad = self._find(title, sources, config, check)
        raise_for_bad_records(bad, sources, config)
        self._checked[title], self._skipped[title] = key, bad
        if bad and jax.process_index() == 0:
            checked = sum(num_records_to_check(source, config) for source in sources)
            logger.warning(
                "%s: %d of %d records will be skipped (%s); they are listed in %s; the first: %s",
                *(
                    title,
                    len(bad),
                    checked,
                    _counts(bad),
                    self._run_dir / SKIPPED_RECORDS,
                    bad[0].message,
                ),
            )
        return True

    def write(self) -> None:
        """Writes what was checked, and the records that will be skipped, into the run folder; process 0 does."""
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
            with atomic_text_writer(listing) as file:
                file.writelines(
                    json.dumps(line, ensure_ascii=False) + "\n" for line in kept + listed
                )
        with atomic_text_writer(
            self._run_dir / CHECKED
        ) as file:  # last: without it the list is made again
            json.dump(self._checked, file, indent=2)

    def _find(
        self, title: str, sources: Sequence[JsonlSource], config: DataConfig, check: RecordChecker
    ) -> list[BadRecord]:
        """Checks this process's share, and returns what all of them found."""
        share = jax.process_index(), jax.process_count()

        def check_share() -> list[tuple[Any, ...]]:
            bad = find_bad_records(
                sources, config, check, shard=share, title=title if share[0] == 0 else ""
            )
            return [dataclasses.astuple(record) for record in bad]

        return sorted(
            BadRecord(*values)
            for found in self._run_on_all_processes(check_share)
            for values in found
        )

    @staticmethod
    def _run_on_all_processes(work: Callable[[], Any]) -> list[Any]:
        """Runs `work` in every process, and returns the JSON-ready results of all, in the order of processes.

        Raises:
            ConfigError, DataError: what it raised in some process, in all of them: none waits for
                one that has failed.
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


def _counts(bad: Sequence[BadRecord]) -> str:
    reasons = sorted({record.skipped or "" for record in bad})
    return ", ".join(
        f"{reason}: {sum(record.skipped == reason for record in bad)}" for reason in reasons
    )


def _read(path: pathlib.Path) -> dict[str, str]:
    """Returns what was checked before; nothing where the file is missing or damaged, for then it is checked again."""
    try:
        checked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _read_skipped(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what was listed before; nothing where the list is missing or damaged: it is for people, and is made anew."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [line for line in lines if isinstance(line, dict) and "checked" in line]
