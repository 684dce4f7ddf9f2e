"""Training views of a dialogue as tokens, and whether they fit an empty row of a batch."""

import dataclasses
from collections.abc import Callable, Sequence

from stepaudio_jax.audio import clip_chunks
from stepaudio_jax.audio.lengths import max_clip_samples
from stepaudio_jax.config import DataConfig, LengthConvention, ModelConfig
from stepaudio_jax.errors import DataError
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


@dataclasses.dataclass(frozen=True)
class ViewRenderer:
    """Renders dialogues as training does.

    Attributes:
        tokenizer: the model's.
        history_reasoning, loss_on_reasoning: as of `text.render_training`.
    """

    tokenizer: Tokenizer
    history_reasoning: bool = DataConfig.history_reasoning
    loss_on_reasoning: bool = DataConfig.loss_on_reasoning

    def split(self, messages: Sequence[Message]) -> list[tuple[Message, ...]]:
        """Returns the training views of a dialogue; see `text.training_views`."""
        return training_views(messages, history_reasoning=self.history_reasoning)

    def tokenize(
        self, view: Sequence[Message], chunk_tokens: Callable[[AudioPart], Sequence[int]]
    ) -> TokenizedDialogue:
        """Returns a view as tokens; `chunk_tokens` is that of `text.tokenize_dialogue`."""
        segments = render_training(
            view,
            self.tokenizer,
            history_reasoning=self.history_reasoning,
            loss_on_reasoning=self.loss_on_reasoning,
        )
        return tokenize_dialogue(segments, chunk_tokens, self.tokenizer)


@dataclasses.dataclass(frozen=True)
class RowLimits:
    """Says what an empty row of a batch holds.

    Attributes:
        tokens: of a view.
        tokens_name: the setting that limits them, for errors.
        chunks: of audio.
        mel_frames: of a chunk.
        length_convention: of the model.
    """

    tokens: int
    tokens_name: str
    chunks: int
    mel_frames: int
    length_convention: LengthConvention

    @classmethod
    def of(cls, config: DataConfig, model: ModelConfig) -> "RowLimits":
        """Returns the limits of a stage's batches and its model."""
        is_row = config.seq_len <= model.decoder.max_positions
        return cls(
            tokens=min(config.seq_len, model.decoder.max_positions),
            tokens_name="seq_len" if is_row else "the decoder's max_positions",
            chunks=config.audio_chunks_per_seq,
            mel_frames=config.mel_frames_per_chunk,
            length_convention=model.length_convention,
        )

    def chunk_tokens(self, part: AudioPart, samples: int) -> tuple[int, ...]:
        """Returns the audio tokens of each chunk of a clip; only the last can have none.

        Args:
            part: by which an error names it.
            samples: of the clip, at 16 kHz.

        Raises:
            DataError: of the kind "too_long": a chunk has too many mel frames.
        """
        sizes = clip_chunks(samples, self.length_convention)
        longest = max((size.mel_frames for size in sizes), default=0)
        if longest > self.mel_frames:
            raise DataError(
                f"audio {format_path(part.name)} has a chunk of {longest} mel frames, more than"
                f" mel_frames_per_chunk={self.mel_frames}; raise it",
                kind="too_long",
            )
        return tuple(size.tokens for size in sizes)

    def check(self, tokens: int, chunks: int) -> None:
        """Checks that a view fits.

        Args:
            tokens: of the view.
            chunks: of its clips, those that have tokens.

        Raises:
            DataError: of the kind "too_long"; names the setting.
        """
        if tokens > self.tokens:
            raise DataError(
                f"the dialogue takes {tokens} tokens, more than"
                f" {self.tokens_name}={self.tokens}; raise it",
                kind="too_long",
            )
        if chunks > self.chunks:
            raise DataError(
                f"the dialogue has {chunks} audio chunks, more than"
                f" audio_chunks_per_seq={self.chunks}; raise it",
                kind="too_long",
            )

    def max_samples(self, text_tokens: int) -> int:
        """Returns the longest clip, in samples, of a view whose text takes so many tokens."""
        return max_clip_samples(
            self.tokens - text_tokens, self.chunks, self.mel_frames, self.length_convention
        )
