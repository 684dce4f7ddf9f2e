"""Loads weights from files and compares what the model computes with torch on the same files."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stepaudio_jax import hub
from stepaudio_jax.config import AdaptorConfig
from stepaudio_jax.errors import CheckpointError
from tests.hub.folders import (
    SMALL,
    qwen2,
    qwen2_audio,
    random_folder,
    read_tensors,
    save_with_tokenizer,
    with_decoder,
)
from tests.models.random_model import model_with


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders")
    decoder, audio = qwen2(), qwen2_audio()
    save_with_tokenizer(decoder, path / "decoder")
    audio.save_pretrained(path / "audio")
    random_folder(path / "model")
    hub.import_weights(path / "decoder", path / "checkpoint", encoder_source=path / "audio")
    return path, decoder, audio


@pytest.mark.parametrize("kind", ["folders", "checkpoint"])
def test_decoder_computes_as_torch_does(folders, kind):
    """Attention matrices are square here, so only the numbers tell whether one is transposed."""
    path, oracle, _ = folders
    decoder = path / ("decoder" if kind == "folders" else "checkpoint")
    sources = hub.weight_sources(path / "model", decoder=decoder)
    config = hub.read_model_config(sources)
    assert config == SMALL
    model = model_with(hub.read_parameters(sources, dtype="float32"), config)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 20))
    positions = np.broadcast_to(np.arange(20), tokens.shape)
    hidden = model.decode(
        model.embed(jnp.asarray(tokens)), jnp.asarray(positions), jnp.ones(tokens.shape, jnp.int32)
    )
    with torch.no_grad():
        expected = oracle(torch.tensor(tokens)).logits.numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(model.logits(hidden), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["folders", "checkpoint"])
def test_encoder_computes_as_torch_does(folders, kind):
    path, _, oracle = folders
    encoder = path / ("audio" if kind == "folders" else "checkpoint")
    parameters = hub.read_parameters(
        hub.weight_sources(path / "model", encoder=encoder), dtype="float32"
    )
    model = model_with(parameters, SMALL)
    mel = np.random.default_rng(0).standard_normal((1, 128, 3000), np.float32)
    tower = oracle.get_submodule("model.audio_tower")
    with torch.no_grad():
        # The released mask drops the last two frames ("hf"), which transformers leaves to its
        # caller: the key of encoder frame 1499 is masked.
        mask = torch.zeros(1, 1, 1500, 1500)
        mask[..., 1499:] = -1e10
        expected = tower(torch.tensor(mel), attention_mask=mask).last_hidden_state.numpy()
    features = np.asarray(model.encoder(jnp.asarray(mel), jnp.array([3000])))
    assert features.shape == expected.shape
    assert np.abs(features - expected).max() / np.abs(expected).max() <= 1e-4


def test_adaptor_computes_as_torch_does(folders):
    path, _, _ = folders
    model = model_with(hub.read_parameters(path / "model", dtype="float32"), SMALL)
    tensors = {name: tensor.float() for name, tensor in read_tensors(path / "model").items()}
    features = np.random.default_rng(0).standard_normal((2, 31, 64), np.float32)
    x = torch.tensor(features).transpose(1, 2)
    x = torch.conv1d(
        x, tensors["adapter.conv.weight"], tensors["adapter.conv.bias"], stride=2, padding=1
    )
    x = torch.nn.functional.gelu(x).transpose(1, 2)
    x = torch.relu(
        torch.nn.functional.linear(
            x, tensors["adapter.linear1.weight"], tensors["adapter.linear1.bias"]
        )
    )
    x = torch.nn.functional.linear(
        x, tensors["adapter.linear2.weight"], tensors["adapter.linear2.bias"]
    )
    np.testing.assert_allclose(model.adaptor(jnp.asarray(features)), x.numpy(), atol=1e-5)


def test_parts_dtypes_and_sources_can_be_chosen(folders):
    path, _, _ = folders
    parameters = hub.read_parameters(
        path / "model", parts=["encoder", "decoder"], dtype={"decoder": "float32"}
    )
    assert set(parameters) == {"encoder", "decoder"}
    assert str(parameters["decoder"]["embedding"].dtype) == "float32"
    assert str(parameters["encoder"]["positions"].dtype) == "bfloat16"  # as stored
    sources = hub.weight_sources(encoder=path / "audio", decoder=path / "decoder")
    assert sources == {"encoder": path / "audio", "decoder": path / "decoder"}
    config = hub.read_model_config(sources)
    assert (config.encoder, config.decoder) == (SMALL.encoder, SMALL.decoder)
    assert config.adaptor == AdaptorConfig()
    assert set(hub.read_parameters(sources)) == {"encoder", "decoder"}
    assert hub.read_model_config(path / "checkpoint").decoder == SMALL.decoder


def test_missing_parts_and_other_shapes_are_errors(folders):
    path, _, _ = folders
    with pytest.raises(CheckpointError, match="audio has no decoder; it holds encoder"):
        hub.weight_sources(path / "model", decoder=path / "audio")
    with pytest.raises(CheckpointError, match=r"no encoder in .*decoder"):
        hub.read_model_config(path / "decoder")
    with pytest.raises(CheckpointError, match="no adaptor in"):
        hub.read_parameters(path / "decoder", parts=["decoder", "adaptor"])
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        hub.read_model_config(path / "nowhere")
    with pytest.raises(
        CheckpointError, match=r"decoder/embedding is \(300, 48\), expected \(310, 48\)"
    ):
        hub.read_parameters(path / "model", config=with_decoder(vocab_size=310))
    with pytest.raises(
        CheckpointError, match=r"decoder/lm_head/kernel is \(48, 300\), expected absent"
    ):
        hub.read_parameters(path / "model", config=with_decoder(tied_embeddings=True))
    # A part that is not asked for may have any shape.
    assert hub.read_parameters(path / "model", config=with_decoder(ffn=8), parts=["encoder"])
    with pytest.raises(CheckpointError, match="shardings has no leaf for encoder/conv1/bias"):
        hub.read_parameters(path / "model", parts=["encoder"], shardings={})


def test_tokenizers(folders):
    path, _, _ = folders
    for name in ("model", "checkpoint"):
        assert hub.load_tokenizer(path / name).vocab_size == 290
    with pytest.raises(ValueError, match="audio"):
        hub.load_tokenizer(path / "audio")
