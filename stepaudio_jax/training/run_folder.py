"""The folder of a run, and the guard against continuing it with another configuration."""

import datetime
import json
import os
import pathlib
import re
import socket
from typing import Any

import jax
from jax.experimental import multihost_utils

from stepaudio_jax import hub
from stepaudio_jax.config import Config, LoRAConfig, ModelConfig, to_dict
from stepaudio_jax.errors import ConfigError, LockHeldError, OutputError
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import (
    LockedFile,
    check_parent_writable,
    lock_file,
    read_bytes,
    read_text,
    truncate,
    write_json,
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
