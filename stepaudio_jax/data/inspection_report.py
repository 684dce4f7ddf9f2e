"""Describes in a few lines what an inspection has found in a source."""

import collections
import os
from collections.abc import Iterator, Mapping, Sequence

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.clips import probe_clip
from stepaudio_jax.data.containers.opening import split_clip_name
from stepaudio_jax.data.containers.sharded import ShardedRows
from stepaudio_jax.data.inspection import Inspection, render_dialogue
from stepaudio_jax.data.record import Record
from stepaudio_jax.data.source import Source
from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import first_few, format_path, truncate
from stepaudio_jax.text import AudioPart, Tokenizer

_SHOWN_REFUSALS = 3
_SHOWN_FILES = 3
_SHOWN_KEYS = 12
_MAX_EXAMPLE_CHARACTERS = 2000
_MIN_SHARE = 0.005  # of a field's letters that a script must have to be named
_CONTAINER_NAMES = {
    "JsonlRows": "JSON Lines",
    "JsonArray": "JSON array",
    "CsvTable": "CSV table",
    "ParquetTable": "Parquet table",
    "TarShard": "WebDataset tar",
    "ArrayRecordFile": "ArrayRecord",
    "TFRecordFile": "TFRecord",
    "TfdsFolder": "TFDS folder",
    "AudioFolder": "audiofolder",
    "KaldiFolder": "Kaldi folder",
    "LhotsePair": "Lhotse recordings and supervisions",
}


def describe(
    source: Source,
    inspection: Inspection,
    *,
    limit: int | None = None,
    tokenizer: Tokenizer | None = None,
    seq_len: int | None = None,
) -> Iterator[str]:
    """Yields the lines that describe a source; the arguments are those of `inspect_source`."""
    measure = "bytes" if tokenizer is None else "tokens"
    tokenizer = tokenizer or Tokenizer.byte_level()
    rows = _count(len(source), "row")
    if limit is not None and limit < len(source):
        rows += f", of which the first {limit} were read"
    yield source.path
    yield _line("container", f"{_containers(source)}; {rows}")
    yield _line("form", _counted(inspection.forms) or "none that is known")
    if inspection.kinds:
        yield _line("dialogues", _counted(inspection.kinds))
    yield _line("clips", _clips(inspection))
    for number, (field, letters) in enumerate(inspection.scripts.items()):
        yield _line("" if number else "texts", f"{field}: {_shares(letters)}")
    if inspection.languages:
        yield _line("language", _counted(inspection.languages))
    if inspection.attributes:
        yield _line("attributes", first_few(list(inspection.attributes), limit=_SHOWN_KEYS))
    if inspection.unread:
        keys = first_few(list(map(repr, inspection.unread)), limit=_SHOWN_KEYS)
        yield _line("not read", f"key{'s' * (len(inspection.unread) > 1)} {keys}")
    if inspection.content.tags:
        tags = f"{inspection.content.tags} placeholders of clips stand in the texts as letters"
        yield _line("placeholders", tags)
    if inspection.content.records:
        yield _line("length", _lengths(inspection, measure, seq_len))
    yield _line("missing", _missing(inspection.missing))
    yield _line("refused", _count(len(inspection.refused), "row") if inspection.refused else "none")
    for refusal in inspection.refused[:_SHOWN_REFUSALS]:
        yield _line("", f"{refusal.place}: {refusal.reason}")
    if len(inspection.refused) > _SHOWN_REFUSALS:
        yield _line("", "..")
    if inspection.example is not None:
        record = source[inspection.example]
        yield _line("example", f"{record.origin}, as the model reads it:")
        for line in render_example(record, tokenizer).splitlines():
            yield f"    {line}"
        for field in ("reference_reply", "rejected_reply", "answer"):
            if (value := getattr(record, field)) is not None:
                yield _line(field.partition("_")[0], truncate(" ".join(value.split())))


