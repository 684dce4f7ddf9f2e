"""Record -> examples: clips decoded once, views rendered to tokens, each audio token tied to its adaptor output."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import (
    CHUNK_SAMPLES,
    MEL_BINS,
    SAMPLE_RATE,
    clip_chunks,
    load_audio,
    log_mel,
    probe_audio,
    split_chunks,
)
from stepaudio_jax.audio.lengths import (
    ChunkSize,
    audio_embeddings_per_chunk,
    audio_indices,
    conv_frame_count,
    max_chunk_samples,
    max_mel_frames,
)
from stepaudio_jax.config import AugmentationConfig, AuxiliaryConfig, DataConfig, ModelConfig
from stepaudio_jax.data.augmentation import augment_waveform, mask_log_mel
from stepaudio_jax.data.batch import batch_shape
from stepaudio_jax.data.packing import PreparedRecord
from stepaudio_jax.data.record import AudioChunk, ChunkLabels, Example, Record, Visit, label_sizes
from stepaudio_jax.data.sources.foreign_keys import did_you_mean
from stepaudio_jax.data.sources.jsonl import JsonlSource
from stepaudio_jax.errors import AudioError, ConfigError, DataError, TextError
from stepaudio_jax.storage import format_path
from stepaudio_jax.text import (
    AudioPart,
    Message,
    TokenizedDialogue,
    Tokenizer,
    render_training,
    tokenize_dialogue,
    training_views,
)

# Labels of a clip for the auxiliary losses: its words (CTC) and its attributes.


class LabelEncoder:
    """Turns an audio part's transcript and attributes into indices.

    Args:
        config: the closed word vocabulary, and the values of each attribute.
        audio_embeddings_per_chunk: adaptor outputs of a whole chunk.
    """

    def __init__(self, config: AuxiliaryConfig, audio_embeddings_per_chunk: int):
        self._words = (
            {word: number for number, word in enumerate(config.ctc_words, 1)}
            if config.ctc_weight > 0
            else None
        )
        self._attributes = dict(config.attributes) if config.attribute_weight > 0 else {}
        self._max_words = label_sizes(config, audio_embeddings_per_chunk)[0]

    def label(self, clip: AudioPart, outputs: tuple[int, ...]) -> tuple[ChunkLabels, ...]:
        """Labels of each chunk of a clip.

        Args:
            clip: the audio part.
            outputs: adaptor outputs (audio tokens) of each of the clip's chunks.

        Raises:
            DataError: a word or a value outside its vocabulary, or a transcript that CTC cannot
                align with the clip.
        """
        words = self._transcript(clip, outputs)
        attributes = tuple(self._attribute(clip, name) for name in self._attributes)
        return (ChunkLabels(words, attributes),) * len(outputs)

    def _transcript(self, clip: AudioPart, outputs: tuple[int, ...]) -> tuple[int, ...] | None:
        if self._words is None or clip.transcript is None:
            return None
        words = clip.transcript.split()
        for word in words:
            if word not in self._words:
                raise DataError(
                    f"the transcript of {clip.path} has the word {word!r}, which auxiliary.ctc_words lacks"
                    f"{did_you_mean(word, tuple(self._words))}"
                )
        if len(outputs) != 1:
            raise DataError(
                f"the transcript of {clip.path} spans {len(outputs)} chunks; the CTC loss needs clips of one (at most 25 s)"
            )
        # CTC needs an output for each word and a blank between two that are equal.
        needed = len(words) + sum(first == second for first, second in itertools.pairwise(words))
        if needed > outputs[0] or len(words) > self._max_words:
            raise DataError(
                f"the transcript of {clip.path} has {len(words)} words, too many for its {outputs[0]} audio tokens"
                f" (at most {self._max_words} words a chunk)"
            )
        return tuple(self._words[word] for word in words)

    def _attribute(self, clip: AudioPart, name: str) -> int:
        if name not in clip.attributes:
            return -1
        value, allowed = clip.attributes[name], self._attributes[name]
        if value not in allowed:
            raise DataError(
                f"{clip.path} has {name}={value!r}, which auxiliary.attributes does not list"
                f"{did_you_mean(value, allowed)} (allowed: {', '.join(allowed)})"
            )
        return allowed.index(value)


def skip_reason(error: DataError, config: DataConfig) -> str | None:
    """Returns the kind of a record that is skipped; None where the configuration says that it ends the run."""
    return error.kind if getattr(config, f"on_{error.kind}") == "skip" else None


@contextlib.contextmanager
def record_error_context(record: Record) -> Iterator[None]:
    """Turns what is wrong with a record into a DataError that names its file and line."""
    try:
        yield
    except AudioError as error:
        raise DataError(f"{record.origin}: {error}", kind="bad_audio") from None
    except TextError as error:
        raise DataError(f"{record.origin}: {error}") from None
    except DataError as error:
        if error.kind != "too_long":
            raise DataError(f"{record.origin}: {error}") from None
        advice = "or set on_too_long='skip'"
        raise DataError(f"{record.origin}: {error}, {advice}", kind="too_long") from None


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded clip: its chunks' samples, and how many audio tokens each takes (0 for a last chunk of 20 ms)."""

    part: AudioPart
    waveforms: Sequence[NDArray[np.float32]]
    outputs: tuple[int, ...]

    @property
    def num_encoded_chunks(self) -> int:
        """Chunks that have audio tokens: those that the model is given."""
        return sum(count > 0 for count in self.outputs)


