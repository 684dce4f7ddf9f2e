"""Batches and their order: decided by the seed, resumable anywhere, for any number of processes."""

import collections
import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from stepaudio_jax.config import AugmentationConfig, SourceConfig
from stepaudio_jax.data import Batch, batches, evaluation_batches, merge_states
from stepaudio_jax.data.containers.base import Block
from stepaudio_jax.data.loader import evaluation_streams, training_streams
from stepaudio_jax.data.record import Visit
from stepaudio_jax.errors import ConfigError, DataError
from tests.data.corpus import (
    MODEL,
    TOKENIZER,
    settings,
    text_record,
    write_clip,
    write_records,
    write_spoken,
    write_written,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return write_spoken(folder), write_written(folder)


def take(iterator, count: int) -> list[Batch]:
    return list(itertools.islice(iterator, count))


def same(first: Batch, second: Batch) -> bool:
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in leaves)


def replies(batch: Batch) -> list[str]:
    """What each dialogue of a batch ends with."""
    texts = []
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            texts.append(
                TOKENIZER.decode(
                    batch.tokens[row][batch.segment_ids[row] == segment][-24:-1]
                ).rpartition("\n")[2]
            )
    return texts


def test_batches_depend_on_the_seed_and_not_on_threads(corpus):
    loud = AugmentationConfig(
        noise_probability=0.5, max_shift_s=0.05, time_masks=1, time_mask_frames=5
    )
    first = take(
        batches(settings(*corpus, augmentation=loud, threads=1), TOKENIZER, MODEL, seed=4), 8
    )
    second = take(
        batches(
            settings(*corpus, augmentation=loud, threads=5, prefetch_batches=1),
            TOKENIZER,
            MODEL,
            seed=4,
        ),
        8,
    )
    assert all(map(same, first, second))
    other = take(batches(settings(*corpus, augmentation=loud), TOKENIZER, MODEL, seed=5), 8)
    assert not any(map(same, first, other))
    assert not any(same(one, two) for one, two in itertools.combinations(first, 2))


@pytest.mark.parametrize(
    "done",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(1, marks=pytest.mark.slow),
        5,
        pytest.param(11, marks=pytest.mark.slow),
    ],
)
def test_resuming_gives_the_same_batches_bit_for_bit(corpus, done):
    """In another iterator, through JSON, after prefetching; and again in the same iterator."""
    loud = AugmentationConfig(noise_probability=0.5, max_shift_s=0.05, gain_db=(-3, 3))
    config = settings(*corpus, augmentation=loud, packing_bins_per_seq=3)
    iterator = batches(config, TOKENIZER, MODEL, seed=1)
    take(iterator, done)
    state = json.dumps(iterator.get_state())
    expected, counts = take(iterator, 6), iterator.counts
    resumed = batches(config, TOKENIZER, MODEL, seed=1)
    take(resumed, 3)  # wherever it stood before
    for again in (resumed, iterator):
        again.set_state(json.loads(state))
        assert again.get_state() == json.loads(state)
        assert all(map(same, expected, take(again, 6)))
        assert again.counts == counts


def test_resuming_in_the_middle_of_a_records_examples(tmp_path):
    """Each view of a record takes a row: some are done, some in open rows, some not yet placed."""
    turns = [
        {"role": role, "content": f"{role} {turn} " + "word " * 10}
        for turn in range(7)
        for role in ("user", "assistant")
    ]
    path = write_records(tmp_path / "d.jsonl", [{"messages": turns}] * 3)
    config = settings(
        path, batch_size=1, seq_len=1100, audio_chunks_per_seq=0, packing_bins_per_seq=2
    )
    straight = take(batches(config, TOKENIZER, MODEL, seed=0), 14)
    assert max(batch.segment_ids.max() for batch in straight) > 1
    for done in range(10):
        iterator = batches(config, TOKENIZER, MODEL, seed=0)
        take(iterator, done)
        resumed = batches(config, TOKENIZER, MODEL, seed=0)
        resumed.set_state(iterator.get_state())
        assert all(map(same, straight[done : done + 4], take(resumed, 4)))


