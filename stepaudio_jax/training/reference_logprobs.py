"""Log-probabilities of the reference policy, computed once for every pair and kept in the run.

The stage then needs neither a copy of the reference policy nor a forward pass of it in each step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax.data import BatchIterator, collate
from stepaudio_jax.data.batch import Batch, BatchShape
from stepaudio_jax.data.preference_pairs import REPLIES_PER_PAIR
from stepaudio_jax.parallel import BatchPlacement, all_gather_json, broadcast_json, replicated
from stepaudio_jax.storage import Path, read_json_or_none, write_json
from stepaudio_jax.training.preference_step import make_reference_step
from stepaudio_jax.training.train_state import ModelDef, TrainState

ReferenceLogprobs = list[NDArray[np.float32]]
"""For each source [records, replies]: sums over a reply's tokens, NaN where there is no such."""


def read_reference_logprobs(path: Path) -> dict[str, ReferenceLogprobs] | None:
    """Returns what `write_reference_logprobs` wrote, the same in every process; None if nothing."""
    value = broadcast_json(read_json_or_none(path) if jax.process_index() == 0 else None)
    if not isinstance(value, dict):
        return None
    return {
        key: [
            np.array([[np.nan if sum_ is None else sum_ for sum_ in row] for row in rows], "f4")
            for rows in sources
        ]
        for key, sources in value.items()
    }


def write_reference_logprobs(path: Path, logprobs: Mapping[str, ReferenceLogprobs]) -> None:
    """Writes the log-probabilities of several mixtures of sources; process 0 does."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # NaN is no JSON. A float32 is written with as many digits as tell it from its neighbours.
    write_json(
        path,
        {
            key: [
                [[None if np.isnan(sum_) else float(sum_) for sum_ in row] for row in source]
                for source in sources
            ]
            for key, sources in logprobs.items()
        },
    )


def compute_reference_logprobs(
    model_def: ModelDef,
    state: TrainState,
    data: BatchIterator,
    shape: BatchShape,
    lengths: list[int],
    place_batch: BatchPlacement,
    mesh: Mesh,
) -> ReferenceLogprobs:
    """Computes the log-probabilities of the replies of all records by the policy of `state`.

    Args:
        model_def: of the model.
        state: before the first step.
        data: every record once, in this process's rows.
        shape: of its batches.
        lengths: number of records of each source.
        place_batch: puts batches on the mesh.
        mesh: of the devices.
    """
    step = jax.jit(make_reference_step(model_def), out_shardings=replicated(mesh))
    logprobs = [np.full((length, REPLIES_PER_PAIR), np.nan, np.float32) for length in lengths]
    empty = collate([()] * len(place_batch.local_rows), shape)
    while True:
        batch: Batch | None = next(data, None)
        # Processes may have different numbers of records, and compute all batches together.
        if not any(all_gather_json(batch is not None)):
            return logprobs
        local = empty if batch is None else batch
        sums = {name: np.asarray(value) for name, value in step(state, place_batch(local)).items()}
        records = _all_rows(local, place_batch)
        for row, place in np.argwhere(records[..., 0] >= 0):
            source, record = records[row, place]
            has_reply = sums["tokens"][row, place] > 0
            logprobs[source][record, has_reply] = sums["logprobs"][row, place][has_reply]


def _all_rows(batch: Batch, place_batch: BatchPlacement) -> NDArray[np.int32]:
    """Returns `PairBatch.records` of the rows of all processes."""
    assert batch.pairs is not None
    by_row: dict[str, Any] = {}
    local = {
        str(row): records.tolist()
        for row, records in zip(
            place_batch.local_rows, np.asarray(batch.pairs.records), strict=True
        )
    }
    for rows in all_gather_json(local):
        by_row |= rows
    return np.array([by_row[str(row)] for row in range(len(by_row))], np.int32)
