"""Encoder and adaptor against transformers and a torch transcription; padding changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stepaudio_jax.config import ModelConfig
from tests.models import torch_reference
from tests.models.random_model import SMALL, model_with, random_parameters


def relative_error(actual, expected):
    return float(
        np.max(np.abs(np.asarray(actual) - np.asarray(expected)))
        / np.max(np.abs(np.asarray(expected)))
    )


@pytest.fixture(scope="module")
def parameters():
    return random_parameters(SMALL)


@pytest.fixture(scope="module")
def reference(parameters):
    return torch_reference.to_torch(parameters)


@functools.partial(jax.jit, static_argnames="config")
def encode(parameters, mel, lengths, config):
    return model_with(parameters, config).encoder(mel, lengths)


@functools.partial(jax.jit, static_argnames="config")
def adapt(parameters, features, config):
    return model_with(parameters, config).adaptor(features)


@functools.partial(jax.jit, static_argnames="config")
def encode_audio(parameters, mel, lengths, config):
    return model_with(parameters, config).encode_audio(mel, lengths)


def clip(frames: int, seed: int) -> np.ndarray:
    return (
        np.random.default_rng(seed).normal(size=(SMALL.encoder.mel_bins, frames)).astype(np.float32)
    )


def test_equals_qwen2_audio_encoder_at_3000_frames(parameters, reference):
    assert_equals_qwen2_audio_encoder(SMALL, parameters, reference)


@pytest.mark.slow
def test_equals_qwen2_audio_encoder_at_full_size():
    """The released encoder's shape, 32 layers of 1280; the decoder stays small."""
    config = dataclasses.replace(SMALL, encoder=ModelConfig().encoder)
    parameters = random_parameters(config, scale=0.03)
    assert_equals_qwen2_audio_encoder(
        config, parameters, torch_reference.to_torch({"encoder": parameters["encoder"]})
    )


def assert_equals_qwen2_audio_encoder(config, parameters, reference):
    from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig

    shape = config.encoder
    oracle = Qwen2AudioEncoder(
        Qwen2AudioEncoderConfig(
            num_mel_bins=shape.mel_bins,
            d_model=shape.hidden,
            encoder_attention_heads=shape.heads,
            encoder_layers=shape.layers,
            encoder_ffn_dim=shape.ffn,
            max_source_positions=shape.positions,
            attn_implementation="eager",
        )
    ).eval()
    ours = reference["encoder"]
    state = {"embed_positions.weight": ours["positions"]}
    for name in ("conv1", "conv2"):
        state[f"{name}.weight"] = ours[name]["kernel"].permute(2, 1, 0)
        state[f"{name}.bias"] = ours[name]["bias"]
    state["layer_norm.weight"], state["layer_norm.bias"] = (
        ours["norm"]["scale"],
        ours["norm"]["bias"],
    )
    for i in range(shape.layers):
        layer = jax.tree.map(lambda leaf: leaf[i], ours["layers"])  # noqa: B023
        for theirs, mine in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            projection = layer["attention"][mine]
            state[f"layers.{i}.self_attn.{theirs}_proj.weight"] = (
                projection["kernel"].reshape(shape.hidden, shape.hidden).T
            )
            if "bias" in projection:
                state[f"layers.{i}.self_attn.{theirs}_proj.bias"] = projection["bias"].reshape(-1)
        for theirs, mine in (
            ("self_attn_layer_norm", "attention_norm"),
            ("final_layer_norm", "mlp_norm"),
        ):
            state[f"layers.{i}.{theirs}.weight"] = layer[mine]["scale"]
            state[f"layers.{i}.{theirs}.bias"] = layer[mine]["bias"]
        for theirs, mine in (("fc1", "up"), ("fc2", "down")):
            state[f"layers.{i}.{theirs}.weight"] = layer["mlp"][mine]["kernel"].T
            state[f"layers.{i}.{theirs}.bias"] = layer["mlp"][mine]["bias"]
    oracle.load_state_dict({name: value.contiguous() for name, value in state.items()})
    mel = clip(3000, 0)
    # The mask of the released code at T = 3000 shows keys 0 to 1498: (arange(3000) < 2998)[1::2].
    mask = torch.zeros(1, 1, 1500, 1500)
    mask[..., 1499:] = -1e10
    with torch.no_grad():
        expected = oracle(torch.tensor(mel)[None], attention_mask=mask).last_hidden_state[0]
    actual = encode(parameters, jnp.asarray(mel)[None], jnp.array([3000]), config)[0]
    assert actual.shape == (750, shape.hidden)
    assert relative_error(actual, expected) <= 1e-4


