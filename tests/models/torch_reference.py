"""The released model in plain torch, one clip at a time and without static shapes: the oracle.

Weights are taken from our parameter tree. Nothing here is shared with the implementation under
test.
"""

import math
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2ForCausalLM

from tests.qwen2 import qwen2_config


def to_torch(tree: Any) -> Any:
    """Our nested dict of arrays as torch tensors."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x, dtype=np.float32)), tree)


def encode(encoder: dict, mel: torch.Tensor, *, heads: int, convention: str) -> torch.Tensor:
    """Encodes mel [mel_bins, mel_frames] of one clip -> features [audio_frames, enc_hidden]."""
    frames = mel.shape[-1]
    counted = frames - 2 if convention == "hf" else frames
    mask = (torch.arange(frames) < counted)[(frames + 1) % 2 :: 2]
    x = F.gelu(
        F.conv1d(
            mel[None],
            encoder["conv1"]["kernel"].permute(2, 1, 0),
            encoder["conv1"]["bias"],
            padding=1,
        )
    )
    x = F.gelu(
        F.conv1d(
            x,
            encoder["conv2"]["kernel"].permute(2, 1, 0),
            encoder["conv2"]["bias"],
            stride=2,
            padding=1,
        )
    )
    x = x[0].T
    x = x + encoder["positions"][: x.shape[0]]
    bias = torch.where(mask, 0.0, -1e10)[None, None, :]
    layers = encoder["layers"]
    hidden = x.shape[-1]
    for i in range(layers["mlp"]["up"]["kernel"].shape[0]):
        layer = jax.tree.map(lambda leaf: leaf[i], layers)  # noqa: B023
        attention = layer["attention"]
        h = F.layer_norm(
            x, (hidden,), layer["attention_norm"]["scale"], layer["attention_norm"]["bias"]
        )
        q = h @ attention["query"]["kernel"].reshape(hidden, hidden) + attention["query"][
            "bias"
        ].reshape(-1)
        k = h @ attention["key"]["kernel"].reshape(hidden, hidden)
        v = h @ attention["value"]["kernel"].reshape(hidden, hidden) + attention["value"][
            "bias"
        ].reshape(-1)
        q, k, v = (t.reshape(-1, heads, hidden // heads).transpose(0, 1) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(hidden // heads) + bias, dim=-1)
        out = (weights @ v).transpose(0, 1).reshape(-1, hidden)
        x = (
            x
            + out @ attention["output"]["kernel"].reshape(hidden, hidden)
            + attention["output"]["bias"]
        )
        h = F.layer_norm(x, (hidden,), layer["mlp_norm"]["scale"], layer["mlp_norm"]["bias"])
        h = F.gelu(h @ layer["mlp"]["up"]["kernel"] + layer["mlp"]["up"]["bias"])
        x = x + h @ layer["mlp"]["down"]["kernel"] + layer["mlp"]["down"]["bias"]
    x = F.avg_pool1d(x.T[None], 2, stride=2)[0].T
    return F.layer_norm(x, (hidden,), encoder["norm"]["scale"], encoder["norm"]["bias"])


def adapt(adaptor: dict, features: torch.Tensor) -> torch.Tensor:
    """Maps features [audio_frames, enc_hidden] -> embeddings [audio_tokens, H]."""
    kernel = adaptor["conv"]["kernel"].permute(2, 1, 0)
    x = F.gelu(F.conv1d(features.T[None], kernel, adaptor["conv"]["bias"], stride=2, padding=1))[
        0
    ].T
    x = F.relu(x @ adaptor["up"]["kernel"] + adaptor["up"]["bias"])
    return x @ adaptor["down"]["kernel"] + adaptor["down"]["bias"]


def decode(decoder: dict, embeddings: torch.Tensor, config: Any) -> torch.Tensor:
    """Maps embeddings [T, H] -> logits [T, V], differentiable by our own tensors.

    transformers' module holds copies of them.
    """
    return torch.func.functional_call(
        qwen2(decoder, config),
        qwen2_state(decoder, config),
        kwargs={"inputs_embeds": embeddings[None]},
    ).logits[0]


def qwen2(decoder: dict, config: Any) -> torch.nn.Module:
    """transformers' Qwen2ForCausalLM holding our decoder's weights."""
    model = Qwen2ForCausalLM(qwen2_config(config, attn_implementation="eager")).to(torch.float32)
    model.load_state_dict(qwen2_state(decoder, config))
    return model.eval()


def qwen2_state(decoder: dict, config: Any) -> dict[str, torch.Tensor]:
    """Our decoder's tensors under transformers' names and in its layouts."""
    hidden = config.hidden
    state = {
        "model.embed_tokens.weight": decoder["embedding"],
        "model.norm.weight": decoder["norm"]["scale"],
    }
    state["lm_head.weight"] = (
        decoder["embedding"] if config.tied_embeddings else decoder["lm_head"]["kernel"].T
    )
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf: leaf[i], decoder["layers"])  # noqa: B023
        prefix = f"model.layers.{i}"
        state[f"{prefix}.input_layernorm.weight"] = layer["attention_norm"]["scale"]
        state[f"{prefix}.post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"]
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            state[f"{prefix}.self_attn.{theirs}_proj.weight"] = (
                layer["attention"][ours]["kernel"].reshape(hidden, -1).T
            )
            state[f"{prefix}.self_attn.{theirs}_proj.bias"] = layer["attention"][ours][
                "bias"
            ].reshape(-1)
        state[f"{prefix}.self_attn.o_proj.weight"] = (
            layer["attention"]["output"]["kernel"].reshape(-1, hidden).T
        )
        for name in ("gate", "up", "down"):
            state[f"{prefix}.mlp.{name}_proj.weight"] = layer["mlp"][name]["kernel"].T
    return {name: value.contiguous() for name, value in state.items()}
