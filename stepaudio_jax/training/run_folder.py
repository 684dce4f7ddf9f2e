"""The folder of a run: its configuration, the shape of its model, and its lock."""

import datetime
import json
import os
import re
import socket
from typing import Any

import jax
from jax.experimental import multihost_utils

from stepaudio_jax import hub
from stepaudio_jax.config import Config, LoRAConfig, ModelConfig, to_dict
from stepaudio_jax.errors import CheckpointError, ConfigError, LockHeldError, OutputError
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import (
    BucketPath,
    Lock,
    Path,
    appended_exists,
    check_parent_writable,
    read_bytes,
    read_text,
    take_lock,
    to_path,
    truncate,
    write_json,
)
from stepaudio_jax.text import Tokenizer

CONFIG, METRICS, CHECKPOINTS, MODEL = "config.json", "metrics.jsonl", "checkpoints", "model"
LOCK = ".lock"
# In the folder of checkpoints: the model's shape and tokenizer, without which they are no model.
_MODEL_SPEC = "shape"

# The version of what is in a run folder, in its config.json. Layout 1, which had no number, kept
# all parameters of a train state in two trees, and other configuration keys.
LAYOUT = 2

# Keys in which a run may differ when it is continued. These change what is kept and shown, and
# where it is computed, not what is computed.
_MUTABLE_KEYS = (
    "checkpoint",
    "log_every_steps",
    "mesh",
    "profile_steps",
    "run_dir",
    "max_consecutive_skips",
)
# These change the computation up to rounding: fewer or smaller devices may need it.
_MUTABLE_COMPUTE_KEYS = re.compile(
    r"compute\.(attention|loss_chunks|remat|remat_names|rules(\..*)?)"
    r"|stages\.\d+\.gradient_accumulation_steps"
)
# A run may need these to go on: what happens to records that cannot be used, the resources for
# reading data, how the engine is placed on the devices, where judge, simulated user and teacher are
# and what they may use.
_MUTABLE_STAGE_KEYS = re.compile(
    r"stages\.\d+\.("
    r"(evaluation\.)?data\."
    r"(check|on_bad_audio|on_too_long|on_bad_record|threads|workers|prefetch_batches"
    r"|clip_cache_dir|clip_cache_gb)"
    r"|objective\.rollout\.(slots|tensor)"
    r"|objective\.judge\.(url|api_key_env|max_tokens|timeout_s|retries|concurrency|slots"
    r"|max_abstention_rate)"
    r"|objective\.rollout\.simulated_user\.(url|api_key_env|timeout_s|retries|concurrency|slots"
    r"|speak_timeout_s|max_failure_rate)"
    r"|objective\.teacher_endpoint\.(url|api_key_env|timeout_s|retries|concurrency))"
)


def check_same_run(config: Config) -> None:
    """Checks that `config.run_dir` is free, or holds a run of the same configuration.

    Raises:
        ConfigError: it holds another run (the message names the keys that differ), or no run.
        CheckpointError: it holds a run of an older layout.
    """
    run_dir = to_path(config.run_dir)
    path = run_dir / CONFIG
    check_orbax_can_keep(run_dir)
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(
            f"run_dir={truncate(config.run_dir)!r} is a file: name the folder that the run is to "
            "make"
        )
    if not path.exists():
        try:
            check_parent_writable(path, f"run_dir={truncate(config.run_dir)!r}")
        except OutputError as error:
            raise ConfigError(str(error)) from None
        leftovers = [name for name in (CHECKPOINTS, MODEL) if (run_dir / name).exists()]
        leftovers += [METRICS] if appended_exists(run_dir / METRICS) else []
        if leftovers:
            raise ConfigError(
                f"run_dir={config.run_dir!r} holds {', '.join(leftovers)} and no {CONFIG} that "
                "says of which run: choose another run_dir, or remove them"
            )
        return
    try:
        saved = json.loads(read_text(path))
    except ValueError:
        raise ConfigError(
            f"{path} is not JSON, so it is no run's: choose another run_dir, or remove that file"
        ) from None
    differing = _differing_keys(_without_layout(saved, run_dir), to_dict(config))
    differing = sorted(key for key in differing if not _is_mutable(key))
    if differing:
        raise ConfigError(
            f"{run_dir} holds a run with another configuration (differs in "
            f"{', '.join(differing)}): choose another run_dir, or remove that folder to start again"
        )


def check_orbax_can_keep(run_dir: Path) -> None:
    """Checks that a run folder is where Orbax can keep checkpoints.

    Raises:
        ConfigError: it is in `s3://`.
    """
    if isinstance(run_dir, BucketPath) and run_dir.address[0] != "gs":
        raise ConfigError(
            f"run_dir={str(run_dir)!r}: Orbax cannot keep checkpoints in s3:// yet; name a folder "
            "in gs:// or a local one (data, clips and models may be in s3://)"
        )


def prepare_run_folder(
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    begins: bool,
    adapter: LoRAConfig | None = None,
) -> Path:
    """Creates `config.run_dir`, and writes config.json and the model's shape and tokenizer into it.

    Process 0 writes. The model's shape may have come from a folder that changes or moves later:
    that of a run's checkpoints stays, once there are any.

    Args:
        config: the run's configuration.
        model, tokenizer: the run's model and tokenizer.
        begins: whether the run has no checkpoint yet.
        adapter: settings of the adapter beside the initial decoder, if any.

    Returns:
        The folder.
    """
    run_dir = to_path(config.run_dir)
    if jax.process_index() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / CONFIG, {"layout": LAYOUT, **to_dict(config)})
        spec = run_dir / CHECKPOINTS / _MODEL_SPEC
        if begins or not spec.is_dir():
            hub.save_config_and_tokenizer(spec, model, tokenizer, adapter)
    multihost_utils.sync_global_devices("run folder prepared")
    return run_dir