@pytest.mark.parametrize("shards", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(corpus, shards):
    config = settings(*corpus)
    alone = take(batches(config, TOKENIZER, MODEL, seed=2), 6)
    held = [
        range(shard * config.batch_size // shards, (shard + 1) * config.batch_size // shards)
        for shard in range(shards)
    ]
    parts = [take(batches(config, TOKENIZER, MODEL, seed=2, rows=rows), 6) for rows in held]
    for step, whole in enumerate(alone):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(part[step] for part in parts))
        assert same(joined, whole)


def test_processes_read_disjoint_records(corpus):
    """In evaluation each record is read once, by one process."""
    seen = [
        collections.Counter(
            reply
            for batch in evaluation_batches(settings(corpus[1]), TOKENIZER, MODEL, rows=rows)
            for reply in replies(batch)
        )
        for rows in ((0, 1), (2, 3))
    ]
    assert not seen[0] & seen[1]
    assert seen[0] + seen[1] == collections.Counter(f"reply {number}" for number in range(40))


def test_any_number_of_processes_resumes_from_the_merged_state(corpus):
    config = settings(*corpus)
    alone = batches(config, TOKENIZER, MODEL, seed=2)
    take(alone, 3)
    parts = [batches(config, TOKENIZER, MODEL, seed=2, rows=rows) for rows in ((0, 1), (2, 3))]
    for part in parts:
        take(part, 3)
    merged = merge_states([part.get_state() for part in parts])
    assert merged["counts"] == alone.counts
    resumed = batches(config, TOKENIZER, MODEL, seed=2)
    resumed.set_state(merged)
    again = [batches(config, TOKENIZER, MODEL, seed=2, rows=(row,)) for row in range(4)]
    for iterator in again:
        iterator.set_state(merged)
    expected = take(alone, 3)
    assert all(map(same, expected, take(resumed, 3)))
    for step, batch in enumerate(zip(*(take(iterator, 3) for iterator in again), strict=True)):
        assert same(jax.tree.map(lambda *rows: np.concatenate(rows), *batch), expected[step])
    assert (
        sum((collections.Counter(iterator.counts) for iterator in again), collections.Counter())
        == resumed.counts
    )


def test_sources_are_mixed_by_weight_in_the_batches(corpus):
    spoken, written = corpus
    config = settings(
        SourceConfig(path=str(spoken), name="heard"), SourceConfig(path=str(written), weight=3.0)
    )
    iterator = batches(config, TOKENIZER, MODEL, seed=0)
    take(iterator, 40)
    counts = iterator.counts
    assert counts["records"] == counts["records/heard"] + counts["records/written"]
    assert abs(counts["records/heard"] - counts["records"] / 4) < 2 * config.batch_size


def test_text_only_batches_need_no_audio_chunks(corpus):
    batch = next(batches(settings(corpus[1], audio_chunks_per_seq=0), TOKENIZER, MODEL, seed=0))
    assert batch.mel.shape == (4, 0, 128, 160)
    assert batch.mel_lengths.shape == (4, 0)
    assert (batch.audio_index == -1).all()
    with pytest.raises(DataError, match="audio_chunks_per_seq=0"):
        next(batches(settings(corpus[0], audio_chunks_per_seq=0), TOKENIZER, MODEL, seed=0))


def test_evaluation_is_finite_and_fixed(corpus):
    config = settings(*corpus)
    first, second = (list(evaluation_batches(config, TOKENIZER, MODEL)) for _ in range(2))
    assert len(first) == len(second)
    assert all(map(same, first, second))
    iterator = evaluation_batches(config, TOKENIZER, MODEL)
    list(iterator)
    assert iterator.counts == {"records": 64, "records/spoken": 24, "records/written": 40}
    assert (
        not first[-1].segment_ids.any(axis=1).all()
    )  # the last batch has empty rows, and its shape is that of the others
    assert first[-1].tokens.shape == first[0].tokens.shape


def test_evaluation_has_the_given_number_of_batches(corpus):
    config = settings(corpus[1])
    every = list(evaluation_batches(config, TOKENIZER, MODEL))
    assert all(map(same, every[:1], evaluation_batches(config, TOKENIZER, MODEL, count=1)))
    padded = list(evaluation_batches(config, TOKENIZER, MODEL, count=len(every) + 2))
    assert len(padded) == len(every) + 2
    assert all(map(same, every, padded))
    assert not padded[-1].segment_ids.any()
    assert not padded[-1].loss_weights.any()


def test_evaluation_is_not_augmented(corpus):
    with pytest.raises(ConfigError, match="training only"):
        evaluation_batches(
            settings(*corpus, augmentation=AugmentationConfig(time_masks=1)), TOKENIZER, MODEL
        )


def test_a_state_of_other_data_is_refused(corpus, tmp_path):
    spoken, written = corpus
    state = batches(settings(spoken, written), TOKENIZER, MODEL, seed=0).get_state()

    def resume(config, seed=0, **shard):
        batches(config, TOKENIZER, MODEL, seed=seed, **shard).set_state(state)

    # What changes no batch may change.
    resume(settings(spoken, written, threads=7, prefetch_batches=1))
    resume(settings(spoken, written, clip_cache_dir=str(tmp_path / "kept"), clip_cache_gb=2.0))
    shorter = write_records(tmp_path / "written.jsonl", [text_record(0, 3)])
    for config, seed, key in (
        (settings(spoken, shorter), 0, "sources"),
        (settings(spoken), 0, "sources"),
        (settings(spoken, SourceConfig(path=str(written), weight=2.0)), 0, "sources"),
        (settings(spoken, written, seq_len=600), 0, "seq_len"),
        (settings(spoken, written, loss_on_reasoning=False), 0, "loss_on_reasoning"),
        (settings(spoken, written), 1, "seed"),
    ):
        with pytest.raises(DataError, match=f"cannot resume: the data's {key}"):
            resume(config, seed)
    half = batches(settings(spoken, written), TOKENIZER, MODEL, seed=0, rows=(0, 1)).get_state()
    with pytest.raises(DataError, match=r"not \[2, 3\]"):
        batches(settings(spoken, written), TOKENIZER, MODEL, seed=0).set_state(half)


def test_sizes_beyond_the_model_are_errors(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"decoder\.vocab_size=200"):
        batches(settings(*corpus), TOKENIZER, _smaller(vocab_size=200), seed=0)
    with pytest.raises(ConfigError, match="at most 3000"):
        batches(settings(*corpus, mel_frames_per_chunk=3001), TOKENIZER, MODEL, seed=0)
    with pytest.raises(DataError, match="max_positions=40"):
        next(batches(settings(*corpus), TOKENIZER, _smaller(max_positions=40), seed=0))
    assert evaluation_batches(
        settings(corpus[1], mel_frames_per_chunk=3001, audio_chunks_per_seq=0), TOKENIZER, MODEL
    )


def _smaller(**changes):
    return dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, **changes))


