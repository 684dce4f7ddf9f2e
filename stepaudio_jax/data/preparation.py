"""Record -> examples: clips decoded once, views rendered to tokens, each audio token tied to its adaptor output."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio import (
    CHUNK_SAMPLES,
    MEL_BINS,
    SAMPLE_RATE,
    AudioError,
    chunk_lengths,
    load_audio,
    log_mel,
    mel_frames,
    probe_audio,
    shown_path,
    split_chunks,
    tokens_of_frames,
)
from stepaudio_jax.config import AugmentationConfig, AuxiliaryConfig, ConfigError, DataConfig, ModelConfig
from stepaudio_jax.data.assembly import batch_shape, outputs_per_chunk
from stepaudio_jax.data.augmentation import augment_waveform, mask_log_mel
from stepaudio_jax.data.example import Chunk, Example
from stepaudio_jax.data.jsonl import JsonlSource
from stepaudio_jax.data.labels import Labeller
from stepaudio_jax.data.order import Visit
from stepaudio_jax.data.packing import Prepared
from stepaudio_jax.data.record import DataError, Record
from stepaudio_jax.text import AudioPart, LaidOut, Message, TextError, Tokenizer, lay_out, render_training, training_views


class BadAudioError(DataError):
    """A clip is missing, or cannot be decoded."""


class TooLongError(DataError):
    """A dialogue does not fit an empty row, or an audio chunk its place."""


def defect_kind(error: DataError) -> str:
    """Returns what is wrong with a record, as metrics name it; `data.on_KIND` says what is then done."""
    if isinstance(error, BadAudioError):
        return "bad_audio"
    return "too_long" if isinstance(error, TooLongError) else "bad_record"


def skip_reason(error: DataError, config: DataConfig) -> str | None:
    """Returns the kind of a record that is skipped; None where the configuration says that it ends the run."""
    kind = defect_kind(error)
    return kind if getattr(config, f"on_{kind}") == "skip" else None


@contextlib.contextmanager
def naming_record(record: Record) -> Iterator[None]:
    """Turns what is wrong with a record into a DataError that names its file and line."""
    try:
        yield
    except AudioError as error:
        raise BadAudioError(f"{record.origin}: {error}") from None
    except TooLongError as error:
        raise TooLongError(f"{record.origin}: {error}, or set on_too_long='skip'") from None
    except (DataError, TextError) as error:
        raise DataError(f"{record.origin}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded clip: its chunks' samples, and how many audio tokens each takes (0 for a last chunk of 20 ms)."""

    part: AudioPart
    waveforms: Sequence[NDArray[np.float32]]
    outputs: tuple[int, ...]

    @property
    def heard(self) -> int:
        """Chunks that have audio tokens: those that the model is given."""
        return sum(count > 0 for count in self.outputs)


