"""Reads and writes LoRA adapters as PEFT does: `adapter_config.json`, `adapter_model.safetensors`.

Tensors have the names that PEFT gives them on transformers' `Qwen2ForCausalLM`: for the query
projection of layer 0 `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`
[rank, inputs] and `..lora_B.weight` [outputs, rank]. They are `down` and `up` of `models.lora`,
transposed, one layer each, with the heads' dimensions merged.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray
from safetensors.numpy import save

from stepaudio_jax.config import DecoderConfig, LoRAConfig, ModelConfig
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.safetensors import SAFETENSORS_DTYPES, StoredTensor, read_header
from stepaudio_jax.hub.tensor_map import DECODER_RULES, ParamPath, unflatten
from stepaudio_jax.models import Parameters, abstract_lora, lora_paths
from stepaudio_jax.models.trees import get_at
from stepaudio_jax.storage import (
    Path,
    PathLike,
    atomic_binary_writer,
    expand_home,
    first_few,
    read_json,
    to_path,
    write_json,
)

ADAPTER = "adapter"  # in a checkpoint's folder: the adapter beside its parameters
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LAYER = "model.layers.{i}."
_MATRICES = {"lora_A": "down", "lora_B": "up"}
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?:language_model\.)?(?:model\.)*layers\.(?P<layer>\d+)"
    r"\.(?P<module>[\w.]+?)\.(?P<matrix>lora_[AB])(?:\.default)?\.weight"
)
# Settings of PEFT that turn an adapter into something else than scale * B A, and the values with
# which they do not.
_PLAIN_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None,),
    "arrow_config": (None,),
}
# Initialisations that subtract something from the base's weights.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on the host.

    Attributes:
        lora: its rank, alpha and targets.
        matrices: {"down", "up"} of every adapted kernel, fp32 (see `models.AbstractLoRA`).
        base: the model on which it was trained, in words or as a path; empty if unknown.
    """

    lora: LoRAConfig
    matrices: Parameters
    base: str = ""


def combine_adapters(adapters: list[tuple[LoRAConfig, Parameters]], base: str = "") -> Adapter:
    """Combines adapters into one whose product is the sum of theirs; a single one is unchanged.

    Its rank is the sum of their ranks; the columns of an adapter that does not adapt a kernel are
    zero there.

    Args:
        adapters: at least one; the matrices on the host.
        base: the model on which they were trained.
    """
    if len(adapters) == 1:
        lora, matrices = adapters[0]
        return Adapter(dataclasses.replace(lora, adapter=None), matrices, base)
    rank = sum(lora.rank for lora, _ in adapters)
    paths = dict.fromkeys(path for _, matrices in adapters for path in lora_paths(matrices))
    combined: dict[ParamPath, NDArray[np.float32]] = {}
    for path in paths:
        first = next(get_at(matrices, path) for _, matrices in adapters if _has(matrices, path))
        down = np.zeros((*first["down"].shape[:-1], rank), np.float32)
        up = np.zeros((first["up"].shape[0], rank, *first["up"].shape[2:]), np.float32)
        start = 0
        for lora, matrices in adapters:
            if _has(matrices, path):
                pair = get_at(matrices, path)
                down[..., start : start + lora.rank] = pair["down"]
                up[:, start : start + lora.rank] = np.float32(lora.scale) * pair["up"]
            start += lora.rank
        combined |= {(*path, "down"): down, (*path, "up"): up}
    targets = tuple(dict.fromkeys(target for lora, _ in adapters for target in lora.targets))
    lora = LoRAConfig(rank=rank, alpha=float(rank), targets=targets)
    return Adapter(lora, unflatten(combined), base)


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Writes an adapter into an existing folder, as PEFT and vLLM read it."""
    tensors = {
        name: np.ascontiguousarray(values, np.float32)
        for name, values in _peft_tensors(adapter.matrices)
    }
    modules = sorted(_module(path).rpartition(".")[2] for path in lora_paths(adapter.matrices))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base or None,
        "r": adapter.lora.rank,
        "lora_alpha": _as_integer(adapter.lora.alpha),
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, config)
    with atomic_binary_writer(folder / ADAPTER_WEIGHTS) as file:
        file.write(save(tensors, metadata={"format": "pt"}))


def read_adapter(folder: PathLike, decoder: DecoderConfig) -> Adapter:
    """Reads a PEFT adapter for a decoder of this shape.

    Raises:
        CheckpointError: the folder has no LoRA adapter, or one of an unsupported kind (DoRA, for
            example), or one that does not fit the decoder; lists all problems.
    """
    folder = to_path(expand_home(os.fspath(folder)))
    lora, base = _read_config(folder)
    stored = _read_tensors(folder)
    targets = {path[-1]: path for path in _decoder_paths()}
    present: Any = tuple(name for name in targets if any(key[0] == name for key in stored))
    lora = dataclasses.replace(lora, targets=present)
    tree = abstract_lora(ModelConfig(decoder=decoder), lora)
    _check_tensors(folder, lora, decoder, stored, tree.shapes)
    matrices: dict[ParamPath, NDArray[np.float32]] = {}
    for name in lora.targets:
        shapes = get_at(tree.shapes, targets[name])
        for matrix in _MATRICES.values():
            shape = shapes[matrix].shape
            leaf = np.empty(shape, np.float32)
            for layer in range(decoder.layers):
                leaf[layer] = (
                    stored[name, layer, matrix].read().astype(np.float32).T.reshape(shape[1:])
                )
            matrices[*targets[name], matrix] = leaf
    return Adapter(lora, unflatten(matrices), base)


def adapter_matrices_on_host(lora: Parameters) -> Parameters:
    """Returns an adapter's matrices as fp32 numpy arrays; all processes of a run call it."""
    matrices = multihost_utils.process_allgather(lora, tiled=True)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), matrices)


