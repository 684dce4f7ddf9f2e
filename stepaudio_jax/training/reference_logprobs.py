"""Log-probabilities of the reference policy, computed once for every pair and kept in the run.

The stage then needs neither a copy of the reference policy nor a forward pass of it in each step.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax.config import DataConfig, ModelConfig
from stepaudio_jax.data import batch_shape, collate, evaluation_batches, open_stage_sources
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.data.preference_pairs import REPLIES_PER_PAIR, PairFormat
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.parallel import BatchPlacement, all_gather_json, broadcast_json, replicated
from stepaudio_jax.storage import Path, read_json_or_none, write_json
from stepaudio_jax.text import Tokenizer
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


def stored_reference_logprobs(
    path: Path,
    mixtures: Mapping[str, DataConfig],
    compute: Callable[[DataConfig], ReferenceLogprobs],
    *,
    is_resumed: bool,
) -> dict[str, ReferenceLogprobs]:
    """Returns the log-probabilities of several mixtures of sources, computed on first use.

    Args:
        path: of the file that keeps them.
        mixtures: the data of each.
        compute: computes those of one, before the first step.
        is_resumed: whether the stage has made steps.

    Raises:
        CheckpointError: the stage has made steps, and the file cannot be read.
    """
    saved = read_reference_logprobs(path)
    if saved is not None:
        return saved
    if is_resumed:
        raise CheckpointError(
            f"{path} is missing or damaged: the reference policy's log-probabilities were "
            "computed before the first step; restore the file, or start a new run"
        )
    computed = {key: compute(data) for key, data in mixtures.items()}
    write_reference_logprobs(path, computed)
    return computed


def compute_reference_logprobs(
    model_def: ModelDef,
    state: TrainState,
    config: DataConfig,
    *,
    tokenizer: Tokenizer,
    model: ModelConfig,
    pair_format: PairFormat | None,
    place_batch: BatchPlacement,
    mesh: Mesh,
) -> ReferenceLogprobs:
    """Computes the log-probabilities of the replies of all records by the policy of `state`.

    Args:
        model_def: of the model.
        state: before the first step.
        config: of the records.
        tokenizer, model: of the run.
        pair_format: how records become examples.
        place_batch: puts batches on the mesh.
        mesh: of the devices.
    """
    sources = open_stage_sources(config, tokenizer, model)
    shape = batch_shape(config, None, pad_token=tokenizer.special.pad, pair_format=pair_format)
    step = jax.jit(make_reference_step(model_def), out_shardings=replicated(mesh))
    logprobs = [np.full((len(source), REPLIES_PER_PAIR), np.nan, "f4") for source in sources]
    empty = collate([()] * len(place_batch.local_rows), shape)
    data = evaluation_batches(
        config,
        tokenizer,
        model,
        rows=place_batch.local_rows,
        sources=sources,
        pair_format=pair_format,
    )
    has_batch = True
    with contextlib.closing(data):
        while True:
            batch: Batch | None = next(data, None) if has_batch else None
            has_batch = batch is not None
            # Processes may have different numbers of records, and compute all batches together.
            if not any(all_gather_json(has_batch)):
                return logprobs
            local = empty if batch is None else batch
            computed = step(state, place_batch(local))
            sums, tokens = (np.asarray(computed[name]) for name in ("logprobs", "tokens"))
            records = _all_rows(local, place_batch)
            for row, place in np.argwhere(records[..., 0] >= 0):
                source, record = records[row, place]
                has_reply = tokens[row, place] > 0
                logprobs[source][record, has_reply] = sums[row, place][has_reply]


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