def test_a_program_exits_cleanly_while_batches_are_made(tmp_path):
    """A thread in native code at the interpreter's end would abort it, or print a traceback."""
    write_clip(tmp_path / "clips/0.wav", 1.0, seed=0)
    write_spoken(tmp_path)
    program = f"""
        import sys
        from stepaudio_jax.data import batches
        from tests.data.corpus import MODEL, TOKENIZER, settings
        import pathlib
        path = pathlib.Path({str(tmp_path / "spoken.jsonl")!r})
        config = settings(path, prefetch_batches=3)
        started = [batches(config, TOKENIZER, MODEL, seed=seed) for seed in range(3)]
        next(started[0]), next(started[1])
        sys.exit("the end")
    """
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "the end\n")


def records(stream, epoch: int, length: int) -> list[int]:
    return [stream[index].record for index in range(epoch * length, (epoch + 1) * length)]


def test_each_epoch_is_a_new_permutation():
    (stream,) = training_streams([50], [1.0], seed=3, rows=1)
    epochs = [records(stream, epoch, 50) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(50)) not in epochs
    assert [stream[index].epoch for index in (0, 49, 50, 199)] == [0, 0, 1, 3]


def test_the_order_depends_on_the_seed():
    def order(seed: int, source: int) -> list[int]:
        streams = training_streams([50, 50], [1.0, 1.0], seed=seed, rows=1)
        return [
            visit.record
            for visit in (streams[0][index] for index in range(100))
            if visit.source == source
        ]

    assert order(3, 0) == order(3, 0)
    assert len({tuple(order(seed, source)) for seed in (3, 4) for source in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("block", "number", "blocks_together"),
    [
        (Block(200, 0), 25, 21),
        (Block(20, 100 << 20), 25, 3),
        (Block(4100, 0), 2, 1),
        (Block(7, 1 << 30), 25, 1),
    ],
)
def test_records_are_shuffled_with_those_of_as_many_blocks_as_are_kept(
    block, number, blocks_together
):
    """Each block is read once an epoch: no more blocks are in use than the cache keeps."""
    length = number * block.rows
    (stream,) = training_streams([length], [1.0], seed=3, rows=1, blocks=[[block] * number])
    first, second = (records(stream, epoch, length) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(length))
    assert first != second
    window = blocks_together * block.rows
    used = [
        {record // block.rows for record in first[start : start + window]}
        for start in range(0, length, window)
    ]
    assert max(map(len, used)) == blocks_together
    assert sum(map(len, used)) == number


@pytest.mark.parametrize("rows", [1, 3, 4, 8, 64])
def test_rows_partition_every_epoch(rows):
    """An epoch has each record in exactly one row, even with fewer records than rows."""
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
    """In every prefix of a row's stream, each source has its share, up to one record a source."""
    streams = training_streams([700, 1000, 300][: len(weights)], weights, seed=0, rows=4)
    shares = np.array(weights) / sum(weights)
    for stream in streams:
        sources = np.array([stream[index].source for index in range(600)])
        drawn = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        expected = np.arange(1, 601)[:, None] * shares
        assert np.abs(drawn - expected).max() < len(weights) + 0.005 * 600 * shares.max()


def test_weights_do_not_depend_on_the_length_of_a_source():
    """A small source of a great weight comes round more often; its epochs go by faster."""
    (stream,) = training_streams([50, 1000], [1.0, 1.0], seed=0, rows=1)
    small = [visit for visit in (stream[index] for index in range(200)) if visit.source == 0]
    assert len(small) == 100
    assert collections.Counter(visit.record for visit in small) == dict.fromkeys(range(50), 2)
    assert small[-1].epoch == 1


def test_evaluation_streams_have_every_record_once_in_order():
    streams = evaluation_streams([3, 4], rows=2)
    every = [Visit(0, record, 0) for record in range(3)] + [
        Visit(1, record, 0) for record in range(4)
    ]
    assert [[stream[index] for index in range(len(stream))] for stream in streams] == [
        every[::2],
        every[1::2],
    ]
