"""Low-rank adaptation (LoRA: Hu et al. 2022, section 4.1): beside a frozen matrix W a product of two narrow ones learns.

x W becomes x W + scale (x down) up. `up` begins at zero, so that nothing changes before the first
step. The two stay beside W wherever W is in bf16: a product that is small beside W would be rounded
away if it were added (`merge_lora` says in which dtype it adds).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stepaudio_jax.config import LoRAConfig, ModelConfig
from stepaudio_jax.models.layers import LoRAKernel
from stepaudio_jax.models.step_audio import Parameters, abstract_model, parameter_metadata

_KERNEL = "kernel"


@dataclasses.dataclass(frozen=True)
class AbstractLoRA:
    """The narrow matrices of a model: a tree like the decoder's, {"down", "up"} in place of every adapted kernel.

    Attributes:
        shapes: each leaf a `jax.ShapeDtypeStruct` in fp32.
        axes: each leaf the logical names of its dimensions.
        contracting_dims: each leaf the dimensions that a product with it sums over.
    """

    shapes: Parameters
    axes: Parameters
    contracting_dims: Parameters


def abstract_lora(config: ModelConfig, lora: LoRAConfig) -> AbstractLoRA:
    """What `lora` adds to a model of this shape; nothing is allocated."""
    graphdef, state = abstract_model(config)
    model = nnx.merge(graphdef, state)
    kernels = nnx.to_pure_dict(state)["decoder"]["layers"]
    axes, contracting_dims = (
        parameter_metadata(model, name)["decoder"]["layers"]
        for name in ("axes", "contracting_dims")
    )
    tree = AbstractLoRA({}, {}, {})
    for path in _adapted(kernels, lora.targets):
        shape, names, summed = (_at(of, path)[_KERNEL] for of in (kernels, axes, contracting_dims))
        shape = shape.shape
        first_output = summed[-1] + 1  # dimensions: layers, those summed over, outputs
        inputs, outputs = range(first_output), range(first_output, len(shape))
        for name, dimensions, own_names, own_summed in (
            (
                "down",
                (*(shape[i] for i in inputs), lora.rank),
                (*(names[i] for i in inputs), "rank"),
                summed,
            ),
            (
                "up",
                (shape[0], lora.rank, *(shape[i] for i in outputs)),
                (names[0], "rank", *(names[i] for i in outputs)),
                (1,),
            ),
        ):
            _put(tree.shapes, (*path, name), jax.ShapeDtypeStruct(dimensions, jnp.float32))
            _put(tree.axes, (*path, name), own_names)
            _put(tree.contracting_dims, (*path, name), own_summed)
    return tree


def init_lora(tree: AbstractLoRA, key: jax.Array) -> Parameters:
    """`down` normal with variance 1 / inputs, `up` zero."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree.shapes)
    keys = jax.random.split(key, len(leaves))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if path[-1].key == "up":
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype) / math.sqrt(
            math.prod(leaf.shape[1:-1])
        )

    return jax.tree.unflatten(
        structure, [draw(path, leaf, one) for (path, leaf), one in zip(leaves, keys, strict=True)]
    )


def attach_lora(decoder: Parameters, lora_params: Parameters, scale: float) -> Parameters:
    """Returns the decoder's tree, every adapted kernel a `LoRAKernel`.

    Its `up` is multiplied by `scale` here, in fp32: in bf16 the scale itself would be rounded, and
    all of the product with it.
    """
    return _replaced(
        decoder,
        lora_params,
        lambda kernel, down, up: LoRAKernel(kernel, down, scale * jnp.asarray(up)),
    )


def combine_lora(adapters: Sequence[tuple[Parameters, float]]) -> tuple[Parameters, float]:
    """Returns one pair of matrices for each kernel that does what several adapters do together, and its scale.

    A sum of products is one product: the columns of every `down` side by side, the rows of every
    `scale * up` below each other. A single adapter is returned as it is. Ranks of kernels differ
    where adapters have different targets.

    Args:
        adapters: at least one; of each its matrices (as in `AbstractLoRA`) and its scale.
    """
    if len(adapters) == 1:
        return adapters[0]
    pairs: dict[tuple[str, ...], list[tuple[jax.Array, jax.Array]]] = {}
    for tree, scale in adapters:
        for path in _adapted(tree, None):
            pair = _at(tree, path)
            pairs.setdefault(path, []).append(
                (jnp.asarray(pair["down"]), scale * jnp.asarray(pair["up"]))
            )
    combined: Parameters = {}
    for path, parts in pairs.items():
        downs, ups = zip(*parts, strict=True)
        _put(combined, (*path, "down"), jnp.concatenate(downs, axis=-1))
        _put(combined, (*path, "up"), jnp.concatenate(ups, axis=1))
    return combined, 1.0


