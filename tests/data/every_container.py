"""Writes the same spoken rows into every kind of container that there is."""

import csv
import gzip
import io
import json
import pathlib
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from stepaudio_jax.config import SourceConfig
from stepaudio_jax.data.containers.array_record import write_array_record
from stepaudio_jax.data.containers.example import serialize_example
from tests.data.containers import records

PREPARED = pathlib.Path(__file__).parent / "formats" / "tfds" / "talks" / "plain" / "1.0.0"
NUM_ROWS = 11
RATE = 16_000
LABELS = ("statement", "request", "question")


def samples_of(row: int) -> np.ndarray:
    """Returns noise of 0.15 to 1.2 s [samples] i16, of a length of its own."""
    rng = np.random.default_rng(row)
    return rng.integers(-9000, 9000, 2400 + 1680 * (7 * row % NUM_ROWS), dtype=np.int16)


def text_of(row: int) -> str:
    return f"clip number {row} " + "and more " * (5 * row % 7)


def sound_of(row: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples_of(row), RATE, format="WAV")
    return content.getvalue()


def write_clips(folder: pathlib.Path) -> list[str]:
    """Writes all clips as files; returns their paths relative to the folder."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    names = [f"clips/{row}.wav" for row in range(NUM_ROWS)]
    for row, name in enumerate(names):
        (folder / name).write_bytes(sound_of(row))
    return names


def _json_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    names = write_clips(folder)
    return [{"id": f"r{row}", "audio": names[row], "text": text_of(row)} for row in range(NUM_ROWS)]


def _write_lines(path: pathlib.Path, rows: Sequence[Any]) -> pathlib.Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def jsonl(folder: pathlib.Path) -> pathlib.Path:
    return _write_lines(folder / "rows.jsonl", _json_rows(folder))


def jsonl_gz(folder: pathlib.Path) -> pathlib.Path:
    return _write_lines(folder / "rows.jsonl.gz", _json_rows(folder))


def json_array(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(_json_rows(folder), indent=1))
    return path


def csv_table(folder: pathlib.Path) -> pathlib.Path:
    rows = _json_rows(folder)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "rows.csv"


def parquet(folder: pathlib.Path) -> pathlib.Path:
    rows = [
        {"audio": {"bytes": sound_of(row), "path": f"{row}.wav"}, "text": text_of(row)}
        for row in range(NUM_ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=3)
    return folder / "rows.parquet"


def audio_folder(folder: pathlib.Path) -> pathlib.Path:
    rows = [{"file_name": row["audio"], "text": row["text"]} for row in _json_rows(folder)]
    _write_lines(folder / "metadata.jsonl", rows)
    return folder


def audio_folder_of_labels(folder: pathlib.Path) -> pathlib.Path:
    for row in range(NUM_ROWS):
        path = folder / LABELS[row % len(LABELS)] / f"{row}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sound_of(row))
    return folder


def _write_tar(path: pathlib.Path, rows: Sequence[int]) -> pathlib.Path:
    with tarfile.open(path, "w") as archive:
        for row in rows:
            for name, content in (("wav", sound_of(row)), ("txt", text_of(row).encode())):
                member = tarfile.TarInfo(f"{row:04}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def tar(folder: pathlib.Path) -> pathlib.Path:
    return _write_tar(folder / "rows.tar", range(NUM_ROWS))


def folder_of_shards(folder: pathlib.Path) -> pathlib.Path:
    for shard in range(3):
        _write_tar(folder / f"rows-{shard:05}-of-00003.tar", range(shard, NUM_ROWS, 3))
    return folder


def _examples() -> list[bytes]:
    return [
        serialize_example({"audio": [sound_of(row)], "text": [text_of(row).encode()]})
        for row in range(NUM_ROWS)
    ]


def array_record(folder: pathlib.Path) -> pathlib.Path:
    return records.write_array_record(folder / "rows.array_record", _examples())


def array_record_of_groups(folder: pathlib.Path) -> pathlib.Path:
    return records.write_array_record(folder / "rows.array_record", _examples(), "group_size:4")


def array_record_of_dialogues(folder: pathlib.Path) -> pathlib.Path:
    """As a conversion writes it: the project's own form, with the sound inside."""
    path = folder / "rows.array_record"
    write_array_record(
        path,
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "audio", "audio": sound_of(row)}]},
                    {"role": "assistant", "content": text_of(row)},
                ]
            }
            for row in range(NUM_ROWS)
        ],
    )
    return path


