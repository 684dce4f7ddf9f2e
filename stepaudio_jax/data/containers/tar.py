"""WebDataset shards: tar archives in which the files of one name are one row.

`talk.wav`, `talk.txt` and `talk.json` are the row `talk` with the keys `wav`, `txt` and `json`. An
index of the members (30 bytes each, and the names) is read when a shard is opened; any member is
then read alone, by its offset.
"""

import array
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.containers.jsonl import parse_json
from stepaudio_jax.data.containers.name_table import NameTable
from stepaudio_jax.data.containers.places import (
    AUDIO_EXTENSIONS,
    clip_name,
    unescape_place,
)
from stepaudio_jax.data.containers.text_files import GZIP_SIGNATURE, reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import (
    COPY_AGAIN,
    PathLike,
    expand_home,
    format_path,
    open_read,
    read_range,
)

_KIND = "a tar archive"
# A key is a path up to the first dot of its last part, as WebDataset splits names.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_METADATA = re.compile(r"__[^/]*__(?:$|/)")
_JSON_EXTENSIONS = ("json", "jsn")
_MAX_TEXT_BYTES = 1 << 24
_BLOCK_BYTES = tarfile.BLOCKSIZE
_RECORD_BYTES = 10240  # to which tar fills an archive up with zeros


class TarShard:
    """Reads the rows of a WebDataset shard.

    Members are grouped by key wherever they stand. Sound is named by an `EmbeddedClip`, JSON is
    parsed, and any other text in UTF-8 is a string without white space around it; what is neither
    is given by name. Members whose names have no ending or begin with a dot belong to no row.

    Args:
        path: of the archive, which must not be compressed: that has no random access.

    Raises:
        DataError: it cannot be read, is cut off, damaged or compressed, or has a member twice.
    """

    def __init__(self, path: PathLike):
        self.path = expand_home(os.fspath(path))
        self._shown = format_path(self.path)
        rows: dict[str, list[tuple[str, int, int]]] = {}
        with reading(self.path, _KIND):
            for name, offset, size in self._members():
                match = _KEY_AND_EXTENSION.fullmatch(name)
                if match is None or _METADATA.match(name):
                    continue
                members = rows.setdefault(match[1], [])
                if any(match[2].lower() == ending.lower() for ending, _, _ in members):
                    raise DataError(
                        f"{self._shown}#{format_path(name)}: the archive has this member twice;"
                        " write the archive again, with each file once"
                    )
                members.append((match[2], offset, size))
        self._keys = NameTable(rows)
        self._endings = list(dict.fromkeys(ending for row in rows.values() for ending, *_ in row))
        numbers = {ending: number for number, ending in enumerate(self._endings)}
        self._row_starts = array.array("q", [0])
        self._ending_numbers, self._offsets = array.array("i"), array.array("q")
        self._sizes = array.array("q")
        for members in rows.values():
            for ending, offset, size in members:
                self._ending_numbers.append(numbers[ending])
                self._offsets.append(offset)
                self._sizes.append(size)
            self._row_starts.append(len(self._offsets))

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"TarShard({self.path!r}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file#key` of the row at `index`."""
        return f"{self.path}#{format_path(self._keys[index])}"

    def row(self, index: int) -> Row:
        """Reads the texts of the row at `index`; its sound is named.

        Raises:
            DataError: a text cannot be read; names `file#member` and why.
        """
        key = self._keys[index]
        value: dict[str, Any] = {"__key__": key}
        for member in range(self._row_starts[index], self._row_starts[index + 1]):
            ending = self._endings[self._ending_numbers[member]]
            value[ending.lower()] = self._value(f"{key}.{ending}", member)
        return Row(value, self.origin(index), os.path.dirname(self.path), default_id=key)

    def read_clip(self, place: str) -> bytes:
        """Reads a member by its name in the archive.

        Raises:
            DataError: there is no such member, or the file has become shorter.
        """
        name = unescape_place(place)
        member = self._find(name)
        if member is None:
            raise DataError(
                f"{self._shown}#{format_path(name)}: the archive has no such member;"
                f" `tar tf {self._shown}` lists them"
            )
        return self._read(name, member)

    def blocks(self) -> None:
        """Returns None: every member is read alone."""

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """Yields name, offset and size of each file in the archive, and checks its end."""
        with open_read(self.path) as file:
            if file.read(2) == GZIP_SIGNATURE:
                raise DataError(
                    f"{self._shown}: is a compressed archive, in which nothing can be read without"
                    " reading all before it; unpack it once, with `gunzip`, and name the .tar"
                )
            file.seek(0)
            try:
                with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
                    yield from self._files(archive)
                    end = archive.offset
            except tarfile.ReadError as error:
                raise DataError(
                    f"{self._shown}: is no tar archive, or is cut off or damaged ({error});"
                    f" {COPY_AGAIN}"
                ) from None
            file.seek(end)
            block, rest = file.read(_BLOCK_BYTES), file.read(2 * _RECORD_BYTES)
        if len(block) < _BLOCK_BYTES:
            raise DataError(
                f"{self._shown}: is cut off at byte {end + len(block)}, where the blocks that end"
                f" an archive are missing; {COPY_AGAIN}"
            )
        if block.strip(b"\0"):
            raise DataError(
                f"{self._shown}: is damaged at byte {end}, where a member's header should be;"
                f" {COPY_AGAIN}"
            )
        if rest.strip(b"\0"):
            raise DataError(
                f"{self._shown}: has more after its end, at byte {end}, as archives have that were"
                " joined with `cat`; join them with `tar --concatenate`, or name them one by one"
            )

    def _files(self, archive: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
        places: dict[str, tuple[int, int]] = {}
        while (member := archive.next()) is not None:
            # Else each would be kept, with all its attributes.
            archive.members.clear()  # type: ignore[attr-defined]
            name = member.name.removeprefix("./")
            if member.isdir() or os.path.basename(name).startswith("."):
                continue
            place = member.offset_data, member.size
            if member.islnk():
                place = places.get(member.linkname.removeprefix("./"), (-1, 0))
            if member.issparse() or not (member.isreg() or member.islnk()) or place[0] < 0:
                raise DataError(
                    f"{self._shown}#{format_path(name)}: is a link or a special file, and no file"
                    " with content; write the archive with `tar --dereference --hard-dereference`"
                )
            places[name] = place
            yield name, *place

    def _find(self, name: str) -> int | None:
        match = _KEY_AND_EXTENSION.fullmatch(name)
        index = None if match is None else self._keys.find(match[1])
        if match is None or index is None:
            return None
        for member in range(self._row_starts[index], self._row_starts[index + 1]):
            if self._endings[self._ending_numbers[member]] == match[2]:
                return member
        return None

    def _read(self, name: str, member: int) -> bytes:
        offset, size = self._offsets[member], self._sizes[member]
        with reading(self.path, _KIND):
            content = read_range(self.path, offset, offset + size)
        if len(content) != size:
            raise DataError(
                f"{self._shown}#{format_path(name)}: ends after {len(content)} of {size} bytes:"
                f" the archive has changed since it was opened; {COPY_AGAIN}"
            )
        return content

    def _value(self, name: str, member: int) -> Any:
        kind = name.rpartition(".")[2].lower()
        if kind in AUDIO_EXTENSIONS:
            return clip_name(self.path, name)
        if kind not in _JSON_EXTENSIONS and self._sizes[member] > _MAX_TEXT_BYTES:
            return str(clip_name(self.path, name))
        content = self._read(name, member)
        if kind in _JSON_EXTENSIONS:
            return parse_json(
                content, f"{self._shown}#{format_path(name)}", "write the member again"
            )
        try:
            return content.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            if kind in ("txt", "text", "transcript", "cls"):
                raise DataError(
                    f"{self._shown}#{format_path(name)}: is not UTF-8 (byte {error.start});"
                    " write it again as UTF-8"
                ) from None
            return str(clip_name(self.path, name))