def merge_lora_block(
    kernel: NDArray[Any],
    pair: Mapping[str, NDArray[np.float32]],
    scale: float,
    index: tuple[slice, ...],
) -> NDArray[np.float32]:
    """Computes a block of kernel + scale * down @ up, in fp32.

    Args:
        kernel: the block of the kernel.
        pair: the whole matrices "down" and "up".
        scale: of the product.
        index: of the block in the stacked kernel: layers, inputs, outputs.
    """
    num_input_dims = pair["down"].ndim - 1  # with the layers'
    down = pair["down"][index[:num_input_dims]]
    up = pair["up"][(index[0], slice(None), *index[num_input_dims:])]
    rank = up.shape[1]
    merged = kernel.astype(np.float32)
    for layer in range(merged.shape[0]):
        product = down[layer].reshape(-1, rank) @ up[layer].reshape(rank, -1)
        merged[layer] += np.float32(scale) * product.reshape(merged.shape[1:])
    return merged


def matrices_by_path(adapter: Adapter) -> dict[ParamPath, Mapping[str, NDArray[np.float32]]]:
    """Returns the pair of every adapted kernel, by the kernel's path in a model's tree."""
    return {
        ("decoder", "layers", *path, "kernel"): get_at(adapter.matrices, path)
        for path in lora_paths(adapter.matrices)
    }


def _read_config(folder: Path) -> tuple[LoRAConfig, str]:
    """Reads rank, alpha and base of an adapter; the targets keep their default."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder} is no PEFT adapter: it has no {ADAPTER_CONFIG}")
    values = read_json(file, CheckpointError)
    if values.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file}: peft_type={values.get('peft_type')!r} is not LORA, the only one that is read"
        )
    problems = [
        f"{key}={values[key]!r} is not supported"
        for key, plain in _PLAIN_SETTINGS.items()
        if key in values and values[key] not in plain
    ]
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_INITS):
        problems.append(
            f"init_lora_weights={start!r} has changed the base's weights: convert it to plain LoRA"
            " with peft"
        )
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)  # PEFT's defaults
    if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
        problems.append(f"r={rank!r} is not a positive whole number")
    elif (
        isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not (math.isfinite(alpha) and alpha > 0)
    ):
        problems.append(f"lora_alpha={alpha!r} is not a positive number")
    if problems:
        raise CheckpointError(
            f"{file}: {'; '.join(problems)}; only plain LoRA (and rsLoRA) is read"
        )
    if values.get("use_rslora"):
        alpha *= math.sqrt(rank)  # Kalajdzievski 2023: the scale is alpha / sqrt(rank)
    base = values.get("base_model_name_or_path")
    return LoRAConfig(rank=rank, alpha=float(alpha)), base if isinstance(base, str) else ""


def _read_tensors(folder: Path) -> dict[tuple[str, int, str], StoredTensor]:
    """Returns the headers of an adapter's tensors, by target, layer and "down" or "up"."""
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = (
            "; adapter_model.bin is a pickle, which is never read: save it as safetensors with peft"
            if pickled
            else ""
        )
        raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS}{why}")
    modules = {_module(path): path[-1] for path in _decoder_paths()}
    tensors: dict[tuple[str, int, str], StoredTensor] = {}
    foreign = []
    for name, tensor in read_header(file).items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["module"] not in modules:
            foreign.append(name)
            continue
        key = modules[match["module"]], int(match["layer"]), _MATRICES[match["matrix"]]
        if key in tensors:
            raise CheckpointError(
                f"{file} holds {match['matrix']} of {match['module']} of layer {key[1]} under two"
                " names"
            )
        tensors[key] = tensor
    if foreign:
        raise CheckpointError(
            f"{file} adapts what no adapter here can: {first_few(sorted(foreign))}; only"
            f" {', '.join(sorted(modules))} of the decoder's layers"
        )
    if not tensors:
        raise CheckpointError(f"{file} holds no tensor")
    return tensors


