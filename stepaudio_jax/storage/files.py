"""Folders that appear whole or not at all."""

import os
import pathlib
import re

# Paths as users write them, and how they are shown.

MAX_SHOWN_CHARACTERS = 200
_LONG_WORD = re.compile(rf"\S{{{MAX_SHOWN_CHARACTERS + 1},}}")


def expand_home(path: str) -> str:
    """Returns a path with `~` or `~user` at its start replaced by that home folder; any other path as it is."""
    return os.path.expanduser(path)


def user_path(text: str) -> pathlib.Path:
    """Reads a path from a command line (argparse's `type`): no shell expands the `~` of `--output=~/x`."""
    return pathlib.Path(expand_home(text))


def shorten(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Returns a text of at most about `limit` characters; of a longer one its beginning and its length."""
    return text if len(text) <= limit else f"{text[:limit]}.. ({len(text)} characters)"


def shorten_words(text: str) -> str:
    """Returns a text whose words longer than a path can reasonably be (a data URI, for example) are shortened."""
    return _LONG_WORD.sub(lambda word: shorten(word[0], MAX_SHOWN_CHARACTERS // 2), text)


_MAX_PATH_CHARACTERS = 500
_PATH_END_CHARACTERS = 60


def format_path(path: str) -> str:
    """Returns a path on one line; of a very long one (a base64 clip in its place) both ends."""
    if len(path) > _MAX_PATH_CHARACTERS:
        beginning = path[: _MAX_PATH_CHARACTERS - _PATH_END_CHARACTERS]
        path = f"{beginning}..{path[-_PATH_END_CHARACTERS:]}"
    return path if path.isprintable() else ascii(path)
