"""Chat templates of a tokenizer folder, which transformers applies: ours, beside the original ones.

They are read by hand, since `AutoTokenizer` needs a `tokenizer_config.json` and does not read the
`chat_template.json` of released audio models (that is a processor's).
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from stepaudio_jax.errors import TextError
from stepaudio_jax.storage import Path, read_json, read_text, to_path, write_text

CHAT_TEMPLATE = pathlib.Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
_TEMPLATE_PREFIX = CHAT_TEMPLATE.partition(":")[0]  # common to all versions of our template

_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
_CONFIG, _LEGACY = "tokenizer_config.json", "chat_template.json"
_KEY, _CONTROL_TOKENS = "chat_template", "chat_control_tokens"
_DEFAULT, _ORIGINAL = "default", "original"

NamedTemplates = Mapping[str, str]


def read_original_templates(folder: str) -> NamedTemplates:
    """Returns the folder's chat templates other than ours, by the name under which we keep them.

    Raises:
        TextError: a file cannot be read.
    """
    templates = _config_templates(folder)
    path = os.path.join(folder, _FILE)
    if to_path(path).is_file():  # precedes the configuration's, as in transformers
        templates[_DEFAULT] = _read_text(path)
    additional: list[Path] = [*(to_path(folder) / _FOLDER).glob("*.jinja")]
    templates |= {
        file.stem: _read_text(os.fspath(file))
        for file in sorted(additional, key=lambda file: file.name)
    }
    kept: dict[str, str] = {}
    for name, text in templates.items():
        if text.startswith(_TEMPLATE_PREFIX):
            continue
        name = _archived_name(name)
        while kept.get(name, text) != text:  # a new default, and one that was kept before
            name += "_older"
        kept[name] = text
    return kept


def write_chat_templates(
    folder: str, originals: NamedTemplates, control_tokens: Sequence[str]
) -> None:
    """Writes our chat template, and `originals` under their names; removes all others.

    Args:
        folder: with the tokenizer's files.
        originals: see `read_original_templates`.
        control_tokens: added tokens that are not special; `apply_chat_template(..,
            sanitize_control_tokens=True)` then keeps texts from spelling them.
    """
    target = to_path(folder)
    write_text(target / _FILE, CHAT_TEMPLATE)
    for name, text in originals.items():
        write_text(target / _FOLDER / f"{name}.jinja", text)
    (target / _LEGACY).unlink(missing_ok=True)
    config = target / _CONFIG
    if config.is_file():
        before = read_json(os.fspath(config), TextError, "tokenizer")
        values = {key: value for key, value in before.items() if key != _KEY}
        if control_tokens:
            values.setdefault(_CONTROL_TOKENS, list(control_tokens))
        if values != before:
            write_text(config, json.dumps(values, ensure_ascii=False, indent=2))


def _archived_name(name: str) -> str:
    """Returns a name that transformers uses only on request ("tool_use" is used for any tools)."""
    if name == _DEFAULT:
        return _ORIGINAL
    return name if name.startswith(_ORIGINAL) else f"{_ORIGINAL}_{name}"


def _config_templates(folder: str) -> dict[str, str]:
    """Returns the templates in JSON files, by name.

    They hold one template, or a list of objects with `name` and `template`.
    """
    for name in (_LEGACY, _CONFIG):
        path = os.path.join(folder, name)
        if not to_path(path).is_file() or not (
            value := read_json(path, TextError, "tokenizer").get(_KEY)
        ):
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
            raise TextError(
                f"{path}: {_KEY!r} must be a string,"
                " or a list of objects with 'name' and 'template'"
            )
        return {os.path.basename(name): text for name, text in templates.items()}
    return {}


def _read_text(path: str) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path}: cannot be read ({error}); copy it again") from None
