"""Preprocessing: a record -> examples, with clips decoded once and views rendered to tokens."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

from stepaudio_jax.audio import (
    CHUNK_SAMPLES,
    SAMPLE_RATE,
    log_mel,
    split_chunks,
)
from stepaudio_jax.audio.lengths import (
    audio_embeddings_per_chunk,
    audio_indices,
    max_chunk_samples,
    min_token_samples,
)
from stepaudio_jax.config import AugmentationConfig, AuxiliaryConfig, DataConfig, ModelConfig
from stepaudio_jax.data.augmentation import (
    augment_waveform,
    can_lengthen,
    mask_log_mel,
    without_lengthening,
)
from stepaudio_jax.data.batch import batch_shape, check_sizes
from stepaudio_jax.data.clips import load_clip_within, open_clip_cache, probe_clip
from stepaudio_jax.data.labels import LabelEncoder
from stepaudio_jax.data.preference_pairs import (
    PairFormat,
    any_reply,
    join_replies,
    joined_size,
    read_replies,
)
from stepaudio_jax.data.record import (
    AudioChunk,
    ChunkLabels,
    Content,
    Example,
    PreparedRecord,
    Record,
    Visit,
    count_content,
    record_error_context,
    skip_reason,
)
from stepaudio_jax.data.split_source import (
    AnySource,
    PartIndex,
    open_stage_sources,
    part_indices,
)
from stepaudio_jax.data.teacher_views import join_read_views, read_view
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import format_path
from stepaudio_jax.text import AudioPart, Message, TokenizedDialogue, Tokenizer

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Clip:
    """Holds a decoded clip.

    Attributes:
        part: what the record says of it.
        waveforms: the samples [samples] f32 of each chunk; none if only its header was read.
        chunk_tokens: the audio tokens of each chunk. Only the last can have none.
        samples: its length at 16 kHz; None if its header does not say it.
    """

    part: AudioPart
    waveforms: Sequence[NDArray[np.float32]]
    chunk_tokens: tuple[int, ...]
    samples: int | None

    @property
    def num_encoded_chunks(self) -> int:
        """Returns the number of chunks that have audio tokens: those that the encoder is given."""
        return sum(count > 0 for count in self.chunk_tokens)


class Preprocessor:
    """Prepares records for packing; safe from any thread.

    The result depends on the visit and the settings only.

    Args:
        config: sizes, augmentation, what to do with records that cannot be used.
        tokenizer: its vocabulary must lie within the model's.
        model: its encoder and decoder limit the sizes; its length convention counts audio tokens.
        auxiliary: which labels the chunks carry; None for none.
        sources: the records, in the order of `config.sources`, as `open_stage_sources` opens them.
        seed: of the augmentation.
        pair_format: how records of preferences become examples; None for dialogues.
        teacher_reads: whether examples have what a teacher reads in place of the sound.

    Raises:
        ConfigError: the sizes contradict the model, or the cache of clips cannot be used.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        model: ModelConfig,
        auxiliary: AuxiliaryConfig | None,
        sources: Sequence[AnySource],
        *,
        seed: int,
        pair_format: PairFormat | None = None,
        teacher_reads: bool = False,
    ):
        check_sizes(config, tokenizer, model)
        self._config = config
        self._clip_cache = open_clip_cache(config)
        self._tokenizer = tokenizer
        self._model = model
        self._auxiliary = auxiliary
        self._convention = model.length_convention
        self._views = ViewRenderer(tokenizer, config.history_reasoning, config.loss_on_reasoning)
        self._limits = RowLimits.of(config, model)
        # A row holds no clip with another chunk, whose last chunk may have no token.
        self._max_clip_samples = (config.audio_chunks_per_seq + 1) * CHUNK_SAMPLES
        self._embeddings_per_chunk = audio_embeddings_per_chunk(config.mel_frames_per_chunk)
        self._label_encoder = (
            LabelEncoder(auxiliary, self._embeddings_per_chunk)
            if auxiliary is not None and auxiliary.enabled
            else None
        )
        self._sources = sources
        self._seed = seed
        self._pair_format = pair_format
        self._teacher_reads = teacher_reads
        self.shape = batch_shape(
            config,
            auxiliary,
            pad_token=tokenizer.special.pad,
            pair_format=pair_format,
            teacher_reads=teacher_reads,
        )

    def __call__(self, visit: Visit) -> PreparedRecord:
        """Reads a record and prepares it.

        Raises:
            DataError: the record cannot be used, and the configuration does not skip it; names
                `file:line`.
        """
        rng = np.random.default_rng((self._seed, visit.source, visit.record, visit.epoch))
        try:
            record = self._sources[visit.source][visit.record]
            if self._pair_format is None:
                return PreparedRecord(visit, self.examples(record, rng))
            return PreparedRecord(visit, (self._pair_example(record, rng, visit),))
        except DataError as error:
            reason = skip_reason(error, self._config)
            if reason is None:
                raise
            return PreparedRecord(visit, (), skipped=reason, message=str(error))

    def opener(self) -> Callable[[], "Preprocessor"]:
        """Returns a function, for another process, that opens the sources and makes an equal one.

        It can be pickled, and raises a DataError if a source can no longer be read.
        """
        settings = (self._config, self._tokenizer, self._model, self._auxiliary, self._seed)
        return functools.partial(
            _open_preprocessor,
            *settings,
            self._pair_format,
            self._teacher_reads,
            part_indices(self._sources),
        )

    def examples(self, record: Record, rng: np.random.Generator) -> tuple[Example, ...]:
        """Returns the examples of a record.

        Training views that share audio are joined into one example as long as they fit one row. A
        clip is decoded once, however often it occurs. A random shift or speed that would make the
        dialogue too long is left out.

        Raises:
            DataError: the record cannot be used; names its origin, and the clip.
        """

        def prepare(augmentation: AugmentationConfig) -> tuple[Example, ...]:
            dialogues = self._views.split(record.messages)
            rendered = self._render(dialogues, augmentation, rng)
            read = self._read_views(dialogues)
            return tuple(
                self._join(rendered.views[group], read[group], rendered)
                for group in self._group(rendered.views, read)
            )

        return self._prepare(record, prepare)

    def _read_views(self, dialogues: Sequence[tuple[Message, ...]]) -> list[TokenizedDialogue]:
        """Returns what a teacher reads of each view; nothing unless it reads.

        Raises:
            TextError: a clip has no transcript.
            DataError: of the kind "too_long".
        """
        if not self._teacher_reads:
            return []
        views = [read_view(messages, self._views) for messages in dialogues]
        longest = max(view.tokens.size for view in views)
        if longest > self._limits.tokens:
            raise DataError(
                f"with transcripts in place of its clips the dialogue takes {longest} tokens, more"
                f" than {self._limits.tokens_name}={self._limits.tokens}; raise it",
                kind="too_long",
            )
        return views

    def _pair_example(self, record: Record, rng: np.random.Generator, visit: Visit) -> Example:
        """Returns the example of a record of preferences, whose replies share its clips.

        Raises:
            DataError: as of `examples`; or the record is left out, see `read_replies`.
        """
        assert self._pair_format is not None
        unrelated = None
        if self._pair_format.objective.loss == "kto":
            unrelated = self._reply_of_next_record(visit)

        def prepare(augmentation: AugmentationConfig) -> Example:
            try:
                return self._join_replies(record, unrelated, augmentation, rng, visit)
            except DataError as error:
                if unrelated is None or error.kind != "too_long":
                    raise
                # The other replies may fit by themselves; the KL is estimated without this one.
                return self._join_replies(record, None, augmentation, rng, visit)

        return self._prepare(record, prepare)

    def _join_replies(
        self,
        record: Record,
        unrelated: Message | None,
        augmentation: AugmentationConfig,
        rng: np.random.Generator,
        visit: Visit,
    ) -> Example:
        """Renders the replies of a record, and joins them into one example."""
        pair_format = self._pair_format
        assert pair_format is not None
        labeled = read_replies(record, pair_format.objective, unrelated)
        rendered = self._render(labeled.dialogues, augmentation, rng)
        self._check_pair_fits(rendered.views)
        names = list(dict.fromkeys(name for view in rendered.views for _, name in view.clips))
        first_chunk = rendered.first_chunks(names)
        reference = pair_format.reference_logprobs
        return join_replies(
            labeled,
            rendered.views,
            lambda view: self._audio_index(view, rendered.clips, first_chunk),
            tuple(chunk for name in names for chunk in rendered.chunks[name]),
            shares_prompt=pair_format.shares_prompt,
            record=(visit.source, visit.record),
            reference_logprobs=(
                None if reference is None else reference[visit.source][visit.record]
            ),
        )

    def _prepare(self, record: Record, prepare: Callable[[AugmentationConfig], _T]) -> _T:
        """Calls `prepare`; without changes that lengthen the clips if it is too long with them."""
        augmentation = self._config.augmentation
        with record_error_context(record, self._config.on_too_long):
            try:
                return prepare(augmentation)
            except DataError as error:
                if error.kind != "too_long" or not can_lengthen(augmentation):
                    raise
                return prepare(without_lengthening(augmentation))

    def check(self, record: Record, *, decode: bool) -> Content:
        """Checks that a record can be used, and returns what it holds.

        Args:
            record: is rendered, with the lengths of its clips from their headers.
            decode: prepare it as training does, too.

        Raises:
            DataError: it cannot be used, as far as that is known without decoding its clips.
        """
        if decode and self._pair_format is None:
            self.examples(record, np.random.default_rng(self._seed))
        with record_error_context(record, self._config.on_too_long):
            dialogues = self._dialogues(record)
            if decode and self._pair_format is not None:
                self._render(dialogues, AugmentationConfig(), np.random.default_rng(self._seed))
            clips = {name: self._probe(part) for name, part in _distinct_clips(dialogues).items()}
            views = [self._tokenize(messages, clips) for messages in dialogues]
            for view in views:
                self._check_fits(view, clips)
            if self._pair_format is not None:
                self._check_pair_fits(views)
            self._read_views(dialogues)
            for clip in clips.values():
                if self._label_encoder and clip.num_encoded_chunks:
                    self._label_encoder.label(clip.part, tuple(filter(None, clip.chunk_tokens)))
        return count_content(record, [clip.samples for clip in clips.values()])

    def _dialogues(self, record: Record) -> list[tuple[Message, ...]]:
        """Returns the dialogues, one for each view, that a record is rendered as."""
        if self._pair_format is None:
            return self._views.split(record.messages)
        return read_replies(record, self._pair_format.objective).dialogues

    def _reply_of_next_record(self, visit: Visit) -> Message | None:
        """Returns a reply to another prompt of the source; None where the next record has none."""
        source = self._sources[visit.source]
        if len(source) == 1:
            return None
        try:
            return any_reply(source[(visit.record + 1) % len(source)])
        except DataError:  # it is reported when it is its turn
            return None

    def _check_pair_fits(self, views: Sequence[TokenizedDialogue]) -> None:
        """Checks that the replies of a record fit an empty row together."""
        assert self._pair_format is not None
        shares_prompt = self._pair_format.shares_prompt
        size = joined_size(views, shares_prompt=shares_prompt)
        if size <= self._config.seq_len:
            return
        prompt = "their prompt" if shares_prompt else "a prompt for each"
        raise DataError(
            f"the replies with {prompt} take {size} tokens, more than"
            f" seq_len={self._config.seq_len}; raise it",
            kind="too_long",
        )

    def _render(
        self,
        dialogues: Sequence[tuple[Message, ...]],
        augmentation: AugmentationConfig,
        rng: np.random.Generator,
    ) -> "_Rendered":
        """Decodes the clips of dialogues and renders each as a view."""
        # The order of the random draws decides the sound: clips, silence, then masks.
        clips = {
            name: self._load(part, augmentation, rng)
            for name, part in _distinct_clips(dialogues).items()
        }
        if augmentation.silence_probability > 0 and rng.random() < augmentation.silence_probability:
            clips = {name: _silence(clip) for name, clip in clips.items()}
        views = []
        for messages in dialogues:
            view = self._tokenize(messages, clips)
            self._check_fits(view, clips)
            views.append(view)
        chunks = {name: self._audio_chunks(clip, augmentation, rng) for name, clip in clips.items()}
        return _Rendered(views, clips, chunks)

    def _load(
        self, part: AudioPart, augmentation: AugmentationConfig, rng: np.random.Generator
    ) -> Clip:
        waveform, samples = load_clip_within(
            part,
            self._max_clip_samples,
            length_convention=self._convention,
            channel=self._config.channel,
            allow_urls=self._config.allow_urls,
            cache=self._clip_cache,
        )
        if samples > self._max_clip_samples:  # the dialogue is too long, as its tokens will show
            return Clip(part, (), self._limits.chunk_tokens(part, samples), samples)
        # A shift may fill the last chunk, and begins no other.
        longest_chunk = min(CHUNK_SAMPLES, max_chunk_samples(self._config.mel_frames_per_chunk))
        free_samples = longest_chunk - len(split_chunks(waveform)[-1])
        # A faster clip keeps the audio tokens with which CTC aligns its transcript.
        min_tokens = self._label_encoder.min_tokens(part) if self._label_encoder else 0
        waveform = augment_waveform(
            waveform,
            augmentation,
            rng,
            max_shift_samples=max(free_samples, 0),
            min_samples=min_token_samples(min_tokens, self._convention),
            rate=SAMPLE_RATE,
        )
        samples = len(waveform)
        chunk_tokens = self._limits.chunk_tokens(part, samples)
        return Clip(part, split_chunks(waveform), chunk_tokens, samples)

    def _probe(self, part: AudioPart) -> Clip:
        """Returns a clip without samples; without tokens if its header does not say its length."""
        samples = probe_clip(
            part,
            length_convention=self._convention,
            allow_urls=self._config.allow_urls,
            cache=self._clip_cache,
        )
        return Clip(part, (), self._limits.chunk_tokens(part, samples or 0), samples)

    def _tokenize(self, messages: Sequence[Message], clips: dict[str, Clip]) -> TokenizedDialogue:
        return self._views.tokenize(messages, lambda part: clips[part.name].chunk_tokens)

    def _check_fits(self, view: TokenizedDialogue, clips: dict[str, Clip]) -> None:
        """Checks that a view fits an empty row."""
        chunks = sum(clips[name].num_encoded_chunks for name in view.clip_names)
        self._limits.check(view.tokens.size, chunks)

    def _audio_chunks(
        self, clip: Clip, augmentation: AugmentationConfig, rng: np.random.Generator
    ) -> list[AudioChunk]:
        """Returns the chunks of a clip that have tokens, with their log-mels and labels."""
        chunks = zip(clip.waveforms, clip.chunk_tokens, strict=True)
        waveforms = [waveform for waveform, count in chunks if count]
        chunk_tokens = tuple(filter(None, clip.chunk_tokens))
        labels: Sequence[ChunkLabels | None] = (None,) * len(waveforms)
        if self._label_encoder:
            labels = self._label_encoder.label(clip.part, chunk_tokens)
        return [
            AudioChunk(mask_log_mel(log_mel(waveform), augmentation, rng), label)
            for waveform, label in zip(waveforms, labels, strict=True)
        ]

    def _group(
        self, views: Sequence[TokenizedDialogue], read: Sequence[TokenizedDialogue]
    ) -> list[slice]:
        """Groups neighbouring views that share a clip, so that it is encoded once for all of them.

        A group has at most as many tokens as a row, and so has what a teacher reads of it. Each
        view's clips are among the next one's (the history only grows), so a group has the chunks of
        its last view.
        """
        groups: list[slice] = []
        for index, view in enumerate(views):
            if groups and views[index - 1].clip_names & view.clip_names:
                group = slice(groups[-1].start, index + 1)
                sizes = (sum(other.tokens.size for other in all_[group]) for all_ in (views, read))
                if max(sizes) <= self._config.seq_len:
                    groups[-1] = group
                    continue
            groups.append(slice(index, index + 1))
        return groups

    def _join(
        self,
        views: Sequence[TokenizedDialogue],
        read: Sequence[TokenizedDialogue],
        rendered: "_Rendered",
    ) -> Example:
        """Joins a group of views, and what a teacher reads of them, into one example."""
        names = list(dict.fromkeys(name for view in views for _, name in view.clips))
        clips, first_chunk = rendered.clips, rendered.first_chunks(names)
        pad = np.int32(self._tokenizer.special.pad)
        sizes = [view.tokens.size for view in views]
        return Example(
            tokens=np.concatenate([view.tokens for view in views]),
            targets=np.concatenate([_shift_left(view.tokens, pad) for view in views]),
            loss_weights=np.concatenate(
                [_shift_left(view.loss_mask, np.False_) for view in views]
            ).astype(np.float32),
            positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            segment_ids=np.repeat(np.arange(len(views), dtype=np.int32), sizes),
            audio_index=np.concatenate(
                [self._audio_index(view, clips, first_chunk) for view in views]
            ),
            chunks=tuple(chunk for name in names for chunk in rendered.chunks[name]),
            teacher=join_read_views(views, read) if read else None,
        )

    def _audio_index(
        self, view: TokenizedDialogue, clips: dict[str, Clip], first_chunk: dict[str, int]
    ) -> Int32[np.ndarray, " T"]:
        """Returns the audio embedding of each `<audio_patch>`; -1 for all other tokens."""
        index = np.full(view.tokens.size, -1, np.int32)
        for start, name in view.clips:
            counts = clips[name].chunk_tokens
            stop = start + sum(counts) + 2 * len(counts)  # with <audio_start> and <audio_end>
            is_patch = view.tokens[start:stop] == self._tokenizer.special.audio_patch
            index[start:stop][is_patch] = audio_indices(
                counts, self._embeddings_per_chunk, first_chunk[name]
            )
        return index


