"""The prompt files of a benchmark: the official ones where there are some, else the project's own.

A text file is looked for in the folder that the user names, then in the benchmark's own folder,
and last among the project's defaults, which are named as such in every result.
"""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, did_you_mean, format_path, read_text, to_path

DEFAULTS = pathlib.Path(__file__).with_name("prompts")
_OFFICIAL_FOLDER = "prompts"
# Who a prompt is from, as results say it.
_BY_USER, _OFFICIAL, _OWN = "given by the user", "of the benchmark", "the project's own"

BYTE_ORDER_MARK = "\ufeff"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """Names one prompt.

    Attributes:
        name: of the official file, relative to the folder of prompts.
        default: the project's own file, in `evaluation/prompts`.
        places: placeholders that the text must hold, each at least once, as "{question}".
    """

    name: str
    default: str
    places: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Holds the text of a prompt.

    Attributes:
        source: who it is from, as results say it.
        text: with placeholders.
    """

    source: str
    text: str

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the text with every placeholder replaced, all in one pass.

        What is inserted is not searched again, so that it may hold braces and placeholders itself.

        Args:
            values: {placeholder: text}.
        """
        pattern = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
        return re.sub(pattern, lambda match: values[match[0]], self.text)

    @property
    def line(self) -> str:
        """Returns the text without the line end of its file: what a model is asked."""
        return self.text.strip("\r\n")


class PromptSet:
    """The prompts of a task, by name.

    Args:
        files: of the task.
        title: of the benchmark, for messages.
        ships: whether the benchmark's own folder has these files, so that their absence is worth a
            warning.
    """

    def __init__(self, files: Sequence[PromptFile], title: str, *, ships: bool = False):
        self._files = {file.name: file for file in files}
        self._title, self._ships = title, ships
        self._by_user: dict[str, Prompt] = {}
        self._official: dict[str, Prompt] = {}

    def __getitem__(self, name: str) -> Prompt:
        if name in self._by_user:
            return self._by_user[name]
        return self._official[name] if name in self._official else self._default(name)

    @property
    def sources(self) -> dict[str, str]:
        """Returns {name of a prompt and who it is from: its text}."""
        prompts = {name: self[name] for name in self._files}
        return {f"{name} ({prompt.source})": prompt.text for name, prompt in prompts.items()}

    def use(self, path: PathLike | None) -> None:
        """Reads prompts that the user names; those that are not there stay as they are.

        Args:
            path: a folder with some of the files, there or in `prompts` below it; or one file,
                where its name is that of a prompt. None for none.

        Raises:
            DataError: there is no such file, it is none of this task, or lacks a placeholder.
        """
        self._by_user = {}
        if path is None:
            return
        location, shown = to_path(path), format_path(os.fspath(path))
        if location.is_file():
            self._by_user = {location.name: self._read(location, location.name, _BY_USER)}
            return
        if not location.is_dir():
            raise DataError(f"{shown}: no such file or folder; give the prompts of {self._title}")
        self._by_user = self._read_folder(path, _BY_USER)
        if not self._by_user:
            raise DataError(
                f"{shown}: holds none of the prompts of {self._title}; they are"
                f" {', '.join(self._files)}"
            )

    def find(self, folder: PathLike) -> None:
        """Reads the prompts that a benchmark's own folder ships, if it does.

        Raises:
            DataError: some of the files are there and others are not, or one lacks a placeholder.
        """
        self._official = self._read_folder(folder, _OFFICIAL)
        missing = [name for name in self._files if name not in self._official]
        if self._official and missing:
            raise DataError(
                f"{format_path(os.fspath(folder))}: of the prompts of {self._title} there are"
                f" {', '.join(self._official)}, and not {', '.join(missing)}; download the folder"
                " again"
            )
        asked_for = [name for name in missing if name not in self._by_user]
        if self._ships and asked_for:
            logger.warning(
                "%s has no prompts of %s: the project's own stand for %s, so that figures cannot"
                " be compared with published ones",
                os.fspath(folder),
                self._title,
                ", ".join(asked_for),
            )

    def set_official(self, name: str, prompt: Prompt) -> None:
        """Sets a prompt that the benchmark ships in another form than a file of its own.

        Raises:
            DataError: it lacks a placeholder.
        """
        self._check_places(self._files[name], prompt.text, prompt.source)
        self._official[name] = prompt

    def _read_folder(self, folder: PathLike, source: str) -> dict[str, Prompt]:
        base = to_path(folder)
        prompts: dict[str, Prompt] = {}
        for name in self._files:
            paths = (base / name, base / _OFFICIAL_FOLDER / name)
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                prompts[name] = self._read(path, name, source)
        return prompts

    def _read(self, path: PathLike, name: str, source: str) -> Prompt:
        shown = format_path(os.fspath(path))
        if name not in self._files:
            raise DataError(
                f"{shown}: the prompts of {self._title} are {', '.join(self._files)}, and this file"
                f" has another name{did_you_mean(name, self._files)}"
            )
        try:
            text = read_text(path).removeprefix(BYTE_ORDER_MARK)
        except OSError as error:
            raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{shown}: is not UTF-8 (byte {error.start}); save the file as UTF-8"
            ) from None
        self._check_places(self._files[name], text, shown)
        return Prompt(source, text)

    def _check_places(self, file: PromptFile, text: str, shown: str) -> None:
        missing = [place for place in file.places if place not in text]
        if missing:
            raise DataError(
                f"{shown}: lacks {', '.join(missing)}; the prompt must have each of"
                f" {', '.join(file.places)}"
            )

    def _default(self, name: str) -> Prompt:
        return Prompt(_OWN, (DEFAULTS / self._files[name].default).read_text(encoding="utf-8"))
