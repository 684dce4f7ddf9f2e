"""A configuration from a Python file and overrides: `configs/sft.py`, `stages.sft.optimizer.learning_rate=3e-5`."""

import ast
import dataclasses
import pathlib
import re
import runpy
import traceback
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from stepaudio_jax.config import model, objectives, run
from stepaudio_jax.config.build import (
    build,
    choices,
    convert,
    format_value,
    to_dict,
    unknown_key_message,
)
from stepaudio_jax.config.run import Config
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import expand_home


def load_config(path: str, overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """The configuration of a file, with overrides applied in order; only what all of them together make must be allowed.

    Args:
        path: a Python file whose `get_config()` returns a `Config`.
        overrides: dotted keys and values as text. A stage is named by its name or its index. Where
            the key is of a string, a value is that string (20260101, true); elsewhere it is read as
            a Python literal (3, 1e-5, True, None, ('adaptor', 'decoder')), and as a string where it
            is none.

    Raises:
        ConfigError: naming the file and its line, or the key and what is allowed.
    """
    return override(_run_config_file(pathlib.Path(expand_home(path))), *overrides)


def override(config: Config, *settings: tuple[str, str]) -> Config:
    """`config` with the setting at each dotted key replaced by the value that its text spells.

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    values = to_dict(config)
    problem: ConfigError | None = (
        None  # of the settings so far; one that follows may be what they lack
    )
    for key, text in settings:
        _replace(values, config, key, text)
        try:
            config = build(Config, values)
        except ConfigError as error:
            problem = error
        else:
            values, problem = to_dict(config), None
    if problem is not None:
        raise problem
    return config


def _replace(values: dict[str, Any], config: Config, key: str, text: str) -> None:
    """Puts a setting into `values`; a whole section gets its defaults, or its preset's, as the setting after it expects."""
    *parents, last = key.split(".")
    node: Any = values
    walked = "config"
    for name in parents:
        node = _child(node, name, walked)
        walked += f".{name}"
    hint = _hint(values, parents, last)
    value = _parse(text, hint)
    if last == "preset":
        if not isinstance(node, dict):
            raise ConfigError(f"{walked} has no presets")
        whole = build(type(_section(config, parents)), {"preset": value}, walked)
        node.clear()
        node.update(to_dict(whole))
    elif isinstance(node, list):
        node[_index(node, last, walked)] = value
    else:
        present = _child(node, last, walked)
        if choices(hint):
            if isinstance(value, dict):
                value = {"name": present["name"], **value}
            node[last] = to_dict(convert(hint, value, f"{walked}.{last}"))
            return
        section = _section(config, [*parents, last]) if isinstance(value, dict) else None
        if section is None or not dataclasses.is_dataclass(section):
            node[last] = value
        else:
            node[last] = to_dict(build(type(section), value, f"{walked}.{last}"))


def _section(config: Config, path: Sequence[str]) -> Any:
    """What a configuration holds at a path that its plain values have; None where it has changed since."""
    found: Any = config
    for name in path:
        if isinstance(found, tuple):
            names = [getattr(item, "name", "") for item in found]
            index = (
                names.index(name) if name in names else int(name) if name.isdigit() else len(found)
            )
            found = found[index] if index < len(found) else None
        else:
            found = getattr(found, name, None)
    return found


def _run_config_file(path: pathlib.Path) -> Config:
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        namespace = runpy.run_path(str(path))
        config = namespace["get_config"]() if "get_config" in namespace else None
    except Exception as error:  # whatever it is, it is the file's own
        raise ConfigError(f"config file {path}{_line(path, error)}: {_said(error)}") from error
    if "get_config" not in namespace:
        raise ConfigError(f"config file {path} does not define get_config()")
    if not isinstance(config, Config):
        raise ConfigError(
            f"get_config() of {path} must return a stepaudio_jax.config.Config, got {type(config).__name__}"
        )
    try:
        return build(Config, to_dict(config))  # a dataclass does not check its types, and this does
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from None


def _line(path: pathlib.Path, error: Exception) -> str:
    """The line of the config file that an error comes from, as words; empty where none is known."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    if not lines and isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f", line {lines[-1]}" if lines and lines[-1] else ""


def _said(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    unknown = re.fullmatch(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    cls = ({**vars(model), **vars(objectives), **vars(run)}).get(unknown[1]) if unknown else None
    if unknown and cls is not None:
        return unknown_key_message(
            f"{unknown[1]}.{unknown[2]}",
            unknown[2],
            {field.name: None for field in dataclasses.fields(cls)},
        )
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def _child(node: Any, name: str, walked: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, walked)]
    if not isinstance(node, dict):
        raise ConfigError(
            f"{walked}={format_value(node)} is a single value: it has no key {name!r}"
        )
    if name not in node:
        raise ConfigError(unknown_key_message(f"{walked}.{name}", name, node))
    return node[name]


def _index(items: list[Any], name: str, walked: str) -> int:
    names = [item.get("name", "") if isinstance(item, dict) else "" for item in items]
    if name in names and name:
        return names.index(name)
    if name.isdigit() and int(name) < len(items):
        return int(name)
    known = (
        ", ".join([f"0 to {len(items) - 1}", *filter(None, names)])
        if items
        else "none: it is empty"
    )
    raise ConfigError(f"{walked} has no item {name!r} (allowed: {known})")


def _hint(values: Any, parents: Sequence[str], last: str) -> Any:
    """Returns the annotation of the setting at a dotted key; None where there is no such setting."""
    hint: Any = Config
    for name in (*parents, last):
        if classes := choices(hint):
            hint = classes[values["name"]]
        if isinstance(values, list):
            values = values[_index(values, name, "config")]
        else:
            values = values.get(name) if isinstance(values, dict) else None
        hint = next((member for member in _members(hint) if member is not type(None)), None)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint).get(name)
        elif origin is tuple:
            several = len(arguments) == 2 and arguments[1] is Ellipsis
            hint = (
                arguments[0 if several else int(name)]
                if several or name in map(str, range(len(arguments)))
                else None
            )
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            hint = arguments[1]
        else:
            return None
    return hint


def _members(hint: Any) -> tuple[Any, ...]:
    """Returns what a value may be: the members of a union, else the annotation alone."""
    return (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )


def _parse(text: str, hint: Any) -> Any:
    """Returns the value that a text spells for a setting with this annotation."""
    value = _literal(text)
    if value is None or isinstance(value, str):  # quotes around a string are not part of it
        return value
    members = _members(hint)
    choices = [
        choice
        for member in members
        if typing.get_origin(member) is Literal
        for choice in typing.get_args(member)
    ]
    return text if str in members or text in choices else value


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
