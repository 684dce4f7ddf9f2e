"""Loader: a DataConfig -> batches, made ahead of the train step: order, prepare, pack, collate."""

import atexit
import collections
import functools
import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import (
    AugmentationConfig,
    AuxiliaryConfig,
    DataConfig,
    ModelConfig,
    to_dict,
)
from stepaudio_jax.data.batch import Batch, collate
from stepaudio_jax.data.containers.base import Block
from stepaudio_jax.data.containers.decoded_cache import MAX_CACHED_BYTES
from stepaudio_jax.data.packing import Lookahead, RowPacker
from stepaudio_jax.data.preference_pairs import PairFormat
from stepaudio_jax.data.preprocessing import Preprocessor
from stepaudio_jax.data.record import EQUAL_PAIR, NO_VERDICT, PreparedRecord, Visit
from stepaudio_jax.data.split_source import AnySource, open_stage_sources
from stepaudio_jax.data.workers import WorkerPool
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.storage import truncate_words
from stepaudio_jax.text import Tokenizer

logger = logging.getLogger(__name__)

_LOOKAHEAD_PER_ROW = 2
_STATE_VERSION = 2
# How much of a source that is stored in blocks is shuffled together: so many records, or as many
# as have half the bytes that are kept, since the next ones are read before the last are used.
_SHUFFLE_WINDOW_RECORDS = 4096
_SHUFFLE_WINDOW_BYTES = MAX_CACHED_BYTES // 2


def batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    seed: int,
    auxiliary: AuxiliaryConfig | None = None,
    rows: Sequence[int] | None = None,
    pair_format: PairFormat | None = None,
    teacher_reads: bool = False,
) -> "BatchIterator":
    """Returns endless training batches.

    The global batch does not depend on the number of processes: each computes its own rows of it.
    Two iterators with the same arguments give the same batches, bit for bit.

    Args:
        config: sources, sizes, augmentation, what to do with records that cannot be used.
        tokenizer: its vocabulary must lie within the model's.
        model: its encoder and decoder limit the sizes; its length convention counts audio tokens.
        seed: of order and augmentation.
        auxiliary: which labels of the clips the batches carry.
        rows: the rows of the global batch that this process computes (`parallel.local_rows`); None
            for all.
        pair_format: how records of preferences become examples; None for dialogues.
        teacher_reads: whether batches have what a teacher reads in place of the sound.

    Raises:
        DataError: a source has no file or no record; later, from the iterator, a record cannot be
            used.
        WorkerError: from the iterator: a worker process has ended.
        ConfigError: settings contradict each other.
    """
    sources = open_stage_sources(config, tokenizer, model)
    streams = training_streams(
        [len(source) for source in sources],
        [source.weight for source in config.sources],
        seed=seed,
        rows=config.batch_size,
        blocks=[source.blocks() for source in sources],
    )
    prepare = Preprocessor(
        config,
        tokenizer,
        model,
        auxiliary,
        sources,
        seed=seed,
        pair_format=pair_format,
        teacher_reads=teacher_reads,
    )
    return BatchIterator(
        _PackedBatchIterator(config, sources, streams, prepare, seed=seed, rows=rows),
        config.prefetch_batches,
    )


def evaluation_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    auxiliary: AuxiliaryConfig | None = None,
    rows: Sequence[int] | None = None,
    count: int | None = None,
    sources: Sequence[AnySource] | None = None,
    pair_format: PairFormat | None = None,
    teacher_reads: bool = False,
) -> "BatchIterator":
    """Returns batches with every record once, in a fixed order, not augmented.

    The last batches are filled up with empty rows.

    Args:
        config, tokenizer, model, auxiliary, rows, pair_format, teacher_reads: as for `batches`.
            Sources' weights do not apply.
        count: the number of batches, empty ones once the records are used up, so that several
            processes agree on it. None: as many as this process's records fill.
        sources: of `config`, if they are open already, by `open_stage_sources`.

    Raises:
        DataError, ConfigError: as for `batches`; and a ConfigError if `config` augments.
    """
    if config.augmentation != AugmentationConfig():
        raise ConfigError(
            "augmentation changes the sound in training only; leave it out of evaluation.data"
        )
    if sources is None:
        sources = open_stage_sources(config, tokenizer, model)
    streams = evaluation_streams([len(source) for source in sources], rows=config.batch_size)
    prepare = Preprocessor(
        config,
        tokenizer,
        model,
        auxiliary,
        sources,
        seed=0,
        pair_format=pair_format,
        teacher_reads=teacher_reads,
    )
    iterator = _PackedBatchIterator(
        config, sources, streams, prepare, seed=0, rows=rows, count=count
    )
    return BatchIterator(iterator, config.prefetch_batches)


