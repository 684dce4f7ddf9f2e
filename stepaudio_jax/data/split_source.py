"""A source of which dialogues that are too long are read in parts, each as a record of its own."""

import bisect
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tqdm

from stepaudio_jax.config import DataConfig, ModelConfig
from stepaudio_jax.data.clips import measure_clip, open_clip_cache
from stepaudio_jax.data.record import Record, record_error_context
from stepaudio_jax.data.source import Source, open_sources
from stepaudio_jax.data.splitting import DialoguePart, Splitter, part_of_record
from stepaudio_jax.data.views import RowLimits, ViewRenderer
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import Tokenizer

_THREADS = 16  # a network file system answers slowly, but many requests at a time
_BLOCK_RECORDS = 128
_PROGRESS_BAR_DELAY_S = 2.0
_CACHED_RECORDS = 8  # that were split: their parts are read one after the other in an evaluation


class SplitSource:
    """Reads the records of a source, of one that is too long its parts, in order.

    Which records have parts is found out when that is first asked: all are read, and of those that
    carry times, the headers of their clips. Parts count as records from then on, so that they are
    shuffled, shared out over rows and processes, checked and resumed as any others. The result
    depends on the rows, the settings and the lengths of the clips only.

    Args:
        source: the records as they lie.
        splitter: finds the parts.
        index: what was found, if it is known already; it can be pickled.

    Attributes:
        path, name, settings: of the source.
    """

    def __init__(self, source: Source, splitter: Splitter, index: "PartIndex | None" = None):
        self.path, self.name = source.path, source.name
        self.settings: Mapping[str, Any] = source.settings
        self._source, self._splitter = source, splitter
        if index is not None:
            self.index = index
        self._read = functools.lru_cache(_CACHED_RECORDS)(source.__getitem__)

    def __len__(self) -> int:
        return len(self._source) + self.num_parts - self.num_split

    def __repr__(self) -> str:
        return f"SplitSource({self.path!r}, records={len(self)})"

    def __getitem__(self, index: int) -> Record:
        """Reads the record at `index`, or the part of one (0 <= index < len).

        Raises:
            DataError: as of `Source`; or it is too long, and cannot be split.
        """
        number, place = self._locate(index)
        if number in self.index.failures:
            failure = self.index.failures[number]
            raise DataError(str(failure), kind=failure.kind)
        if place is None:
            return self._source[number]
        part = self.index.parts_of(number)[place]
        return part_of_record(self._read(number), part, place + 1)

    @property
    def num_split(self) -> int:
        """Returns how many records are read in parts."""
        return len(self.index.records)

    @property
    def num_parts(self) -> int:
        """Returns how many parts these have together."""
        return sum(map(len, self.index.parts))

    def describe_parts(self) -> str:
        """Returns how many records are read in how many parts, in words."""
        count = "1 dialogue is" if self.num_split == 1 else f"{self.num_split} dialogues are"
        return f"{count} too long and read in {self.num_parts} parts"

    @property
    def files(self) -> list[str]:
        """Returns the files whose content decides its rows; see `Source.files`."""
        return self._source.files

    def origin(self, index: int) -> str:
        """Returns `file:line` or `file#place` of the record at `index`."""
        return self._source.origin(self._locate(index)[0])

    def block_lengths(self) -> list[int] | None:
        """Returns how many records are stored together; see `Source.block_lengths`."""
        lengths = self._source.block_lengths()
        if lengths is None:
            return None
        blocks, first = [], 0
        for length in lengths:
            blocks.append(self.index.start(first + length) - self.index.start(first))
            first += length
        return blocks

    def _locate(self, index: int) -> tuple[int, int | None]:
        """Returns the record at an index, and which of its parts; None where it has none."""
        split = bisect.bisect_right(self.index.starts, index) - 1
        if split < 0:
            return index, None
        number, place = self.index.records[split], index - self.index.starts[split]
        count = len(self.index.parts[split])
        return (number, place) if place < count else (number + 1 + place - count, None)

    @functools.cached_property
    def index(self) -> "PartIndex":
        """Returns which records have parts; finds it out where `__init__` was not given it."""
        blocks = [
            range(start, min(start + _BLOCK_RECORDS, len(self._source)))
            for start in range(0, len(self._source), _BLOCK_RECORDS)
        ]
        index = PartIndex()
        bar = tqdm.tqdm(
            total=len(self._source),
            desc=f"splitting {self.name}",
            unit="record",
            delay=_PROGRESS_BAR_DELAY_S,
            leave=False,
        )
        with bar, ThreadPoolExecutor(_THREADS, thread_name_prefix="stepaudio-split") as pool:
            try:
                results = pool.map(lambda block: [*map(self._split, block)], blocks)
                for block, of_block in zip(blocks, results, strict=True):
                    for number, parts in zip(block, of_block, strict=True):
                        index.add(number, parts)
                    bar.update(len(block))
            finally:
                pool.shutdown(cancel_futures=True)
        return index

    def _split(self, number: int) -> "list[DialoguePart] | DataError":
        """Returns the parts of a record, or why it cannot be split."""
        try:
            record = self._source[number]
        except DataError:  # which is raised again when it is read
            return []
        try:
            with record_error_context(record, "split"):
                return self._splitter.split(record)
        except DataError as error:
            return error