class Preprocessor:
    """Prepares records for packing. Safe from any thread; the result depends on the visit and the settings only.

    Args:
        config: sizes, augmentation, what to do with records that cannot be used.
        tokenizer: its vocabulary must lie within the model's.
        model: the shape that the audio tokens and the batch must agree with.
        auxiliary: which labels the chunks carry; None for none.
        sources: where the records are, in the order of `config.sources`.
        seed: of the augmentation.

    Raises:
        ConfigError: the sizes contradict the model.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        model: ModelConfig,
        auxiliary: AuxiliaryConfig | None,
        sources: Sequence[JsonlSource],
        *,
        seed: int,
    ):
        check_sizes(config, tokenizer, model)
        outputs = audio_embeddings_per_chunk(config.mel_frames_per_chunk)
        self._config = config
        self._tokenizer = tokenizer
        self._convention = model.length_convention
        self._max_view_tokens = min(config.seq_len, model.decoder.max_positions)
        self._embeddings_per_chunk = outputs
        self._labeller = (
            LabelEncoder(auxiliary, outputs)
            if auxiliary is not None and auxiliary.enabled
            else None
        )
        self._sources = sources
        self._seed = seed
        self.shape = batch_shape(config, auxiliary, pad_token=tokenizer.special.pad)

    def __call__(self, visit: Visit) -> PreparedRecord:
        """Reads a record and prepares it.

        Raises:
            DataError: the record cannot be used, and the configuration does not say to skip it;
                names `file:line`.
        """
        rng = np.random.default_rng((self._seed, visit.source, visit.record, visit.epoch))
        try:
            return PreparedRecord(
                visit, self.examples(self._sources[visit.source][visit.record], rng)
            )
        except DataError as error:
            reason = skip_reason(error, self._config)
            if reason is None:
                raise
            return PreparedRecord(visit, (), skipped=reason, message=str(error))

    def check(self, record: Record, *, decode: bool) -> None:
        """Renders a record, its clips' lengths taken from their headers, or, with `decode`, prepares it as training does.

        Raises:
            DataError: the record cannot be used, as far as can be told without decoding its clips.
        """
        if decode:
            self.examples(record, np.random.default_rng(self._seed))
            return
        with record_error_context(record):
            dialogues = self._dialogues(record)
            clips = {path: self._probed_clip(part) for path, part in self._parts(dialogues).items()}
            for messages in dialogues:
                self._check_fits(self._view(messages, clips), clips)
            for clip in clips.values():
                if self._labeller and clip.num_encoded_chunks:
                    self._labeller.label(clip.part, tuple(filter(None, clip.outputs)))

    def examples(self, record: Record, rng: np.random.Generator) -> tuple[Example, ...]:
        """The examples of a record: its views, those that share audio side by side as far as they fit into one row.

        A clip is decoded once, however often it occurs. A shift that would make the dialogue too
        long is left out.

        Raises:
            DataError: the record cannot be used; names its origin, and the clip.
        """
        augmentation = self._config.augmentation
        with record_error_context(record):
            try:
                return self._examples(record, augmentation, rng)
            except DataError as error:
                if error.kind != "too_long" or augmentation.max_shift_s == 0:
                    raise
                return self._examples(
                    record, dataclasses.replace(augmentation, max_shift_s=0.0), rng
                )

    def _dialogues(self, record: Record) -> list[tuple[Message, ...]]:
        return training_views(record.messages, history_reasoning=self._config.history_reasoning)

    def _parts(self, dialogues: Sequence[Sequence[Message]]) -> dict[str, AudioPart]:
        return _distinct_clips(
            [part for messages in dialogues for message in messages for part in message.audio]
        )

    def _examples(
        self, record: Record, augmentation: AugmentationConfig, rng: np.random.Generator
    ) -> tuple[Example, ...]:
        dialogues = self._dialogues(record)
        clips = {
            path: self._clip(part, augmentation, rng)
            for path, part in self._parts(dialogues).items()
        }
        if augmentation.silence_probability > 0 and rng.random() < augmentation.silence_probability:
            clips = {path: _silenced(clip) for path, clip in clips.items()}
        views = []
        for messages in dialogues:
            view = self._view(messages, clips)
            self._check_fits(view, clips)
            views.append(view)
        chunks = {path: self._chunks(clip, augmentation, rng) for path, clip in clips.items()}
        return tuple(self._example(group, clips, chunks) for group in self._groups(views))

    def _clip(
        self, part: AudioPart, augmentation: AugmentationConfig, rng: np.random.Generator
    ) -> Clip:
        waveform = load_audio(
            part.path, length_convention=self._convention, channel=self._config.channel
        )
        max_shift_samples = min(
            CHUNK_SAMPLES, max_chunk_samples(self._config.mel_frames_per_chunk)
        ) - len(split_chunks(waveform)[-1])
        waveform = augment_waveform(
            waveform,
            augmentation,
            rng,
            max_shift_samples=max(max_shift_samples, 0),
            rate=SAMPLE_RATE,
        )
        waveforms = split_chunks(waveform)
        return Clip(part, waveforms, self._chunk_tokens(part, self._sizes(len(waveform))))

    def _probed_clip(self, part: AudioPart) -> Clip:
        """Returns a clip without its samples; without its tokens too where the header does not say how long it is."""
        samples = probe_audio(part.path, length_convention=self._convention)
        sizes = self._sizes(samples) if samples is not None else []
        return Clip(part, (), self._chunk_tokens(part, sizes))

    def _sizes(self, samples: int) -> list[ChunkSize]:
        return clip_chunks(samples, self._convention)

    def _chunk_tokens(self, part: AudioPart, sizes: Sequence[ChunkSize]) -> tuple[int, ...]:
        """Returns how many audio tokens each chunk of a clip takes."""
        longest = max((size.mel_frames for size in sizes), default=0)
        if longest > self._config.mel_frames_per_chunk:
            raise DataError(
                f"audio {part.path} has a chunk of {longest} mel frames, more than"
                f" mel_frames_per_chunk={self._config.mel_frames_per_chunk}; raise it",
                kind="too_long",
            )
        return tuple(size.tokens for size in sizes)

    def _view(self, messages: Sequence[Message], clips: dict[str, Clip]) -> TokenizedDialogue:
        segments = render_training(
            messages,
            self._tokenizer,
            history_reasoning=self._config.history_reasoning,
            loss_on_reasoning=self._config.loss_on_reasoning,
        )
        return tokenize_dialogue(segments, lambda part: clips[part.path].outputs, self._tokenizer)

    def _check_fits(self, view: TokenizedDialogue, clips: dict[str, Clip]) -> None:
        if view.tokens.size > self._max_view_tokens:
            limit = (
                "seq_len"
                if self._max_view_tokens == self._config.seq_len
                else "the decoder's max_positions"
            )
            raise DataError(
                f"the dialogue takes {view.tokens.size} tokens, more than {limit}={self._max_view_tokens}; raise it",
                kind="too_long",
            )
        chunks = sum(clips[path].num_encoded_chunks for path in view.paths)
        if chunks > self._config.audio_chunks_per_seq:
            raise DataError(
                f"the dialogue has {chunks} audio chunks, more than audio_chunks_per_seq={self._config.audio_chunks_per_seq}; raise it",
                kind="too_long",
            )

    def _groups(self, views: Sequence[TokenizedDialogue]) -> list[list[TokenizedDialogue]]:
        """Neighbouring views that share a clip, as many together as a row holds: the clip is encoded once for all of them.

        Each view's clips are among the next one's (the history only grows), so a group has the
        chunks of its last view.
        """
        groups: list[list[TokenizedDialogue]] = []
        for view in views:
            if (
                groups
                and groups[-1][-1].paths & view.paths
                and sum(other.tokens.size for other in groups[-1]) + view.tokens.size
                <= self._config.seq_len
            ):
                groups[-1].append(view)
            else:
                groups.append([view])
        return groups

    def _chunks(
        self, clip: Clip, augmentation: AugmentationConfig, rng: np.random.Generator
    ) -> list[AudioChunk]:
        heard = [
            waveform for waveform, count in zip(clip.waveforms, clip.outputs, strict=True) if count
        ]
        outputs = tuple(count for count in clip.outputs if count)
        labels = (
            self._labeller.label(clip.part, outputs) if self._labeller else (None,) * len(heard)
        )
        return [
            AudioChunk(mask_log_mel(log_mel(waveform), augmentation, rng), label)
            for waveform, label in zip(heard, labels, strict=True)
        ]

    def _example(
        self,
        views: Sequence[TokenizedDialogue],
        clips: dict[str, Clip],
        chunks: dict[str, list[AudioChunk]],
    ) -> Example:
        order = list(dict.fromkeys(path for view in views for _, path in view.clips))
        first_chunk, total = {}, 0
        for path in order:
            first_chunk[path] = total
            total += len(chunks[path])
        slots = [self._audio_index(view, clips, first_chunk) for view in views]
        sizes = [view.tokens.size for view in views]
        return Example(
            tokens=np.concatenate([view.tokens for view in views]),
            targets=np.concatenate(
                [_shift_left(view.tokens, np.int32(self._tokenizer.special.pad)) for view in views]
            ),
            loss_weights=np.concatenate(
                [_shift_left(view.loss_mask, np.False_) for view in views]
            ).astype(np.float32),
            positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            segment_ids=np.repeat(np.arange(len(views), dtype=np.int32), sizes),
            audio_index=np.concatenate(slots),
            chunks=tuple(chunk for path in order for chunk in chunks[path]),
        )

    def _audio_index(
        self, view: TokenizedDialogue, clips: dict[str, Clip], first_chunk: dict[str, int]
    ) -> NDArray[np.int32]:
        """Returns [T] i32: chunk of the example * embeddings per chunk + offset; -1 but for `<audio_patch>`."""
        index = np.full(view.tokens.size, -1, np.int32)
        for start, path in view.clips:
            counts = clips[path].outputs
            of_clip = view.tokens[start : start + sum(counts) + 2 * len(counts)]
            index[start : start + of_clip.size][of_clip == self._tokenizer.special.audio_patch] = (
                audio_indices(counts, self._embeddings_per_chunk, first_chunk[path])
            )
        return index


def _shift_left(values: NDArray, last: np.generic) -> NDArray:
    """What stands one place further on; `last` at the end."""
    return np.append(values[1:], last)


def _silenced(clip: Clip) -> Clip:
    return dataclasses.replace(clip, waveforms=[np.zeros_like(chunk) for chunk in clip.waveforms])


def _distinct_clips(parts: Sequence[AudioPart]) -> dict[str, AudioPart]:
    """The clips by path, each with the labels that any of its occurrences gives."""
    clips: dict[str, AudioPart] = {}
    for part in parts:
        known = clips.setdefault(part.path, part)
        labels = {**known.attributes, **part.attributes}
        transcript = part.transcript if known.transcript is None else known.transcript
        if part.transcript not in (None, transcript) or any(
            labels[name] != known.attributes[name] for name in known.attributes
        ):
            raise DataError(
                f"audio {format_path(part.path)} occurs with different labels; "
                "give it the same, or leave them out the second time"
            )
        clips[part.path] = AudioPart(part.path, transcript, labels)
    return clips


def check_sizes(config: DataConfig, tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Checks that a model can take the batches of a configuration.

    Raises:
        ConfigError: naming the size that it cannot.
    """
    if tokenizer.required_vocab_size > model.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer writes {tokenizer.required_vocab_size} tokens, the model's decoder.vocab_size={model.decoder.vocab_size};"
            " use the model's own tokenizer, or a larger vocabulary"
        )
    if config.audio_chunks_per_seq and model.encoder.mel_bins != MEL_BINS:
        raise ConfigError(
            f"encoder.mel_bins={model.encoder.mel_bins}, and the front end makes {MEL_BINS}"
        )
    if (
        config.audio_chunks_per_seq
        and conv_frame_count(config.mel_frames_per_chunk) > model.encoder.positions
    ):
        raise ConfigError(
            f"mel_frames_per_chunk={config.mel_frames_per_chunk} needs more than the encoder's {model.encoder.positions} positions;"
            f" at most {max_mel_frames(model.encoder.positions)}"
        )
