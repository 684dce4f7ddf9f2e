"""Measures how many clips a second are read from each container, beside `datasets`, `webdataset`.

    pip install 'datasets[audio]' torch webdataset      # datasets decodes with torchcodec, which
    apt-get install ffmpeg                              # needs FFmpeg's libraries
    python -m benchmarks.data [--codec wav] [--threads 2] [--clips 1000] [--rounds 8]

Every side reads the same 10 s clips in a random order, with as many threads, into float32 samples
at 16 kHz, and has a process of its own; the sides take turns. Ours is what the loader does with
each record up to its samples: the row is parsed and checked, the clip decoded and checked (cut
short, damaged, silent, not finite). `datasets` reads the same files of JSON Lines, and the same
Parquet files as the Arrow table that it makes of them, at random; `webdataset` streams the same
tars through its shuffle buffer, and decodes with soundfile. A peer that is not installed is left
out, and named.

The last line is the time in which one host of a pod prepares its part of a batch (`host_share`).
"""

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.clip_containers import CLIP_SAMPLES, SHARDS, number_of, waveform, write_containers
from benchmarks.compare import Step, take_turns
from benchmarks.host_share import print_host_share
from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data import open_source, training_streams
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.text import AudioPart

BAR, BAR_AT_RANDOM = 1.0, 1.5
DATASETS_FILES, DATASETS_ARROW = "datasets, JSONL", "datasets, Arrow"
WEBDATASET = "webdataset, tar"
# Which sides read the same data, or at least the same clips.
PEERS = {
    "jsonl": (DATASETS_FILES, DATASETS_ARROW),
    "parquet": (DATASETS_ARROW,),
    "tar": (DATASETS_ARROW, WEBDATASET),
    "array_record": (DATASETS_ARROW,),
    "tfrecord": (DATASETS_ARROW,),
    "tfds": (DATASETS_ARROW,),
}
_PACKAGES = {
    DATASETS_FILES: ("datasets", "torchcodec.decoders"),
    DATASETS_ARROW: ("datasets", "torchcodec.decoders"),
    WEBDATASET: ("webdataset",),
}
_SHUFFLE_BUFFER = 256
_CHECKED_CLIPS = 8

Clip = tuple[str, NDArray[np.float32]]
"""The text of a row, and the samples of its clip."""


def our_side(path: str, threads: int, batch: int) -> Step:
    """Returns a step that reads `batch` clips of a source, in the order of training."""
    source = open_source(path)
    (visits,) = training_streams(
        [len(source)], [1.0], seed=0, rows=1, blocks=[source.block_lengths()]
    )

    def read(position: int) -> Clip:
        record = source[visits[position].record]
        (part,) = (part for part in record.messages[0].parts if isinstance(part, AudioPart))
        return str(record.messages[-1].text), load_clip(part)

    return _random_access_step(read, threads, batch)


