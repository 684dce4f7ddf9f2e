"""Low-rank adaptation (LoRA: Hu et al. 2022, section 4.1).

Beside a frozen matrix W, a product of two narrow matrices is trained: x W becomes
x W + scale (x down) up. `up` begins at zero, so that nothing changes before the first step. The two
stay beside W wherever W is in bf16: a product that is small beside W would be rounded away if it
were added (see `merge_lora`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from stepaudio_jax.config import LoRAConfig, ModelConfig
from stepaudio_jax.models.layers import LoRAKernel
from stepaudio_jax.models.step_audio import Parameters, abstract_model, parameter_metadata
from stepaudio_jax.models.trees import get_at, put_at

Path = tuple[str, ...]

_KERNEL = "kernel"


@dataclasses.dataclass(frozen=True)
class AbstractLoRA:
    """The adapters of a model: trees like the decoder's, with {"down", "up"} for each kernel.

    Attributes:
        shapes: each leaf a `jax.ShapeDtypeStruct` in fp32.
        axes: each leaf the logical names of its dimensions.
        contracting_dims: each leaf the dimensions that a product with it sums over.
    """

    shapes: Parameters
    axes: Parameters
    contracting_dims: Parameters


def abstract_lora(config: ModelConfig, lora: LoRAConfig) -> AbstractLoRA:
    """Returns what `lora` adds to a model of this shape; nothing is allocated."""
    graphdef, state = abstract_model(config)
    model = nnx.merge(graphdef, state)
    kernels = nnx.to_pure_dict(state)["decoder"]["layers"]
    axes, contracting_dims = (
        parameter_metadata(model, name)["decoder"]["layers"]
        for name in ("axes", "contracting_dims")
    )
    adapters = AbstractLoRA({}, {}, {})

    def add(path: Path, shape: Sequence[int], names: Sequence[str], summed: Sequence[int]) -> None:
        put_at(adapters.shapes, path, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
        put_at(adapters.axes, path, tuple(names))
        put_at(adapters.contracting_dims, path, tuple(summed))

    for path in _find_modules(kernels, lora.targets):
        shape = get_at(kernels, path)[_KERNEL].shape
        names, summed = (get_at(tree, path)[_KERNEL] for tree in (axes, contracting_dims))
        # A stacked kernel's dimensions are the layers, those summed over, and the outputs.
        first_output = summed[-1] + 1
        add(
            (*path, "down"),
            (*shape[:first_output], lora.rank),
            (*names[:first_output], "rank"),
            summed,
        )
        add(
            (*path, "up"),
            (shape[0], lora.rank, *shape[first_output:]),
            (names[0], "rank", *names[first_output:]),
            (1,),
        )
    return adapters


def init_lora(adapters: AbstractLoRA, key: Key[Array, ""]) -> Parameters:
    """Draws initial adapters: `down` normal with variance 1 / inputs, `up` zero."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(adapters.shapes)
    keys = jax.random.split(key, len(leaves))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if path[-1].key == "up":
            return jnp.zeros(leaf.shape, leaf.dtype)
        num_inputs = math.prod(leaf.shape[1:-1])
        return jax.random.normal(key, leaf.shape, leaf.dtype) / math.sqrt(num_inputs)

    values = [draw(path, leaf, key) for (path, leaf), key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, values)


def attach_lora(decoder: Parameters, lora_params: Parameters, scale: float) -> Parameters:
    """Returns the decoder's tree with every adapted kernel as a `LoRAKernel`.

    Its `up` is multiplied by `scale` here, in fp32: in bf16 the scale itself would be rounded, and
    all of the product with it.
    """
    return _replace_kernels(
        decoder,
        lora_params,
        lambda kernel, down, up: LoRAKernel(kernel, down, scale * jnp.asarray(up)),
    )


def combine_lora(adapters: Sequence[tuple[Parameters, float]]) -> tuple[Parameters, float]:
    """Returns one adapter, and its scale, that does what several adapters do together.

    A sum of products is one product: the columns of every `down` side by side, the rows of every
    `scale * up` below each other. A single adapter is returned as it is. Ranks of kernels differ
    where adapters have different targets.

    Args:
        adapters: at least one; of each its matrices (as in `AbstractLoRA`) and its scale.
    """
    if len(adapters) == 1:
        return adapters[0]
    pairs: dict[Path, list[tuple[jax.Array, jax.Array]]] = {}
    for tree, scale in adapters:
        for path in lora_paths(tree):
            pair = get_at(tree, path)
            down, up = jnp.asarray(pair["down"]), scale * jnp.asarray(pair["up"])
            pairs.setdefault(path, []).append((down, up))
    combined: Parameters = {}
    for path, parts in pairs.items():
        downs, ups = zip(*parts, strict=True)
        put_at(combined, (*path, "down"), jnp.concatenate(downs, axis=-1))
        put_at(combined, (*path, "up"), jnp.concatenate(ups, axis=1))
    return combined, 1.0


