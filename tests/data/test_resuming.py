"""Resuming and sharing out, for every container: the same batches from any place, on any number of
processes."""

import hashlib
import itertools
import json
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from stepaudio_jax.config import AugmentationConfig
from stepaudio_jax.data import Batch, batches, merge_states
from tests.data.corpus import MODEL, TOKENIZER, settings
from tests.data.every_container import CONTAINERS, write_mixture, write_source

MIXTURE = ("jsonl", "tar", "parquet", "array_record_of_groups", "tfds_tfrecord", "kaldi")
NOISE = AugmentationConfig(noise_probability=0.5, gain_db=(-3, 3))
BATCHES = 7
FAST = ("jsonl", "parquet", "array_record", "mixture")


@pytest.fixture(
    scope="module",
    params=[
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in (*CONTAINERS, "mixture")
    ],
)
def config(request, tmp_path_factory):
    """Four rows a batch, of each container and of several by weight."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mixture":
        sources = write_mixture(MIXTURE, folder)
    else:
        sources = [write_source(request.param, folder / "rows")]
    return settings(*sources, augmentation=NOISE, threads=2)


@pytest.fixture(scope="module")
def straight(config):
    """The batches of a process that is never interrupted."""
    return take(open_batches(config), BATCHES)


def open_batches(config, rows=None):
    return batches(config, TOKENIZER, MODEL, seed=11, rows=rows)


def take(iterator, count: int) -> list[Batch]:
    return list(itertools.islice(iterator, count))


def same(first: Batch, second: Batch) -> bool:
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in leaves)


def random_place(config) -> int:
    """Returns how many batches are read before the interruption."""
    return random.Random(f"{config.sources[-1].name} 5").randrange(1, BATCHES - 2)


def split_rows(config, processes: int) -> list[range]:
    held = config.batch_size // processes
    return [range(start, start + held) for start in range(0, config.batch_size, held)]


def join(parts) -> Batch:
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def test_a_reader_that_is_resumed_anywhere_gives_the_same_batches(config, straight):
    done = random_place(config)
    interrupted = open_batches(config)
    take(interrupted, done)
    state = json.dumps(interrupted.get_state())
    resumed = open_batches(config)
    resumed.set_state(json.loads(state))
    assert all(map(same, straight[done:], take(resumed, BATCHES - done)))
    assert not any(itertools.starmap(same, itertools.pairwise(straight)))
    assert all(batch.mel.any() for batch in straight)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_reads_the_same_global_batches(config, straight, processes):
    """From the beginning, and resumed from what two processes have saved."""
    done = random_place(config)
    parts = [take(open_batches(config, rows), done) for rows in split_rows(config, processes)]
    assert all(map(same, straight, map(join, zip(*parts, strict=True))))
    saved = []
    for rows in split_rows(config, 2):
        iterator = open_batches(config, rows)
        take(iterator, done)
        saved.append(iterator.get_state())
    merged = json.loads(json.dumps(merge_states(saved)))
    resumed = [open_batches(config, rows) for rows in split_rows(config, processes)]
    for iterator in resumed:
        iterator.set_state(merged)
    parts = [take(iterator, BATCHES - done) for iterator in resumed]
    assert all(map(same, straight[done:], map(join, zip(*parts, strict=True))))


READER = """
    import hashlib, itertools, json, pathlib, sys, jax
    from stepaudio_jax.storage import write_json
    from tests.data import test_resuming
    from tests.data.corpus import settings
    from stepaudio_jax.config import SourceConfig

    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    given = json.loads((folder / "sources.json").read_text())
    sources = [SourceConfig(**source) for source in given]
    config = settings(*sources, augmentation=test_resuming.NOISE)
    iterator = test_resuming.open_batches(config)
    state, read = folder / "state.json", []
    if state.exists():
        saved = json.loads(state.read_text())
        iterator.set_state(saved["iterator"])
        read = saved["read"]
    while len(read) < count:
        read.append(test_resuming.fingerprint(next(iterator)))
        write_json(state, {"iterator": iterator.get_state(), "read": read})
"""


def fingerprint(batch: Batch) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(batch):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_reads_goes_on_where_it_was(tmp_path):
    """Of all containers at once; killed twice, at random moments."""
    count = 60
    sources = write_mixture(tuple(CONTAINERS), tmp_path / "data")
    given = [{"path": each.path, "weight": each.weight, "name": each.name} for each in sources]
    (tmp_path / "sources.json").write_text(json.dumps(given))
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(READER), str(tmp_path), str(count)]
    kills, state = random.Random(5), tmp_path / "state.json"
    num_read = 0
    for wanted in (kills.randrange(1, 20), kills.randrange(25, 45)):
        process = subprocess.Popen(command, cwd=root)
        while process.poll() is None and num_read < wanted:
            time.sleep(0.002)
            num_read = len(json.loads(state.read_text())["read"]) if state.exists() else 0
        process.kill()
        assert process.wait() == -signal.SIGKILL
        num_read = len(json.loads(state.read_text())["read"])
        assert wanted <= num_read < count
    subprocess.run(command, cwd=root, check=True)
    config = settings(*sources, augmentation=NOISE)
    straight = [fingerprint(batch) for batch in take(open_batches(config), count)]
    assert json.loads(state.read_text())["read"] == straight