def tfrecord(folder: pathlib.Path) -> pathlib.Path:
    return records.write_tfrecord(folder / "rows.tfrecord", _examples())


def _prepared(folder: pathlib.Path, file_format: str) -> pathlib.Path:
    """Writes a data set as TFDS prepares it, in two shards: its sound is integers."""
    version = folder / "talks" / "plain" / "1.0.0"
    version.mkdir(parents=True)
    shutil.copy(PREPARED / "features.json", version)
    (version / "label.labels.txt").write_text("\n".join(LABELS))
    info = json.loads((PREPARED / "dataset_info.json").read_text())
    shards = [range(0, 6), range(6, NUM_ROWS)]
    info["fileFormat"] = file_format
    info["splits"][0]["shardLengths"] = [str(len(rows)) for rows in shards]
    (version / "dataset_info.json").write_text(json.dumps(info))
    write = {"array_record": records.write_array_record, "tfrecord": records.write_tfrecord}
    for number, rows in enumerate(shards):
        examples = [
            serialize_example(
                {
                    "id": [f"r{row}".encode()],
                    "label": np.array([row % len(LABELS)]),
                    "speaker_id": np.array([1]),
                    "speech": samples_of(row).astype(np.int64),
                    "text": [text_of(row).encode()],
                }
            )
            for row in rows
        ]
        write[file_format](version / f"talks-train.{file_format}-{number:05}-of-00002", examples)
    return version


def tfds_array_record(folder: pathlib.Path) -> pathlib.Path:
    return _prepared(folder, "array_record")


def tfds_tfrecord(folder: pathlib.Path) -> pathlib.Path:
    return _prepared(folder, "tfrecord")


def kaldi(folder: pathlib.Path) -> pathlib.Path:
    """A folder whose utterances are parts of recordings."""
    names = write_clips(folder)
    files = {
        "wav.scp": [f"rec{row} {name}" for row, name in enumerate(names)],
        "segments": [f"utt{row} rec{row} 0.02 -1" for row in range(NUM_ROWS)],
        "text": [f"utt{row} {text_of(row)}" for row in range(NUM_ROWS)],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def lhotse(folder: pathlib.Path) -> pathlib.Path:
    names = write_clips(folder)
    cuts = []
    for row, name in enumerate(names):
        duration = len(samples_of(row)) / RATE
        recording = {
            "id": f"rec{row}",
            "sources": [{"type": "file", "channels": [0], "source": name}],
            **{"sampling_rate": RATE, "num_samples": len(samples_of(row)), "duration": duration},
        }
        shared = {"recording_id": f"rec{row}", "duration": duration, "channel": 0}
        said = {"id": f"s{row}", "start": 0, "text": text_of(row), **shared}
        cut = {"id": f"cut{row}", "start": 0, "duration": duration, "channel": 0}
        cuts.append({**cut, "supervisions": [said], "recording": recording, "type": "MonoCut"})
    return _write_lines(folder / "cuts.jsonl.gz", cuts)


CONTAINERS: Mapping[str, Callable[[pathlib.Path], pathlib.Path]] = {
    write.__name__: write
    for write in (
        *(jsonl, jsonl_gz, json_array, csv_table, parquet, audio_folder, audio_folder_of_labels),
        *(tar, folder_of_shards, array_record, array_record_of_groups, array_record_of_dialogues),
        *(tfrecord, tfds_array_record, tfds_tfrecord, kaldi, lhotse),
    )
}


def write_source(name: str, folder: pathlib.Path, weight: float = 1.0) -> SourceConfig:
    """Writes a container into a new folder."""
    folder.mkdir(parents=True)
    return SourceConfig(path=str(CONTAINERS[name](folder)), weight=weight, name=name)


def write_mixture(names: Sequence[str], folder: pathlib.Path) -> list[SourceConfig]:
    """Writes several containers, whose weights are 1, 2, 3, 1, 2, .."""
    return [
        write_source(name, folder / name, weight=1.0 + number % 3)
        for number, name in enumerate(names)
    ]
