"""Maps the tensors of Hugging Face checkpoints to the parameter tree, and back.

There is one rule for each kind of tensor. `Rule("adapter.linear1.weight", "adaptor/up/kernel",
"F H -> H F")` says which parameter the tensor is, and how its axes are ordered on each side. With
`{i}` in the tensor's name the parameter is stacked, and the tensor is one of its layers. A letter
names a size, as in the models. Several letters together are one axis of the tensor that the
parameter has split: "ND H -> H ND" is a matrix [N*D, H] there and [H, N, D] here. Import and export
read the same rule in opposite directions, so they cannot disagree.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import ModelConfig, Part
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.models.trees import put_at

PARTS: tuple[Part, ...] = ("encoder", "adaptor", "decoder")

ParamPath = tuple[str, ...]
BlockIndex = tuple[slice, ...]

# Elements of a block that is converted at a time, and of a chunk of a checkpoint: 8 MiB of
# bfloat16. Larger blocks are slower, since the allocator returns their memory to the system.
BLOCK_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True)
class Rule:
    """A checkpoint tensor, its parameter, and the order of the axes on each side."""

    tensor: str
    parameter: str
    axes: str

    @property
    def path(self) -> ParamPath:
        return tuple(self.parameter.split("/"))

    @property
    def stacked(self) -> bool:
        return "{i}" in self.tensor


def _norm(tensor: str, parameter: str, *, bias: bool) -> tuple[Rule, ...]:
    scale = Rule(f"{tensor}.weight", f"{parameter}/scale", "H -> H")
    return (scale, Rule(f"{tensor}.bias", f"{parameter}/bias", "H -> H")) if bias else (scale,)


def _linear(tensor: str, parameter: str, kernel: str, *, bias: str = "") -> tuple[Rule, ...]:
    weight = Rule(f"{tensor}.weight", f"{parameter}/kernel", kernel)
    return (
        (weight, Rule(f"{tensor}.bias", f"{parameter}/bias", f"{bias} -> {bias}"))
        if bias
        else (weight,)
    )


_DECODER_LAYER = "model.layers.{i}"
DECODER_RULES: tuple[Rule, ...] = (
    Rule("model.embed_tokens.weight", "decoder/embedding", "V H -> V H"),
    *_norm(f"{_DECODER_LAYER}.input_layernorm", "decoder/layers/attention_norm", bias=False),
    *_linear(
        f"{_DECODER_LAYER}.self_attn.q_proj",
        "decoder/layers/attention/query",
        "ND H -> H ND",
        bias="ND",
    ),
    *_linear(
        f"{_DECODER_LAYER}.self_attn.k_proj",
        "decoder/layers/attention/key",
        "KD H -> H KD",
        bias="KD",
    ),
    *_linear(
        f"{_DECODER_LAYER}.self_attn.v_proj",
        "decoder/layers/attention/value",
        "KD H -> H KD",
        bias="KD",
    ),
    *_linear(
        f"{_DECODER_LAYER}.self_attn.o_proj", "decoder/layers/attention/output", "H ND -> ND H"
    ),
    *_norm(f"{_DECODER_LAYER}.post_attention_layernorm", "decoder/layers/mlp_norm", bias=False),
    *_linear(f"{_DECODER_LAYER}.mlp.gate_proj", "decoder/layers/mlp/gate", "F H -> H F"),
    *_linear(f"{_DECODER_LAYER}.mlp.up_proj", "decoder/layers/mlp/up", "F H -> H F"),
    *_linear(f"{_DECODER_LAYER}.mlp.down_proj", "decoder/layers/mlp/down", "H F -> F H"),
    *_norm("model.norm", "decoder/norm", bias=False),
    Rule(
        "lm_head.weight", "decoder/lm_head/kernel", "V H -> H V"
    ),  # absent where the embeddings are tied
)

ADAPTOR_RULES: tuple[Rule, ...] = (
    *_linear("adapter.conv", "adaptor/conv", "O I W -> W I O", bias="O"),
    *_linear("adapter.linear1", "adaptor/up", "F H -> H F", bias="F"),
    *_linear("adapter.linear2", "adaptor/down", "H F -> F H", bias="H"),
)


def _encoder_rules(
    prefix: str,
    layer: str,
    *,
    positions: str,
    norm: str,
    attention: Mapping[str, str],
    block: Mapping[str, str],
) -> tuple[Rule, ...]:
    """Returns the encoder's rules; Step-Audio and Qwen2-Audio name the same tensors differently."""
    layer = f"{prefix}.{layer}"
    heads = "encoder/layers/attention"
    return (
        *_linear(f"{prefix}.conv1", "encoder/conv1", "H M W -> W M H", bias="H"),
        *_linear(f"{prefix}.conv2", "encoder/conv2", "O I W -> W I O", bias="O"),
        Rule(f"{prefix}.{positions}.weight", "encoder/positions", "P H -> P H"),
        *_norm(f"{layer}.{block['attention_norm']}", "encoder/layers/attention_norm", bias=True),
        *_linear(f"{layer}.{attention['query']}", f"{heads}/query", "ND H -> H ND", bias="ND"),
        *_linear(f"{layer}.{attention['key']}", f"{heads}/key", "ND H -> H ND"),
        *_linear(f"{layer}.{attention['value']}", f"{heads}/value", "ND H -> H ND", bias="ND"),
        *_linear(f"{layer}.{attention['output']}", f"{heads}/output", "H ND -> ND H", bias="H"),
        *_norm(f"{layer}.{block['mlp_norm']}", "encoder/layers/mlp_norm", bias=True),
        *_linear(f"{layer}.{block['up']}", "encoder/layers/mlp/up", "F H -> H F", bias="F"),
        *_linear(f"{layer}.{block['down']}", "encoder/layers/mlp/down", "H F -> F H", bias="H"),
        *_norm(f"{prefix}.{norm}", "encoder/norm", bias=True),
    )