def datasets_side(builder: str, path: str, cache: str, threads: int, batch: int) -> Step:
    """Returns a step that reads `batch` rows of `datasets` at random, and decodes their clips."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset(builder, data_files=path, split="train", cache_dir=cache)
    table = table.cast_column("audio", datasets.Audio(sampling_rate=SAMPLE_RATE))
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(table)) for _ in range(1000)])

    def read(position: int) -> Clip:
        row = table[int(order[position % len(order)])]
        return row["text"], row["audio"].get_all_samples().data.numpy()[0]

    return _random_access_step(read, threads, batch)


def webdataset_side(path: str, codec: str, threads: int, batch: int) -> Step:
    """Returns a step that takes `batch` clips from streams of tars, one stream a thread."""
    import webdataset

    shards = sorted(map(str, pathlib.Path(path).parent.glob(pathlib.Path(path).name)))

    def decode(sample: dict[str, Any]) -> Clip:
        samples, rate = soundfile.read(io.BytesIO(sample[codec]), dtype="float32")
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"{sample['__key__']}: {rate} Hz")
        return sample["txt"].decode(), samples

    def stream(thread: int) -> Iterator[Clip]:
        own = shards[thread::threads]
        dataset = webdataset.WebDataset(own, shardshuffle=len(own), empty_check=False)
        return iter(dataset.shuffle(_SHUFFLE_BUFFER).map(decode).repeat())

    streams = [stream(thread) for thread in range(threads)]
    counts = [batch // threads + (thread < batch % threads) for thread in range(threads)]
    executor = ThreadPoolExecutor(threads)

    def take(clips: Iterator[Clip], count: int) -> list[Clip]:
        return list(itertools.islice(clips, count))

    def step() -> None:
        for clips in executor.map(take, streams, counts):
            _check_sizes(clips)

    _check_content(take(streams[0], _CHECKED_CLIPS))
    return step


def _random_access_step(read: Callable[[int], Clip], threads: int, batch: int) -> Step:
    """Returns a step that reads the next `batch` positions of an endless order."""
    executor = ThreadPoolExecutor(threads)
    positions = itertools.count()
    _check_content(map(read, range(_CHECKED_CLIPS)))
    return lambda: _check_sizes(executor.map(read, itertools.islice(positions, batch)))


def _check_content(clips: Iterable[Clip]) -> None:
    """Checks that a side reads the clips that were written."""
    for said, samples in clips:
        expected = waveform(number_of(said)) / np.float32(32768)
        if samples.dtype != np.float32 or not np.allclose(samples, expected, atol=1e-6):
            raise RuntimeError(f"the samples of {said!r} are not those that were written")


def _check_sizes(clips: Iterable[Clip]) -> None:
    for said, samples in clips:
        if samples.shape != (CLIP_SAMPLES,) or samples.dtype != np.float32:
            raise RuntimeError(f"{said!r} has samples {samples.shape} of {samples.dtype}")


def find_missing(side: str) -> str | None:
    """Returns why a peer cannot take part, or None."""
    for package in _PACKAGES[side]:
        try:
            importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:
            first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            return f"{package} cannot be imported: {first.strip()}"
    return None


def print_containers(sources: dict[str, str], cache: str, options: argparse.Namespace) -> None:
    """Times all sides, and prints a line for each."""
    work = {"threads": options.threads, "batch": options.batch}
    sides: dict[str, Callable[[], Step]] = {
        name: functools.partial(our_side, path, **work) for name, path in sources.items()
    }
    datasets = functools.partial(datasets_side, cache=cache, **work)
    peers = {
        DATASETS_FILES: functools.partial(datasets, "json", sources["jsonl"]),
        DATASETS_ARROW: functools.partial(datasets, "parquet", sources["parquet"]),
        WEBDATASET: functools.partial(webdataset_side, sources["tar"], options.codec, **work),
    }
    for name, side in peers.items():
        if missing := find_missing(name):
            print(f"{name} is left out: {missing}")
        else:
            sides[name] = side
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": cache}
    turns = take_turns(
        sides,
        rounds=options.rounds,
        steps=options.steps,
        environments=dict.fromkeys(peers, offline),
    )
    rates = {
        name: [options.batch / statistics.median(seconds) for seconds in turn]
        for name, turn in turns.items()
    }
    print(f"\n{'':18s} clips/s  beside the better of")
    for name, turn in rates.items():
        line = f"{name:18s} {statistics.median(turn):7.0f}"
        beside = [peer for peer in PEERS.get(name, ()) if peer in rates]
        print(line + (_ratio(name, beside, rates) if beside else ""))


def _ratio(name: str, beside: list[str], rates: dict[str, list[float]]) -> str:
    """Returns the ratio to the fastest peer, over all rounds and its range in single rounds."""
    best = max(beside, key=lambda peer: statistics.median(rates[peer]))
    rounds = [ours / peer for ours, peer in zip(rates[name], rates[best], strict=True)]
    bar = BAR_AT_RANDOM if name == "array_record" else BAR
    ratio = statistics.median(rounds)
    verdict = "" if ratio >= bar else "  BELOW"
    return (
        f"  {ratio:5.2f} times {best} ({min(rounds):.2f} to {max(rounds):.2f}; bar {bar}){verdict}"
    )


def main() -> None:
    """Writes the containers, times all sides, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codec", choices=("flac", "wav"), default="flac", help="of the clips")
    parser.add_argument("--threads", type=int, default=2, help=f"of each side, up to {SHARDS}")
    parser.add_argument("--clips", type=int, default=1000, help="in each container")
    parser.add_argument("--batch", type=int, default=128, help="clips of a step")
    parser.add_argument("--steps", type=int, default=4, help="of each turn")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each side")
    options = parser.parse_args()
    print(
        f"{options.clips} clips of 10 s, {options.codec}, {options.threads} threads of"
        f" {os.cpu_count()} processors"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        with contextlib.chdir(path):
            (path / "clips").mkdir()
            sources = write_containers(path / "clips", options.clips, options.codec)
            print_containers(sources, str(path / "cache"), options)
    print()
    print_host_share(threads=options.threads)


if __name__ == "__main__":
    main()
