"""The folder of a run, and the guard against continuing it with another configuration."""

import dataclasses
import datetime
import json
import logging
import os
import pathlib
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from stepaudio_jax import hub
from stepaudio_jax.config import Config, DataConfig, LoRAConfig, ModelConfig, to_dict
from stepaudio_jax.data import (
    BadRecord,
    JsonlSource,
    RecordChecker,
    data_fingerprint,
    find_bad_records,
    num_records_to_check,
    raise_for_bad_records,
)
from stepaudio_jax.errors import ConfigError, DataError, LockHeldError, OutputError
from stepaudio_jax.parallel import all_gather_json, broadcast_json
from stepaudio_jax.storage import (
    LockedFile,
    check_parent_writable,
    lock_file,
    read_bytes,
    read_json_lines,
    read_json_or_none,
    read_text,
    truncate,
    write_json,
    write_json_lines,
)
from stepaudio_jax.text import Tokenizer

CONFIG, METRICS, CHECKPOINTS, MODEL = "config.json", "metrics.jsonl", "checkpoints", "model"
# in the folder of checkpoints: the model's configuration and tokenizer, which they need to become a
# model
_SHAPE = "shape"

# These change what is kept and shown, and where it is computed, not what is computed: a continued
# run may differ in them.
_MUTABLE_KEYS = (
    "checkpoint",
    "log_every_steps",
    "mesh",
    "profile_steps",
    "run_dir",
    "max_consecutive_skips",
)
# These too, up to rounding: on fewer or smaller devices a run may have to be computed in another
# way.
_MUTABLE_COMPUTE_KEYS = re.compile(
    r"compute\.(attention|loss_chunks|remat|remat_names|rules(\..*)?)|stages\.\d+\.gradient_accumulation_steps"
)
# So do these, which may have to be mended for a run to go on: what is done with a record that
# cannot be used, what reading the data may take, how an engine lies on the devices, where a judge
# is, and what it may take.
_MUTABLE_STAGE_KEYS = re.compile(
    r"stages\.\d+\.((evaluation\.)?data\.(check|on_bad_audio|on_too_long|on_bad_record|threads|prefetch_batches)"
    r"|objective\.rollout\.(slots|tensor)"
    r"|objective\.judge\.(url|api_key_env|max_tokens|timeout_s|retries|concurrency|slots|max_abstention_rate))"
)


def check_same_run(config: Config) -> None:
    """Checks that `config.run_dir` is free, or holds a run of the same configuration; writes nothing.

    Raises:
        ConfigError: it holds another run; the message names the keys that differ. Or what it holds
            is no run.
    """
    run_dir = pathlib.Path(config.run_dir)
    path = run_dir / CONFIG
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(
            f"run_dir={truncate(config.run_dir)!r} is a file: name the folder that the run is to make"
        )
    if not path.exists():
        try:
            check_parent_writable(
                pathlib.Path(os.path.realpath(path)), f"run_dir={truncate(config.run_dir)!r}"
            )
        except OutputError as error:
            raise ConfigError(str(error)) from None
        found = [name for name in (CHECKPOINTS, MODEL, METRICS) if (run_dir / name).exists()]
        if found:
            raise ConfigError(
                f"run_dir={config.run_dir!r} holds {', '.join(found)} and no {CONFIG} that says of which run: "
                "choose another run_dir, or remove them"
            )
        return
    try:
        earlier = json.loads(read_text(path))
    except ValueError:
        raise ConfigError(
            f"{path} is not JSON, so it is no run's: choose another run_dir, or remove that file"
        ) from None
    differing = sorted(_differences(earlier, to_dict(config)))
    differing = [key for key in differing if not _is_mutable(key)]
    if differing:
        raise ConfigError(
            f"{run_dir} holds a run with another configuration (differs in {', '.join(differing)}): "
            "choose another run_dir, or remove that folder to start again"
        )


def prepare_run_folder(
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    begins: bool,
    adapter: LoRAConfig | None = None,
) -> pathlib.Path:
    """Makes `config.run_dir` and writes into it config.json, and the shape of the model with its tokenizer; returns it.

    Of several processes the first one does. The run may have taken the shape from a folder that is
    elsewhere later; that of its checkpoints stays, once it has any (`begins`: it has none). So does
    that of the `adapter` its initial weights have.
    """
    run_dir = pathlib.Path(config.run_dir)
    if jax.process_index() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / CONFIG, to_dict(config))
        shape = run_dir / CHECKPOINTS / _SHAPE
        if begins or not shape.is_dir():
            hub.save_config_and_tokenizer(shape, model, tokenizer, adapter)
    multihost_utils.sync_global_devices("run folder claimed")
    return run_dir


