"""The command line: what it prints, how it fails."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch

from stepaudio_jax import hub
from tests.hub.folders import qwen2, read_tensors, save_with_tokenizer, write_tensors
from tools.convert_weights import __main__ as convert_weights

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _same_signal_handler_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments):
    return convert_weights.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "source"
    assert run("random", "--preset", "tiny", "--output", folder) == 0
    return folder


def test_the_four_commands(tmp_path, tiny, capsys):
    checkpoint, exported = tmp_path / "checkpoint", tmp_path / "exported"
    assert run("import", "--source", tiny, "--output", checkpoint) == 0
    assert "adaptor: Step-Audio folder source" in capsys.readouterr().out
    options = ("--max-shard-size", "0.3MB", "--config-form", "flat")
    assert run("export", "--source", checkpoint, "--output", exported, *options) == 0
    assert json.loads((exported / "config.json").read_text())["model_type"] == "step_audio_qwen2"
    assert len(list(exported.glob("*.safetensors"))) > 1
    original = read_tensors(tiny)
    for name, tensor in read_tensors(exported).items():
        assert torch.equal(tensor, original[name])
    for folder, kind in (
        (exported, "Hugging Face folder, Step-Audio"),
        (checkpoint, "stepaudio_jax checkpoint"),
    ):
        capsys.readouterr()
        assert run("inspect", folder) == 0
        out = capsys.readouterr().out
        assert kind in out
        assert "parameters  389,440" in out
        assert "vocab_size=320, hidden=64, ffn=160" in out
        assert "problems    none" in out


def test_random_options(tmp_path, capsys):
    options = ("--layers", 1, "--dtype", "float32", "--seed", 5, "--max-shard-size", "1MiB")
    assert run("random", "--preset", "tiny", "--output", tmp_path / "one", *options) == 0
    assert (
        "byte tokenizer (no --tokenizer was given), 290 tokens for 320 rows"
        in capsys.readouterr().out
    )
    found = hub.inspect_folder(tmp_path / "one")
    assert found.model.decoder.layers == 1
    assert found.dtypes == {"F32": found.tensors}


def test_random_weights_have_rows_for_the_tokenizer(tmp_path, shared_tokenizer, capsys):
    """A preset whose vocabulary is smaller than the tokenizer gets more rows."""
    folder = tmp_path / "weights"
    options = ("--preset", "tiny", "--tokenizer", shared_tokenizer, "--output", folder)
    assert run("random", *options) == 0
    tokenizer = hub.load_tokenizer(folder)
    rows = hub.read_model_config(folder).decoder.vocab_size
    assert rows % 64 == 0
    assert tokenizer.required_vocab_size <= rows < tokenizer.required_vocab_size + 64
    assert f"tokens for {rows} rows (the preset has 320)" in capsys.readouterr().out
    assert hub.inspect_folder(folder).problems == ()


def test_inspect_of_a_broken_folder(tmp_path, tiny, capsys):
    tensors = read_tensors(tiny)
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    del tensors["model.norm.weight"]
    write_tensors(folder, {**tensors, "odd": torch.zeros(3)})
    assert run("inspect", folder) == 2
    captured = capsys.readouterr()
    assert "missing model.norm.weight [64]" in captured.out
    assert "unexpected odd [3]" in captured.out
    assert captured.err.count("\n") == 1


def test_a_base_model_is_inspected(tmp_path, capsys):
    assert run("inspect", save_with_tokenizer(qwen2(), tmp_path / "base")) == 0
    out = capsys.readouterr().out
    assert "parts       decoder\n" in out
    assert "encoder" not in out


def test_one_missing_tensor_is_one_line_and_exit_code_2(tmp_path, tiny):
    """Run in a process of its own."""
    tensors = read_tensors(tiny)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_text((tiny / name).read_text())
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    write_tensors(source, tensors)
    command = [
        sys.executable,
        "-m",
        "tools.convert_weights",
        "import",
        "--source",
        source,
        "--output",
        tmp_path / "out",
    ]
    result = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(
        f"error: {source}: 1 problem; copy or convert the folder again: "
    )
    assert "missing model.layers.1.mlp.gate_proj.weight [160, 64]" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "--source", "{nowhere}", "--output", "{out}"), "nowhere is not a folder"),
        (
            ("import", "--source", "{tiny}", "--output", "{tiny}"),
            "source already exists; choose another output",
        ),
        (
            ("import", "--source", "{tiny}", "--output", "{out}", "--tokenizer", "{nowhere}"),
            "nowhere does not exist",
        ),
        (("export", "--source", "{tiny}", "--output", "{out}"), "source is not a checkpoint"),
        (("export", "--source", "{nowhere}", "--output", "{out}"), "nowhere is not a checkpoint"),
        (
            ("random", "--preset", "tiny", "--layers", "0", "--output", "{out}"),
            "layers=0 must be positive",
        ),
        (("inspect", "{nowhere}"), "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, tiny, capsys, arguments, message):
    places = {"nowhere": tmp_path / "nowhere", "out": tmp_path / "out", "tiny": tiny}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["5", "GB", "0GB", "5 parsecs", "-1GB"])
def test_bad_sizes_are_refused(tmp_path, size, capsys):
    with pytest.raises(SystemExit) as error:
        run("random", "--preset", "tiny", "--output", tmp_path / "out", f"--max-shard-size={size}")
    assert error.value.code == 2
    assert "is not a size such as 5GB" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path, tiny, monkeypatch, capsys, number):
    monkeypatch.setattr(
        convert_weights._ProgressBar, "show", lambda self, done, total: os.kill(os.getpid(), number)
    )
    assert run("import", "--source", tiny, "--output", tmp_path / "out") == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []
