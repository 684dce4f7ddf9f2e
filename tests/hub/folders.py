"""Writes small folders of weights with the libraries that write users' folders."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from stepaudio_jax.config import AdaptorConfig, DecoderConfig, EncoderConfig, ModelConfig
from stepaudio_jax.hub import write_random_weights
from stepaudio_jax.text import Tokenizer
from tests.qwen2 import qwen2_config

# Square attention matrices (a lost transpose shows in the numbers only), three layers, no two other
# sizes alike.
SMALL = ModelConfig(
    encoder=EncoderConfig(hidden=64, heads=4, layers=2),
    adaptor=AdaptorConfig(ffn=72),
    decoder=DecoderConfig(
        vocab_size=300,
        hidden=48,
        ffn=112,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=8,
        max_positions=512,
    ),
)


def with_decoder(**changes: Any) -> ModelConfig:
    return dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, **changes))


def random_folder(path: pathlib.Path, config: ModelConfig = SMALL, **options: Any) -> pathlib.Path:
    """A Step-Audio folder as `random` writes it."""
    write_random_weights(config, path, tokenizer=Tokenizer.byte_level(), **options)
    return path


def read_tensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, through the safetensors library."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  not a dict
                assert name not in tensors
                tensors[name] = opened.get_tensor(name)
    return tensors


def write_tensors(
    folder: pathlib.Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors"
) -> None:
    """Replaces the shards (and the index) of a folder by one file."""
    for file in folder.glob("model*"):
        file.unlink()
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        folder / name,
        metadata={"format": "pt"},
    )


def edit_json(file: pathlib.Path, edit: Any) -> None:
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter normal, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def qwen2(*, tied: bool = False, vocab_size: int = 300) -> torch.nn.Module:
    """A random Qwen2ForCausalLM of the decoder's shape."""
    config = qwen2_config(SMALL.decoder, vocab_size=vocab_size, tie_word_embeddings=tied)
    return randomise(transformers.Qwen2ForCausalLM(config), seed=1)


def qwen2_audio() -> torch.nn.Module:
    """A random Qwen2-Audio whose encoder has the shape of ours."""
    encoder = SMALL.encoder
    audio = {
        "d_model": encoder.hidden,
        "encoder_layers": encoder.layers,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": encoder.ffn,
        "num_mel_bins": encoder.mel_bins,
        "max_source_positions": encoder.positions,
    }
    config = transformers.Qwen2AudioConfig(audio_config=audio, text_config=qwen2().config.to_dict())
    return randomise(transformers.Qwen2AudioForConditionalGeneration(config), seed=2)


def save_with_tokenizer(model: torch.nn.Module, path: pathlib.Path, **options: Any) -> pathlib.Path:
    model.save_pretrained(path, **options)
    Tokenizer.byte_level().save(path)
    return path


def as_numpy(tree: Any) -> Any:
    """bfloat16 leaves as their bits, so that equality is of bits."""
    leaf = np.asarray(tree)
    return leaf.view(np.uint16) if leaf.dtype.itemsize == 2 else leaf


def assert_same_tensors(first: pathlib.Path, second: pathlib.Path) -> None:
    left, right = read_tensors(first), read_tensors(second)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
