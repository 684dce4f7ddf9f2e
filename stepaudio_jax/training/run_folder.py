"""The folder of a run, and the guard against continuing it with another configuration."""

import json
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import multihost_utils

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ConfigError, LoRAConfig, ModelConfig, to_dict
from stepaudio_jax.storage import OutputError, check_parent_writable, shorten
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
    r"|rl\.rollout\.(slots|tensor)"
    r"|rl\.judge\.(url|api_key_env|max_tokens|timeout_s|retries|concurrency|slots|max_abstention_rate))"
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
            f"run_dir={shorten(config.run_dir)!r} is a file: name the folder that the run is to make"
        )
    if not path.exists():
        try:
            check_parent_writable(
                pathlib.Path(os.path.realpath(path)), f"run_dir={shorten(config.run_dir)!r}"
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
        earlier = json.loads(path.read_text(encoding="utf-8"))
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
        partial = run_dir / f"{CONFIG}.partial"
        partial.write_text(
            json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        os.replace(partial, run_dir / CONFIG)
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