def read_model_spec(run_dir: pathlib.Path) -> tuple[ModelConfig, Tokenizer]:
    """The shape of a run's model, and its tokenizer.

    Raises:
        CheckpointError: the folder holds none.
    """
    folder = run_dir / CHECKPOINTS / _SHAPE
    return hub.read_model_config(folder), hub.load_tokenizer(folder)


def read_initial_adapter(run_dir: pathlib.Path) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter that a run's initial weights had beside them, if any.

    Raises:
        CheckpointError: the folder holds none of a model's shape.
    """
    return hub.checkpoint_lora_config(run_dir / CHECKPOINTS / _SHAPE)


def _is_mutable(key: str) -> bool:
    patterns = (_MUTABLE_COMPUTE_KEYS, _MUTABLE_STAGE_KEYS)
    return key.split(".")[0] in _MUTABLE_KEYS or any(pattern.fullmatch(key) for pattern in patterns)


def _differences(left: Any, right: Any, key: str = "") -> list[str]:
    """Dotted keys at which two JSON values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            found
            for name in left.keys() | right.keys()
            for found in _differences(
                left.get(name), right.get(name), f"{key}.{name}" if key else name
            )
        ]
    nested = isinstance(left, list) and isinstance(right, list) and len(left) == len(right)
    if nested and all(isinstance(item, dict) for item in (*left, *right)):
        pairs = enumerate(zip(left, right, strict=True))
        return [
            found
            for index, (one, other) in pairs
            for found in _differences(one, other, f"{key}.{index}")
        ]
    return [] if left == right else [key]


# Keeps a second job away from a run folder.

LOCK = ".lock"


class RunLock:
    """The lock of a run folder, in a file there that process 0 holds: whatever ends that process lets the folder go.

    Every process calls the same methods, and every one raises what process 0 has found. What only
    reads the folder (a report, the model of a checkpoint) needs no lock.

    Args:
        run_dir: the folder.
    """

    def __init__(self, run_dir: str):
        self._run_dir = run_dir
        self._held: LockedFile | None = None

    def acquire_if_exists(self) -> None:
        """Takes the lock where the folder holds a run already.

        Raises:
            ConfigError: another job holds it.
        """
        problem = None
        if jax.process_index() == 0 and (pathlib.Path(self._run_dir) / CONFIG).exists():
            problem = self._take()
        _raise_on_all_processes(problem)

    def acquire(self) -> None:
        """Makes the folder, and takes the lock if it is not held yet.

        Raises:
            ConfigError: another job holds it, or has begun a run there since this one looked.
        """
        problem = None
        if jax.process_index() == 0 and self._held is None:
            problem = self._take()
            if problem is None and (pathlib.Path(self._run_dir) / CONFIG).exists():
                problem = f"run_dir={self._run_dir!r}: another job has begun there meanwhile; start the same command again"
        _raise_on_all_processes(problem)

    def close(self) -> None:
        """Lets the folder go, and removes the lock's file; one that a killed run leaves is nobody's, and taken."""
        if self._held is not None:
            pathlib.Path(self._held.path).unlink(missing_ok=True)
            self._held.close()
            self._held = None

    def _take(self) -> str | None:
        """Takes the lock; returns why it cannot be had, or None."""
        path = pathlib.Path(self._run_dir) / LOCK
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = lock_file(path)
            os.ftruncate(self._held.file.fileno(), 0)
            os.write(self._held.file.fileno(), json.dumps(holder).encode() + b"\n")
        except LockHeldError as error:
            who = " in this process" if error.by_this_process else _holder(path)
            return f"run_dir={self._run_dir!r} is in use by another job{who}: wait for it or stop it, or choose another run_dir"
        except OSError as error:  # told to the other processes too, which wait for an answer
            return f"run_dir={self._run_dir!r} cannot be locked: {error}"
        return None


def _holder(path: pathlib.Path) -> str:
    """Who says in the file that it holds it, for a message; empty where that cannot be read."""
    try:
        holder = json.loads(read_bytes(path))
        return f" (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _raise_on_all_processes(problem: str | None) -> None:
    problem = broadcast_json(problem)
    if problem is not None:
        raise ConfigError(problem)


# Checks the data of a run's stages before anything is written, shared out over processes, and remembers what was checked.

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
            write_json_lines(listing, kept + listed)
        # Last: without this file the list is made again.
        write_json(self._run_dir / CHECKED, self._checked)

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
    checked = read_json_or_none(path)
    return checked if isinstance(checked, dict) else {}


def _read_skipped(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what was listed before; nothing where the list is missing or damaged: it is for people, and is made anew."""
    try:
        lines = [line.value for line in read_json_lines(path)]
    except OSError:
        return []
    return [line for line in lines if isinstance(line, dict) and "checked" in line]
