"""From a plain nested mapping to the typed, frozen configuration, and back.

A configuration is written as plain values (a config file, the command line, a checkpoint's JSON).
`build` turns such a mapping into a dataclass: it fills in defaults, checks every type, and names
the full key, the offending value and the nearest valid key when something is wrong. Nothing unknown
is ever ignored.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import expand_home, truncate

DataclassT = TypeVar("DataclassT")

# Of a normal float32: what is larger becomes infinite on a device, and what is smaller becomes 0.
MAX_FLOAT32 = 3.4028234663852886e38
MIN_FLOAT32 = 1.1754943508222875e-38
MAX_SEED = 2**62  # JAX makes keys of 64 bits with a sign, and stages count on from the run's seed


def expand_paths(config: object, *names: str) -> None:
    """Replaces a `~` at the start of these fields, which are paths, by the home folder (for `__post_init__`)."""
    for name in names:
        if isinstance(path := getattr(config, name), str):  # what is no string, `build` refuses
            object.__setattr__(config, name, expand_home(path))


def check_not_empty(config: object, *names: str) -> None:
    """Checks that none of these optional fields is an empty string (for `__post_init__`).

    Raises:
        ConfigError: naming the field.
    """
    for name in names:
        if getattr(config, name) == "":
            raise ConfigError(f"{name}='' is empty: write None for none")


def check_seed(seed: int) -> int:
    """Returns a seed that keys can be made of.

    Raises:
        ConfigError: it is negative, or too large.
    """
    if seed < 0:
        raise ConfigError(f"seed={format_value(seed)} must not be negative")
    if seed > MAX_SEED:
        raise ConfigError(f"seed={format_value(seed)} must be at most {MAX_SEED} (2**62)")
    return seed


def build(cls: type[DataclassT], values: Mapping[str, Any], key: str = "config") -> DataclassT:
    """Builds dataclass `cls` from a nested mapping.

    Args:
        cls: a dataclass whose fields are annotated with plain types, `Literal`, `X | None`,
            `tuple[X, ...]`, `Mapping[str, X]`, or other such dataclasses. Where the class has a
            `presets` static method (returning a mapping from name to instance), the mapping may
            hold the extra key `preset`, and the other keys then replace fields of it.
        values: the values given; fields that are absent take the dataclass's (or the preset's)
        default.
        key: the dotted name of this mapping, for error messages.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key} must be a mapping of settings, got {format_value(values)}")
    given = dict(values)
    preset = None
    if "preset" in given and hasattr(cls, "presets"):
        preset = _preset(cls, given.pop("preset"), key)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            raise ConfigError(unknown_key_message(f"{key}.{name}", name, fields))
    arguments = {}
    for name, value in given.items():
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


def to_dict(config: Any) -> Any:
    """The inverse of `build`: nested plain dicts, lists and scalars, ready for JSON."""
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


def check_floats(config: Any) -> None:
    """Checks that every float in the fields of a dataclass is a number that float32 can hold.

    Each class with such fields calls it first of all, in `__post_init__`: comparisons do not notice
    a NaN.

    Raises:
        ConfigError: a float is NaN or infinite, too large for float32, or so small that float32
            makes it 0.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, float):
                continue
            if not abs(number) <= MAX_FLOAT32:
                raise ConfigError(
                    f"{field.name}={value} must be finite, and at most {MAX_FLOAT32:.1e}"
                )
            if 0 < abs(number) < MIN_FLOAT32:
                raise ConfigError(
                    f"{field.name}={value} is 0 in float32, whose smallest number is {MIN_FLOAT32:.1e}"
                )


def choice_name(cls: type) -> str | None:
    """Returns the name of a class that is one of several for a setting; None for other classes.

    Such a class has it as a class variable `name`, which is the first key of its plain values.
    """
    name = vars(cls).get("name")
    fields = {field.name for field in dataclasses.fields(cls)}
    return name if isinstance(name, str) and "name" not in fields else None


def choices(hint: Any) -> dict[str, type[Any]]:
    """Returns the classes that a setting can be an instance of, by name; empty for other hints."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    classes: list[Any] = [cls for cls in typing.get_args(hint) if dataclasses.is_dataclass(cls)]
    return {name: cls for cls in classes if (name := choice_name(cls)) is not None}


def _preset(cls: type, name: Any, key: str) -> Any:
    presets = cls.presets()  # type: ignore[attr-defined]
    if name not in presets:
        raise ConfigError(
            unknown_key_message(f"{key}.preset={name!r}", str(name), presets, kind="preset")
        )
    return presets[name]


def unknown_key_message(
    full_key: str, name: str, allowed: Mapping[str, Any], kind: str = "key"
) -> str:
    """The message for a key (or preset) that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(truncate(name), allowed, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {truncate(full_key)}{hint} (allowed: {', '.join(sorted(allowed))})"


def convert(hint: Any, value: Any, key: str, default: Any = None) -> Any:
    """Checks `value` against the annotation `hint`; `default` is the preset's value of a nested dataclass, if any."""
    origin = typing.get_origin(hint)
    if classes := choices(hint):
        return _convert_choice(classes, value, key)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, key, default)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(
                f"{key}={format_value(value)} is not one of {', '.join(map(repr, allowed))}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, key)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, got {format_value(value)}")
        _, value_hint = typing.get_args(hint)
        return {
            str(name): convert(value_hint, item, f"{key}.{name}", None)
            for name, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if default is not None and isinstance(value, Mapping) and "preset" not in value:
            return build(hint, {**_shallow(default), **value}, key)  # type: ignore[arg-type]
        return build(hint, value, key)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, key)


def format_value(value: Any) -> str:
    """Returns a value as Python writes it, of a length that can be read."""
    try:
        return truncate(repr(value))
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of more than 4300 digits"


def _shallow(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _convert_choice(classes: Mapping[str, type], value: Any, key: str) -> Any:
    """Returns an instance of one of `classes`: itself, by its name (with defaults), or by a mapping with `name`."""
    if type(value) in classes.values():
        return value
    values = dict(value) if isinstance(value, Mapping) else {"name": value}
    if "name" not in values:
        raise ConfigError(f"{key} needs a name: {' or '.join(classes)}")
    name = values.pop("name")
    if name not in classes:
        raise ConfigError(
            unknown_key_message(f"{key}={format_value(name)}", str(name), classes, kind="choice")
        )
    return build(classes[name], values, key)


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


def _convert_tuple(members: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{key} must be a list or tuple, got {format_value(value)}")
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(
            convert(members[0], item, f"{key}.{index}", None) for index, item in enumerate(value)
        )
    if len(members) != len(value):
        raise ConfigError(f"{key} must have {len(members)} values, got {format_value(value)}")
    return tuple(
        convert(member, item, f"{key}.{index}", None)
        for index, (member, item) in enumerate(zip(members, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    # bool is an int in Python; a learning rate of True or a step count of 0.5 is a mistake, not a
    # number.
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
