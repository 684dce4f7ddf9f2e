"""Folders of weights in buckets: converted, inspected and loaded as local ones are."""

import json

import jax
import numpy as np
import pytest

from stepaudio_jax import hub, storage
from stepaudio_jax.errors import CheckpointError, OutputError, TextError
from stepaudio_jax.storage import bucket_locks, to_path
from stepaudio_jax.text import Tokenizer
from tests.hub.folders import random_folder
from tools.convert_weights import __main__ as convert_weights


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A Hugging Face folder, the checkpoint imported from it, and the export of that."""
    folder = tmp_path_factory.mktemp("local")
    random_folder(folder / "source", max_shard_bytes=60_000)
    hub.import_weights(folder / "source", folder / "checkpoint")
    hub.export_weights(folder / "checkpoint", folder / "exported", max_shard_bytes=60_000)
    return folder


def upload(folder, target):
    for file in folder.rglob("*"):
        if file.is_file():
            storage.copy_file(file, f"{target}/{file.relative_to(folder).as_posix()}")


def contents(folder):
    """All files of a folder by their place in it; Orbax's own notes have times in them."""
    files = [path for path in to_path(folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(to_path(folder))): path.read_bytes()
        for path in files
        if "parameters" not in path.parts or path.parent.name.count(".")
    }


def assert_same_parameters(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for first, second in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))


@pytest.mark.slow
def test_import_export_and_inspection(bucket, local, capsys):
    upload(local / "source", f"{bucket}/source")
    source, checkpoint = f"{bucket}/source", f"{bucket}/checkpoint"
    assert convert_weights.main(["import", "--source", source, "--output", checkpoint]) == 0
    expected = contents(local / "checkpoint")
    assert any("parameters" in name for name in expected)
    assert contents(checkpoint) == expected
    exported = [f"--output={bucket}/exported", "--max-shard-size", "60KB"]
    assert convert_weights.main(["export", "--source", checkpoint, *exported]) == 0
    assert contents(f"{bucket}/exported") == contents(local / "exported")
    for folder in (source, checkpoint):
        capsys.readouterr()
        assert convert_weights.main(["inspect", folder]) == 0
        assert "problems    none" in capsys.readouterr().out
    assert_same_parameters(hub.read_parameters(checkpoint), hub.read_parameters(source))
    assert_same_parameters(hub.read_parameters(source), hub.read_parameters(local / "source"))
    assert hub.load_tokenizer(source).fingerprint() == hub.load_tokenizer(checkpoint).fingerprint()
    assert convert_weights.main(["export", "--source", checkpoint, *exported]) == 2
    assert "already exists" in capsys.readouterr().err


def test_tensors_are_read_by_ranges(gcs, local):
    upload(local / "source", "gs://bucket/source")
    gcs.requests.clear()
    decoder = hub.read_parameters("gs://bucket/source", parts=["adaptor"])
    assert_same_parameters(decoder, hub.read_parameters(local / "source", parts=["adaptor"]))
    reads = [line for line in gcs.requests if "alt=media" in line and "safetensors?" in line]
    assert reads
    assert all("bytes=" in line for line in reads)


def test_a_whole_checkpoint_from_memory(bucket, local):
    parameters = hub.read_parameters(local / "checkpoint")
    config = hub.read_model_config(local / "checkpoint")
    tokenizer = hub.load_tokenizer(local / "checkpoint")
    target = f"{bucket}/runs/model"
    hub.save_checkpoint(target, parameters, config, tokenizer, source="test")
    assert hub.read_model_config(target) == config
    assert_same_parameters(hub.read_parameters(target), parameters)
    assert hub.inspect_folder(target).problems == ()
    with pytest.raises(OutputError, match="already exists"):
        hub.save_checkpoint(target, parameters, config, tokenizer, source="test")

    chunk = next(path for path in to_path(target).rglob("0.0") if "embedding" in path.parent.name)
    chunk.unlink()
    with pytest.raises(CheckpointError, match=f"missing {chunk}"):
        hub.read_parameters(target)


def test_tokenizers_in_either_form(bucket):
    tokenizer = Tokenizer.byte_level()
    tokenizer.save(f"{bucket}/tokenizer")
    assert Tokenizer.from_folder(f"{bucket}/tokenizer").fingerprint() == tokenizer.fingerprint()
    to_path(f"{bucket}/tokenizer/tokenizer.json").unlink()
    assert Tokenizer.from_folder(f"{bucket}/tokenizer").encode("ab") == tokenizer.encode("ab")
    with pytest.raises(TextError, match="is not in its bucket"):
        Tokenizer.from_folder(f"{bucket}/none")


def test_a_folder_that_a_killed_writer_left_is_refused_and_replaced(gcs, local):
    for file in (local / "checkpoint").rglob("*"):
        if file.is_file() and "parameters" not in file.parts:
            place = file.relative_to(local / "checkpoint").as_posix()
            storage.copy_file(file, f"gs://bucket/checkpoint/{place}")
    # As a process of this machine left it that has ended since.
    holder = {"machine": bucket_locks._machine(), "process": 0, "started": "1"}
    to_path("gs://bucket/checkpoint/.incomplete").write_text(json.dumps(holder))
    with pytest.raises(CheckpointError, match="still being written, or its writer was killed"):
        hub.read_model_config("gs://bucket/checkpoint")
    with storage.atomic_directory("gs://bucket/checkpoint") as folder:
        assert [path.name for path in folder.iterdir()] == [".incomplete"]


def test_folders_that_are_not_there(gcs, capsys):
    assert convert_weights.main(["inspect", "gs://bucket/none"]) == 2
    assert "gs://bucket/none is not in its bucket" in capsys.readouterr().err
    assert convert_weights.main(["inspect", "gs://no-bucket/none"]) == 2
    assert "there is no bucket gs://no-bucket" in capsys.readouterr().err
