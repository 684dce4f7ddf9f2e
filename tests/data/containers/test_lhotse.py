"""Lhotse manifests: a pair gives the rows of cuts; names, and what has no counterpart."""

import gzip
import json
import pathlib
import shutil

import pytest

from stepaudio_jax.data.containers.lhotse import LhotsePair
from stepaudio_jax.data.containers.opening import open_container
from stepaudio_jax.errors import DataError


def recording(name: str) -> dict[str, object]:
    source = {"type": "file", "channels": [0], "source": f"{name}.wav"}
    return {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": 16000}


def supervision(name: str, of: str, start: float = 0.0) -> dict[str, object]:
    return {
        **{"id": name, "recording_id": of, "start": start, "duration": 1.0, "channel": 0},
        "text": f"text of {name}",
    }


def write(path: pathlib.Path, *rows: object) -> pathlib.Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_a_pair_gives_the_rows_of_the_cuts(formats, tmp_path):
    cuts = open_container(formats / "lhotse" / "cuts.jsonl")
    expected = [cuts.row(index).value for index in range(3)]
    for name in ("recordings.jsonl.gz", "supervisions.jsonl.gz"):
        shutil.copy(formats / "lhotse" / name, tmp_path)
    for path in (tmp_path, tmp_path / "recordings.jsonl.gz", tmp_path / "supervisions.jsonl.gz"):
        pair = open_container(path)
        assert isinstance(pair, LhotsePair)
        assert [pair.row(index).value for index in range(3)] == expected
        row = pair.row(2)
        assert (row.origin, row.default_id) == (f"{tmp_path}/supervisions.jsonl.gz:3", "c-2")
        assert row.folder == str(tmp_path)


def test_cuts_are_preferred(formats, tmp_path):
    shutil.copytree(formats / "lhotse", tmp_path, dirs_exist_ok=True)
    assert open_container(tmp_path).path == f"{tmp_path}/cuts.jsonl"
    (tmp_path / "cuts.jsonl").unlink()
    assert open_container(tmp_path).path == f"{tmp_path}/cuts.jsonl.gz"


def test_several_supervisions_of_a_recording_are_cuts_of_their_own(tmp_path):
    pair = LhotsePair(
        write(tmp_path / "recordings.jsonl", recording("r"), recording("q")),
        write(
            tmp_path / "supervisions.jsonl",
            supervision("u3", "q"),
            supervision("u1", "r"),
            supervision("u2", "r", start=2.5),
        ),
    )
    rows = [pair.row(index).value for index in range(3)]
    assert [row["id"] for row in rows] == ["r-0-0", "r-0-1", "q-1"]
    assert [row["start"] for row in rows] == [0.0, 2.5, 0.0]
    assert rows[1]["supervisions"] == [supervision("u2", "r")]
    assert rows[1]["recording"] == recording("r")
    assert pair.origin(0) == f"{tmp_path}/supervisions.jsonl:2"


def test_manifests_named_after_a_part(tmp_path):
    write(tmp_path / "libri_recordings_dev.jsonl.gz", recording("r"))
    write(tmp_path / "libri_supervisions_dev.jsonl", supervision("u", "r"))
    assert open_container(tmp_path).row(0).value["id"] == "r-0"
    write(tmp_path / "libri_recordings_test.jsonl.gz", recording("r"))
    write(tmp_path / "libri_supervisions_test.jsonl.gz", supervision("u", "r"))
    with pytest.raises(DataError, match=r"several datasets .*name one of these files"):
        open_container(tmp_path)
    path = tmp_path / "libri_supervisions_dev.jsonl"
    assert open_container(path).row(0).default_id == "r-0"


def test_what_has_no_counterpart_is_named(tmp_path):
    recordings = write(tmp_path / "recordings.jsonl", recording("r"), recording("q"))
    supervisions = write(tmp_path / "supervisions.jsonl", supervision("u", "r"))
    with pytest.raises(DataError, match=r"recordings without a supervision \(1\): q"):
        LhotsePair(recordings, supervisions)
    write(supervisions, supervision("u", "r"), supervision("v", "x"))
    with pytest.raises(DataError, match=r"supervisions\.jsonl:2: is of the recording 'x'"):
        LhotsePair(recordings, supervisions)
    write(supervisions, {"id": "u"})
    with pytest.raises(DataError, match=r"supervisions\.jsonl:1: .*'recording_id'"):
        LhotsePair(recordings, supervisions)
    write(recordings, recording("r"), recording("r"))
    with pytest.raises(DataError, match="recordings of one id"):
        LhotsePair(recordings, supervisions)


def test_one_manifest_alone_is_refused(tmp_path):
    path = write(tmp_path / "supervisions.jsonl", supervision("u", "r"))
    with pytest.raises(DataError, match="needs the one of recordings beside it"):
        open_container(path)
    with pytest.raises(DataError, match="needs a manifest of recordings and one of supervisions"):
        open_container(tmp_path)


def test_shar_is_refused(tmp_path):
    write(tmp_path / "cuts.000000.jsonl.gz", {"id": "a"})
    (tmp_path / "recording.000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="format Shar, which is not read"):
        open_container(tmp_path)
