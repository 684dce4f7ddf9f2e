"""What the benchmark of training trains on: a model's shape, and dialogues of random tokens and noise."""

import dataclasses

import numpy as np

from stepaudio_jax.audio import MEL_BINS
from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import ComputeConfig, DataConfig, ModelConfig
from stepaudio_jax.data.record import AudioChunk, Example

Rows = list[list[Example]]
TEXT_TOKENS = (30, 121)  # of a dialogue with sound: least, and one more than most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One line of the benchmark.

    Attributes:
        name: what the line is called.
        model: the shape. The encoder is frozen, adaptor and decoder are trained; without chunks the
        decoder alone.
        data: the sizes of a batch; no chunks for text only.
        compute: of our side; the other one follows its `dtype`.
        compiled: whether torch's model goes through `torch.compile`.
        micro_batches, torch_micro_batches: into which our batch and torch's are cut, where
            activations do not fit at once.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    compute: ComputeConfig
    compiled: bool = False
    micro_batches: int = 1
    torch_micro_batches: int = 1


def draw_rows(job: Job) -> Rows:
    """Packed dialogues, the same for every contestant.

    Text: one of full length a row. With audio: a clip between a quarter and all of the longest,
    then a text; dialogues go into the first row that has room, until one fits nowhere.
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
            used = sum(example.tokens.size for example in row)
            if used + dialogue.tokens.size <= data.seq_len and len(row) < data.audio_chunks_per_seq:
                row.append(dialogue)
                break
        else:
            return rows


def _dialogue(job: Job, rng: np.random.Generator, *, frames: int, text: int) -> Example:
    heard = audio_embeddings_per_chunk(frames)
    length = heard + text
    sequence = rng.integers(0, job.model.decoder.vocab_size, size=length + 1, dtype=np.int32)
    place = np.arange(length, dtype=np.int32)
    mel = rng.normal(size=(MEL_BINS, frames)).astype(np.float32)
    return Example(
        tokens=sequence[:-1],
        targets=sequence[1:],
        loss_weights=(place >= heard).astype(np.float32),
        positions=place,
        segment_ids=np.zeros(length, np.int32),
        audio_index=np.where(place < heard, place, -1).astype(np.int32),
        chunks=(AudioChunk(mel=mel, labels=None),) if frames else (),
    )
