"""Models made by hand that always write the same tokens: what evaluating them finds is known."""

import dataclasses
import json
from collections.abc import Sequence

import jax
import numpy as np

from stepaudio_jax.config import (
    AdaptorConfig,
    ComputeConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
)
from stepaudio_jax.generation import LoadedModel
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.text.special_tokens import BYTE_SYMBOLS

THINK_END = "\n</think>\n"
CONFIG = ModelConfig(
    encoder=EncoderConfig(hidden=16, heads=2, layers=1, positions=64),
    adaptor=AdaptorConfig(ffn=16),
    decoder=DecoderConfig(
        vocab_size=320,
        hidden=64,
        ffn=32,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=8,
        max_positions=256,
    ),
)
COMPUTE = ComputeConfig(dtype="float32", remat="none", unroll=1)


def tokenizer_with_think_end(folder) -> Tokenizer:
    """Returns the byte tokenizer with a single token for `</think>`, which no text encodes to."""
    Tokenizer.byte_level().save(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    symbols = "".join(BYTE_SYMBOLS[byte] for byte in THINK_END.encode())
    special = [{**token, "id": token["id"] + 1} for token in content["added_tokens"]]
    content["model"]["vocab"][symbols] = 256
    content["added_tokens"] = special
    path.write_text(json.dumps(content), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    return Tokenizer.from_folder(folder)


def constant_model(tokenizer: Tokenizer, written: Sequence[int]) -> LoadedModel:
    """Returns a model that writes these tokens after every prompt, and the last of them forever.

    Its layers add nothing, so the logits are those of the last token alone: each token's embedding
    is a direction of its own, and the head answers that direction with the token to follow.
    """
    start = tokenizer.encode("\n")[-1]
    chain = [start, *written]
    assert len(set(chain)) == len(chain)
    sizes = CONFIG.decoder
    directions = (
        np.random.default_rng(0).normal(size=(sizes.vocab_size, sizes.hidden)).astype(np.float32)
    )
    head = np.zeros((sizes.hidden, sizes.vocab_size), np.float32)
    for current, following in zip(chain, [*chain[1:], chain[-1]], strict=True):
        head[:, following] += directions[current]
    parameters = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_parameters(CONFIG, COMPUTE)
    )
    decoder = {
        "embedding": directions,
        "norm": {"scale": np.ones(sizes.hidden, np.float32)},
        "lm_head": {"kernel": head},
    }
    return LoadedModel(
        "constant",
        CONFIG,
        parameters | {"decoder": parameters["decoder"] | decoder},
        tokenizer,
        COMPUTE,
    )


def replying(tokenizer: Tokenizer, reasoning: str, reply: str, *, ends: bool = True) -> LoadedModel:
    """Returns a model that answers `reply` after `reasoning` (no character twice in the two)."""
    think_end = next(
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(token) == THINK_END.encode()
    )
    written = [*tokenizer.encode(reasoning), think_end, *tokenizer.encode(reply)]
    return constant_model(tokenizer, [*written, tokenizer.special.eot] if ends else written)


def with_random_parameters(model: LoadedModel, seed: int) -> LoadedModel:
    """The same shape with weights so large that what is heard changes what is written."""
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(
        lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), model.parameters
    )
    return dataclasses.replace(model, parameters=drawn)
