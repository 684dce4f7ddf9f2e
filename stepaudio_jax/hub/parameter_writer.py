"""Writing an Orbax checkpoint a block at a time.

Orbax lays the checkpoint out, and TensorStore, which Orbax stores arrays with, fills it, so no
parameter is ever held whole. What results is an ordinary Orbax checkpoint: `orbax.checkpoint`
restores it into any sharding.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore
from numpy.typing import NDArray

from stepaudio_jax.hub.checkpoint import ORBAX_ITEM
from stepaudio_jax.hub.tensor_names import BlockIndex, ParamPath, unflatten

_MAX_PENDING_WRITES = 3
_ZARR_DTYPES: Mapping[np.dtype[Any], str] = {
    np.dtype(np.float64): "<f8",
    np.dtype(np.float32): "<f4",
    np.dtype(np.float16): "<f2",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """How a parameter is stored. A block that is a whole chunk is written at once."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class OrbaxBlockWriter:
    """Writes an Orbax checkpoint a block at a time. Use as a context manager; leaving it waits for the last writes.

    Args:
        directory: the checkpoint to create.
        parameters: every parameter, by path.
    """

    def __init__(self, directory: pathlib.Path, parameters: Mapping[ParamPath, ParameterSpec]):
        write_tree_structure(directory, parameters)
        self._arrays = {
            path: _open(directory, path, parameter) for path, parameter in parameters.items()
        }
        self._writes: collections.deque[Any] = collections.deque()

    def write(self, path: ParamPath, index: BlockIndex, values: NDArray[Any]) -> None:
        """Writes a block; `values` must not change afterwards."""
        self._wait(_MAX_PENDING_WRITES)
        self._writes.append(
            self._arrays[path][index].write(values, can_reference_source_data_indefinitely=True)
        )

    def _wait(self, left: int) -> None:
        while len(self._writes) > left:
            self._writes.popleft().result()

    def __enter__(self) -> "OrbaxBlockWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for write in self._writes:  # nothing may be written any more once the folder is removed
                write.exception()
            return
        self._wait(0)


def write_tree_structure(
    directory: pathlib.Path, parameters: Mapping[ParamPath, ParameterSpec]
) -> None:
    """Lets Orbax write its part of a checkpoint: the tree with a scalar for every parameter, whose shape it does not record.

    Orbax waits for all processes of a run: those that do not write call this too.
    """
    tree = unflatten(
        {path: np.zeros((), parameter.dtype) for path, parameter in parameters.items()}
    )
    context = ocp.Context()
    context.array_options.saving.use_ocdbt = False
    context.array_options.saving.use_zarr3 = False
    with context:
        ocp.save(directory, tree)


def _open(
    directory: pathlib.Path, path: ParamPath, parameter: ParameterSpec
) -> tensorstore.TensorStore:
    """A parameter's array, created anew with the shape meant and nothing in it.

    Zarr 2, since Orbax warns of missing data when it loads Zarr 3 outside of OCDBT.
    """
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{directory / ORBAX_ITEM / '.'.join(path)}/"},
        "metadata": {
            "shape": list(parameter.shape),
            "chunks": list(parameter.chunks),
            "dtype": _ZARR_DTYPES[parameter.dtype],
            "compressor": None,  # weights do not compress
            "fill_value": None,
            "dimension_separator": ".",
        },
        # Like cp, leaves flushing to the system: a sync for each chunk would take longer than the
        # writing.
        "context": {"file_io_sync": False},
    }
    return tensorstore.open(spec, create=True, delete_existing=True).result()
