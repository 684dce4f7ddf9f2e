"""Which record comes when: an order that depends on the seed and on nothing else.

The order is one of index arithmetic (grain's `MapDataset`): nothing is read to know the millionth
record. Each row of the global batch has a stream of its own, so a row holds the same dialogues
whatever the number of processes, and a process computes its rows without looking at the others'.
"""

import dataclasses
from collections.abc import Callable, Sequence

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Visit:
    """One reading of a record: record `record` of source `source`, for the time `epoch` (from 0)."""

    source: int
    record: int
    epoch: int


def training_streams(
    lengths: Sequence[int], weights: Sequence[float], *, seed: int, rows: int
) -> list[grain.MapDataset[Visit]]:
    """The endless streams of the rows of a batch.

    Each source is shuffled anew every epoch, repeated for ever, and dealt to the rows like cards:
    position p of its order goes to row p mod `rows`. Each row then mixes its share of every source
    by weight. (Mixing before dealing would not do: with two sources of equal weight and an even
    number of rows, each row would see one source only.)

    Args:
        lengths: records of each source.
        weights: share of each source, counted in records; kept to half a percent of the smallest.
        seed: of the shuffles.
        rows: of the global batch.
    """
    sources = []
    for source, length in enumerate(lengths):
        shuffle_seed = int(np.random.SeedSequence((seed, source)).generate_state(1)[0])
        sources.append(_visits(source, length).shuffle(seed=shuffle_seed).repeat())
    # grain scales the least weight to 100 and cuts the others to integers; rounded beforehand they
    # are not cut.
    proportions = [round(100 * weight / min(weights)) for weight in weights]
    return [
        grain.MapDataset.mix([source[row::rows] for source in sources], proportions)
        for row in range(rows)
    ]


def evaluation_streams(lengths: Sequence[int], *, rows: int) -> list[grain.MapDataset[Visit]]:
    """The finite streams of the rows of a batch: every record once, sources one after the other, dealt to the rows in order."""
    every = grain.MapDataset.concatenate(
        [_visits(source, length) for source, length in enumerate(lengths)]
    )
    return [every[row::rows] for row in range(rows)]


def _visits(source: int, length: int) -> grain.MapDataset[Visit]:
    def visit(position: int, _: int) -> Visit:
        epoch, record = divmod(position, length)
        return Visit(source, record, epoch)

    named: Callable[[int, int], Visit] = visit
    return grain.MapDataset.range(length).map_with_index(named)