STEP_AUDIO_ENCODER_RULES = _encoder_rules(
    "encoder",
    "blocks.{i}",
    positions="positional_embedding",
    norm="after_norm",
    attention={
        "query": "attn.query",
        "key": "attn.key",
        "value": "attn.value",
        "output": "attn.out",
    },
    block={"attention_norm": "attn_ln", "mlp_norm": "mlp_ln", "up": "mlp.0", "down": "mlp.2"},
)
QWEN2_AUDIO_ENCODER_RULES = _encoder_rules(
    "audio_tower",
    "layers.{i}",
    positions="embed_positions",
    norm="layer_norm",
    attention={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.out_proj",
    },
    block={
        "attention_norm": "self_attn_layer_norm",
        "mlp_norm": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    },
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names that one family of checkpoints gives its tensors.

    Attributes:
        family: its name, for messages.
        rules: of each part that such a checkpoint has.
        prefixes: the part to which a name belongs, so that unexpected tensors are reported.
        foreign: prefixes of tensors that are not read (Qwen2-Audio's own language model).
    """

    family: str
    rules: Mapping[Part, tuple[Rule, ...]]
    prefixes: Mapping[str, Part]
    foreign: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if part in self.rules)

    def part_of(self, tensor: str) -> Part | None:
        """Returns the part to which a tensor belongs by its name, or None."""
        return next(
            (part for prefix, part in self.prefixes.items() if tensor.startswith(prefix)), None
        )


_DECODER_PREFIXES: Mapping[str, Part] = {"model.": "decoder", "lm_head.": "decoder"}
STEP_AUDIO = Naming(
    "Step-Audio",
    rules={"decoder": DECODER_RULES, "encoder": STEP_AUDIO_ENCODER_RULES, "adaptor": ADAPTOR_RULES},
    prefixes={**_DECODER_PREFIXES, "encoder.": "encoder", "adapter.": "adaptor"},
)
QWEN2 = Naming("Qwen2", rules={"decoder": DECODER_RULES}, prefixes=_DECODER_PREFIXES)
QWEN2_AUDIO = Naming(
    "Qwen2-Audio",
    rules={"encoder": QWEN2_AUDIO_ENCODER_RULES},
    prefixes={"audio_tower.": "encoder"},
    foreign=("language_model.", "multi_modal_projector."),
)

# Buffers that follow from the configuration, and that some programs save with the weights: the
# frequencies and tables of rotary positions, causal masks, the positions 0, 1, 2...
_ROTARY = re.compile(
    r"(.*\.)?(rotary_emb|rotary_pos_emb|rotary)"
    r"\.(inv_freq|original_inv_freq|(cos|sin)_cached|cos_sin_cache)|(.*\.)?rope\.freqs"
)
_MASK = re.compile(r"(.*\.)?((self_)?attn\.bias|causal_mask)")
_MASKED_VALUE = re.compile(r"(.*\.)?(self_)?attn\.masked_bias")
_POSITION_IDS = re.compile(r"(.*\.)?position_ids")


def is_derived_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a tensor is a buffer that follows from the configuration.

    A vector `attn.bias` is a weight; a square one is GPT-2's causal mask.
    """
    if _ROTARY.fullmatch(name):
        return True
    if _MASK.fullmatch(name):
        return len(shape) >= 2 and shape[-1] == shape[-2] and math.prod(shape[:-2]) == 1
    if _MASKED_VALUE.fullmatch(name):
        return math.prod(shape) == 1
    return _POSITION_IDS.fullmatch(name) is not None and math.prod(shape[:-1]) == 1


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive rows of a checkpoint tensor, and the part of the parameter that they fill."""

    rows: slice
    index: BlockIndex

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of that part of the parameter."""
        return tuple(part.stop - part.start for part in self.index)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, and how it becomes a parameter or one layer of one.

    Attributes:
        name: the tensor's name in the checkpoint.
        shape: the tensor's shape in the checkpoint.
        path: the parameter's path.
        layer: its index on the parameter's L axis; None if the parameter is not stacked.
        parameter_shape: the parameter's shape, without the L axis.
        order: the checkpoint's axes in the parameter's order.
        row_axis: the parameter's axis that the checkpoint's first axis became (the first of them
            if it was split).
        rows_per_index: the number of checkpoint rows in one index of `row_axis`.
    """

    name: str
    shape: tuple[int, ...]
    path: ParamPath
    layer: int | None
    parameter_shape: tuple[int, ...]
    order: tuple[int, ...]
    row_axis: int
    rows_per_index: int

    @property
    def part(self) -> str:
        return self.path[0]

    def blocks(self, elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
        """Yields the tensor in blocks of at most `elements` elements, in the order of its rows.

        A block has at least one index of the parameter's row axis.
        """
        stacked = () if self.layer is None else (slice(self.layer, self.layer + 1),)
        step = self.chunk_shape(elements)[len(stacked) + self.row_axis]
        count = self.parameter_shape[self.row_axis]
        for start in range(0, count, step):
            stop = min(start + step, count)
            index = [slice(0, size) for size in self.parameter_shape]
            index[self.row_axis] = slice(start, stop)
            yield Block(
                slice(start * self.rows_per_index, stop * self.rows_per_index),
                stacked + tuple(index),
            )

    def chunk_shape(self, elements: int = BLOCK_ELEMENTS) -> tuple[int, ...]:
        """Returns the largest shape of a block of the parameter, also that of its chunks on disk.

        A chunk has at most one layer.
        """
        count = self.parameter_shape[self.row_axis]
        per_index = math.prod(self.parameter_shape) // count
        chunks = -(-count // max(1, elements // per_index))
        shape = list(self.parameter_shape)
        shape[self.row_axis] = -(-count // chunks)
        return tuple(shape) if self.layer is None else (1, *shape)

    def to_parameter(self, rows: NDArray[Any], block: Block) -> NDArray[Any]:
        """Converts rows of the checkpoint tensor to the block of the parameter."""
        return transpose_contiguous(rows, self.order).reshape(block.shape)

    def from_parameter(self, values: NDArray[Any], block: Block) -> NDArray[Any]:
        """Converts a block of the parameter to rows of the tensor: inverts `to_parameter`."""
        stored = (block.rows.stop - block.rows.start, *self.shape[1:])
        inverse = tuple(int(axis) for axis in np.argsort(self.order))
        return transpose_contiguous(values.reshape([stored[axis] for axis in self.order]), inverse)


def tensors(config: ModelConfig, naming: Naming, parts: Sequence[Part] = PARTS) -> list[Tensor]:
    """Returns the tensors of a checkpoint of this shape, part by part and layer by layer.

    Args:
        config: the model's shape.
        naming: the family of the checkpoint.
        parts: parts of the model that are wanted.

    Raises:
        KeyError: the naming lacks one of the parts.
    """
    shapes = parameter_shapes(config)
    ordered = []
    for part in ("decoder", "encoder", "adaptor"):  # the order of the released files
        if part not in parts:
            continue
        rules = [rule for rule in naming.rules[part] if rule.path in shapes]
        stacked = [rule for rule in rules if rule.stacked]
        layers = shapes[stacked[0].path][0] if stacked else 0
        before = rules.index(stacked[0]) if stacked else len(rules)
        single = [rule for rule in rules if not rule.stacked]
        ordered += [_tensor(rule, shapes[rule.path], None) for rule in single[:before]]
        ordered += [
            _tensor(rule, shapes[rule.path], layer) for layer in range(layers) for rule in stacked
        ]
        ordered += [_tensor(rule, shapes[rule.path], None) for rule in single[before:]]
    return ordered


@functools.lru_cache
def parameter_shapes(config: ModelConfig) -> Mapping[ParamPath, tuple[int, ...]]:
    """Returns the shape of every parameter by path."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(abstract_parameters(config)).items()}


def flatten(tree: Mapping[str, Any]) -> dict[ParamPath, Any]:
    """Returns the leaves of nested dicts by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[ParamPath, Any]) -> dict[str, Any]:
    """Returns nested dicts with these leaves: inverts `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        put_at(tree, path, leaf)
    return tree


def _tensor(rule: Rule, shape: tuple[int, ...], layer: int | None) -> Tensor:
    shape = shape[1:] if rule.stacked else shape
    stored, ours = (side.split() for side in rule.axes.split("->"))
    sizes = dict(zip("".join(ours), shape, strict=True))
    first = stored[0]
    return Tensor(
        name=rule.tensor.format(i=layer),
        shape=tuple(math.prod(sizes[letter] for letter in axis) for axis in stored),
        path=rule.path,
        layer=layer,
        parameter_shape=shape,
        order=tuple(stored.index(axis) for axis in ours),
        row_axis="".join(ours).index(first[0]),
        rows_per_index=math.prod(sizes[letter] for letter in first[1:]),
    )


def transpose_contiguous(array: NDArray[Any], order: Sequence[int]) -> NDArray[Any]:
    """Returns `array.transpose(order)` as a contiguous array.

    It copies bands of rows that fit the cache, which is several times as fast as numpy's order of
    traversal, and copies integers, since numpy copies bfloat16 one element at a time.
    """
    if tuple(order) == tuple(range(array.ndim)):
        return np.ascontiguousarray(array)
    bits = array.view(np.dtype(f"u{array.dtype.itemsize}"))
    source = bits.transpose(order)
    result = np.empty(source.shape, bits.dtype)
    rows = order.index(0)
    for start in range(0, array.shape[0], 32):
        band = (slice(None),) * rows + (slice(start, start + 32),)
        result[band] = source[band]
    return result.view(array.dtype)