class BatchIterator(grain.experimental.ThreadPrefetchDatasetIterator[Batch]):
    """Iterates over the batches of one process, which threads or worker processes make ahead.

    `get_state()` returns JSON-ready data that says which batch comes next. `set_state` lets any
    iterator over the same data continue from there, bit for bit, or raises a DataError if the data
    or its settings differ. `close()` ends threads and processes.
    """

    def __init__(self, rows: "_PackedBatchIterator", prefetch: int):
        super().__init__(rows, prefetch)
        _open_iterators.add(self)

    @property
    def counts(self) -> dict[str, int]:
        """Returns how many records this process has used so far; part of the state.

        "records" and "records/SOURCE" went into batches or are in a row that is still open;
        "skipped_bad_audio", "skipped_too_long" and "skipped_bad_record" were skipped, and so were
        the pairs without a better reply, "skipped_equal_pair" and "skipped_no_verdict".
        """
        return dict(self.get_state()["counts"])

    def __del__(self) -> None:
        # At the end of the interpreter, `_close_open_iterators` has called it already, and what
        # `close` needs may be gone.
        if not sys.is_finalizing():
            self.close()


_open_iterators: weakref.WeakSet[BatchIterator] = weakref.WeakSet()


@atexit.register
def _close_open_iterators() -> None:
    """Ends all threads and processes.

    A thread in native code at the interpreter's end would abort the process.
    """
    for iterator in tuple(_open_iterators):
        iterator.close()


