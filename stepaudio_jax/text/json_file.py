"""JSON files of a tokenizer's folder."""

import json
import pathlib
from typing import Any

from stepaudio_jax.recognition import recognize_file, recognize_values
from stepaudio_jax.text.error import TokenizerError


def read_json_object(path: str) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        TokenizerError: naming the file and what it really is: not JSON, no object, or a server's
            error.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = recognize_file(path, "tokenizer") or f"{error}; copy it again"
        raise TokenizerError(f"{path}: cannot be read as JSON: it {reason}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: must hold a JSON object")
    if finding := recognize_values(content):
        raise TokenizerError(f"{path}: {finding}")
    return content
