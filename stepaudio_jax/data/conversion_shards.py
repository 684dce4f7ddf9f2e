"""One shard of a conversion: rows of a source -> a file in the project's own form."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.config import AudioChannel, SourceConfig
from stepaudio_jax.data.clip_files import ClipFolder, cut_clip, whole_clip
from stepaudio_jax.data.clips import decode_clip, open_clip
from stepaudio_jax.data.containers.base import Samples
from stepaudio_jax.data.record import Record, record_error_context
from stepaudio_jax.data.source import Source
from stepaudio_jax.data.sources.serialization import check_reads_back, part_times, serialize_record
from stepaudio_jax.errors import AudioError, DataError
from stepaudio_jax.storage import (
    Path,
    PathLike,
    atomic_text_writer,
    copy_file,
    file_size,
    format_json_line,
    is_bucket_path,
    read_bytes,
    to_path,
)
from stepaudio_jax.text import AudioPart

_BYTES_PER_SAMPLE = 2

OutputContainer = Literal["jsonl", "array_record"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedOutput:
    """Says what a conversion reads, and how it writes it.

    Attributes:
        source: what is read.
        folder: the output.
        name: what the files are called.
        container: their kind: "jsonl" has the clips in files beside it, "array_record" inside.
        shards: how many files there are.
        channel: of clips with several channels, which is heard. Whole clips keep all of them.
        allow_urls: whether clips that are URLs are downloaded.
    """

    source: SourceConfig
    folder: str
    name: str
    container: OutputContainer
    shards: int
    channel: AudioChannel
    allow_urls: bool

    def path(self, shard: int) -> Path:
        """Returns the file of a shard."""
        return to_path(self._path(f"{shard:05d}"))

    @property
    def pattern(self) -> str:
        """Returns the pattern that matches the files of all shards, and nothing else."""
        return self._path("*")

    def _path(self, number: str) -> str:
        name = f"{self.name}-{number}-of-{self.shards:05d}.{self.container}"
        return os.path.join(self.folder, name)


class SkippedRow(NamedTuple):
    """A row that could not be converted: where it lies, and why."""

    place: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """Holds what a shard's file holds, JSON-ready.

    Attributes:
        shard: its number, from 0.
        records: how many it has.
        clips: in their dialogues; one that occurs twice in a dialogue counts once.
        samples: of these clips, at 16 kHz.
        skipped: the rows that it lacks.
    """

    shard: int
    records: int
    clips: int
    samples: int
    skipped: list[SkippedRow]


@dataclasses.dataclass
class _Counts:
    """Counts what a shard has so far; see `Shard`."""

    records: int = 0
    clips: int = 0
    samples: int = 0
    skipped: list[SkippedRow] = dataclasses.field(default_factory=list)


class ShardWriter:
    """Writes shards of a conversion, each at once or not at all.

    Args:
        output: of the conversion.
        advance: is called after each row; may raise to stop.
        source: that of `output`, if it is open already.

    Raises:
        DataError: the source cannot be opened.
    """

    def __init__(
        self, output: ShardedOutput, advance: Callable[[], object], source: Source | None = None
    ):
        self._output = output
        self._advance = advance
        self._source = Source(output.source) if source is None else source
        self._clips = ClipFolder(to_path(output.folder))

    def write(self, shard: int) -> Shard:
        """Writes the file of a shard.

        Raises:
            OutputError, OSError: it cannot be written.
        """
        counts = _Counts()
        rows = self._rows(shard, counts)
        path = self._output.path(shard)
        if self._output.container == "jsonl":
            with atomic_text_writer(path) as file:
                file.writelines(map(format_json_line, rows))
        else:
            _write_array_record(path, rows)
        return Shard(shard, counts.records, counts.clips, counts.samples, counts.skipped)

    def _rows(self, shard: int, counts: "_Counts") -> Iterator[dict[str, Any]]:
        for index in shard_range(len(self._source), self._output.shards, shard):
            try:
                row, samples = self._row(self._source[index])
            except DataError as error:
                origin = self._source.origin(index)
                reason = str(error).removeprefix(f"{origin}: ")
                counts.skipped.append(SkippedRow(origin, reason))
            else:
                counts.records += 1
                counts.clips += len(samples)
                counts.samples += sum(samples)
                yield row
            self._advance()

    def _row(self, record: Record) -> tuple[dict[str, Any], list[int]]:
        """Returns a record with its clips as they will lie, and the samples of each clip.

        Raises:
            DataError: a clip cannot be read, or the record would not be read back as it is.
        """
        with record_error_context(record):
            check_reads_back(record)
            clips = {
                part.name: self._clip(part) for message in record.messages for part in message.audio
            }
        row = serialize_record(record, lambda part: clips[part.name][0])
        return row, [samples for _, samples in clips.values()]

    def _clip(self, part: AudioPart) -> tuple[dict[str, Any], int]:
        """Returns where a clip will lie, as the keys of an audio part, and its samples at 16 kHz.

        Every clip is decoded, so that what is written can be read. A part of a file stays one where
        clips are files, since others may share that file; in a record it is cut out.
        """
        output = self._output
        clip = open_clip(part.path, allow_urls=output.allow_urls)
        waveform = decode_clip(clip, part, channel=output.channel)
        times = part_times(part)
        inside = output.container == "array_record"
        if times and (inside or isinstance(clip, Samples)):
            stored: PathLike | bytes = cut_clip(part, waveform, output.channel)
            times = {}
        else:
            stored = whole_clip(clip, part, waveform, output.channel)
        if inside:
            content = stored if isinstance(stored, bytes) else read_bytes(stored)
            return {"audio": content}, len(waveform)
        return {"audio": self._clips.add(stored, part.path), **times}, len(waveform)


def shard_range(rows: int, shards: int, shard: int) -> range:
    """Returns the rows of a shard: neighbours, in shards whose sizes differ by one at most."""
    return range(rows * shard // shards, rows * (shard + 1) // shards)


def _write_array_record(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    from stepaudio_jax.data.containers.array_record import write_array_record

    if not is_bucket_path(path):
        write_array_record(path, rows)
        return
    with tempfile.TemporaryDirectory(prefix="stepaudio-") as folder:
        local = os.path.join(folder, path.name)  # the library writes to local disks only
        write_array_record(local, rows)
        copy_file(local, path)


def row_bytes(source: Source, index: int, *, allow_urls: bool = False) -> int:
    """Returns about how many bytes a row will take with its sound; 0 if it cannot be read."""
    try:
        record = source[index]
        size = len(json.dumps(serialize_record(record, lambda part: part_times(part))))
        for part in {part.name: part for turn in record.messages for part in turn.audio}.values():
            size += _clip_bytes(part, allow_urls)
    except (DataError, AudioError, OSError):
        return 0
    return size


def _clip_bytes(part: AudioPart, allow_urls: bool) -> int:
    if part.end_s is not None:
        return round((part.end_s - part.start_s) * SAMPLE_RATE) * _BYTES_PER_SAMPLE
    clip = open_clip(part.path, allow_urls=allow_urls)
    if isinstance(clip, Samples):
        return clip.values.size * _BYTES_PER_SAMPLE
    return len(clip) if isinstance(clip, bytes) else file_size(clip)