class Preparation:
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
        outputs = outputs_per_chunk(config.frames_per_chunk)
        self._config = config
        self._tokenizer = tokenizer
        self._convention = model.length_convention
        self._longest_view = min(config.tokens_per_row, model.decoder.max_positions)
        self._outputs_per_chunk = outputs
        self._labeller = Labeller(auxiliary, outputs) if auxiliary is not None and auxiliary.enabled else None
        self._sources = sources
        self._seed = seed
        self.shape = batch_shape(config, auxiliary, pad_token=tokenizer.special.pad)

    def __call__(self, visit: Visit) -> Prepared:
        """Reads a record and prepares it.

        Raises:
            DataError: the record cannot be used, and the configuration does not say to skip it; names `file:line`.
        """
        rng = np.random.default_rng((self._seed, visit.source, visit.record, visit.epoch))
        try:
            return Prepared(visit, self.examples(self._sources[visit.source][visit.record], rng))
        except DataError as error:
            reason = skip_reason(error, self._config)
            if reason is None:
                raise
            return Prepared(visit, (), skipped=reason, message=str(error))

    def check(self, record: Record, *, decode: bool) -> None:
        """Renders a record, its clips' lengths taken from their headers, or, with `decode`, prepares it as training does.

        Raises:
            DataError: the record cannot be used, as far as can be told without decoding its clips.
        """
        if decode:
            self.examples(record, np.random.default_rng(self._seed))
            return
        with naming_record(record):
            dialogues = self._dialogues(record)
            clips = {path: self._probed_clip(part) for path, part in self._parts(dialogues).items()}
            for messages in dialogues:
                self._check_fits(self._view(messages, clips), clips)
            for clip in clips.values():
                if self._labeller and clip.heard:
                    self._labeller.label(clip.part, tuple(filter(None, clip.outputs)))

    def examples(self, record: Record, rng: np.random.Generator) -> tuple[Example, ...]:
        """The examples of a record: its views, those that share audio side by side as far as they fit into one row.

        A clip is decoded once, however often it occurs. A shift that would make the dialogue too long is left out.

        Raises:
            DataError: the record cannot be used; names its origin, and the clip.
        """
        augmentation = self._config.augmentation
        with naming_record(record):
            try:
                return self._examples(record, augmentation, rng)
            except TooLongError:
                if augmentation.max_shift_s == 0:
                    raise
                return self._examples(record, dataclasses.replace(augmentation, max_shift_s=0.0), rng)

    def _dialogues(self, record: Record) -> list[tuple[Message, ...]]:
        return training_views(record.messages, history_reasoning=self._config.history_reasoning)

    def _parts(self, dialogues: Sequence[Sequence[Message]]) -> dict[str, AudioPart]:
        return _distinct_clips([part for messages in dialogues for message in messages for part in message.audio])

    def _examples(self, record: Record, augmentation: AugmentationConfig, rng: np.random.Generator) -> tuple[Example, ...]:
        dialogues = self._dialogues(record)
        clips = {path: self._clip(part, augmentation, rng) for path, part in self._parts(dialogues).items()}
        if augmentation.silence_probability > 0 and rng.random() < augmentation.silence_probability:
            clips = {path: _silenced(clip) for path, clip in clips.items()}
        views = []
        for messages in dialogues:
            view = self._view(messages, clips)
            self._check_fits(view, clips)
            views.append(view)
        chunks = {path: self._chunks(clip, augmentation, rng) for path, clip in clips.items()}
        return tuple(self._example(group, clips, chunks) for group in self._groups(views))

    def _clip(self, part: AudioPart, augmentation: AugmentationConfig, rng: np.random.Generator) -> Clip:
        waveform = load_audio(part.path, length_convention=self._convention, channel=self._config.channel)
        room = min(CHUNK_SAMPLES, _samples_of_frames(self._config.frames_per_chunk)) - len(split_chunks(waveform)[-1])
        waveform = augment_waveform(waveform, augmentation, rng, room=max(room, 0), rate=SAMPLE_RATE)
        waveforms = split_chunks(waveform)
        return Clip(part, waveforms, self._outputs(part, [len(chunk) for chunk in waveforms]))

    def _probed_clip(self, part: AudioPart) -> Clip:
        """Returns a clip without its samples; without its tokens too where the header does not say how long it is."""
        samples = probe_audio(part.path, length_convention=self._convention)
        lengths = chunk_lengths(samples) if samples is not None else []
        return Clip(part, (), self._outputs(part, lengths))

    def _outputs(self, part: AudioPart, lengths: Sequence[int]) -> tuple[int, ...]:
        """Returns how many audio tokens each chunk of a clip takes, from the chunks' samples."""
        frames = [mel_frames(length) for length in lengths]
        longest = max(frames, default=0)
        if longest > self._config.frames_per_chunk:
            raise TooLongError(
                f"audio {part.path} has a chunk of {longest} mel frames, more than"
                f" frames_per_chunk={self._config.frames_per_chunk}; raise it"
            )
        return tuple(tokens_of_frames(count, self._convention) for count in frames)

    def _view(self, messages: Sequence[Message], clips: dict[str, Clip]) -> LaidOut:
        segments = render_training(
            messages,
            self._tokenizer,
            history_reasoning=self._config.history_reasoning,
            loss_on_reasoning=self._config.loss_on_reasoning,
        )
        return lay_out(segments, lambda part: clips[part.path].outputs, self._tokenizer)

    def _check_fits(self, view: LaidOut, clips: dict[str, Clip]) -> None:
        if view.tokens.size > self._longest_view:
            limit = "tokens_per_row" if self._longest_view == self._config.tokens_per_row else "the decoder's max_positions"
            raise TooLongError(
                f"the dialogue takes {view.tokens.size} tokens, more than {limit}={self._longest_view}; raise it"
            )
        chunks = sum(clips[path].heard for path in view.paths)
        if chunks > self._config.chunks_per_row:
            raise TooLongError(
                f"the dialogue has {chunks} audio chunks, more than chunks_per_row={self._config.chunks_per_row}; raise it"
            )

    def _groups(self, views: Sequence[LaidOut]) -> list[list[LaidOut]]:
        """Neighbouring views that share a clip, as many together as a row holds: the clip is encoded once for all of them.

        Each view's clips are among the next one's (the history only grows), so a group has the chunks of its last view.
        """
        groups: list[list[LaidOut]] = []
        for view in views:
            if (
                groups
                and groups[-1][-1].paths & view.paths
                and sum(other.tokens.size for other in groups[-1]) + view.tokens.size <= self._config.tokens_per_row
            ):
                groups[-1].append(view)
            else:
                groups.append([view])
        return groups

    def _chunks(self, clip: Clip, augmentation: AugmentationConfig, rng: np.random.Generator) -> list[Chunk]:
        heard = [waveform for waveform, count in zip(clip.waveforms, clip.outputs, strict=True) if count]
        outputs = tuple(count for count in clip.outputs if count)
        labels = self._labeller.label(clip.part, outputs) if self._labeller else (None,) * len(heard)
        return [
            Chunk(mask_log_mel(log_mel(waveform), augmentation, rng), label)
            for waveform, label in zip(heard, labels, strict=True)
        ]

    def _example(self, views: Sequence[LaidOut], clips: dict[str, Clip], chunks: dict[str, list[Chunk]]) -> Example:
        order = list(dict.fromkeys(path for view in views for _, path in view.clips))
        first_chunk, total = {}, 0
        for path in order:
            first_chunk[path] = total
            total += len(chunks[path])
        slots = [self._audio_slot(view, clips, first_chunk) for view in views]
        sizes = [view.tokens.size for view in views]
        return Example(
            tokens=np.concatenate([view.tokens for view in views]),
            targets=np.concatenate([_following(view.tokens, np.int32(self._tokenizer.special.pad)) for view in views]),
            loss_weights=np.concatenate([_following(view.in_loss, np.False_) for view in views]).astype(np.float32),
            positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
            segments=np.repeat(np.arange(len(views), dtype=np.int32), sizes),
            audio_slot=np.concatenate(slots),
            chunks=tuple(chunk for path in order for chunk in chunks[path]),
        )

    def _audio_slot(self, view: LaidOut, clips: dict[str, Clip], first_chunk: dict[str, int]) -> NDArray[np.int32]:
        """[T] i32: chunk of the example * outputs per chunk + offset, -1 for text and for `<audio_start>`, `<audio_end>`."""
        slot = np.full(view.tokens.size, -1, np.int32)
        for position, path in view.clips:
            for chunk, count in enumerate(clips[path].outputs, first_chunk[path]):  # only the last can have none
                slot[position + 1 : position + 1 + count] = chunk * self._outputs_per_chunk + np.arange(count)
                position += count + 2
        return slot


