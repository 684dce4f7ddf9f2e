"""Loads weights into memory, from checkpoints of this project and from Hugging Face folders."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Sharding, SingleDeviceSharding
from numpy.typing import DTypeLike, NDArray

from stepaudio_jax.config import AdaptorConfig, LoRAConfig, ModelConfig, Part
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.checkpoint import (
    PARAMETERS,
    checkpoint_lora_config,
    is_checkpoint,
    parameters_directory,
    read_checkpoint_config,
)
from stepaudio_jax.hub.hf_config import read_hf_config
from stepaudio_jax.hub.hf_folder import HFFolder, raise_if_problems
from stepaudio_jax.hub.io import ShardBuffers, ordered_parallel_map, read_ahead
from stepaudio_jax.hub.orbax_io import OrbaxReader, is_s3
from stepaudio_jax.hub.peft_adapter import ADAPTER, Adapter, read_adapter
from stepaudio_jax.hub.tensor_map import (
    PARTS,
    Block,
    ParamPath,
    Tensor,
    flatten,
    parameter_shapes,
    unflatten,
)
from stepaudio_jax.models import merge_lora
from stepaudio_jax.models.trees import get_at
from stepaudio_jax.storage import Path, PathLike, to_path

WeightSources = Mapping[Part, PathLike]


def weight_sources(
    model: PathLike | None = None,
    *,
    encoder: PathLike | None = None,
    decoder: PathLike | None = None,
) -> dict[Part, Path]:
    """Returns the folder from which the weights of each part come.

    Parts that no folder has are absent.

    Args:
        model: a checkpoint or a Hugging Face folder, for every part that it has; None for none.
        encoder, decoder: folders that override their part.

    Raises:
        CheckpointError: a folder cannot be read, or lacks the part for which it is named.
    """
    sources: dict[Part, Path] = {}
    if model:
        sources = dict.fromkeys(_parts(to_path(model)), to_path(model))
    overrides: dict[Part, PathLike | None] = {"encoder": encoder, "decoder": decoder}
    for part, folder in overrides.items():
        if folder:
            sources[part] = to_path(folder)
            _check_part(part, sources[part])
    return sources


def read_model_config(source: PathLike | WeightSources) -> ModelConfig:
    """Returns the shape of a model whose parts are in one folder or in several.

    The adaptor has its default shape if no folder has one.

    Args:
        source: a folder, or the folder of each part (see `weight_sources`).

    Raises:
        CheckpointError: a folder cannot be read, or gives no encoder or no decoder.
    """
    sources = _as_sources(source)
    for part in ("encoder", "decoder"):
        if part not in sources:
            raise CheckpointError(
                f"no {part} in {', '.join(sorted({str(folder) for folder in sources.values()}))}"
            )
    configs = {part: _config(to_path(folder)) for part, folder in sources.items()}
    return ModelConfig(
        encoder=configs["encoder"].encoder,
        adaptor=configs["adaptor"].adaptor if "adaptor" in configs else AdaptorConfig(),
        decoder=configs["decoder"].decoder,
        length_convention=configs["encoder"].length_convention,
    )


def read_parameters(
    source: PathLike | WeightSources,
    *,
    parts: Sequence[Part] | None = None,
    config: ModelConfig | None = None,
    dtype: DTypeLike | Mapping[Part, DTypeLike] | None = None,
    shardings: Mapping[str, Any] | None = None,
    merge_adapter: bool = True,
) -> dict[str, Any]:
    """Reads parameters, a block at a time, into arrays with the given shardings.

    Args:
        source: a folder (a checkpoint, or a Hugging Face folder), or the folder of each part (see
            `weight_sources`).
        parts: parts of the model that are read; all that the source has if None.
        config: the shape that the parameters must have; not checked if None.
        dtype: dtype to which they are cast, for all or by part; None keeps their dtypes.
        shardings: a tree of `jax.sharding.Sharding` with a leaf for every parameter read; None
            places them on the first device.
        merge_adapter: whether to add a checkpoint's adapter to the decoder's matrices. The sum is
            computed in fp32 and then cast to `dtype`; it stays fp32 if that is None. Without it
            `read_source_adapter` gives the adapter.

    Returns:
        The tree of the parts read, nested dicts of `jax.Array`.

    Raises:
        CheckpointError: a folder is incomplete, or its shapes are not those of `config`.
    """
    sources = _as_sources(source)
    wanted = tuple(sources) if parts is None else tuple(parts)
    for part in wanted:
        if part not in sources:
            raise CheckpointError(
                f"no {part} in {', '.join(sorted({str(folder) for folder in sources.values()}))}"
            )
    placed = None if shardings is None else flatten(shardings)
    leaves: dict[ParamPath, jax.Array] = {}
    for folder in dict.fromkeys(to_path(sources[part]) for part in wanted):
        of_folder = [part for part in wanted if to_path(sources[part]) == folder]
        shapes = {
            path: shape
            for path, shape in parameter_shapes(_config(folder)).items()
            if path[0] in of_folder
        }
        if config is not None:
            _check_shapes(folder, shapes, config)
        targets = {
            path: _Target(shape, _dtype_of(dtype, path), _sharding_of(placed, path))
            for path, shape in shapes.items()
        }
        adapter = read_source_adapter(sources) if merge_adapter and "decoder" in of_folder else None
        if adapter is not None:
            leaves |= _read_and_merge_lora(folder, targets, adapter)
        elif is_checkpoint(folder):
            leaves |= _read_checkpoint(folder, targets)
        else:
            leaves |= _read_hugging_face(folder, of_folder, targets)
    return unflatten(leaves)


def source_lora_config(source: PathLike | WeightSources) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter of a source's decoder; None without one."""
    folder = _as_sources(source).get("decoder")
    if folder is None or not is_checkpoint(to_path(folder)):
        return None
    return checkpoint_lora_config(to_path(folder))


