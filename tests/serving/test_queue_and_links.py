"""The fair queue, and work on its way to other processes."""

import dataclasses

import numpy as np

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.generation import Prompt, Sampling
from stepaudio_jax.serving.command_link import decode_work, encode_work
from stepaudio_jax.serving.fair_queue import FairQueue
from stepaudio_jax.serving.jobs import Work


def test_clients_take_turns():
    queue = FairQueue()
    for client, items in (("busy", range(3)), ("other", range(10, 12)), ("third", range(20, 21))):
        for item in items:
            queue.put(client, item)
    assert len(queue) == 6
    assert queue.remove(11)
    assert not queue.remove(11)
    assert [queue.take() for _ in range(6)] == [0, 10, 20, 1, 2, None]


def test_work_arrives_as_it_was_sent():
    rng = np.random.default_rng(0)
    prompt = Prompt(
        rng.integers(0, 9, 5).astype(np.int32),
        np.array([False, True, True, False, False]),
        np.zeros(5, bool),
        (rng.normal(size=(128, 16)).astype(np.float32),),
        (2,),
    )
    sampling = Sampling(
        stop_strings=("a", "终"),
        stop_tokens=(3,),
        seed=2**32 - 1,
        max_reasoning_tokens=4,
        repetition_detection=RepetitionDetectionConfig(max_pattern_size=3, min_count=2),
    )
    work = Work("m", "c", prompt, (sampling, Sampling()), 2, "start: x")
    got = decode_work(encode_work(work))
    assert dataclasses.replace(got, prompt=prompt) == work
    for field in ("tokens", "is_audio"):
        np.testing.assert_array_equal(getattr(got.prompt, field), getattr(prompt, field))
    np.testing.assert_array_equal(got.prompt.chunks[0], prompt.chunks[0])
    assert got.prompt.chunk_tokens == prompt.chunk_tokens
    assert got.prompt.chunk_digests == prompt.chunk_digests