def _following(values: NDArray, last: np.generic) -> NDArray:
    """What stands one place further on; `last` at the end."""
    return np.append(values[1:], last)


def _samples_of_frames(frames: int) -> int:
    """The longest chunk, in samples, of at most so many mel frames."""
    samples = frames * (SAMPLE_RATE // 100)
    while mel_frames(samples) > frames:
        samples -= 1
    return samples


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
                f"audio {shown_path(part.path)} occurs with different labels; "
                "give it the same, or leave them out the second time"
            )
        clips[part.path] = AudioPart(part.path, transcript, labels)
    return clips


def check_sizes(config: DataConfig, tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Checks that a model can take the batches of a configuration.

    Raises:
        ConfigError: naming the size that it cannot.
    """
    if tokenizer.written_size > model.decoder.vocab_size:
        raise ConfigError(
            f"the tokenizer writes {tokenizer.written_size} tokens, the model's decoder.vocab_size={model.decoder.vocab_size};"
            " use the model's own tokenizer, or a larger vocabulary"
        )
    if config.chunks_per_row and model.encoder.mel_bins != MEL_BINS:
        raise ConfigError(f"encoder.mel_bins={model.encoder.mel_bins}, and the front end makes {MEL_BINS}")
    if config.chunks_per_row and -(-config.frames_per_chunk // 2) > model.encoder.positions:
        raise ConfigError(
            f"frames_per_chunk={config.frames_per_chunk} needs more than the encoder's {model.encoder.positions} positions;"
            f" at most {2 * model.encoder.positions}"
        )
