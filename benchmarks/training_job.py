"""The jobs of `train_step`: a model's shape, and dialogues of random tokens and noise."""

import dataclasses

import numpy as np

from stepaudio_jax.audio import MEL_BINS
from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import ComputeConfig, DataConfig, ModelConfig
from stepaudio_jax.data.record import AudioChunk, Example

Rows = list[list[Example]]
TEXT_TOKENS = (30, 121)  # range of a dialogue with sound, the end excluded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One line of the benchmark.

    Attributes:
        name: what the line is called.
        model: the shape. The encoder is frozen, adaptor and decoder are trained; for text alone
            only the decoder is used.
        data: the sizes of a batch; no audio chunks for text alone.
        compute: of our side; the other one follows its `dtype`.
        compiled: whether torch's model is compiled by `torch.compile`.
        micro_batches, torch_micro_batches: the numbers of parts that our batch and torch's are cut
            into, where activations of all do not fit.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    compute: ComputeConfig
    compiled: bool = False
    micro_batches: int = 1
    torch_micro_batches: int = 1


def draw_rows(job: Job) -> Rows:
    """Returns packed dialogues, the same for both sides.

    Text alone: one dialogue of full length a row. With audio: a clip of a quarter to all of the
    longest length, then a text; dialogues go into the first row that has room, until one fits
    nowhere.
    """
    rng = np.random.default_rng(0)
    data = job.data
    rows: Rows = [[] for _ in range(data.batch_size)]
    if not data.audio_chunks_per_seq:
        return [[_dialogue(job, rng, frames=0, text=data.seq_len)] for _ in rows]
    while True:
        frames = int(rng.integers(data.mel_frames_per_chunk // 4, data.mel_frames_per_chunk + 1))
        dialogue = _dialogue(job, rng, frames=frames, text=int(rng.integers(*TEXT_TOKENS)))
        for row in rows:
            row_tokens = sum(example.tokens.size for example in row)
            if (
                row_tokens + dialogue.tokens.size <= data.seq_len
                and len(row) < data.audio_chunks_per_seq
            ):
                row.append(dialogue)
                break
        else:
            return rows


def _dialogue(job: Job, rng: np.random.Generator, *, frames: int, text: int) -> Example:
    """Returns a dialogue of a clip of so many mel frames, then so many text tokens."""
    audio_tokens = audio_embeddings_per_chunk(frames)
    length = audio_tokens + text
    sequence = rng.integers(0, job.model.decoder.vocab_size, size=length + 1, dtype=np.int32)
    positions = np.arange(length, dtype=np.int32)
    mel = rng.normal(size=(MEL_BINS, frames)).astype(np.float32)
    return Example(
        tokens=sequence[:-1],
        targets=sequence[1:],
        loss_weights=(positions >= audio_tokens).astype(np.float32),
        positions=positions,
        segment_ids=np.zeros(length, np.int32),
        audio_index=np.where(positions < audio_tokens, positions, -1).astype(np.int32),
        chunks=(AudioChunk(mel=mel, labels=None),) if frames else (),
    )
