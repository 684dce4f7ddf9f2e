"""launch.data: what it prints, its exit codes, and that nothing is written where it should not."""

import json
import subprocess
import sys

import pytest

from launch.data import main

CONFIG = """
from stepaudio_jax.config import Config, DataConfig, EvaluationConfig, ModelConfig
from stepaudio_jax.config import SourceConfig, StageConfig

def get_config():
    sources = (SourceConfig(path={first!r}), SourceConfig(path={second!r}, weight=3.0))
    data = DataConfig(seq_len=512, batch_size=2, on_bad_audio="skip", sources=sources)
    held_out = EvaluationConfig(data=DataConfig(seq_len=512, sources=sources[:1]))
    stage = StageConfig(name="sft", steps=1, data=data, evaluation=held_out)
    model = ModelConfig.presets()["tiny"]
    return Config(run_dir={run_dir!r}, tokenizer="bytes", model=model, stages=(stage,))
"""


@pytest.fixture
def config(tmp_path, formats):
    path = tmp_path / "config.py"
    first, second = formats / "ms_swift" / "sft.jsonl", formats / "openai" / "audio_url.jsonl"
    path.write_text(
        CONFIG.format(first=str(first), second=str(second), run_dir=str(tmp_path / "run"))
    )
    return path


def refusal(arguments, capsys):
    """Runs the program in process; its one line of error."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_help_needs_nothing_heavy():
    program = (
        "import sys, launch.data\n"
        "try:\n    launch.data.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'jax', 'numpy', 'soundfile', 'pyarrow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "inspect PATH" in result.stdout
    assert result.stdout.endswith("set()\n")


def test_inspect(formats, capsys):
    assert main(["inspect", str(formats / "nemo_manifest" / "manifest.json")]) == 0
    assert "form         recognition" in capsys.readouterr().out
    assert main(["inspect", str(formats / "openai" / "audio_url.jsonl"), "--limit", "1"]) == 0
    path = formats / "openai" / "audio_url.jsonl"
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 2
    printed, errors = capsys.readouterr()
    assert "refused      1 row" in printed
    problem = f"error: 1 of 2 rows cannot be read; the first: {path}:2: audio https://"
    assert errors.startswith(problem)
    assert errors.count("\n") == 1


def test_what_nobody_reads_any_more_is_no_error(formats):
    """As behind `| head`: quietly, with the exit code of a program that SIGPIPE ends."""
    command = [sys.executable, "-m", "launch.data", "inspect", formats / "kaldi"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == ""


def test_inspect_takes_the_settings_of_a_source(tmp_path, formats, capsys):
    row = {"speech": str(formats / "clips" / "a.wav"), "said": "A"}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row) + "\n")
    columns = ["--columns", "audio=speech", "text=said", "--prompt", "Write it down."]
    assert main(["inspect", str(path), "--format", "recognition", *columns]) == 0
    assert "<audio a.wav, 1.16 s>Write it down.<|EOT|>" in capsys.readouterr().out
    assert "write KEY=COLUMN" in refusal(["inspect", path, "--columns", "speech"], capsys)
    assert "did you mean 'kaldi'" in refusal(["inspect", path, "--format", "kaldy"], capsys)


@pytest.mark.parametrize(
    "path", ["org/name", "https://huggingface.co/datasets/org/name", "hf://datasets/org/name/x.csv"]
)
def test_a_name_of_the_hub_is_explained(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "`hf download org/name --repo-type dataset --local-dir name`"
    assert command in refusal(["inspect", path], capsys)


def test_a_path_with_a_mistake_is_no_name_of_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert "hf download" not in refusal(["inspect", "data/train"], capsys)


def test_check_says_what_a_run_would_read_and_writes_nothing(config, tmp_path, capsys):
    assert main(["check", f"--config={config}"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("stage 'sft'\n")
    assert "25 % of the mixture" in output
    assert "2 records, 3 clips (3.7 s of sound), 0 placeholders as text" in output
    assert "1 record will be skipped (bad_audio: 1):" in output
    assert "\nevaluation of stage 'sft'\n" in output
    assert list(tmp_path.iterdir()) == [config]


def test_check_ends_with_the_first_error(config, tmp_path, capsys):
    setting = "--config.stages.sft.data.on_bad_audio=error"
    with pytest.raises(SystemExit) as ended:
        main(["check", f"--config={config}", setting])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "1 record cannot be used:" in said.out
    assert "audio_url.jsonl:2: audio https://example.com/a.wav: is a URL" in said.err
    assert said.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == [config]


def test_check_is_of_one_process(config, capsys):
    assert "leave it out" in refusal(["check", f"--config={config}", "--distributed"], capsys)
    assert "cannot read 'x'" in refusal(["check", f"--config={config}", "x"], capsys)


def test_convert(formats, tmp_path, capsys):
    source = str(formats / "ms_swift" / "sft.jsonl")
    arguments = ["convert", source, "--output", str(tmp_path / "out"), "--shards", "2"]
    assert main(arguments) == 0
    pattern = tmp_path / "out" / "sft-*-of-00002.jsonl"
    said = f"2 records, 3 clips (3.7 s) in 2 files: {pattern}\n"
    assert capsys.readouterr().out == said
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"already converted: {said}"
    other = ["convert", formats / "kaldi", "--output", tmp_path / "out"]
    assert "is the output of another conversion" in refusal(other, capsys)


def test_convert_lists_what_it_cannot_read(formats, tmp_path, capsys):
    source = str(formats / "openai" / "audio_url.jsonl")
    arguments = ["convert", source, "--output", str(tmp_path / "out"), "--name", "talks"]
    for _ in range(2):  # also where nothing is left to do
        assert main([*arguments, "--container=array_record"]) == 2
        said = capsys.readouterr()
        assert "1 records, 1 clips" in said.out
        assert f"skipped: {source}:2: audio https://example.com/a.wav: is a URL" in said.err
        assert "error: 1 row could not be read" in said.err
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["place"] == f"{source}:2"
    assert (tmp_path / "out" / "talks-00000-of-00001.array_record").exists()