def read_run_config(run_dir: Path) -> dict[str, Any]:
    """Returns the configuration of a run, as plain values.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds a run of an older layout.
    """
    path = run_dir / CONFIG
    try:
        saved = json.loads(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name the run_dir of a run") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; name the run_dir of a run") from None
    return _without_layout(saved, run_dir)


def read_model_spec(run_dir: Path) -> tuple[ModelConfig, Tokenizer]:
    """Returns the shape and the tokenizer of a run's model.

    Raises:
        CheckpointError: the folder has none.
    """
    folder = run_dir / CHECKPOINTS / _MODEL_SPEC
    return hub.read_model_config(folder), hub.load_tokenizer(folder)


def read_initial_adapter(run_dir: Path) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter beside a run's initial weights, if any.

    Raises:
        CheckpointError: the folder has no shape of a model.
    """
    return hub.checkpoint_lora_config(run_dir / CHECKPOINTS / _MODEL_SPEC)


def _without_layout(saved: Any, run_dir: Path) -> Any:
    """Returns the values of a config.json without the layout's number, once that is checked.

    Raises:
        CheckpointError: the run has an older layout.
    """
    if not isinstance(saved, dict) or "stages" not in saved:
        return saved  # not of a run
    layout = saved.get("layout", 1)
    if layout != LAYOUT:
        raise CheckpointError(
            f"{run_dir} was written by another version (layout {layout}, here {LAYOUT}): finish "
            "the run with that version, or choose another run_dir"
        )
    return {name: value for name, value in saved.items() if name != "layout"}


def _is_mutable(key: str) -> bool:
    patterns = (_MUTABLE_COMPUTE_KEYS, _MUTABLE_STAGE_KEYS)
    return key.split(".")[0] in _MUTABLE_KEYS or any(pattern.fullmatch(key) for pattern in patterns)


def _differing_keys(left: Any, right: Any, key: str = "") -> list[str]:
    """Returns the dotted keys at which two JSON values differ."""
    pairs: dict[str, tuple[Any, Any]] = {}
    if isinstance(left, dict) and isinstance(right, dict):
        pairs = {name: (left.get(name), right.get(name)) for name in left.keys() | right.keys()}
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        if all(isinstance(item, dict) for item in (*left, *right)):
            pairs = {str(index): pair for index, pair in enumerate(zip(left, right, strict=True))}
    elif left == right:
        return []
    if not pairs:
        return [] if left == right else [key]
    return [
        differing
        for name, (left_value, right_value) in pairs.items()
        for differing in _differing_keys(left_value, right_value, f"{key}.{name}" if key else name)
    ]


class RunLock:
    """Keeps a second job away from a run folder, by a file there that process 0 locks.

    Whatever ends that process releases the lock. Every process calls the same methods, and every
    one raises what process 0 finds. What only reads the folder (a report, the export of a
    checkpoint) needs no lock.

    Args:
        run_dir: the folder.
    """

    def __init__(self, run_dir: str):
        self._run_dir = run_dir
        self._held: Lock | None = None

    def acquire_if_exists(self) -> None:
        """Takes the lock if the folder holds a run already.

        Raises:
            ConfigError: another job holds it.
        """
        problem = None
        if jax.process_index() == 0 and (to_path(self._run_dir) / CONFIG).exists():
            problem = self._take()
        _raise_on_all_processes(problem)

    def acquire(self) -> None:
        """Creates the folder, and takes the lock if it is not held yet.

        Raises:
            ConfigError: another job holds it, or has begun a run there since this one looked.
        """
        problem = None
        if jax.process_index() == 0 and self._held is None:
            problem = self._take()
            if problem is None and (to_path(self._run_dir) / CONFIG).exists():
                problem = (
                    f"run_dir={self._run_dir!r}: another job has begun there meanwhile; "
                    "start the same command again"
                )
        _raise_on_all_processes(problem)

    def close(self) -> None:
        """Releases the lock and removes its file; a file that a killed run leaves is not locked."""
        if self._held is not None:
            self._held.remove()
            self._held = None

    def _take(self) -> str | None:
        """Takes the lock; returns why it cannot, or None."""
        path = to_path(self._run_dir) / LOCK
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = take_lock(path)
            self._held.describe(holder)
        except LockHeldError as error:
            holder_name = " in this process" if error.by_this_process else _read_holder(path)
            return (
                f"run_dir={self._run_dir!r} is in use by another job{holder_name}: wait for it or "
                "stop it, or choose another run_dir"
            )
        except OSError as error:  # returned, since the other processes wait for an answer
            return f"run_dir={self._run_dir!r} cannot be locked: {error}"
        return None


def _read_holder(path: Path) -> str:
    """Returns who holds the lock, as its file says, for a message; "" if that cannot be read."""
    try:
        holder = json.loads(read_bytes(path))
        return f" (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _raise_on_all_processes(problem: str | None) -> None:
    problem = broadcast_json(problem)
    if problem is not None:
        raise ConfigError(problem)
