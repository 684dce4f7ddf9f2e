"""What is kept of a run that diverged, to find out why."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from stepaudio_jax.data import Batch

FOLDER = "diagnosis"


def write_diagnosis(
    run_dir: pathlib.Path,
    stage: str,
    step: int,
    history: list[dict[str, float]],
    batch: Batch,
    data_state: dict[str, Any],
) -> pathlib.Path:
    """Writes the last steps' figures, the state of the data and this process's part of the last batch.

    Every process calls it; what is the same for all, the first one writes.

    Returns:
        The folder, `<run_dir>/diagnosis/<stage>_<step>`.
    """
    folder = run_dir / FOLDER / f"{stage}_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        (folder / "steps.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
        (folder / "data_state.json").write_text(
            json.dumps(data_state, indent=2) + "\n", encoding="utf-8"
        )
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays = {jax.tree_util.keystr(path).strip("."): _local_rows(leaf) for path, leaf in leaves}
    np.savez_compressed(folder / f"batch_{jax.process_index()}.npz", allow_pickle=False, **arrays)
    return folder


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array that this process holds, each once."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