def _check_tensors(
    folder: Path,
    lora: LoRAConfig,
    decoder: DecoderConfig,
    stored: Mapping[tuple[str, int, str], StoredTensor],
    shapes: Parameters,
) -> None:
    """Checks that all tensors of an adapter exist and fit the decoder; the error lists all."""
    problems = []
    paths = {path[-1]: path for path in _decoder_paths()}
    names = {matrix: name for name, matrix in _MATRICES.items()}
    for target in lora.targets:
        for layer in range(decoder.layers):
            for matrix, name in names.items():
                label = f"{_LAYER.format(i=layer)}{_module(paths[target])}.{name}"
                tensor = stored.get((target, layer, matrix))
                shape = get_at(shapes, paths[target])[matrix].shape[1:]
                down = (lora.rank, math.prod(shape[:-1]))
                expected = down if matrix == "down" else (math.prod(shape[1:]), lora.rank)
                if tensor is None:
                    problems.append(f"missing {label} {list(expected)}")
                elif tensor.shape != expected:
                    problems.append(f"{label} is {list(tensor.shape)}, expected {list(expected)}")
                elif tensor.dtype_code not in SAFETENSORS_DTYPES:
                    known = ", ".join(SAFETENSORS_DTYPES)
                    problems.append(f"{label} is {tensor.dtype_code}, not one of {known}")
    beyond = sorted({layer for _, layer, _ in stored if layer >= decoder.layers})
    if beyond:
        problems.append(f"it adapts layers {', '.join(map(str, beyond))}")
    if problems:
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS} does not fit r={lora.rank} and a decoder of"
            f" {decoder.layers} layers of hidden size {decoder.hidden}: {first_few(problems, '; ')}"
        )


def _decoder_paths() -> list[ParamPath]:
    """Returns the paths of the matrices of a decoder layer that can be adapted."""
    layers = [rule.path for rule in DECODER_RULES if rule.stacked and rule.path[-1] == "kernel"]
    return [path[2:-1] for path in layers]  # without decoder/layers and kernel


def _module(path: ParamPath) -> str:
    """Returns the name of a layer's matrix in a Qwen2 checkpoint, such as self_attn.q_proj."""
    wanted = ("decoder", "layers", *path, "kernel")
    name = next(rule.tensor for rule in DECODER_RULES if rule.path == wanted)
    return name.removeprefix(_LAYER).removesuffix(".weight")


def _peft_tensors(matrices: Parameters) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for path in lora_paths(matrices):
        pair = get_at(matrices, path)
        rank = pair["up"].shape[1]
        for layer in range(pair["up"].shape[0]):
            name = f"base_model.model.{_LAYER.format(i=layer)}{_module(path)}"
            yield f"{name}.lora_A.weight", np.asarray(pair["down"][layer]).reshape(-1, rank).T
            yield f"{name}.lora_B.weight", np.asarray(pair["up"][layer]).reshape(rank, -1).T


def _as_integer(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


def _has(tree: Parameters, path: ParamPath) -> bool:
    return path in lora_paths(tree)
