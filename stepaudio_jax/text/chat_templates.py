"""The chat template of a tokenizer folder, which transformers applies: ours, and beside it what the folder had before.

`chat_template.jinja` renders messages as `rendering` does. A model is trained on dialogues in that
format, so the template that came with the weights (of another format, or the released server's,
which forgets the end of past replies) is kept under a name of its own: `apply_chat_template(...,
chat_template="original")`.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from stepaudio_jax.text.error import TokenizerError
from stepaudio_jax.text.json_file import read_json_object

CHAT_TEMPLATE = pathlib.Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
_TEMPLATE_PREFIX = CHAT_TEMPLATE.partition(":")[0]  # how each version of it begins

_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_CONFIG, _LEGACY = "tokenizer_config.json", "chat_template.json"
_KEY, _CONTROL_TOKENS = "chat_template", "chat_control_tokens"
_DEFAULT, _ORIGINAL = "default", "original"

NamedTemplates = Mapping[str, str]


def read_original_templates(folder: str) -> NamedTemplates:
    """Returns the folder's chat templates other than ours, by the name that they are kept under.

    Raises:
        TokenizerError: a file cannot be read.
    """
    templates = _config_templates(folder)
    path = os.path.join(folder, _FILE)
    if os.path.isfile(path):  # goes before the configuration's, as in transformers
        templates[_DEFAULT] = _read_text(path)
    additional = pathlib.Path(folder, _FOLDER)
    templates |= {
        file.stem: _read_text(os.fspath(file)) for file in sorted(additional.glob("*.jinja"))
    }
    kept: dict[str, str] = {}
    for name, text in templates.items():
        if text.startswith(_TEMPLATE_PREFIX):
            continue
        name = _archived_name(name)
        while (
            kept.get(name, text) != text
        ):  # a default that has replaced ours, and one that was kept before
            name += "_older"
        kept[name] = text
    return kept


def write_chat_templates(
    folder: str, originals: NamedTemplates, control_tokens: Sequence[str]
) -> None:
    """Writes our chat template, and `originals` under their names; the folder has no other afterwards.

    Args:
        folder: with the tokenizer's files.
        originals: see `read_original_templates`.
        control_tokens: added tokens that are not special, which `apply_chat_template(..,
            sanitize_control_tokens=True)` would otherwise let a text spell.
    """
    pathlib.Path(folder, _FILE).write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, text in originals.items():
        additional = pathlib.Path(folder, _FOLDER)
        additional.mkdir(exist_ok=True)
        (additional / f"{name}.jinja").write_text(text, encoding="utf-8")
    pathlib.Path(folder, _LEGACY).unlink(missing_ok=True)
    config = pathlib.Path(folder, _CONFIG)
    if config.is_file():
        before = read_json_object(os.fspath(config))
        values = {key: value for key, value in before.items() if key != _KEY}
        if control_tokens:
            values.setdefault(_CONTROL_TOKENS, list(control_tokens))
        if values != before:
            config.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def _archived_name(name: str) -> str:
    """A name under which transformers takes a template only when it is asked for by name ("tool_use" is taken for tools)."""
    if name == _DEFAULT:
        return _ORIGINAL
    return name if name.startswith(_ORIGINAL) else f"{_ORIGINAL}_{name}"


def _config_templates(folder: str) -> dict[str, str]:
    """Returns the templates in JSON files, by name: one template, or a list of objects with `name` and `template`."""
    for name in (_LEGACY, _CONFIG):
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or not (value := read_json_object(path).get(_KEY)):
            continue
        if isinstance(value, str):
            return {_DEFAULT: value}
        try:
            templates = {item["name"]: item["template"] for item in value}
        except (TypeError, KeyError):
            templates = {}
        if not templates or not all(
            isinstance(text, str) for item in templates.items() for text in item
        ):
            raise TokenizerError(
                f"{path}: {_KEY!r} must be a string, or a list of objects with 'name' and 'template'"
            )
        return {os.path.basename(name): text for name, text in templates.items()}
    return {}


def _read_text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read ({error}); copy it again") from None
