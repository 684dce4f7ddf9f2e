"""The folder of a run, and the guard against continuing it with another configuration."""

import json
import os
import pathlib
from typing import Any

from stepaudio_jax.config import Config, ConfigError, to_dict

# These change what is kept and shown, not what is computed, so a continued run may differ in them.
_FREE_TO_CHANGE = ("checkpoint", "log_every_steps")


def claim_run_folder(config: Config) -> pathlib.Path:
    """Makes `config.run_dir`, or checks that it holds a run of the same configuration, and writes config.json into it.

    Raises:
        ConfigError: it holds another run; the message names the keys that differ.
    """
    run_dir = pathlib.Path(config.run_dir)
    path = run_dir / "config.json"
    resolved = to_dict(config)
    if path.exists():
        differing = sorted(_differences(json.loads(path.read_text(encoding="utf-8")), resolved))
        differing = [key for key in differing if key.split(".")[0] not in _FREE_TO_CHANGE]
        if differing:
            raise ConfigError(
                f"{run_dir} holds a run with another configuration (differs in {', '.join(differing)}): "
                "choose another run_dir, or remove that folder to start again"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(resolved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return run_dir


def _differences(left: Any, right: Any, key: str = "") -> list[str]:
    """Dotted keys at which two JSON values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            found
            for name in left.keys() | right.keys()
            for found in _differences(left.get(name), right.get(name), f"{key}.{name}" if key else name)
        ]
    nested = isinstance(left, list) and isinstance(right, list) and len(left) == len(right)
    if nested and all(isinstance(item, dict) for item in (*left, *right)):
        pairs = enumerate(zip(left, right, strict=True))
        return [found for index, (one, other) in pairs for found in _differences(one, other, f"{key}.{index}")]
    return [] if left == right else [key]
