"""Builds the typed, frozen configuration from a nested mapping of plain values, and back.

A configuration can be written as plain values (flags, the JSON of a run). `build` turns such a
mapping into a dataclass: it fills in defaults, checks every type, and names the full key, the
offending value and the nearest valid key when something is wrong. Nothing unknown is ignored.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from stepaudio_jax.config.checks import MAX_FLOAT32, format_value
from stepaudio_jax.config.renamed import renamed_key, renamed_value
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import did_you_mean, truncate

DataclassT = TypeVar("DataclassT")


def build(cls: type[DataclassT], values: Mapping[str, Any], key: str = "config") -> DataclassT:
    """Builds dataclass `cls` from a nested mapping.

    Args:
        cls: a dataclass whose fields are annotated with plain types, `Literal`, `X | None`,
            `tuple[X, ...]`, `Mapping[str, X]`, other such dataclasses, a union of dataclasses
            (see `choices`), or `Any`, which takes every value as it is. Where the class has a
            `presets` static method (name -> instance), the mapping may hold the extra key `preset`;
            the other keys then replace fields of it.
        values: absent fields take the default of the dataclass or of the preset.
        key: the dotted name of this mapping, for messages.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key} must be a mapping of settings, got {format_value(values)}")
    settings = dict(values)
    preset = None
    if "preset" in settings and hasattr(cls, "presets"):
        preset = read_preset(cls, settings.pop("preset"), key)
    hints = _type_hints(cls)  # type: ignore[arg-type]
    all_fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    fields = {field.name: field for field in all_fields if field.init}
    for name in settings:
        if name not in fields:
            raise unknown_key_error(cls, key, [name])
    arguments = {}
    for name, value in settings.items():
        default = getattr(preset, name) if preset is not None else None
        arguments[name] = convert(hints[name], value, f"{key}.{name}", default)
    if preset is None:
        missing = [
            name
            for name, field in fields.items()
            if name not in arguments
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{key} needs a value for: {', '.join(missing)}")
    try:
        return dataclasses.replace(preset, **arguments) if preset is not None else cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


@functools.cache
def _type_hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def to_dict(config: Any) -> Any:
    """Returns nested plain dicts, lists and scalars, ready for JSON; `build` is the inverse."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        name = choice_name(type(config))
        return ({} if name is None else {"name": name}) | {
            field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)
        }
    if isinstance(config, Mapping):
        return {name: to_dict(value) for name, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return config


def choice_name(cls: type) -> str | None:
    """Returns the name of a class that is one choice of a setting (`next_token`); None for others.

    Such a class has a class variable `name`, which is the first key of its plain values.
    """
    name = vars(cls).get("name")
    fields = {field.name for field in dataclasses.fields(cls)}
    return name if isinstance(name, str) and "name" not in fields else None


def choices(hint: Any) -> dict[str, type[Any]]:
    """Returns the dataclasses that a union offers, by name; empty for any other annotation."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    classes: list[Any] = [cls for cls in typing.get_args(hint) if dataclasses.is_dataclass(cls)]
    return {name: cls for cls in classes if (name := choice_name(cls)) is not None}


def read_preset(cls: type, name: Any, key: str) -> Any:
    """Returns an instance that the class offers by name.

    Raises:
        ConfigError: it offers none of that name.
    """
    presets = cls.presets()  # type: ignore[attr-defined]
    if str(name) not in presets:
        raise _unknown_name_error("preset", f"{key}.preset={name!r}", str(name), presets)
    return presets[name]


def read_choice(hint: Any, name: Any, key: str) -> type[Any]:
    """Returns the class of a union that has this name.

    Raises:
        ConfigError: none has.
    """
    classes = choices(hint)
    if str(name) in classes:
        return classes[name]
    if new := renamed_value(key, name):
        raise ConfigError(f"{key}={format_value(name)} is now {new!r}")
    raise _unknown_name_error("choice", f"{key}={format_value(name)}", str(name), classes)


def unknown_key_error(
    cls: type, key: str, names: Sequence[str], extra: Sequence[str] = ()
) -> ConfigError:
    """Returns the error for a key that does not exist, with its new name or the nearest key.

    Args:
        cls: of the section, which has no field of the first name.
        key: the dotted name of the section.
        names: the rest of the dotted key.
        extra: names that are allowed besides the fields.
    """
    if new := renamed_key(cls.__name__, names):
        return ConfigError(f"{key}.{'.'.join(names)} is now {key}.{new}")
    allowed = [*(field.name for field in dataclasses.fields(cls)), *extra]
    return _unknown_name_error("key", f"{key}.{names[0]}", names[0], allowed)


def _unknown_name_error(
    kind: str, shown: str, name: str, allowed: typing.Iterable[str]
) -> ConfigError:
    allowed = sorted(allowed)
    hint = did_you_mean(name, allowed)
    return ConfigError(f"unknown {kind} {truncate(shown)}{hint} (allowed: {', '.join(allowed)})")


def convert(hint: Any, value: Any, key: str, default: Any = None) -> Any:
    """Checks a value against an annotation and returns it, with mappings turned into dataclasses.

    Args:
        hint: the annotation.
        value: a plain value, or an instance of the annotated dataclass.
        key: the dotted name of the value, for messages.
        default: the preset's value of a nested dataclass, whose fields a mapping replaces.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if classes := choices(hint):
        return _convert_choice(hint, classes, value, key)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, key, default)
    if origin is typing.Literal:
        return _convert_literal(typing.get_args(hint), value, key)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, key)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, got {format_value(value)}")
        _, value_hint = typing.get_args(hint)
        return {
            str(name): convert(value_hint, item, f"{key}.{name}") for name, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if default is not None and isinstance(value, Mapping) and "preset" not in value:
            fields = {field.name for field in dataclasses.fields(default)}
            value = {name: getattr(default, name) for name in fields} | dict(value)
        return build(hint, value, key)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, key)


def _convert_choice(hint: Any, classes: Mapping[str, type], value: Any, key: str) -> Any:
    """Accepts an instance, a class by its name (with defaults), or a mapping that has `name`."""
    if type(value) in classes.values():
        return value
    values = dict(value) if isinstance(value, Mapping) else {"name": value}
    if "name" not in values:
        raise ConfigError(f"{key} needs a name: {' or '.join(classes)}")
    return build(read_choice(hint, values.pop("name"), key), values, key)


def _convert_union(members: tuple[Any, ...], value: Any, key: str, default: Any) -> Any:
    if value is None:
        if type(None) in members:
            return None
        raise ConfigError(f"{key} must not be None")
    errors = []
    for member in members:
        if member is type(None):
            continue
        try:
            return convert(member, value, key, default)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError("; or ".join(errors))


def _convert_literal(allowed: tuple[Any, ...], value: Any, key: str) -> Any:
    if value in allowed:
        return value
    if new := renamed_value(key, value):
        raise ConfigError(f"{key}={format_value(value)} is now {new!r}")
    raise ConfigError(f"{key}={format_value(value)} is not one of {', '.join(map(repr, allowed))}")


def _convert_tuple(members: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{key} must be a list or tuple, got {format_value(value)}")
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ConfigError(f"{key} must have {len(members)} values, got {format_value(value)}")
    return tuple(
        convert(member, item, f"{key}.{index}")
        for index, (member, item) in enumerate(zip(members, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    # A bool is an int in Python, but a learning rate of True is a mistake, not a number.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            raise ConfigError(f"{key} must be at most {MAX_FLOAT32:.1e}") from None
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(
        f"{key}={format_value(value)} is not of type {getattr(hint, '__name__', hint)}"
    )
