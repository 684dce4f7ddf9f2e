"""The whole model on a dialogue with audio in both turns, against its three parts in torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models import torch_reference
from tests.models.random_model import SMALL, model_with, random_parameters


@pytest.mark.parametrize("convention", ["hf", "vllm"])
def test_two_turn_dialogue_with_audio_equals_torch(convention):
    config = dataclasses.replace(SMALL, length_convention=convention)
    parameters = random_parameters(config, seed=2)
    reference = torch_reference.to_torch(parameters)
    rng = np.random.default_rng(8)
    # Mel frames of the two clips: modulo 8 they are 3 and 4, where the two conventions differ.
    lengths = [91, 140]
    clips = [rng.normal(size=(128, length)).astype(np.float32) for length in lengths]
    with torch.no_grad():
        audio_embeddings = [
            torch_reference.adapt(
                reference["adaptor"],
                torch_reference.encode(
                    reference["encoder"],
                    torch.tensor(mel),
                    heads=config.encoder.heads,
                    convention=convention,
                ),
            )
            for mel in clips
        ]
        oracle = torch_reference.qwen2(reference["decoder"], config.decoder)
        text = [rng.integers(0, config.decoder.vocab_size, size=n) for n in (9, 13, 6)]
        embedded = [oracle.model.embed_tokens(torch.tensor(part)) for part in text]
        sequence = torch.cat(
            [embedded[0], audio_embeddings[0], embedded[1], audio_embeddings[1], embedded[2]]
        )
        expected = oracle(inputs_embeds=sequence[None]).logits[0].numpy()

    audio_embeddings_per_chunk = ((-(-160 // 2) // 2) + 1) // 2
    mel = np.zeros((1, 2, 128, 160), np.float32)
    tokens, audio_index = [], []
    for index, part in enumerate(text):
        tokens += list(part)
        audio_index += [-1] * len(part)
        if index < 2:
            mel[0, index, :, : lengths[index]] = clips[index]
            count = audio_embeddings[index].shape[0]
            tokens += [7] * count
            audio_index += list(
                range(
                    index * audio_embeddings_per_chunk, index * audio_embeddings_per_chunk + count
                )
            )

    @jax.jit
    def logits(parameters, mel, lengths, tokens, audio_index):
        model = model_with(parameters, config)
        embeddings = model.embed(tokens, model.encode_audio(mel, lengths), audio_index)
        positions = jnp.arange(tokens.shape[1])[None]
        return model.logits(model.decode(embeddings, positions, jnp.ones_like(positions)))

    actual = np.asarray(
        logits(parameters, mel, *(jnp.array([values]) for values in (lengths, tokens, audio_index)))
    )[0]
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 2e-4
    assert np.abs(expected).max() > 0.5