def replace_lora(layers: Parameters, lora: Parameters) -> Parameters:
    """Returns a layer's tree whose `LoRAKernel`s keep their kernel, and take "down" and "up" from `lora`.

    Args:
        layers: of a decoder with adapters beside it, one layer or a stack of them.
        lora: {"down", "up"} in place of each of its `LoRAKernel`s, of the same shapes.
    """

    def replace(path: tuple[str, ...], leaf: Any) -> Any:
        return dataclasses.replace(leaf, **_at(lora, path[:-1])) if is_lora_kernel(leaf) else leaf

    return _mapped(layers, replace)


def extract_lora(layers: Parameters) -> Parameters:
    """Returns {"down", "up"} of every `LoRAKernel` of a tree of layers: what `replace_lora` takes."""
    matrices: Parameters = {}

    def collect(path: tuple[str, ...], leaf: Any) -> None:
        if is_lora_kernel(leaf):
            _put(matrices, path[:-1], {"down": leaf.down, "up": leaf.up})

    _mapped(layers, collect)
    return matrices


def is_lora_kernel(leaf: Any) -> bool:
    """Returns whether a node of a tree is a kernel with an adapter beside it."""
    return isinstance(leaf, LoRAKernel)


def lora_paths(tree: Parameters) -> list[tuple[str, ...]]:
    """Returns the path of every pair {"down", "up"} of a tree of adapters."""
    return list(_adapted(tree, None))


def merge_lora(
    decoder: Parameters, lora_params: Parameters, scale: float, dtype: Any = jnp.float32
) -> Parameters:
    """Returns the decoder's tree with every product added to its kernel in fp32, one layer's product at a time.

    Args:
        decoder: its tree, the layers stacked.
        lora_params: the matrices beside it.
        scale: of their products.
        dtype: of the sums. In bf16 a weight changes only where the product is at least 1/512 of it.
    """

    def merge(kernel: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
        down, up, rank = jnp.asarray(down), jnp.asarray(up), up.shape[1]
        in_place = kernel.dtype == dtype

        def merge_layer(index: jax.Array, merged: jax.Array) -> jax.Array:
            layer = (merged if in_place else kernel)[index].astype(jnp.float32)
            factors = down[index].reshape(-1, rank), up[index].reshape(rank, -1)
            product = jnp.matmul(
                *factors, precision=jax.lax.Precision.HIGHEST
            )  # in fp32 on every machine
            layer += scale * product.reshape(layer.shape)
            return merged.at[index].set(layer.astype(dtype))

        start = kernel if in_place else jnp.zeros(kernel.shape, dtype)
        return jax.lax.fori_loop(0, kernel.shape[0], merge_layer, start)

    return _replaced(decoder, lora_params, merge)


def _replaced(decoder: Parameters, lora_params: Parameters, make: Callable[..., Any]) -> Parameters:
    layers = _mapped(decoder["layers"], lambda _, leaf: leaf)
    for path in _adapted(lora_params, None):
        pair, module = _at(lora_params, path), _at(layers, path)
        module[_KERNEL] = make(module[_KERNEL], pair["down"], pair["up"])
    return {**decoder, "layers": layers}


def _mapped(tree: Parameters, apply: Callable[..., Any], path: tuple[str, ...] = ()) -> Parameters:
    """Applies a function to path and value of each entry of nested dicts; what is no dict (a matrix in int8) is a value."""
    return {
        name: _mapped(branch, apply, (*path, name))
        if isinstance(branch, dict)
        else apply((*path, name), branch)
        for name, branch in tree.items()
    }


def _adapted(
    tree: Parameters, targets: Sequence[str] | None, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
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
