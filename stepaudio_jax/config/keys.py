"""Dotted keys of plain values: what `stages.sft.optimizer.eps` names, and how it is replaced."""

import ast
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from stepaudio_jax.config.build import (
    choices,
    read_choice,
    read_preset,
    to_dict,
    unknown_key_error,
)
from stepaudio_jax.config.checks import format_value
from stepaudio_jax.config.run import Config
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import truncate


@dataclasses.dataclass(frozen=True)
class Key:
    """A dotted key as the user wrote it, and the value that it names.

    Attributes:
        name: the dotted key.
        path: of the value in the nested plain values.
        hint: the annotation of the value.
        section: the class that has the value as a field; None for items of tuples and mappings.
    """

    name: str
    path: tuple[str | int, ...]
    hint: Any
    section: type | None

    @property
    def is_preset(self) -> bool:
        """Returns whether the key gives a section the values of a preset."""
        return self.section is not None and self.path[-1] == "preset"

    @property
    def is_flag(self) -> bool:
        """Returns whether the key names a single value in a section, which a flag can set."""
        members = _members(self.hint)
        kinds = (typing.get_origin(member) or member for member in members)
        single = all(kind in (bool, int, float, str, Literal) for kind in kinds)
        return self.section is not None and single and not self.is_preset

    @property
    def flag(self) -> str:
        """Returns the name of the flag below `config`, as ml-collections writes paths."""
        parts = (f"['{part}']" if isinstance(part, int) else f".{part}" for part in self.path)
        return "".join(parts).removeprefix(".")

    def check_order(self, keys_before: Iterable["Key"]) -> None:
        """Checks that this key does not replace a section that an earlier key has changed.

        Raises:
            ConfigError: naming both keys.
        """
        replaced = self.path[:-1] if self.is_preset else self.path
        for key in keys_before:
            changed = key.path[:-1] if key.is_preset else key.path
            if len(changed) > len(replaced) and changed[: len(replaced)] == replaced:
                raise ConfigError(
                    f"config.{self.name} comes after config.{key.name}, which it would replace: "
                    f"put config.{self.name} before it"
                )


def resolve_key(values: Any, dotted: str) -> Key:
    """Returns what a dotted key names.

    Raises:
        ConfigError: there is no such key.
    """
    hint: Any = Config
    section: type | None = None
    path: list[str | int] = []
    names = dotted.split(".")
    for depth, name in enumerate(names):
        parent = ".".join(("config", *names[:depth]))
        section, items = section_class(hint, values), item_hints(hint, values)
        if section is not None:
            hint, values = _field(section, values, hint, parent, names[depth:])
            path.append(name)
        elif items is not None:
            index = _item_index(values, name, parent)
            hint, values = items[index] if index < len(items) else object, values[index]
            path.append(index)
        elif isinstance(values, dict):  # a mapping, whose keys are the user's
            if name not in values:
                raise ConfigError(
                    f"unknown key {truncate(f'{parent}.{name}')} (allowed: {', '.join(values)})"
                )
            hint, values = typing.get_args(hint)[1], values[name]
            path.append(name)
        else:
            raise ConfigError(
                f"{truncate(parent)}={format_value(values)} is a single value: "
                f"it has no key {truncate(name)!r}"
            )
    return Key(dotted, tuple(path), hint, section)


def _field(
    section: type, values: dict[str, Any], hint: Any, parent: str, names: Sequence[str]
) -> tuple[Any, Any]:
    """Returns annotation and value of a section's field, or `str` and None for its `preset`.

    Raises:
        ConfigError: it has no such field; the message names where there is one.
    """
    hints = typing.get_type_hints(section)
    name = names[0]
    if name in (field.name for field in dataclasses.fields(section)):
        return hints[name], values.get(name)
    extra = ["preset"] if hasattr(section, "presets") else []
    if names == ["preset"] and extra:
        return str, None
    if name == "name" and choices(hint):
        names = [f"{parent}={choice}" for choice in choices(hint)]
        raise ConfigError(f"{parent}.name cannot be set: write {' or '.join(names)}")
    for choice, cls in choices(hint).items():
        if name in (field.name for field in dataclasses.fields(cls)):
            raise ConfigError(
                f"{parent} is {values['name']}, which has no {name}; {choice} has: "
                f"set {parent}={choice} before it"
            )
    raise unknown_key_error(section, parent, names, extra)