class _PackedBatchIterator(grain.DatasetIterator[Batch]):
    """Packs and collates the rows of one process. `count`: see `evaluation_batches`."""

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[AnySource],
        streams: Sequence[grain.MapDataset[Visit]],
        prepare: Preprocessor,
        *,
        seed: int,
        rows: Sequence[int] | None,
        count: int | None = None,
    ):
        super().__init__()
        rows = range(config.batch_size) if rows is None else rows
        self._shape = prepare.shape
        self._names = [source.name for source in sources]
        self._data_signature = _data_signature(config, sources, seed)
        if self._shape.pairs is not None:
            self._data_signature["shares_prompt"] = self._shape.shares_prompt
        self._count = count
        self._num_batches = 0
        self._counts: collections.Counter[str] = collections.Counter()
        submit, self._stop_preparing = _start_preparing(config, prepare)
        # Enough records ahead that no thread is idle.
        threads = config.threads * max(config.workers, 1)
        depth = max(_LOOKAHEAD_PER_ROW, -(-_LOOKAHEAD_PER_ROW * threads // len(rows)))
        self._packers = {
            row: RowPacker(
                Lookahead(streams[row], submit, depth=depth),
                tokens=config.seq_len,
                chunks=config.audio_chunks_per_seq,
                open_rows=config.packing_bins_per_seq,
                on_record=self._count_record,
                max_skipped_records=max(100, sum(len(source) for source in sources)),
            )
            for row in rows
        }

    def __next__(self) -> Batch:
        if self._num_batches == self._count:
            raise StopIteration
        rows = [packer.next_row() for packer in self._packers.values()]
        if self._count is None and not any(rows):
            raise StopIteration
        self._num_batches += 1
        return collate(rows, self._shape)

    def get_state(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "data": self._data_signature,
            "num_batches": self._num_batches,
            "counts": dict(self._counts),
            "rows": {str(row): packer.get_state() for row, packer in self._packers.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        if state.get("version") != _STATE_VERSION:
            raise DataError(
                f"the data state is of version {state.get('version')}, this program reads"
                f" {_STATE_VERSION}; start a new run folder"
            )
        for key, value in self._data_signature.items():
            if (saved := state["data"].get(key)) != value:
                raise DataError(
                    f"cannot resume: the data's {key} was {saved} and is now {value};"
                    " restore it, or start a new run"
                )
        if missing := [row for row in self._packers if str(row) not in state["rows"]]:
            raise DataError(
                f"the data state has rows {', '.join(state['rows'])} and not {missing};"
                " it belongs to another process, or the number of processes has changed"
            )
        self._num_batches = state["num_batches"]
        # A merged state has the sums of all processes; one process continues them.
        self._counts = collections.Counter(state["counts"] if 0 in self._packers else {})
        for row, packer in self._packers.items():
            packer.set_state(state["rows"][str(row)])

    def close(self) -> None:
        super().close()
        self._stop_preparing()

    def _count_record(self, record: PreparedRecord) -> None:
        if record.skipped:
            self._counts[f"skipped_{record.skipped}"] += 1
            if record.skipped not in (EQUAL_PAIR, NO_VERDICT):
                logger.warning("skipped: %s", truncate_words(record.message))
        else:
            self._counts["records"] += 1
            self._counts[f"records/{self._names[record.visit.source]}"] += 1


def _start_preparing(
    config: DataConfig, prepare: Preprocessor
) -> tuple[Callable[[Visit], Future[PreparedRecord]], Callable[[], None]]:
    """Starts the threads or processes that prepare records.

    Returns:
        What begins to prepare a record, and what ends them all.
    """
    if config.workers:
        pool: WorkerPool[Visit, PreparedRecord] = WorkerPool(
            prepare.opener(), processes=config.workers, threads=config.threads
        )
        return pool.submit, pool.close
    executor = ThreadPoolExecutor(config.threads, thread_name_prefix="stepaudio-data")
    return (
        lambda visit: executor.submit(prepare, visit),
        functools.partial(executor.shutdown, wait=False, cancel_futures=True),
    )


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merges the states of all processes of a run: any number of processes can resume from it."""
    counts: collections.Counter[str] = collections.Counter()
    rows: dict[str, Any] = {}
    for state in states:
        # Processes with the same rows count the same records.
        if not rows.keys() & state["rows"].keys():
            counts.update(state["counts"])
        rows |= state["rows"]
    return {**states[0], "counts": dict(counts), "rows": rows}


def _data_signature(config: DataConfig, sources: Sequence[AnySource], seed: int) -> dict[str, Any]:
    """Returns what must not change between saving a state and resuming from it, JSON-ready."""
    settings = to_dict(config)
    # Skipping may change: a run that stopped at a bad record can continue without it. So may the
    # text of a record that was corrected: the order depends on the number of records only.
    for name in (
        "sources",
        "clip_cache_dir",
        "clip_cache_gb",
        "threads",
        "workers",
        "prefetch_batches",
        "check",
        "on_bad_audio",
        "on_too_long",
        "on_bad_record",
    ):
        del settings[name]
    settings["seed"] = seed
    settings["sources"] = [
        {"weight": source_config.weight, "records": len(source)}
        for source_config, source in zip(config.sources, sources, strict=True)
    ]
    return settings


def training_streams(
    lengths: Sequence[int],
    weights: Sequence[float],
    *,
    seed: int,
    rows: int,
    blocks: Sequence[Sequence[Block] | None] | None = None,
) -> list[grain.MapDataset[Visit]]:
    """Returns the endless stream of each row of a batch.

    Each source is reshuffled every epoch, repeated for ever, and dealt to the rows like cards:
    position p of its order goes to row p mod `rows`. Each row then mixes its part of every source
    by weight. (Mixing before dealing would be wrong: with two sources of equal weight and an even
    number of rows, each row would see one source only.)

    Args:
        lengths: the number of records of each source.
        weights: of each source, counted in records; rounded to a hundredth of the smallest.
        seed: of the shuffles.
        rows: of the global batch.
        blocks: of each source, the records that are stored together; None where every record is
            read alone. Records of a block stay near each other.
    """
    sources = []
    for source, length in enumerate(lengths):
        shuffle_seed = int(np.random.SeedSequence((seed, source)).generate_state(1)[0])
        of_source = blocks[source] if blocks is not None else None
        if of_source is None:
            sources.append(_visits(source, length).shuffle(seed=shuffle_seed).repeat())
        else:
            sources.append(_visits_of_blocks(source, of_source, shuffle_seed))
    # grain scales the smallest weight to 100 and truncates the others to integers; these need no
    # truncation.
    proportions = [round(100 * weight / min(weights)) for weight in weights]
    return [
        grain.MapDataset.mix([source[row::rows] for source in sources], proportions)
        for row in range(rows)
    ]


def evaluation_streams(lengths: Sequence[int], *, rows: int) -> list[grain.MapDataset[Visit]]:
    """Returns the finite stream of each row of a batch: every record once, in order of sources.

    Records are dealt to the rows like cards.
    """
    all_visits = grain.MapDataset.concatenate(
        [_visits(source, length) for source, length in enumerate(lengths)]
    )
    return [all_visits[row::rows] for row in range(rows)]


def _visits_of_blocks(source: int, blocks: Sequence[Block], seed: int) -> grain.MapDataset[Visit]:
    """Returns the endless visits of a source whose records are stored in blocks.

    Each epoch takes the blocks in a random order, and shuffles the records of so many blocks
    together that they fill the window: each block is decoded once.
    """
    starts = np.concatenate([[0], np.cumsum([block.rows for block in blocks])])
    length = int(starts[-1])

    @functools.lru_cache(maxsize=2)  # the epoch that is read, and one that is read ahead
    def order(epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((seed, epoch))
        windows: list[list[NDArray[np.int64]]] = [[]]
        records = kept_bytes = 0
        for number in rng.permutation(len(blocks)):
            windows[-1].append(np.arange(starts[number], starts[number + 1]))
            records += blocks[number].rows
            kept_bytes += blocks[number].kept_bytes
            if records >= _SHUFFLE_WINDOW_RECORDS or kept_bytes >= _SHUFFLE_WINDOW_BYTES:
                windows.append([])
                records = kept_bytes = 0
        return np.concatenate([rng.permutation(np.concatenate(part)) for part in windows if part])

    def visit(position: int, _: int) -> Visit:
        epoch, place = divmod(position, length)
        return Visit(source, int(order(epoch)[place]), epoch)

    to_visit: Callable[[int, int], Visit] = visit
    return grain.MapDataset.range(length).repeat().map_with_index(to_visit)


def _visits(source: int, length: int) -> grain.MapDataset[Visit]:
    """Returns the visits of one epoch of a source in order; repeating it counts the epochs."""

    def visit(position: int, _: int) -> Visit:
        epoch, record = divmod(position, length)
        return Visit(source, record, epoch)

    to_visit: Callable[[int, int], Visit] = visit
    return grain.MapDataset.range(length).map_with_index(to_visit)
