"""The auxiliary losses against torch: word-level CTC, and classifiers of a clip's attributes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from stepaudio_jax.audio import chunk_token_count
from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data.batch import AuxiliaryLabels
from stepaudio_jax.training.losses import AuxiliaryHeads, aux_loss_sums, aux_loss_weights
from tests.models.random_model import SMALL
from tests.training.batches import random_batch

# Attributes in an order that is not the alphabet's, with different numbers of values.
CONFIG = AuxiliaryConfig(
    ctc_weight=0.3,
    ctc_words=("one", "two", "three", "four"),
    attribute_weight=0.5,
    attributes={
        "rate": ("slow", "normal", "fast"),
        "gender": ("f", "m"),
        "pitch": ("low", "middle", "high", "highest"),
    },
)
FRAMES = 64
LENGTHS = np.array([[61, 52, 64], [33, 0, 17]], np.int32)
# Words of each chunk, one more than their index: with repetitions, none at all, and as many as the
# clip has outputs.
TRANSCRIPTS = [[[1, 2, 3], [4, 4], []], [[2, 2, 1], [], [1, 3]]]


def labels(*, with_words=True, attributes=None):
    words = np.zeros((2, 3, 4), np.int32)
    for row, chunks in enumerate(TRANSCRIPTS):
        for chunk, transcript in enumerate(chunks):
            words[row, chunk, : len(transcript)] = transcript
    weight = (LENGTHS > 0).astype(np.float32) * with_words
    unknown = np.full((2, 3, 3), -1, np.int32)
    return AuxiliaryLabels(
        ctc_words=words, ctc_weight=weight, attributes=unknown if attributes is None else attributes
    )


def batch_with(auxiliary):
    return dataclasses.replace(
        random_batch(rows=2, chunks=3), mel_lengths=LENGTHS, auxiliary=auxiliary
    )


def random_heads(config=CONFIG):
    """As a train step has them: split, kept as a plain dict, merged again."""
    graphdef, state = nnx.split(AuxiliaryHeads(config, SMALL, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nnx.to_pure_dict(state)
    )
    return nnx.merge(graphdef, parameters), parameters


def random_features(seed=1):
    """Returns features [2,3,16,H], zero beyond a chunk, and outputs [2,3,8,H], noise beyond."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2, 3, FRAMES // 4, SMALL.encoder.hidden)).astype(np.float32)
    beyond = np.arange(FRAMES // 4)[None, None, :] >= (-(-LENGTHS // 2) // 2)[:, :, None]
    features[beyond] = 0
    return features, rng.normal(size=(2, 3, FRAMES // 8, SMALL.decoder.hidden)).astype(np.float32)


@pytest.mark.parametrize("convention", ["hf", "vllm"])
def test_ctc_equals_torch_on_each_chunks_own_outputs(convention):
    heads, parameters = random_heads()
    features, outputs = random_features()
    sums = aux_loss_sums(
        heads, jnp.asarray(features), jnp.asarray(outputs), batch_with(labels()), convention
    )
    expected = 0.0
    for row in range(2):
        for chunk in range(3):
            frames = int(LENGTHS[row, chunk]) - (2 if convention == "hf" else 0)
            count = ((frames + 1) // 2 // 2 + 1) // 2
            if not LENGTHS[row, chunk]:
                continue
            logits = (
                outputs[row, chunk, :count] @ parameters["words"]["kernel"]
                + parameters["words"]["bias"]
            )
            transcript = TRANSCRIPTS[row][chunk]
            expected += torch.nn.functional.ctc_loss(
                torch.log_softmax(torch.tensor(logits), dim=-1)[:, None],
                torch.tensor([transcript], dtype=torch.long),
                torch.tensor([count]),
                torch.tensor([len(transcript)]),
                reduction="sum",
            ).item()
    assert np.isfinite(expected)
    assert float(sums["ctc"]) == pytest.approx(expected, rel=1e-5)


def test_outputs_beyond_a_chunk_and_chunks_without_a_transcript_do_not_count():
    heads, _ = random_heads()
    features, outputs = random_features()
    expected = aux_loss_sums(
        heads, jnp.asarray(features), jnp.asarray(outputs), batch_with(labels()), "hf"
    )
    counts = np.asarray(chunk_token_count(LENGTHS, "hf"))
    noisy = np.where(
        np.arange(FRAMES // 8)[:, None] >= counts[:, :, None, None], 50.0, outputs
    ).astype(np.float32)
    assert (noisy != outputs).any()
    sums = aux_loss_sums(
        heads, jnp.asarray(features), jnp.asarray(noisy), batch_with(labels()), "hf"
    )
    assert float(sums["ctc"]) == float(expected["ctc"])
    without = aux_loss_sums(
        heads,
        jnp.asarray(features),
        jnp.asarray(outputs),
        batch_with(labels(with_words=False)),
        "hf",
    )
    assert float(without["ctc"]) == 0
    assert float(aux_loss_weights(labels(with_words=False))["ctc"]) == 0
    assert float(aux_loss_weights(labels())["ctc"]) == 5


def test_attributes_equal_torch_in_the_order_of_the_configuration():
    """Each label goes with the head of its name, over the chunk's mean feature; -1 is unknown."""
    heads, parameters = random_heads()
    features, outputs = random_features()
    known = np.array(
        [[[2, 1, 3], [0, -1, 1], [-1, 0, -1]], [[1, 0, 2], [-1, -1, -1], [2, -1, 0]]], np.int32
    )
    auxiliary = labels(attributes=known)
    sums = aux_loss_sums(
        heads, jnp.asarray(features), jnp.asarray(outputs), batch_with(auxiliary), "hf"
    )
    expected = 0.0
    for row in range(2):
        for chunk in range(3):
            length = -(-int(LENGTHS[row, chunk]) // 2) // 2
            for index, name in enumerate(CONFIG.attributes):
                if known[row, chunk, index] >= 0:
                    mean = features[row, chunk, :length].mean(axis=0)
                    logits = (
                        mean @ parameters["attributes"][name]["kernel"]
                        + parameters["attributes"][name]["bias"]
                    )
                    target = torch.tensor(known[row, chunk, index]).long()
                    expected += torch.nn.functional.cross_entropy(
                        torch.tensor(logits), target
                    ).item()
    assert float(sums["attributes"]) == pytest.approx(expected, rel=1e-5)
    assert float(aux_loss_weights(auxiliary)["attributes"]) == (known >= 0).sum()


@pytest.mark.parametrize("off", ["ctc_weight", "attribute_weight"])
def test_a_disabled_loss_needs_no_labels(off):
    """The batch then has labels of size zero, even if the configuration names a vocabulary."""
    config = dataclasses.replace(CONFIG, **{off: 0.0})
    heads, _ = random_heads(config)
    features, outputs = random_features()
    all_labels = labels(attributes=np.zeros((2, 3, 3), np.int32))
    empty = {
        "ctc_weight": {
            "ctc_words": np.zeros((2, 3, 0), np.int32),
            "ctc_weight": np.zeros((2, 3), np.float32),
        },
        "attribute_weight": {"attributes": np.zeros((2, 3, 0), np.int32)},
    }
    auxiliary = dataclasses.replace(all_labels, **empty[off])
    sums = aux_loss_sums(
        heads, jnp.asarray(features), jnp.asarray(outputs), batch_with(auxiliary), "hf"
    )
    kept, dropped = ("attributes", "ctc") if off == "ctc_weight" else ("ctc", "attributes")
    assert float(sums[dropped]) == 0
    assert float(sums[kept]) > 0