def merge_lora(
    decoder: Parameters, lora_params: Parameters, scale: float, dtype: Any = jnp.float32
) -> Parameters:
    """Returns the decoder's tree with every product added to its kernel.

    Products and sums are computed in fp32, one layer at a time.

    Args:
        decoder: its tree, the layers stacked.
        lora_params: the adapter's matrices.
        scale: of their products.
        dtype: of the sums. In bf16 a weight changes only where the product is at least 1/512 of it.
    """

    def merge(kernel: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
        down, up, rank = jnp.asarray(down), jnp.asarray(up), up.shape[1]
        in_place = kernel.dtype == dtype

        def merge_layer(index: jax.Array, merged: jax.Array) -> jax.Array:
            layer = (merged if in_place else kernel)[index].astype(jnp.float32)
            factors = down[index].reshape(-1, rank), up[index].reshape(rank, -1)
            # "HIGHEST" is fp32 on every platform.
            product = jnp.matmul(*factors, precision=jax.lax.Precision.HIGHEST)
            layer += scale * product.reshape(layer.shape)
            return merged.at[index].set(layer.astype(dtype))

        start = kernel if in_place else jnp.zeros(kernel.shape, dtype)
        return jax.lax.fori_loop(0, kernel.shape[0], merge_layer, start)

    return _replace_kernels(decoder, lora_params, merge)


def replace_lora(layers: Parameters, lora: Parameters) -> Parameters:
    """Returns a tree of layers whose `LoRAKernel`s take "down" and "up" from `lora`.

    Args:
        layers: of a decoder with adapters attached, one layer or a stack of them.
        lora: {"down", "up"} in place of each of its `LoRAKernel`s, of the same shapes.
    """

    def replace(path: Path, leaf: Any) -> Any:
        if not is_lora_kernel(leaf):
            return leaf
        return dataclasses.replace(leaf, **get_at(lora, path[:-1]))

    return _map_with_path(layers, replace)


def extract_lora(layers: Parameters) -> Parameters:
    """Returns {"down", "up"} of every `LoRAKernel` of a tree of layers, for `replace_lora`."""
    matrices: Parameters = {}

    def collect(path: Path, leaf: Any) -> None:
        if is_lora_kernel(leaf):
            put_at(matrices, path[:-1], {"down": leaf.down, "up": leaf.up})

    _map_with_path(layers, collect)
    return matrices


def is_lora_kernel(leaf: Any) -> bool:
    """Returns whether a node of a tree is a kernel with an adapter beside it."""
    return isinstance(leaf, LoRAKernel)


def lora_paths(tree: Parameters) -> list[Path]:
    """Returns the path of every pair {"down", "up"} of a tree of adapters."""
    return list(_find_pairs(tree))


def _replace_kernels(
    decoder: Parameters, lora_params: Parameters, make: Callable[..., Any]
) -> Parameters:
    """Returns the tree with make(kernel, down, up) in place of every adapted kernel."""
    layers = _map_with_path(decoder["layers"], lambda _, leaf: leaf)
    for path in lora_paths(lora_params):
        pair, module = get_at(lora_params, path), get_at(layers, path)
        module[_KERNEL] = make(module[_KERNEL], pair["down"], pair["up"])
    return {**decoder, "layers": layers}


def _map_with_path(tree: Parameters, apply: Callable[..., Any], path: Path = ()) -> Parameters:
    """Applies a function to path and value of each entry of nested dicts.

    Whatever is no dict is a value, also where it is a tree to JAX (a quantized matrix).
    """
    return {
        name: _map_with_path(branch, apply, (*path, name))
        if isinstance(branch, dict)
        else apply((*path, name), branch)
        for name, branch in tree.items()
    }


def _find_modules(tree: Parameters, names: Sequence[str], path: Path = ()) -> Iterator[Path]:
    """Yields the paths of the modules with these names that have a kernel."""
    for name, branch in tree.items():
        if not isinstance(branch, dict):
            continue
        if _KERNEL not in branch:
            yield from _find_modules(branch, names, (*path, name))
        elif name in names:
            yield (*path, name)


def _find_pairs(tree: Parameters, path: Path = ()) -> Iterator[Path]:
    """Yields the paths of the dicts {"down", "up"}."""
    if tree.keys() == {"down", "up"} and not isinstance(tree["up"], dict):
        yield path
        return
    for name, branch in tree.items():
        if isinstance(branch, dict):
            yield from _find_pairs(branch, (*path, name))
