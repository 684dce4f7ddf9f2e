"""Reads a configuration from a file and flags: `--config=FILE --config.stages.sft.steps=100`.

The flags are those of ml-collections and absl. These can neither set fields of frozen dataclasses
nor name the items of a tuple, so the values of the file's configuration become a ConfigDict whose
tuples are numbered; the flags change it, and one `build` checks all values together.

`override` shows the order: flags that replace a section or a list first change the structure, then
the ConfigDict takes the single values.
"""

import dataclasses
import functools
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepaudio_jax.config.build import build, to_dict
from stepaudio_jax.config.config_file import run_config_file
from stepaudio_jax.config.keys import (
    Key,
    item_hints,
    parse_value,
    replace_value,
    resolve_key,
    section_class,
    set_value,
)
from stepaudio_jax.config.run import Config
from stepaudio_jax.errors import ConfigError

Setting = tuple[str, str]  # dotted key, value as text

CONFIG_FLAG = "--config"


def split_flags(arguments: Sequence[str]) -> tuple[str | None, list[Setting], list[str]]:
    """Separates the flags of the configuration from the other arguments; reads `--flagfile`s.

    Returns:
        The path that `--config` gives (None without one), the settings in order, and all other
        arguments.

    Raises:
        ConfigError: a flag has no value, or a flag file cannot be read.
    """
    from absl import flags

    try:
        # A FlagValues of our own, here and below: absl's global one holds flags of other libraries.
        arguments = flags.FlagValues().read_flags_from_files(list(arguments), force_gnu=False)
    except flags.Error as error:
        raise ConfigError(str(error)) from None
    path = None
    settings, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, text = argument.partition("=")
        if flag != CONFIG_FLAG and not flag.startswith(f"{CONFIG_FLAG}."):
            others.append(argument)
            continue
        if not equals:
            text = next(remaining, "--")
            if text.startswith("--"):
                raise ConfigError(
                    f"{flag} has no value: write {CONFIG_FLAG}=FILE and {CONFIG_FLAG}.key=value"
                )
        if flag == CONFIG_FLAG:
            path = text
        else:
            settings.append((flag.removeprefix(f"{CONFIG_FLAG}."), text))
    return path, settings, others


def load_config(path: str | os.PathLike[str], settings: Iterable[Setting] = ()) -> Config:
    """Returns the configuration of a file with settings applied (see `override`).

    Args:
        path: a Python file whose `get_config()` returns a `Config`.
        settings: dotted keys and values as text.

    Raises:
        ConfigError: naming the file and its line, or the key and what is allowed.
    """
    return override(run_config_file(path), *settings)


def override(config: Config, *settings: Setting) -> Config:
    """Returns `config` with the values at some dotted keys replaced; only the result is checked.

    Args:
        config: is not changed.
        settings: dotted keys and values as text. An item of a tuple is named by its number, a stage
            also by its name. Where the key takes a string, the text is that string (20260101,
            true); elsewhere it is read as a Python literal (3, 1e-5, True, None,
            ('adaptor', 'decoder')). A whole section takes its defaults from a mapping
            ({'b2': 0.9}), from a preset (`model.preset=tiny`) or from the name of a choice
            (`stages.rl.objective=policy_gradient`), and must come before settings of its keys.

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    values = to_dict(config)
    keys: list[Key] = []
    texts: dict[str, str] = {}  # of single values, by flag
    for name, text in settings:
        key = resolve_key(values, name)
        key.check_order(keys)
        keys.append(key)
        if key.is_flag:
            texts[key.flag] = text
        else:
            replace_value(values, key, text)
    flags = {key.flag: key for key in keys if key.is_flag}
    for flag, text in _parse_flags(values, texts).items():
        set_value(values, flags[flag].path, parse_value(text, flags[flag].hint))
    return build(Config, values)


class _Text(str):
    """The text of a single value, not yet read as the type of its field."""


def _parse_flags(values: dict[str, Any], texts: Mapping[str, str]) -> dict[str, str]:
    """Lets ml-collections read the flags of single values.

    Args:
        values: plain values of the configuration.
        texts: by the flag's name below `config`.

    Returns:
        The texts that the flags have left in the ConfigDict, by flag name.
    """
    if not texts:
        return {}
    from absl import flags
    from ml_collections import config_flags

    _register_text_parser()
    argv = ["config", *(f"{CONFIG_FLAG}.{flag}={text}" for flag, text in texts.items())]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", _config_dict(Config, values), flag_values=flag_values, sys_argv=argv
    )
    flag_values(argv)
    overrides: dict[str, str] = config_flags.get_override_values(flag_values["config"])
    return overrides


def _config_dict(hint: Any, value: Any) -> Any:
    """Returns a ConfigDict of a section or of a tuple of sections (by number); else a text."""
    from ml_collections.config_dict import ConfigDict

    section, items = section_class(hint, value), item_hints(hint, value)
    if section is not None:
        hints = typing.get_type_hints(section)
        names = (field.name for field in dataclasses.fields(section))
        return ConfigDict({name: _config_dict(hints[name], value.get(name)) for name in names})
    if items and all(section_class(*pair) for pair in zip(items, value, strict=False)):
        pairs = enumerate(zip(items, value, strict=False))
        return ConfigDict({str(index): _config_dict(*pair) for index, pair in pairs})
    return _Text(value)


@functools.cache
def _register_text_parser() -> None:
    """Teaches ml-collections to keep the text of a flag that replaces a `_Text`."""
    from absl import flags
    from ml_collections import config_flags

    class TextParser(flags.ArgumentParser):
        def parse(self, argument: str) -> _Text:
            return _Text(argument)

        def flag_type(self) -> str:
            return "text"

    config_flags.register_flag_parser_for_type(_Text, TextParser())
