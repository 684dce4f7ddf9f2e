"""Low-rank adaptation (LoRA: Hu et al. 2022, section 4.1): beside a frozen matrix W a product of two narrow ones learns.

x W becomes x W + scale (x down) up. `up` begins at zero, so that nothing changes before the first step; in the end the product
is added to W, and nothing of it remains.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.config import LoRAConfig, ModelConfig
from stepaudio_jax.models.layers import LowRankKernel
from stepaudio_jax.models.step_audio import Parameters, abstract_model, parameter_metadata

_KERNEL = "kernel"


@dataclasses.dataclass(frozen=True)
class LowRankTree:
    """The narrow matrices of a model: a tree like the decoder's, {"down", "up"} in place of every adapted kernel.

    Attributes:
        shapes: each leaf a `jax.ShapeDtypeStruct` in fp32.
        axes: each leaf the logical names of its dimensions.
        contracted: each leaf the dimensions that a product with it sums over.
    """

    shapes: Parameters
    axes: Parameters
    contracted: Parameters


def low_rank_tree(config: ModelConfig, lora: LoRAConfig) -> LowRankTree:
    """What `lora` adds to a model of this shape; nothing is allocated."""
    graphdef, state = abstract_model(config)
    model = nnx.merge(graphdef, state)
    kernels = nnx.to_pure_dict(state)["decoder"]["layers"]
    axes, contracted = (parameter_metadata(model, name)["decoder"]["layers"] for name in ("axes", "contracted"))
    tree = LowRankTree({}, {}, {})
    for path in _adapted(kernels, lora.targets):
        shape, names, summed = (_at(of, path)[_KERNEL] for of in (kernels, axes, contracted))
        shape = shape.shape
        first_output = summed[-1] + 1  # dimensions: layers, those summed over, outputs
        inputs, outputs = range(first_output), range(first_output, len(shape))
        for name, dimensions, own_names, own_summed in (
            ("down", (*(shape[i] for i in inputs), lora.rank), (*(names[i] for i in inputs), "rank"), summed),
            ("up", (shape[0], lora.rank, *(shape[i] for i in outputs)), (names[0], "rank", *(names[i] for i in outputs)), (1,)),
        ):
            _put(tree.shapes, (*path, name), jax.ShapeDtypeStruct(dimensions, jnp.float32))
            _put(tree.axes, (*path, name), own_names)
            _put(tree.contracted, (*path, name), own_summed)
    return tree


def initial_low_rank(tree: LowRankTree, key: jax.Array) -> Parameters:
    """`down` normal with variance 1 / inputs, `up` zero."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree.shapes)
    keys = jax.random.split(key, len(leaves))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if path[-1].key == "up":
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype) / math.sqrt(math.prod(leaf.shape[1:-1]))

    return jax.tree.unflatten(structure, [draw(path, leaf, one) for (path, leaf), one in zip(leaves, keys, strict=True)])


def with_low_rank(decoder: Parameters, low_rank: Parameters, scale: float) -> Parameters:
    """The decoder's tree, every adapted kernel a `LowRankKernel`."""
    return _replaced(decoder, low_rank, lambda kernel, down, up: LowRankKernel(kernel, down, up, scale))


def fold_low_rank(decoder: Parameters, low_rank: Parameters, scale: float) -> Parameters:
    """The decoder's tree with every product added to its kernel, in the kernel's dtype; one layer's product at a time."""

    def fold(kernel: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
        down, up, rank = jnp.asarray(down), jnp.asarray(up), up.shape[1]

        def fold_layer(index: jax.Array, kernel: jax.Array) -> jax.Array:
            product = down[index].reshape(-1, rank) @ up[index].reshape(rank, -1)
            layer = kernel[index].astype(jnp.float32) + scale * product.reshape(kernel.shape[1:])
            return kernel.at[index].set(layer.astype(kernel.dtype))

        return jax.lax.fori_loop(0, kernel.shape[0], fold_layer, kernel)

    return _replaced(decoder, low_rank, fold)


def _replaced(decoder: Parameters, low_rank: Parameters, make: Callable[..., Any]) -> Parameters:
    layers: Parameters = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(decoder["layers"]):
        _put(layers, tuple(str(key.key) for key in path), leaf)
    for path in _adapted(low_rank, None):
        pair, module = _at(low_rank, path), _at(layers, path)
        module[_KERNEL] = make(module[_KERNEL], pair["down"], pair["up"])
    return {**decoder, "layers": layers}


def _adapted(tree: Parameters, targets: Sequence[str] | None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the modules that have a kernel and are named by `targets`; with None, of those that hold {"down", "up"}."""
    if targets is None and tree.keys() == {"down", "up"} and not isinstance(tree["up"], dict):
        yield path
        return
    for name, branch in tree.items():
        if not isinstance(branch, dict):
            continue
        if targets is not None and _KERNEL in branch:
            if name in targets:
                yield (*path, name)
        else:
            yield from _adapted(branch, targets, (*path, name))


def _at(tree: Parameters, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Parameters, path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