def section_class(hint: Any, value: Any) -> type | None:
    """Returns the dataclass that plain values are of; None if they are not a section's."""
    if not isinstance(value, dict):
        return None
    if classes := choices(hint):
        return classes[value["name"]]
    sections: list[Any] = [cls for cls in _members(hint) if dataclasses.is_dataclass(cls)]
    return sections[0] if sections else None


def item_hints(hint: Any, value: Any) -> tuple[Any, ...] | None:
    """Returns the annotations of a tuple's items; None for a value that is not a tuple's."""
    for member in _members(hint):
        if typing.get_origin(member) is tuple and isinstance(value, list):
            items = typing.get_args(member)
            several = len(items) == 2 and items[1] is Ellipsis
            return (items[0],) * len(value) if several else items
    return None


def _members(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union without None; of another annotation, it alone."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return (hint,)
    return tuple(member for member in typing.get_args(hint) if member is not type(None))


def _item_index(items: list[Any], name: str, key: str) -> int:
    """Returns the number of an item that is named by its number or its `name`.

    Raises:
        ConfigError: there is none.
    """
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(items):
        return int(name)
    allowed = ", ".join([f"0 to {len(items) - 1}", *filter(None, names)])
    raise ConfigError(
        f"{truncate(key)} has no item {truncate(name)!r} "
        f"(allowed: {allowed if items else 'none: it is empty'})"
    )


def replace_value(values: dict[str, Any], key: Key, text: str) -> None:
    """Puts a section, a list, or an item of a list into the plain values."""
    value = parse_value(text, key.hint)
    if key.is_preset:
        assert key.section is not None
        parent = f"config.{key.name.removesuffix('.preset')}"
        set_value(values, key.path[:-1], to_dict(read_preset(key.section, value, parent)))
        return
    present: Any = values
    for part in key.path:
        present = present.get(part) if isinstance(present, dict) else present[part]
    set_value(values, key.path, _with_defaults(key.hint, value, f"config.{key.name}", present))


def _with_defaults(hint: Any, value: Any, key: str, present: Any = None) -> Any:
    """Returns plain values with the defaults of every section in them, so that all keys are there.

    Args:
        hint: the annotation.
        value: plain values, of a section those that differ from its defaults.
        key: its dotted name.
        present: the plain values that it replaces.

    Raises:
        ConfigError: a choice or a preset has an unknown name.
    """
    if classes := choices(hint):
        options = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = options.pop("name", (present or {}).get("name"))
        if name is None:
            raise ConfigError(f"{key} needs a name: {' or '.join(classes)}")
        return {"name": name} | _with_defaults(read_choice(hint, name, key), options, key)
    if isinstance(value, tuple | list):
        value = list(value)
        items = item_hints(hint, value) or ()
        parts = enumerate(zip(items, value, strict=False))
        value[: len(items)] = [
            _with_defaults(item, part, f"{key}.{i}") for i, (item, part) in parts
        ]
        return value
    section = section_class(hint, value)
    if section is None:
        return value
    if "preset" in value and hasattr(section, "presets"):
        defaults = to_dict(read_preset(section, value["preset"], key))
    else:
        defaults = _defaults(section)
    hints = typing.get_type_hints(section)
    return defaults | {
        name: _with_defaults(hints.get(name), part, f"{key}.{name}", defaults.get(name))
        for name, part in value.items()
        if name != "preset"
    }


def _defaults(section: type) -> dict[str, Any]:
    """Returns the plain defaults of a dataclass; fields without one are absent."""
    values = {}
    for field in dataclasses.fields(section):
        if field.default is not dataclasses.MISSING:
            values[field.name] = to_dict(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = to_dict(field.default_factory())
    return values


def set_value(values: Any, path: Sequence[str | int], value: Any) -> None:
    """Sets the plain value at a path."""
    for part in path[:-1]:
        values = values[part]
    values[path[-1]] = value


def parse_value(text: str, hint: Any) -> Any:
    """Returns the value that a text spells for a key with this annotation."""
    value = _literal(text)
    if value is None or isinstance(value, str):  # quotes around a string are not part of it
        return value
    members = _members(hint)
    allowed = [
        choice
        for member in members
        if typing.get_origin(member) is Literal
        for choice in typing.get_args(member)
    ]
    return text if str in members or text in allowed else value


def _literal(text: str) -> Any:
    """Returns the Python literal that a text is, or the text; true and false in any case."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