def read_source_adapter(source: PathLike | WeightSources) -> Adapter | None:
    """Reads the adapter of a source's decoder; returns None if it has none.

    Raises:
        CheckpointError: it cannot be read, or does not fit the decoder.
    """
    sources = _as_sources(source)
    lora = source_lora_config(sources)
    if lora is None:
        return None
    folder = to_path(sources["decoder"])
    adapter = read_adapter(folder / ADAPTER, read_checkpoint_config(folder).decoder)
    stored = adapter.lora
    if (stored.rank, stored.alpha, set(stored.targets)) != (
        lora.rank,
        lora.alpha,
        set(lora.targets),
    ):
        raise CheckpointError(
            f"{folder / ADAPTER} is not the adapter that {folder / 'config.json'} describes; copy"
            " the folder again"
        )
    return adapter


@dataclasses.dataclass(frozen=True)
class _Target:
    """The array into which a parameter is read; dtype None keeps the stored one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    sharding: Sharding


def _read_checkpoint(
    folder: Path, targets: Mapping[ParamPath, _Target]
) -> dict[ParamPath, jax.Array]:
    stored = OrbaxReader(parameters_directory(folder))
    abstract = {
        path: jax.ShapeDtypeStruct(
            target.shape, target.dtype or stored.dtype(path), sharding=target.sharding
        )
        for path, target in targets.items()
    }
    raise_if_problems(
        folder, [f"missing {file}" for path in targets for file in stored.missing_chunks(path)]
    )
    if is_s3(folder):
        return {path: _read_stored(stored, path, leaf) for path, leaf in abstract.items()}
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    with context:
        return flatten(ocp.load((folder / PARAMETERS).absolute(), unflatten(abstract)))


def _read_stored(stored: OrbaxReader, path: ParamPath, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads a parameter without Orbax, each device's shard by itself."""
    return jax.make_array_from_callback(
        leaf.shape,
        leaf.sharding,
        lambda index: stored.read(path, index or ()).astype(leaf.dtype, copy=False),
    )


