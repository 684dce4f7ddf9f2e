"""Runs a configuration file: Python whose `get_config()` returns a `Config`."""

import dataclasses
import os
import re
import runpy
import traceback
from typing import Any

import stepaudio_jax.config
from stepaudio_jax.config.build import build, to_dict, unknown_key_error
from stepaudio_jax.config.renamed import RENAMED_CLASSES
from stepaudio_jax.config.run import Config
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import BucketPath, Path, expand_home, read_text, to_path

_UNKNOWN_KEYWORD = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
_UNKNOWN_CLASS = re.compile(r"(?:cannot import name|name) '(\w+)' .*")


def run_config_file(path: str | os.PathLike[str]) -> Config:
    """Returns the configuration of a file, with every type checked.

    Raises:
        ConfigError: naming the file, and the line of a mistake in it.
    """
    path = to_path(expand_home(os.fspath(path)))
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        namespace = _run(path)
        config = namespace["get_config"]() if "get_config" in namespace else None
    except Exception as error:  # the file can raise anything
        raise ConfigError(f"config file {path}{_line(path, error)}: {_message(error)}") from error
    if "get_config" not in namespace:
        raise ConfigError(f"config file {path} does not define get_config()")
    if not isinstance(config, Config):
        raise ConfigError(
            f"get_config() of {path} must return a stepaudio_jax.config.Config, "
            f"got {type(config).__name__}"
        )
    try:
        return build(Config, to_dict(config))  # dataclasses do not check the types of their fields
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from None


def _run(path: Path) -> dict[str, Any]:
    """Returns the global names that a Python file defines."""
    if not isinstance(path, BucketPath):
        return runpy.run_path(str(path))
    namespace: dict[str, Any] = {"__name__": "<run_path>", "__file__": str(path)}
    exec(compile(read_text(path), str(path), "exec"), namespace)
    return namespace


def _line(path: Path, error: Exception) -> str:
    """Returns ", line N" for the line of the file that an error comes from; empty if unknown."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if not lines and isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f", line {lines[-1]}" if lines and lines[-1] else ""


def _message(error: Exception) -> str:
    """Returns what an error of the file says; of an old or misspelt name, what it should be."""
    if isinstance(error, ConfigError):
        return str(error)
    if keyword := _UNKNOWN_KEYWORD.fullmatch(str(error)):
        cls = getattr(stepaudio_jax.config, keyword[1], None)
        if dataclasses.is_dataclass(cls) and isinstance(cls, type):
            return str(unknown_key_error(cls, keyword[1], [keyword[2]]))
    if isinstance(error, NameError | ImportError):
        name = _UNKNOWN_CLASS.fullmatch(str(error))
        if name and (new := RENAMED_CLASSES.get(name[1])):
            return f"{name[1]} is now {new}"
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
