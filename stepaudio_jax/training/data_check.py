"""Checks the data of a run's stages before anything is written, shared out over processes, and remembers what was checked."""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from stepaudio_jax.config import ConfigError, DataConfig, ModelConfig
from stepaudio_jax.data import (
    BadRecord,
    CheckRecord,
    JsonlSource,
    count_checked,
    find_bad_records,
    fingerprint,
    raise_mistakes,
)
from stepaudio_jax.parallel import gather_json, told_by_first
from stepaudio_jax.text import Tokenizer

logger = logging.getLogger(__name__)

CHECKED, SKIPPED_RECORDS = "data_check.json", "skipped_records.jsonl"


class DataCheck:
    """Checks data for a run, and keeps in the run folder what has been checked, so that a restart does not do it again.

    Nothing is written before `write`, so that a mistake leaves no run folder behind.

    Args:
        run_dir: of the run; it need not exist.
        model, tokenizer: of the run.
    """

    def __init__(self, run_dir: pathlib.Path, model: ModelConfig, tokenizer: Tokenizer):
        self._run_dir, self._tokenizer = run_dir, tokenizer
        self._model_settings = [model.length_convention, model.decoder.max_positions, model.encoder.positions]
        self._checked: dict[str, str] = told_by_first(_read(run_dir / CHECKED))
        self._skipped: dict[str, list[BadRecord]] = {}

    def __call__(
        self, title: str, sources: Sequence[JsonlSource], config: DataConfig, check: CheckRecord, settings: Mapping[str, Any]
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
            DataError: a record cannot be used, and `config` does not say to skip it; every process raises the same.
            ConfigError: `check` raised one.
        """
        decides = {"model": self._model_settings, "tokenizer": self._tokenizer.fingerprint(), **settings}
        key = told_by_first(fingerprint(sources, config, decides) if jax.process_index() == 0 else None)
        if self._checked.get(title) == key:
            return False
        bad = self._find(title, sources, config, check)
        raise_mistakes(bad, sources, config)
        self._checked[title], self._skipped[title] = key, bad
        if bad and jax.process_index() == 0:
            checked = sum(count_checked(source, config) for source in sources)
            logger.warning(
                "%s: %d of %d records will be skipped (%s); they are listed in %s; the first: %s",
                *(title, len(bad), checked, _counts(bad), self._run_dir / SKIPPED_RECORDS, bad[0].message),
            )
        return True

    def write(self) -> None:
        """Writes what was checked, and the records that will be skipped, into the run folder; process 0 does."""
        if jax.process_index() != 0 or not self._skipped:
            return
        listed = [
            {"checked": title, "source": record.source_name, "reason": record.skipped, "message": record.message}
            for title, skipped in self._skipped.items()
            for record in skipped
        ]
        earlier = [line for line in _read_lines(self._run_dir / SKIPPED_RECORDS) if line["checked"] not in self._skipped]
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in earlier + listed]
        _replace(self._run_dir / SKIPPED_RECORDS, "".join(lines))
        _replace(self._run_dir / CHECKED, json.dumps(self._checked, indent=2) + "\n")  # last: a list without it is made again

    def _find(self, title: str, sources: Sequence[JsonlSource], config: DataConfig, check: CheckRecord) -> list[BadRecord]:
        """Checks this process's share, and returns what all of them found."""
        share = jax.process_index(), jax.process_count()
        bad: list[BadRecord] = []
        problem = ""
        try:
            bad = find_bad_records(sources, config, check, share=share, title=title if share[0] == 0 else "")
        except ConfigError as error:  # told to the other processes, which wait for what is found here
            problem = str(error)
        reports = gather_json({"problem": problem, "bad": [dataclasses.astuple(record) for record in bad]})
        if problems := [report["problem"] for report in reports if report["problem"]]:
            raise ConfigError(problems[0])
        return sorted(BadRecord(*values) for report in reports for values in report["bad"])


def _counts(bad: Sequence[BadRecord]) -> str:
    reasons = sorted({record.skipped or "" for record in bad})
    return ", ".join(f"{reason}: {sum(record.skipped == reason for record in bad)}" for reason in reasons)


def _read(path: pathlib.Path) -> dict[str, str]:
    """Returns what was checked before; nothing where the file is missing or damaged, for then it is checked again."""
    try:
        checked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _replace(path: pathlib.Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
