"""Kaldi data folders: `wav.scp`, `text`, and the files beside them, joined to a row an utterance.

Read are `wav.scp`, `text`, `segments`, `utt2spk`, `spk2gender` or `utt2gender`, and `utt2lang`.
They are joined when the folder is opened; the rows lie in a temporary file, not in memory.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.containers.folders import exists
from stepaudio_jax.data.containers.places import no_clip_inside
from stepaudio_jax.data.containers.spooled_rows import SpooledRows
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, first_few, format_path, open_read, truncate

RECORDINGS_FILE = "wav.scp"
_KIND = "a Kaldi data folder"
_ARCHIVE = re.compile(r"(.+\.ark):(\d+)")
_GENDERS = {"m": "male", "f": "female"}
# Files with a value for each utterance -> the row's key.
_UTTERANCE_FILES = {"utt2spk": "speaker", "utt2lang": "language", "utt2gender": "gender"}


class KaldiFolder:
    """Reads a row for each utterance of a Kaldi data folder.

    A row is `{"id", "audio", "text"}`, with `speaker`, `gender` and `language` where files name
    them, and with `start_s` and `end_s` where `segments` cuts recordings into utterances. Paths in
    `wav.scp` are relative to the folder. Rows are in the order of `segments`, or of `wav.scp`.

    Args:
        path: of the folder.

    Raises:
        DataError: a file cannot be read or names an utterance twice; an utterance has a text or a
            speaker and no sound; a recording is in no segment.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        self._shown = format_path(self.path)
        self._rows = SpooledRows()
        recordings = self._read_file(RECORDINGS_FILE)
        if recordings is None:
            raise DataError(f"{self._shown}: has no {RECORDINGS_FILE}; name {_KIND}")
        segments = self._read_file("segments")
        texts = self._read_file("text")
        if texts is None:
            raise DataError(
                f"{self._shown}: has no file 'text'; write a line with id and transcript for each"
                " utterance"
            )
        values = {
            key: (name, file)
            for name, key in _UTTERANCE_FILES.items()
            if (file := self._read_file(name)) is not None
        }
        genders = self._read_file("spk2gender") or {}
        self._check_all_used(recordings, segments, texts)
        name, utterances = (
            (RECORDINGS_FILE, recordings) if segments is None else ("segments", segments)
        )
        for utterance, (number, line) in utterances.items():
            origin = f"{os.path.join(self.path, name)}:{number}"
            try:
                clip = (
                    self._parse_segment(line, recordings, origin)
                    if segments is not None
                    else {"audio": self._parse_recording(line, number)}
                )
                value = {"id": utterance, **clip, "text": _of(texts, utterance, "text", origin)}
                for key, (file_name, file) in values.items():
                    value[key] = _of(file, utterance, file_name, origin)
                if value.get("speaker") in genders:
                    value.setdefault("gender", genders[value["speaker"]][1])
                if "gender" in value:
                    value["gender"] = _GENDERS.get(value["gender"].lower(), value["gender"])
                self._rows.append(value, number)
            except DataError as error:
                self._rows.append_error(str(error), number)
        self._rows.finish()
        self._origins_file = os.path.join(self.path, name)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"KaldiFolder({self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file:line` of the utterance in `segments` or `wav.scp`."""
        return f"{self._origins_file}:{self._rows.line_number(index)}"

    def row(self, index: int) -> Row:
        """Reads the row at `index`.

        Raises:
            DataError: its recording is a command or a part of an archive, its times are none, or a
                file has no line for it.
        """
        value = self._rows.read(index)
        return Row(value, self.origin(index), self.path, default_id=value["id"])

    def read_clip(self, place: str) -> NoReturn:
        """Raises a DataError: the clips are files of their own."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> None:
        """Returns None: every row is read alone."""

    def _read_file(self, name: str) -> dict[str, tuple[int, str]] | None:
        """Returns for each id the number and the rest of its line; None without such a file."""
        path = os.path.join(self.path, name)
        if not exists(path):
            return None
        values: dict[str, tuple[int, str]] = {}
        with reading(path, _KIND):
            for number, line in _lines(path):
                key, _, rest = line.partition(" ")
                if key in values:
                    raise DataError(
                        f"{format_path(path)}:{number}: has {truncate(key)!r} again, which line"
                        f" {values[key][0]} has; keep one of them"
                    )
                values[key] = number, rest
        return values

    def _check_all_used(
        self, recordings: "_Lines", segments: "_Lines | None", texts: "_Lines"
    ) -> None:
        """Checks that no text and no recording would be left out."""
        utterances = recordings if segments is None else segments
        used = set(recordings)
        if segments is not None:
            used = {line.split()[0] for _, line in segments.values() if line}
        for name, unused, reason in (
            ("text", [key for key in texts if key not in utterances], "that have no sound"),
            (RECORDINGS_FILE, [key for key in recordings if key not in used], "in no segment"),
        ):
            if unused:
                raise DataError(
                    f"{format_path(os.path.join(self.path, name))}: has lines {reason}"
                    f" ({len(unused)}): {truncate(first_few(unused))}; remove them, as Kaldi's"
                    " `utils/fix_data_dir.sh` does"
                )

    def _parse_recording(self, text: str, number: int) -> str:
        """Returns the path that a line of wav.scp names."""
        origin = f"{os.path.join(self.path, RECORDINGS_FILE)}:{number}"
        if not text:
            raise DataError(f"{origin}: has an id and no path; write the sound file's path")
        if text.startswith("|") or text.endswith("|"):
            raise DataError(
                f"{origin}: is a command ({truncate(text)}), and commands are not run; write the"
                " path of the sound file, which may be FLAC, MP3 or another format, or run the"
                " commands once and name the files that they write"
            )
        if text == "-" or _ARCHIVE.fullmatch(text):
            raise DataError(
                f"{origin}: {truncate(text)!r} is no sound file but a place in a Kaldi archive or"
                " the standard input; write the sound to files, as with `wav-copy`, and name them"
            )
        return text

    def _parse_segment(self, text: str, recordings: "_Lines", origin: str) -> dict[str, Any]:
        """Returns the clip and the times that a line of segments names."""
        fields = text.split()
        if len(fields) not in (3, 4):
            raise DataError(
                f"{origin}: a segment is `ID RECORDING START END`, with a channel perhaps; got"
                f" {truncate(text)!r} after the id"
            )
        if fields[0] not in recordings:
            raise DataError(
                f"{origin}: is a segment of {truncate(fields[0])!r}, which {RECORDINGS_FILE} does"
                " not have; add its line"
            )
        if len(fields) == 4 and fields[3] != "0":
            raise DataError(
                f"{origin}: is in channel {truncate(fields[3])}, and one channel is read of all"
                " clips; write the channels to files of their own"
            )
        start, end = (_seconds(field, origin) for field in fields[1:3])
        if start < 0 or (end != -1 and end <= start):
            raise DataError(
                f"{origin}: lasts from {fields[1]} to {fields[2]} s; the end must be after the"
                " start, or -1 for the recording's end"
            )
        number, line = recordings[fields[0]]
        clip = {"audio": self._parse_recording(line, number), "start_s": start}
        return clip if end == -1 else {**clip, "end_s": end}


_Lines = Mapping[str, tuple[int, str]]


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields the number of each line that is not blank, and its id and rest, one blank between."""
    with open_read(path) as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            fields = content.split(maxsplit=1)  # at ASCII's white space, which bytes know alone
            try:
                parts = [field.decode("utf-8").rstrip(" \t\r\n") for field in fields]
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{format_path(path)}:{number}: is not UTF-8 (byte {error.start});"
                    " save the file as UTF-8"
                ) from None
            if parts:
                yield number, " ".join(parts)


def _of(lines: _Lines, utterance: str, name: str, origin: str) -> str:
    if utterance not in lines:
        raise DataError(
            f"{origin}: the utterance {truncate(utterance)!r} has no line in {name!r}; add it, or"
            " remove the utterance"
        )
    return lines[utterance][1]


def _seconds(text: str, origin: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise DataError(f"{origin}: {truncate(text)!r} is no time in seconds; write a number")
    return seconds