def _read_and_merge_lora(
    folder: Path, targets: Mapping[ParamPath, _Target], adapter: Adapter
) -> dict[ParamPath, jax.Array]:
    """Reads a checkpoint's parameters with its adapter added to them."""
    adapted = [path for path in targets if _is_adapted(path, adapter)]
    as_stored = {path: dataclasses.replace(targets[path], dtype=None) for path in adapted}
    leaves = _read_checkpoint(folder, {**targets, **as_stored})
    for path in adapted:
        pair = get_at(adapter.matrices, path[2:-1])
        decoder = {"layers": unflatten({path[2:]: leaves.pop(path)})}
        matrices = unflatten({(*path[2:-1], name): values for name, values in pair.items()})
        dtype = targets[path].dtype or np.dtype(np.float32)
        merged = _merge(decoder, matrices, adapter.lora.scale, dtype, targets[path].sharding)
        leaves[path] = flatten(merged["layers"])[path[2:]]
    return leaves


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _merge(
    decoder: Any, matrices: Any, scale: float, dtype: np.dtype[Any], sharding: Sharding
) -> Any:
    merged = merge_lora(decoder, matrices, scale, dtype)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), merged)


def _is_adapted(path: ParamPath, adapter: Adapter) -> bool:
    return (
        path[:2] == ("decoder", "layers")
        and path[-1] == "kernel"
        and path[-2] in adapter.lora.targets
    )


def _read_hugging_face(
    folder: Path, parts: Sequence[Part], targets: Mapping[ParamPath, _Target]
) -> dict[ParamPath, jax.Array]:
    opened = HFFolder.open(folder)
    opened.check(parts)
    dtypes = (
        opened.parameter_dtypes(parts)
        if any(target.dtype is None for target in targets.values())
        else {}
    )
    tensors: dict[ParamPath, list[Tensor]] = {}
    for tensor in opened.tensors(parts):
        tensors.setdefault(tensor.path, []).append(tensor)
    leaves = {}
    for path, target in targets.items():
        dtype = target.dtype or dtypes[path]
        shards = ShardBuffers(target.shape, dtype, target.sharding)
        blocks = [
            (tensor, block)
            for tensor in tensors[path]
            for block in tensor.blocks()
            if shards.overlap(block.index)
        ]

        def prepare(
            item: tuple[Tensor, Block], dtype: np.dtype[Any] = dtype
        ) -> tuple[Block, NDArray[Any]]:
            tensor, block = item
            return block, opened.read(tensor, block).astype(dtype, copy=False)

        for block, values in ordered_parallel_map(prepare, blocks, **read_ahead(folder)):
            shards.fill(block.index, values)
        leaves[path] = shards.array()
    return leaves


def _as_sources(source: PathLike | WeightSources) -> WeightSources:
    return source if isinstance(source, Mapping) else weight_sources(source)


def _parts(folder: Path) -> tuple[Part, ...]:
    return PARTS if is_checkpoint(folder) else read_hf_config(folder).naming.parts


def _check_part(part: Part, folder: Path) -> None:
    if part not in _parts(folder):
        raise CheckpointError(f"{folder} has no {part}; it holds {', '.join(_parts(folder))}")


def _config(folder: Path) -> ModelConfig:
    return read_checkpoint_config(folder) if is_checkpoint(folder) else HFFolder.open(folder).model


def _check_shapes(
    folder: Path, shapes: Mapping[ParamPath, tuple[int, ...]], config: ModelConfig
) -> None:
    wanted = parameter_shapes(config)
    parts = {path[0] for path in shapes}
    paths = [
        path
        for path in (*shapes, *(path for path in wanted if path not in shapes))
        if path[0] in parts
    ]
    differing = [
        f"{'/'.join(path)} is {shapes.get(path, 'absent')}, expected {wanted.get(path, 'absent')}"
        for path in paths
        if shapes.get(path) != wanted.get(path)
    ]
    if differing:
        raise CheckpointError(
            f"{folder} does not have the shape that the configuration asks for:"
            f" {'; '.join(differing)}"
        )


def _dtype_of(
    dtype: DTypeLike | Mapping[Part, DTypeLike] | None, path: ParamPath
) -> np.dtype[Any] | None:
    asked: Any = dtype
    if isinstance(dtype, Mapping):
        asked = dtype.get(path[0])  # type: ignore[call-overload]
    return None if asked is None else np.dtype(asked)


def _sharding_of(placed: Mapping[ParamPath, Sharding] | None, path: ParamPath) -> Sharding:
    if placed is None:
        return SingleDeviceSharding(jax.devices()[0])
    if path not in placed:
        raise CheckpointError(f"shardings has no leaf for {'/'.join(path)}")
    return placed[path]
