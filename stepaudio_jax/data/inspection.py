"""Reads all rows of a source and the headers of its clips, and counts what there is to know."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import unicodedata
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import tqdm

from stepaudio_jax.audio import CHUNK_SAMPLES, clip_chunks
from stepaudio_jax.config import DataConfig
from stepaudio_jax.data.clips import is_missing_file, measure_clip, probe_clip
from stepaudio_jax.data.record import Content, Record, count_content, record_error_context
from stepaudio_jax.data.source import Source
from stepaudio_jax.data.splitting import Splitter
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import AudioError, DataError, TextError
from stepaudio_jax.text import (
    AudioPart,
    Segment,
    Tokenizer,
    render_prompt,
    render_training,
    tokenize_dialogue,
    training_views,
)

_THREADS = 16  # a network file system answers slowly, but many requests at a time
_BLOCK_ROWS = 128
_PROGRESS_BAR_DELAY_S = 2.0
_SCRIPT_NAMES = {"CJK": "Han", "FULLWIDTH": "Latin", "MATHEMATICAL": "symbols"}


class Refusal(NamedTuple):
    """Names a row that cannot be read, and says why."""

    place: str
    reason: str


@dataclasses.dataclass
class Inspection:
    """Holds what the rows of a source hold; those of several blocks of rows can be added.

    Attributes:
        content: of the rows that can be read.
        forms: rows by the name of their form.
        kinds: rows by what they are for (`dialogue_kind`).
        attributes: the names of the clips' attributes, with how many clips have them.
        unread: keys of rows that nothing reads, with how many rows have them.
        clip_samples: (shortest, longest) clip, in samples at 16 kHz, as far as headers say it.
        long_clips: how many are longer than one chunk of 25 s.
        scripts: for each field of text, its letters by script.
        languages: clips by their attribute `language`.
        missing: sound files that are named and do not exist.
        refused: rows that cannot be read, in order.
        longest: tokens of the longest dialogue, as far as the lengths of its clips are known.
        timed_clips, segments: clips with segments, and how many these have.
        too_long: dialogues of more tokens than `seq_len`.
        split, parts: of these, how many can be split at times, and into how many parts.
        example: the index of the first row that can be read; None if there is none.
    """

    content: Content = Content()
    forms: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    attributes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unread: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    clip_samples: tuple[int, int] | None = None
    long_clips: int = 0
    scripts: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    languages: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    missing: list[str] = dataclasses.field(default_factory=list)
    refused: list[Refusal] = dataclasses.field(default_factory=list)
    longest: int = 0
    timed_clips: int = 0
    segments: int = 0
    too_long: int = 0
    split: int = 0
    parts: int = 0
    example: int | None = None

    def add(self, other: "Inspection") -> None:
        """Adds what later rows hold."""
        self.content += other.content
        self.forms += other.forms
        self.kinds += other.kinds
        self.attributes += other.attributes
        self.unread += other.unread
        for samples in other.clip_samples or ():
            self._add_length(samples)
        self.long_clips += other.long_clips
        for field, letters in other.scripts.items():
            self.scripts.setdefault(field, collections.Counter()).update(letters)
        self.languages += other.languages
        self.missing += other.missing
        self.refused += other.refused
        self.longest = max(self.longest, other.longest)
        self.timed_clips += other.timed_clips
        self.segments += other.segments
        self.too_long += other.too_long
        self.split += other.split
        self.parts += other.parts
        self.example = other.example if self.example is None else self.example

    def add_record(self, record: Record, samples: Mapping[str, int | None], tokens: int) -> None:
        """Adds a record that can be read.

        Args:
            record: whose texts are counted.
            samples: of its clips by their names, at 16 kHz; None where headers do not say it.
            tokens: of its dialogue.
        """
        self.content += count_content(record, list(samples.values()))
        self.kinds[dialogue_kind(record)] += 1
        for count in samples.values():
            if count is not None:
                self._add_length(count)
                self.long_clips += count > CHUNK_SAMPLES
        for field, text in _texts(record):
            self.scripts.setdefault(field, collections.Counter()).update(_scripts(text))
        for part in (part for message in record.messages for part in message.audio):
            self.attributes.update(part.attributes.keys())
            if "language" in part.attributes:
                self.languages[part.attributes["language"]] += 1
            self.timed_clips += bool(part.segments)
            self.segments += len(part.segments)
        self.longest = max(self.longest, tokens)

    def _add_length(self, samples: int) -> None:
        shortest, longest = self.clip_samples or (samples, samples)
        self.clip_samples = min(shortest, samples), max(longest, samples)


def inspect_source(
    source: Source,
    *,
    limit: int | None = None,
    tokenizer: Tokenizer | None = None,
    seq_len: int | None = None,
    allow_urls: bool = False,
    show_progress: bool = True,
) -> Inspection:
    """Reads rows of a source, and the headers of their clips.

    Args:
        source: any.
        limit: how many rows are read, from the first; None for all.
        tokenizer: by which dialogues are measured; None for one that has a token for each byte.
        seq_len: dialogues of more tokens are counted, and the parts that data.on_too_long="split"
            makes of them; None counts none.
        allow_urls: whether clips may be URLs, which are not read.
        show_progress: whether a bar is shown where it takes long.
    """
    tokenizer = tokenizer or Tokenizer.byte_level()
    rows = len(source) if limit is None else min(limit, len(source))
    blocks = [range(start, min(start + _BLOCK_ROWS, rows)) for start in range(0, rows, _BLOCK_ROWS)]

    splitter = None if seq_len is None else _splitter(seq_len, tokenizer, allow_urls)

    def inspect_block(block: range) -> Inspection:
        inspection = Inspection()
        for index in block:
            try:
                record, form, unread = source.examine(index)
                samples = _probe(record, inspection, allow_urls)
                with record_error_context(record):
                    tokens = _count_tokens(record, samples, tokenizer)
            except DataError as error:
                with contextlib.suppress(DataError):
                    inspection.forms[source.form(index)] += 1
                origin = source.origin(index)
                reason = str(error).removeprefix(f"{origin}: ")
                inspection.refused.append(Refusal(origin, reason))
                continue
            inspection.forms[form] += 1
            inspection.unread.update(unread)
            inspection.add_record(record, samples, tokens)
            if splitter is not None and seq_len is not None and tokens > seq_len:
                parts = _count_parts(record, splitter)
                inspection.too_long += 1
                inspection.split += bool(parts)
                inspection.parts += parts
            if inspection.example is None:
                inspection.example = index
        return inspection

    total = Inspection()
    bar = tqdm.tqdm(
        total=rows,
        desc="reading",
        unit="row",
        delay=_PROGRESS_BAR_DELAY_S,
        leave=False,
        disable=not show_progress,
    )
    with bar, concurrent.futures.ThreadPoolExecutor(_THREADS, "stepaudio-inspect") as pool:
        try:
            for block, of_block in zip(blocks, pool.map(inspect_block, blocks), strict=True):
                total.add(of_block)
                bar.update(len(block))
        finally:
            pool.shutdown(cancel_futures=True)
    return total


def dialogue_kind(record: Record) -> str:
    """Returns what a dialogue is for, in the plural: that is, which objectives can use it."""
    if record.rejected_reply is not None:
        return "preferences"
    if record.messages[-1].role == "assistant":
        in_loss = any(
            message.role == "assistant" and message.in_loss for message in record.messages
        )
        return "with replies" if in_loss else "with bad replies only"
    if record.answer is not None or record.reference_reply is not None or record.rubric:
        return "prompts with what a reply is compared with"
    return "prompts"


def render_dialogue(record: Record, tokenizer: Tokenizer) -> list[list[Segment]]:
    """Returns the views of a dialogue that training has, or else the prompt that is answered.

    Raises:
        TextError: the dialogue has no user turn, or another that no program can use.
    """
    messages = record.messages
    if any(message.role == "assistant" and message.in_loss for message in messages):
        return [render_training(view, tokenizer) for view in training_views(messages)]
    while len(messages) > 1 and messages[-1].role == "assistant":
        messages = messages[:-1]  # a reply that nothing is learnt from
    return [render_prompt(messages, tokenizer)]


def _probe(record: Record, inspection: Inspection, allow_urls: bool) -> dict[str, int | None]:
    """Returns the samples of each clip of a record; notes files that do not exist."""
    samples: dict[str, int | None] = {}
    for part in (part for message in record.messages for part in message.audio):
        if is_missing_file(part.path):
            inspection.missing.append(part.path)
        if part.name not in samples:
            with record_error_context(record):
                samples[part.name] = probe_clip(part, allow_urls=allow_urls)
    return samples


def _count_tokens(record: Record, samples: Mapping[str, int | None], tokenizer: Tokenizer) -> int:
    """Returns the tokens of the longest of a record's views."""

    def chunk_tokens(part: AudioPart) -> list[int]:
        return [chunk.tokens for chunk in clip_chunks(samples[part.name] or 0)]

    return max(
        tokenize_dialogue(view, chunk_tokens, tokenizer).tokens.size
        for view in render_dialogue(record, tokenizer)
    )


