"""Initial weights: parts from different folders, and a tokenizer that the vocabulary holds."""

import shutil

import numpy as np
import pytest

from stepaudio_jax import hub
from stepaudio_jax.config import Config, DataConfig, InitialWeights, SourceConfig, StageConfig
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training.initial_weights import initial_model, initial_weights
from tests.hub.folders import qwen2, qwen2_audio

# of Qwen2.5-32B: fewer than Step-Audio's tokens, of which those of generated sound come last
ROWS = 152064


@pytest.fixture
def qwen(tmp_path, shared_tokenizer):
    """Qwen2.5's decoder with its own tokenizer, and Qwen2-Audio's encoder, as they are released."""
    qwen2(vocab_size=ROWS).save_pretrained(tmp_path / "decoder")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(shared_tokenizer / name, tmp_path / "decoder" / name)
    qwen2_audio().save_pretrained(tmp_path / "encoder")
    return InitialWeights(decoder=str(tmp_path / "decoder"), encoder=str(tmp_path / "encoder"))


def run_config(initial, **settings):
    stage = StageConfig(
        name="adaptor",
        steps=1,
        data=DataConfig(sources=(SourceConfig(path="x"),)),
        trainable=("adaptor",),
    )
    return Config(run_dir="run", initial=initial, stages=(stage,), **settings)


def test_released_decoder_and_encoder_with_a_new_adaptor(qwen):
    config = run_config(qwen)
    model, tokenizer = initial_model(config)
    assert model.decoder.vocab_size == ROWS < tokenizer.vocab_size
    parameters = initial_weights(config, model, make_mesh(config.mesh)).params
    assert set(parameters) == {"encoder", "adaptor", "decoder"}
    released = hub.read_parameters({"decoder": qwen.decoder})["decoder"]["embedding"]
    np.testing.assert_array_equal(
        np.asarray(parameters["decoder"]["embedding"], np.float32),
        np.asarray(released.astype(config.compute.dtype), np.float32),
    )


def test_a_vocabulary_that_is_too_small_for_the_tokenizer_is_refused(qwen, tmp_path):
    small = InitialWeights(decoder=str(tmp_path / "small"), encoder=qwen.encoder)
    qwen2(vocab_size=151000).save_pretrained(tmp_path / "small")
    with pytest.raises(
        CheckpointError, match="the vocabulary has 151000 rows; it needs at least 1516"
    ):
        initial_model(run_config(small, tokenizer=qwen.decoder))
