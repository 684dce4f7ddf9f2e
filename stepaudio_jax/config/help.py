"""Lists every key of a configuration with its type, its value and its comment, for `--help`.

The comments are those of the dataclasses' source: behind a field, or on the lines above it.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any

from stepaudio_jax.config.build import choice_name, choices
from stepaudio_jax.config.data import DataConfig, SourceConfig
from stepaudio_jax.config.distillation import Distillation
from stepaudio_jax.config.objectives import PolicyGradient
from stepaudio_jax.config.preference import Preference
from stepaudio_jax.config.rewards import RewardConfig
from stepaudio_jax.config.run import Config, StageConfig

_COMMENT_WIDTH = 92


def config_help(config: Config | None = None) -> str:
    """Returns one paragraph a key: `--config.KEY=VALUE  (type, default)` and the comment.

    Args:
        config: whose values are shown; None for the defaults, of a run with one stage of each
            objective.
    """
    return "\n".join(_section_lines(config or _default_config(), "--config"))


def _default_config() -> Config:
    data = DataConfig(sources=(SourceConfig(path="FILE"),))
    objective = PolicyGradient(rewards=(RewardConfig(format_weight=1.0),))
    return Config(
        run_dir="DIR",
        stages=(
            StageConfig(name="STAGE", steps=1, data=data),
            StageConfig(name="RL_STAGE", steps=1, data=data, objective=objective),
            StageConfig(name="PREFERENCE_STAGE", steps=1, data=data, objective=Preference()),
            StageConfig(
                name="DISTILLATION_STAGE",
                steps=1,
                data=data,
                objective=Distillation(teacher="FOLDER"),
            ),
        ),
    )


def _section_lines(section: Any, key: str) -> Iterator[str]:
    """Yields the lines of a section and of those below it."""
    summary = (inspect.getdoc(type(section)) or "").partition("\n\n")[0]
    yield ""
    yield f"{key}: {' '.join(summary.split())}"
    hints, comments = typing.get_type_hints(type(section)), field_comments(type(section))
    nested = []
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{key}.{field.name}"
        comment = textwrap.wrap(comments.get(field.name, ""), _COMMENT_WIDTH)
        indented = [f"      {line}" for line in comment]
        if classes := choices(hints[field.name]):
            default = f"default {choice_name(type(field.default))}"
            yield f"  {name}={choice_name(type(value))}  ({' or '.join(classes)}, {default})"
            yield from indented
            nested.append((name, value))
        elif dataclasses.is_dataclass(value):
            nested.append((name, value))
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            items = [(getattr(item, "name", None) or index) for index, item in enumerate(value)]
            nested.extend((f"{name}.{item}", part) for item, part in zip(items, value, strict=True))
        else:
            default = _shown_default(field)
            yield f"  {name}={_shown(value)}  ({_type_name(hints[field.name])}, {default})"
            yield from indented
    for name, value in nested:
        yield from _section_lines(value, name)


def field_comments(cls: type) -> dict[str, str]:
    """Returns the comment of every field of a dataclass that has one.

    It is the comment on the field's own lines, else that on the lines right above it.
    """
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("#").strip()
    lines = source.splitlines()
    by_field = {}
    definition = typing.cast(ast.ClassDef, ast.parse(source).body[0])
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        assert node.end_lineno is not None
        beside = [comments[i] for i in range(node.lineno, node.end_lineno + 1) if i in comments]
        above: list[str] = []
        line = node.lineno - 1
        while line in comments and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        if beside or above:
            by_field[node.target.id] = " ".join(beside or above)
    return by_field


def _type_name(hint: Any) -> str:
    """Returns an annotation in words: `float`, `'a' or 'b'`, `int or None`, `tuple of str`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type_name, arguments))
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"tuple of {_type_name(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(map(_type_name, arguments))})"
    if hint is type(None):
        return "None"
    if dataclasses.is_dataclass(hint) or origin is None:
        return str(getattr(hint, "__name__", hint))
    return f"mapping from {_type_name(arguments[0])} to {_type_name(arguments[1])}"


def _shown_default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"default {_shown(field.default_factory())}"
    return (
        "required" if field.default is dataclasses.MISSING else f"default {_shown(field.default)}"
    )


def _shown(value: Any) -> str:
    """Returns a value as it can be written on the command line."""
    return value if isinstance(value, str) else repr(value)