def _splitter(seq_len: int, tokenizer: Tokenizer, allow_urls: bool) -> Splitter:
    """Returns what splits dialogues for rows of `seq_len` tokens, with room for their sound."""
    limits = RowLimits(
        tokens=seq_len,
        tokens_name="--seq-len",
        chunks=seq_len // clip_chunks(CHUNK_SAMPLES)[0].tokens + 1,
        mel_frames=DataConfig.mel_frames_per_chunk,
        length_convention="hf",
    )
    measure = functools.partial(measure_clip, allow_urls=allow_urls)
    return Splitter(ViewRenderer(tokenizer), limits, measure)


def _count_parts(record: Record, splitter: Splitter) -> int:
    """Returns into how many parts a dialogue that is too long can be split; 0 if it cannot."""
    try:
        return len(splitter.split(record))
    except (DataError, AudioError, TextError):
        return 0


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    """Yields the texts of a record, each with its field."""
    for message in record.messages:
        if message.text:
            yield message.role, message.text
        if message.reasoning:
            yield "reasoning", message.reasoning
        for part in message.audio:
            if part.transcript:
                yield "transcript", part.transcript
    for field in ("reference_reply", "rejected_reply", "answer", "scenario"):
        if value := getattr(record, field):
            yield field, value
    for criterion in record.rubric:
        yield "rubric", criterion.text


def _scripts(text: str) -> collections.Counter[str]:
    """Counts the letters of a text by their scripts."""
    letters: collections.Counter[str] = collections.Counter()
    for character, count in collections.Counter(text).items():
        if character.isalpha():
            script = unicodedata.name(character, "other").partition(" ")[0]
            letters[_SCRIPT_NAMES.get(script, script.capitalize())] += count
    return letters