@dataclasses.dataclass(frozen=True)
class _Rendered:
    """Holds the views of a record, its clips by name, and the chunks of each that have tokens."""

    views: list[TokenizedDialogue]
    clips: dict[str, Clip]
    chunks: dict[str, list[AudioChunk]]

    def first_chunks(self, names: Sequence[str]) -> dict[str, int]:
        """Returns the number of each clip's first chunk, where these clips follow each other."""
        first_chunk, num_chunks = {}, 0
        for name in names:
            first_chunk[name] = num_chunks
            num_chunks += len(self.chunks[name])
        return first_chunk


def _open_preprocessor(
    config: DataConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    auxiliary: AuxiliaryConfig | None,
    seed: int,
    pair_format: PairFormat | None,
    teacher_reads: bool,
    indices: Sequence[PartIndex | None],
) -> Preprocessor:
    sources = open_stage_sources(config, tokenizer, model, indices)
    return Preprocessor(
        config,
        tokenizer,
        model,
        auxiliary,
        sources,
        seed=seed,
        pair_format=pair_format,
        teacher_reads=teacher_reads,
    )


def _shift_left(values: np.ndarray, last: np.generic) -> np.ndarray:
    """Returns values[1:], followed by `last`."""
    return np.append(values[1:], last)


def _silence(clip: Clip) -> Clip:
    return dataclasses.replace(clip, waveforms=[np.zeros_like(chunk) for chunk in clip.waveforms])


def _distinct_clips(dialogues: Sequence[Sequence[Message]]) -> dict[str, AudioPart]:
    """Returns the clips by name, each with the labels of all its occurrences."""
    clips: dict[str, AudioPart] = {}
    for part in (part for messages in dialogues for message in messages for part in message.audio):
        first = clips.setdefault(part.name, part)
        labels = {**first.attributes, **part.attributes}
        transcript = part.transcript if first.transcript is None else first.transcript
        if part.transcript not in (None, transcript) or any(
            labels[name] != first.attributes[name] for name in first.attributes
        ):
            raise DataError(
                f"audio {format_path(part.name)} occurs with different labels; "
                "give it the same, or leave them out the second time"
            )
        clips[part.name] = dataclasses.replace(part, transcript=transcript, attributes=labels)
    return clips