@pytest.mark.parametrize("convention", ["hf", "vllm"])
@pytest.mark.parametrize("frames", [17, 100, 333, 1501, 2502])
def test_encoder_and_adaptor_equal_the_torch_transcription(
    parameters, reference, frames, convention
):
    config = dataclasses.replace(SMALL, length_convention=convention)
    mel = clip(frames, frames)
    with torch.no_grad():
        features = torch_reference.encode(
            reference["encoder"],
            torch.tensor(mel),
            heads=config.encoder.heads,
            convention=convention,
        )
        expected = torch_reference.adapt(reference["adaptor"], features)
    actual = encode(parameters, jnp.asarray(mel)[None], jnp.array([frames]), config)
    assert actual[0].shape == features.shape
    assert relative_error(actual[0], features) <= 1e-4
    assert relative_error(adapt(parameters, actual, config)[0], expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["hf", "vllm"])
def test_padding_and_other_clips_do_not_change_a_clip(parameters, convention):
    """For every length modulo 8, with junk beyond the clip."""
    config = dataclasses.replace(SMALL, length_convention=convention)
    lengths = [8, 9, 10, 11, 12, 13, 14, 15, 59, 101, 0]
    bucket = 128
    # What lies beyond a clip must not matter, so it is made large.
    mel = 50 + 100 * np.random.default_rng(1).normal(
        size=(len(lengths), SMALL.encoder.mel_bins, bucket)
    ).astype(np.float32)
    clips = [clip(length, length) for length in lengths]
    for row, values in zip(mel, clips, strict=True):
        row[:, : values.shape[1]] = values
    batched = encode_audio(parameters, jnp.asarray(mel)[None], jnp.array([lengths]), config)
    batched = batched.reshape(len(lengths), -1, SMALL.decoder.hidden)
    assert np.isfinite(np.asarray(batched)).all()
    for row, length in enumerate(lengths[:-1]):
        alone = encode_audio(
            parameters, jnp.asarray(clips[row])[None, None], jnp.array([[length]]), config
        )[0]
        tokens = ((-(-length // 2) // 2) + 1) // 2
        assert alone.shape[0] == tokens
        np.testing.assert_allclose(
            batched[row, :tokens], alone, atol=1e-5 * float(jnp.abs(alone).max())
        )


def test_frozen_encoder_has_no_gradient_path_to_padding(parameters):
    """A missing clip (length 0) gives finite gradients: a NaN would spoil a text-only row."""

    def loss(parameters):
        return encode_audio(parameters, jnp.zeros((1, 1, 128, 32)), jnp.array([[0]]), SMALL).sum()

    gradients = jax.jit(jax.grad(loss))(parameters)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_a_bucket_longer_than_the_positional_table_is_an_error(parameters):
    with pytest.raises(
        ValueError, match="3002 mel frames need 1501 encoder positions, and the table has 1500"
    ):
        model_with(parameters, SMALL).encoder(jnp.zeros((1, 128, 3002)), jnp.array([3002]))


def test_full_shape_has_the_released_parameter_counts():
    from stepaudio_jax.models import abstract_parameters

    for preset, count in (("r1_32b", 33_487_033_600), ("mini_8b", 8_315_179_264)):
        leaves = jax.tree.leaves(abstract_parameters(ModelConfig.presets()[preset]))
        assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == count
