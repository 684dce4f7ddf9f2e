"""Reads, writes and hashes JSON files, and says what a file holds in its place."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.errors import StepAudioError
from stepaudio_jax.storage.files import PathLike, read_bytes, write_text
from stepaudio_jax.storage.recognize_files import (
    COPY_AGAIN,
    Purpose,
    recognize_file,
    recognize_values,
)


def read_json(
    path: PathLike, error: type[StepAudioError], purpose: Purpose = "weights"
) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: of the file.
        error: the class of the error that is raised.
        purpose: what the file belongs to, for advice about what lies in its place.

    Raises:
        StepAudioError: there is no such file, or it is no JSON object, or a server's error message
            that was saved in its place.
    """
    try:
        values = json.loads(read_bytes(path))
    except OSError as problem:
        reason = recognize_file(path, purpose) or problem.strerror
        raise error(f"cannot read {path}: {reason}") from None
    except (ValueError, RecursionError) as problem:
        finding = recognize_file(path, purpose)
        reason = f": it {finding}" if finding else f" ({problem}); {COPY_AGAIN}"
        raise error(f"{path} is not JSON{reason}") from None
    if not isinstance(values, dict):
        raise error(f"{path} must hold a JSON object, not {type(values).__name__}")
    if finding := recognize_values(values):
        raise error(f"{path} {finding}")
    return values


def parse_json(content: bytes | str) -> Any:
    """Returns the value of a JSON text; None where it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def read_json_or_none(path: PathLike) -> Any:
    """Returns the value of a JSON file; None where it cannot be read or is not JSON."""
    try:
        return parse_json(read_bytes(path))
    except OSError:
        return None


def write_json(path: PathLike, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, indented, as UTF-8; it appears whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def hash_json(value: Any, *, sort_keys: bool = False) -> str:
    """Returns the SHA-256 of a value written as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()