class PartIndex:
    """Says which records are read in parts.

    Attributes:
        records: the numbers of these records, in order.
        starts: of each, the index of its first part.
        parts: of each.
        failures: of the records that are too long and cannot be split, why.
    """

    def __init__(self) -> None:
        self.records: list[int] = []
        self.starts: list[int] = []
        self.parts: list[list[DialoguePart]] = []
        self.failures: dict[int, DataError] = {}

    def add(self, number: int, parts: list[DialoguePart] | DataError) -> None:
        """Adds a record behind those that were added before."""
        if isinstance(parts, DataError):
            self.failures[number] = parts
        elif parts:
            start = self.start(number)
            self.records.append(number)
            self.starts.append(start)
            self.parts.append(parts)

    def parts_of(self, number: int) -> list[DialoguePart]:
        """Returns the parts of a record that has some."""
        return self.parts[bisect.bisect_left(self.records, number)]

    def start(self, number: int) -> int:
        """Returns the index of a record, or of its first part."""
        before = bisect.bisect_left(self.records, number) - 1
        if before < 0:
            return number
        return self.starts[before] + len(self.parts[before]) + number - self.records[before] - 1


AnySource = Source | SplitSource


def open_stage_sources(
    config: DataConfig,
    tokenizer: Tokenizer,
    model: ModelConfig,
    indices: Sequence[PartIndex | None] | None = None,
) -> tuple[AnySource, ...]:
    """Opens the sources of a stage of objective=next_token, split as its `on_too_long` says.

    Args:
        config: of the data.
        tokenizer, model: of the run, which decide what fits.
        indices: of the same sources in another process, as `part_indices` returns them.

    Raises:
        DataError: as of `Source`.
        ConfigError: the cache of clips cannot be used.
    """
    sources = open_sources(config.sources)
    if config.on_too_long != "split":
        return sources
    splitter = Splitter(
        ViewRenderer(tokenizer, config.history_reasoning, config.loss_on_reasoning),
        RowLimits.of(config, model),
        functools.partial(
            measure_clip,
            length_convention=model.length_convention,
            channel=config.channel,
            allow_urls=config.allow_urls,
            cache=open_clip_cache(config),
        ),
    )
    return tuple(
        SplitSource(source, splitter, index)
        for source, index in zip(sources, indices or [None] * len(sources), strict=True)
    )


def part_indices(sources: Sequence[AnySource]) -> tuple[PartIndex | None, ...]:
    """Returns what was found out about sources, so that another process need not read them all."""
    return tuple(source.index if isinstance(source, SplitSource) else None for source in sources)
