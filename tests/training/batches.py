"""Random batches with audio, packed dialogues and padding, and their next-token loss."""

import jax
import jax.numpy as jnp
import numpy as np

from stepaudio_jax.data.batch import AuxiliaryLabels, Batch
from stepaudio_jax.models import StepAudio
from stepaudio_jax.training.train_step import chunked_cross_entropy, forward


def next_token_loss(model: StepAudio, batch: Batch) -> jax.Array:
    """Computes the mean cross-entropy over the batch's loss tokens."""
    batch = jax.tree.map(jnp.asarray, batch)
    hidden, _ = forward(model, None, batch)
    compute = model.decoder.compute
    loss_sum, _ = chunked_cross_entropy(
        hidden,
        model.decoder.lm_head_kernel(),
        batch.targets,
        batch.loss_weights,
        chunks=compute.loss_chunks,
        rules=compute.rules,
    )
    return loss_sum / jnp.maximum(jnp.sum(batch.loss_weights), 1.0)


def random_batch(
    *, rows=4, tokens=40, chunks=2, frames=64, vocab=211, seed=0, auxiliary=False
) -> Batch:
    """Returns rows of two dialogues with one chunk each, and padding; the second has one chunk."""
    rng = np.random.default_rng(seed)
    lengths = np.zeros((rows, chunks), np.int32)
    lengths[:, :2] = frames - 3, frames - 10
    lengths[1, 1] = 0
    mel = rng.normal(size=(rows, chunks, 128, frames)).astype(np.float32)
    per_chunk = ((-(-frames // 2) // 2) + 1) // 2
    audio_index = np.full((rows, tokens), -1, np.int32)
    audio_index[:, 2:6] = np.arange(4)
    audio_index[:, 22:25] = per_chunk + np.arange(3)
    audio_index[1, 22:25] = -1
    segments = np.repeat([[1] * 18 + [2] * 16 + [0] * (tokens - 34)], rows, axis=0).astype(np.int32)
    positions = np.repeat([[*range(18), *range(16), *range(tokens - 34)]], rows, axis=0).astype(
        np.int32
    )
    weights = rng.integers(0, 2, size=(rows, tokens)).astype(np.float32) * (segments > 0)
    labels = None
    if auxiliary:
        labels = AuxiliaryLabels(
            ctc_words=np.tile(np.array([1, 2, 0], np.int32), (rows, chunks, 1)),
            ctc_weight=(lengths > 0).astype(np.float32),
            attributes=np.where(
                lengths[:, :, None] > 0, rng.integers(-1, 2, size=(rows, chunks, 2)), -1
            ).astype(np.int32),
        )
    return Batch(
        tokens=rng.integers(0, vocab, size=(rows, tokens)).astype(np.int32),
        targets=rng.integers(0, vocab, size=(rows, tokens)).astype(np.int32),
        loss_weights=weights.astype(np.float32),
        positions=positions,
        segment_ids=segments,
        mel=mel,
        mel_lengths=lengths,
        audio_index=audio_index,
        auxiliary=labels,
    )
