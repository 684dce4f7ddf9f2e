"""The order of records: shuffled anew each epoch, mixed by weight, dealt to the rows."""

import collections

import numpy as np
import pytest

from stepaudio_jax.data.loader import evaluation_streams, training_streams
from stepaudio_jax.data.record import Visit


def records(stream, epoch: int, length: int) -> list[int]:
    return [stream[index].record for index in range(epoch * length, (epoch + 1) * length)]


def test_each_epoch_is_another_permutation():
    (stream,) = training_streams([50], [1.0], seed=3, rows=1)
    epochs = [records(stream, epoch, 50) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(50)) not in epochs
    assert [stream[index].epoch for index in (0, 49, 50, 199)] == [0, 0, 1, 3]


def test_the_order_is_the_seeds():
    def order(seed: int, source: int) -> list[int]:
        streams = training_streams([50, 50], [1.0, 1.0], seed=seed, rows=1)
        return [
            visit.record
            for visit in (streams[0][index] for index in range(100))
            if visit.source == source
        ]

    assert order(3, 0) == order(3, 0)
    assert len({tuple(order(seed, source)) for seed in (3, 4) for source in (0, 1)}) == 4


@pytest.mark.parametrize("rows", [1, 3, 4, 8, 64])
def test_rows_share_out_every_epoch(rows):
    """No record goes to two rows in an epoch, and none is left out, also where there are fewer records than rows."""
    streams = training_streams([40], [1.0], seed=0, rows=rows)
    visits = collections.Counter(
        stream[index] for stream in streams for index in range(-(-400 // rows))
    )
    assert set(visits.values()) == {1}
    assert {Visit(0, record, epoch) for record in range(40) for epoch in range(10)} <= set(visits)


@pytest.mark.parametrize(
    "weights", [(1.0, 1.0), (1.0, 3.0), (0.2, 0.3, 0.5), (1e-3, 7e-3), (1.0, 1.005)]
)
def test_every_row_mixes_by_weight(weights):
    """Up to every point of a row's stream, each source has its share, give or take one record a source."""
    streams = training_streams([700, 1000, 300][: len(weights)], weights, seed=0, rows=4)
    shares = np.array(weights) / sum(weights)
    for stream in streams:
        sources = np.array([stream[index].source for index in range(600)])
        drawn = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        expected = np.arange(1, 601)[:, None] * shares
        assert np.abs(drawn - expected).max() < len(weights) + 0.005 * 600 * shares.max()


def test_a_weight_counts_records_of_the_stream_not_of_the_file():
    """A small source of a great weight comes round more often; its epochs go by faster."""
    (stream,) = training_streams([50, 1000], [1.0, 1.0], seed=0, rows=1)
    small = [visit for visit in (stream[index] for index in range(200)) if visit.source == 0]
    assert len(small) == 100
    assert collections.Counter(visit.record for visit in small) == dict.fromkeys(range(50), 2)
    assert small[-1].epoch == 1


def test_evaluation_takes_every_record_once_in_order():
    streams = evaluation_streams([3, 4], rows=2)
    every = [Visit(0, record, 0) for record in range(3)] + [
        Visit(1, record, 0) for record in range(4)
    ]
    assert [[stream[index] for index in range(len(stream))] for stream in streams] == [
        every[::2],
        every[1::2],
    ]