def render_example(record: Record, tokenizer: Tokenizer) -> str:
    """Returns a record as the model reads it, with special tokens by name and clips described."""
    pieces = []
    for segment in render_dialogue(record, tokenizer)[-1]:
        pieces.append(
            tokenizer.decode(segment.tokens)
            if segment.audio is None
            else f"<audio {_describe_clip(segment.audio)}>"
        )
    return truncate("".join(pieces), _MAX_EXAMPLE_CHARACTERS)


def _shares(letters: Mapping[str, int]) -> str:
    """Returns the scripts of some letters, the most frequent first."""
    total = sum(letters.values())
    if not total:
        return "no letters"
    ordered = sorted(letters.items(), key=lambda item: -item[1])
    named = [(script, count) for script, count in ordered if count >= _MIN_SHARE * total]
    if len(named) == 1:
        return named[0][0]
    return ", ".join(f"{script} {100 * count / total:.0f} %" for script, count in named)


def _containers(source: Source) -> str:
    """Returns the kinds of a source's files, with their number, and of its folders."""
    files: collections.Counter[str] = collections.Counter()
    for container in source.containers:
        for part in container.shards if isinstance(container, ShardedRows) else [container]:
            files[_CONTAINER_NAMES[type(part).__name__]] += 1
    return ", ".join(
        f"{name} ({count} files)" if count > 1 else name for name, count in files.items()
    )


def _counted(counts: Mapping[str, int]) -> str:
    """Returns names with their counts, the most frequent first; one name alone without."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    if len(ordered) == 1:
        return ordered[0][0]
    return ", ".join(f"{name} {count}" for name, count in ordered)


def _clips(inspection: Inspection) -> str:
    content = inspection.content
    if not content.clips:
        return "none"
    seconds = content.samples / SAMPLE_RATE
    sound = f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds:.2f} s"
    parts = [f"{content.clips}, {sound} of sound"]
    if inspection.clip_samples is not None:
        shortest, longest = (samples / SAMPLE_RATE for samples in inspection.clip_samples)
        parts.append(f"the shortest {shortest:.2f} s, the longest {longest:.2f} s")
    if inspection.timed_clips:
        segments = _count(inspection.segments, "segment")
        parts.append(f"{segments} with times in {inspection.timed_clips} of them")
    if content.unmeasured_clips:
        parts.append(f"{content.unmeasured_clips} whose headers do not say how long they are")
    if inspection.long_clips:
        parts.append(f"{inspection.long_clips} longer than the 25 s of one chunk")
    return ", ".join(parts)


def _lengths(inspection: Inspection, measure: str, seq_len: int | None) -> str:
    longest = f"the longest dialogue has {inspection.longest} tokens"
    if measure == "bytes":
        longest += ", one for each byte of text (--tokenizer DIR counts a model's)"
    if seq_len is None:
        return longest
    too_long = f"{_count(inspection.too_long, 'dialogue')} longer than --seq-len {seq_len}"
    if inspection.split:
        too_long += (
            f", {inspection.split} of which data.on_too_long='split' reads in"
            f" {inspection.parts} parts"
        )
    return f"{too_long}; {longest}"


def _missing(missing: Sequence[str]) -> str:
    if not missing:
        return "no file"
    names = ", ".join(format_path(path) for path in missing[:_SHOWN_FILES])
    more = ", .." if len(missing) > _SHOWN_FILES else ""
    return f"{_count(len(missing), 'file')}: {names}{more}"


def _describe_clip(part: AudioPart) -> str:
    """Returns a clip's file and length: `a.wav, 1.16 s`."""
    file, place = split_clip_name(part.path)
    name = "inline" if part.path.startswith("data:") else os.path.basename(file)
    name += "" if place is None else f"#{place}"
    if part.start_s or part.end_s is not None:
        end = "its end" if part.end_s is None else f"{part.end_s:g} s"
        name += f" from {part.start_s:g} s to {end}"
    try:
        samples = probe_clip(part)
    except AudioError:  # a URL that may not be read
        samples = None
    length = "of unknown length" if samples is None else f"{samples / SAMPLE_RATE:.2f} s"
    return f"{format_path(name)}, {length}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line(title: str, text: str) -> str:
    return f"  {title:<13}{text}"
