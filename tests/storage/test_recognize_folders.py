"""Folders named as a model that hold none: one line says what they hold, and what to name."""

import json
import os
import pathlib
import shutil

import pytest

from stepaudio_jax import hub
from stepaudio_jax.config import load_config
from stepaudio_jax.errors import CheckpointError, TextError
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.initial_weights import initial_model
from tests.hub.folders import random_folder
from tools.convert_weights import __main__ as convert_weights

HASH = "0123456789abcdef0123456789abcdef01234567"
SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return random_folder(tmp_path_factory.mktemp("source") / "source")


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    hub.import_weights(source, folder)
    return folder


def copied(source, folder, *without):
    return pathlib.Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*without)))


def cached(source, cache, name="models--org--name", revision=HASH, *, main=True):
    """Puts the model into a cache of the Hub; returns the snapshot."""
    repository = cache / name
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    if main:
        (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        blob = repository / "blobs" / file.name.encode().hex()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def run_folder(folder, checkpoint, *, finished):
    """Makes a folder as `launch.train` leaves it."""
    (folder / "checkpoints" / "sft" / "10").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run_dir": "x", "stages": [], "model": {}}))
    (folder / "metrics.jsonl").touch()
    copied(checkpoint, folder / "checkpoints" / "shape", "parameters")
    if finished:
        copied(checkpoint, folder / "model")
    return folder


def check_weights(folder, reason):
    with pytest.raises(CheckpointError, match=reason) as error:
        hub.read_parameters(folder, parts=["adaptor"])
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def check_tokenizer(folder, reason):
    with pytest.raises(TextError, match=reason) as error:
        hub.load_tokenizer(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def check_both(folder, reason):
    check_weights(folder, reason)
    check_tokenizer(folder, reason)


def test_cache_of_the_hub(source, tmp_path):
    cache = tmp_path / "huggingface" / "hub"
    first = cached(source, cache)
    newer = cached(source, cache, revision="f" * 40, main=False)
    repository = first.parent.parent
    for folder in (repository, repository / "snapshots", repository / "blobs"):
        check_both(
            folder,
            f"is a folder of the Hub's cache, not the model in it; name its snapshot, {first}$",
        )
    (repository / "refs" / "main").unlink()
    os.utime(first, (1, 1))
    check_both(repository, f"name its snapshot, {newer}$")
    other = cached(source, cache, "models--a--b")
    for folder in (cache, cache.parent):
        check_both(
            folder, f"is the Hub's cache; name the snapshot of one model in it: {other} or {newer}$"
        )
    assert hub.read_model_config(first).decoder.vocab_size == 300
    assert hub.load_tokenizer(first).vocab_size == 290


def test_a_snapshot_copied_without_its_files(source, tmp_path):
    snapshot = cached(source, tmp_path)
    links = tmp_path / "deep" / "links"
    links.mkdir(parents=True)
    for link in snapshot.iterdir():  # as `cp -a` copies a snapshot
        (links / link.name).symlink_to(os.readlink(link))
    check_both(
        links,
        r"holds links to files that do not exist \(.* -> ../../blobs/.*; copy the files .*,"
        " with `cp -rL`",
    )


def test_downloads_under_way(source, tmp_path):
    repository = tmp_path / "models--org--name"
    (repository / "snapshots" / HASH).mkdir(parents=True)
    (repository / "blobs").mkdir()
    check_both(
        repository,
        "is a folder of the Hub's cache without a snapshot;"
        " download it again: `hf download org/name`",
    )
    (repository / "blobs" / "abc.incomplete").touch()
    again = (
        r"is an unfinished download \(.*\);"
        " run the same download again until it says that it is done"
    )
    check_both(repository, again)
    check_both(repository / "snapshots" / HASH, again)
    folder = copied(source, tmp_path / "folder", SHARD)
    missing = f"{INDEX} names files that do not exist, 1 of 1: {SHARD}; "
    check_weights(folder, f"{missing}download or copy")
    downloads = folder / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    (downloads / "Gk3=.abc.incomplete").touch()
    check_weights(folder, f"{missing}the folder {again}")
    (folder / f"{SHARD}.crdownload").touch()
    check_weights(folder, f"{missing}{SHARD} is not there, and {SHARD}.crdownload is")
    (folder / INDEX).unlink()
    check_weights(folder, again)


def test_run_folder_of_a_finished_run(checkpoint, tmp_path, monkeypatch):
    run = run_folder(tmp_path / "run", checkpoint, finished=True)
    is_run = "is the folder of a training run, not its model; name"
    check_weights(run, f"{is_run} {run / 'model'}$")
    check_tokenizer(run, f"{is_run} {run / 'model' / 'tokenizer'}$")
    for part in ("parameters", "parameters/state"):
        check_both(
            run / "model" / part,
            f"is a part of a model; name the folder of all of it, {run / 'model'}$",
        )
    check_weights(run / "model" / "tokenizer", f"name the folder of all of it, {run / 'model'}$")
    with pytest.raises(
        TextError, match=f"is a model; name its tokenizer, {run / 'model' / 'tokenizer'}$"
    ):
        Tokenizer.from_folder(run / "model")
    check_weights(
        tmp_path, f"has no config.json; name the subfolder that is meant: {run / 'model'}$"
    )
    monkeypatch.chdir(run)
    check_weights(pathlib.Path("."), f"{is_run} model$")


def test_run_folder_of_an_unfinished_run(checkpoint, tmp_path):
    run = run_folder(tmp_path / "run", checkpoint, finished=False)
    take = (
        f"take the model out of a checkpoint: `python -m launch.checkpoint {run} --output DIR`,"
        " and name DIR$"
    )
    check_both(run, f"is the folder of a training run that has no finished model; {take}")
    for inside in ("checkpoints", "checkpoints/sft", "checkpoints/sft/10"):
        check_both(run / inside, f"holds checkpoints of a training run, not a model; {take}")
    check_weights(run / "checkpoints" / "shape", take)
    assert hub.load_tokenizer(run / "checkpoints" / "shape").vocab_size == 290
    shutil.rmtree(run / "checkpoints")
    check_both(run, "has neither a finished model nor checkpoints; train it first")
    lost = copied(checkpoint, tmp_path / "lost", "parameters")
    check_weights(lost, "is a model without its parameters/; download or copy it again")


def test_every_program_prints_the_finding(checkpoint, source, tmp_path, capsys):
    run = run_folder(tmp_path / "run", checkpoint, finished=True)
    out, name = tmp_path / "out", f"name {run / 'model'}"
    for command in (
        ["import", "--source", run, "--output", out],
        ["import", "--source", source, "--encoder-source", run, "--output", out],
        ["import", "--source", source, "--tokenizer", run, "--output", out],
        ["export", "--source", run, "--output", out],
        ["inspect", run],
        ["random", "--preset", "tiny", "--tokenizer", run, "--output", out],
    ):
        assert convert_weights.main([str(part) for part in command]) == 2
        captured = capsys.readouterr()
        assert name in captured.err
        assert captured.err.count("\n") == 1
    assert not out.exists()
    for key in ("initial.model", "initial.encoder", "initial.decoder", "tokenizer"):
        keys = [("initial.model", str(source)), (key, str(run))]
        with pytest.raises(ValueError, match=name):
            initial_model(load_config("configs/quickstart.py", keys))


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-7B", "r": 8}


def test_adapter_alone(source, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").touch()
    merge = (
        "merge the two: `python -m tools.convert_weights import --source BASE"
        f" --adapter {folder} --output MODEL`"
    )
    check_weights(folder, f"is a PEFT adapter, not a model; {merge}")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    check_weights(folder, f"is a PEFT adapter for Qwen/Qwen2.5-7B, not a model; {merge}")
    check_tokenizer(
        folder,
        "is a PEFT adapter for Qwen/Qwen2.5-7B, without a tokenizer; name the folder of the model",
    )
    shutil.copy(source / "config.json", folder)
    check_weights(folder, merge)
    beside = copied(source, tmp_path / "beside")
    (beside / "adapter_config.json").write_text(json.dumps(ADAPTER))
    check_weights(
        beside, "holds a model .* and beside it a PEFT adapter .*: move the adapter to a folder"
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["pytorch_model.bin"],
            r"holds PyTorch pickles \(pytorch_model.bin\) and no safetensors; .*save_pretrained",
        ),
        (
            ["a.bin", "b.bin", "c.bin", "d.bin", "e.bin"],
            r"\(a.bin, b.bin, c.bin, d.bin and 1 more\) and no safetensors",
        ),
        (["consolidated.00.pth"], "holds PyTorch pickles"),
        (
            ["model-Q4_K_M.gguf", "README.md"],
            r"holds GGUF weights of llama.cpp \(model-Q4_K_M.gguf\)",
        ),
        (["flax_model.msgpack"], "holds Flax weights"),
        (["tf_model.h5"], "holds TensorFlow weights"),
        (["__0_0.distcp", ".metadata"], "holds a sharded checkpoint of a training run with torch"),
        (["model.tar.gz"], r"holds an archive \(model.tar.gz\); unpack it"),
    ],
)
def test_weights_of_another_format(source, tmp_path, names, reason):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    check_weights(tmp_path, reason)
    shutil.copy(source / "config.json", tmp_path)
    check_weights(
        tmp_path,
        rf"holds no safetensors files \(neither {INDEX} nor \*.safetensors\) - it .*{reason}",
    )


def test_weights_of_a_part_alone(source, tmp_path):
    check_both(
        tmp_path, "is an empty folder; download or copy the model into it, or correct the path"
    )
    (tmp_path / "training_args.bin").touch()
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    check_weights(tmp_path, "has a config.json and no weights .*; download the weights too")
    check_tokenizer(
        tmp_path, "holds a model without a tokenizer .*; copy them into it, or name a folder"
    )
    (tmp_path / "tokenizer.model").touch()
    check_tokenizer(tmp_path, "has no tokenizer.json, and transformers cannot make one")
    weights = copied(source, tmp_path / "weights", "config.json")
    check_weights(weights, "holds weights and no config.json; copy the model's config.json into it")
    Tokenizer.byte_level().save(tmp_path / "tokenizer")
    check_weights(
        tmp_path / "tokenizer", "holds a tokenizer and no model; name the folder of the model"
    )


def test_folders_of_other_programs(source, tmp_path):
    copied(source, tmp_path / "checkpoint-9")
    last = copied(source, tmp_path / "checkpoint-100")
    check_both(
        tmp_path,
        "is the output folder of a trainer and holds its checkpoints;"
        f" name one of them, as {last}$",
    )
    inner = copied(source, tmp_path / "unpacked" / "inner")
    check_both(tmp_path / "unpacked", f"name the subfolder that is meant: {inner}$")
    quantised = copied(source, tmp_path / "quantised")
    values = json.loads((source / "config.json").read_text())
    (quantised / "config.json").write_text(
        json.dumps(values | {"quantization_config": {"quant_method": "gptq"}})
    )
    check_weights(quantised, r"holds quantised weights \(gptq\); get the model in bfloat16")


def test_path_that_is_not_a_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_both(
        source / "config.json",
        f"is a file and not a folder; name the folder that holds it, {source}$",
    )
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    check_weights(tmp_path / "m.gguf", "is a file of GGUF weights of llama.cpp; get the model's")
    (tmp_path / "m.zip").write_bytes(b"PK\3\4")
    check_both(tmp_path / "m.zip", "is a zip archive; unpack it")
    (tmp_path / "link").symlink_to("nowhere")
    check_both(tmp_path / "link", "is a link to nowhere, which does not exist")
    for name in ("org/name", "https://huggingface.co/org/name/tree/main", "hf://org/name"):
        with pytest.raises(
            CheckpointError, match="download it: `hf download org/name --local-dir name`"
        ):
            hub.read_model_config(name)
    (tmp_path / "runs").mkdir()
    check_weights(pathlib.Path("runs/sft"), "runs/sft is not a folder$")
    check_tokenizer(pathlib.Path("runs/sft"), "runs/sft does not exist")
    check_weights(pathlib.Path("gs://bucket/model"), "has lost slashes of its address")


def test_attributes_of_macos_are_no_shards(source, tmp_path):
    folder = copied(source, tmp_path / "copy", INDEX)
    (folder / f"._{SHARD}").write_bytes(b"\0\5\16\7")
    assert hub.inspect_folder(folder).problems == ()


def test_merges_that_were_cut_short(tmp_path):
    Tokenizer.train(["abc abc bc ab abcd the then"] * 9, merges=9).save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    hub.load_tokenizer(tmp_path)
    lines = (tmp_path / "merges.txt").read_text().splitlines(keepends=True)
    for kept in (lines[:-2], []):
        (tmp_path / "merges.txt").write_text("".join(kept))
        check_tokenizer(tmp_path, "merges.txt: has no merge that makes .*: it is cut short")
