"""Every program refuses to replace its input or another's output, before it loads anything."""

import json
import os
import pathlib

import pytest

from launch.generate import main as generate
from launch.judge import main as judge
from launch.plan import main as plan
from launch.report import main as report
from launch.score import main as score
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.training.checkpoints import _check_target
from tools.convert_weights.__main__ import main as convert

QUESTION = {"id": "a", "messages": [{"role": "user", "content": "1+1?"}]}
PAIR = {"prompt": [{"role": "user", "content": "1+1?"}], "chosen": "2", "rejected": "3"}

# The model and the configuration do not exist: a program that came to load them would say so.
PROGRAMS = {
    "generate": (generate, ["--model", "nowhere", "--input", "{given}", "--output", "{output}"]),
    "score": (score, ["--model", "nowhere", "--input", "{given}", "--output", "{output}"]),
    "judge data": (judge, ["data", "--input", "{given}", "--output", "{output}"]),
    "judge data, prompt": (
        judge,
        ["data", "--input", "nowhere", "--prompt", "{given}", "--output", "{output}"],
    ),
    "plan": (plan, ["--config", "{given}", "--topology", "v5e:2x2", "--json", "{output}"]),
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    pathlib.Path("given.jsonl").write_text(json.dumps(QUESTION) + "\n" + json.dumps(PAIR) + "\n")
    pathlib.Path("link.jsonl").symlink_to("given.jsonl")
    os.link("given.jsonl", "hard.jsonl")
    pathlib.Path("folder").mkdir()
    pathlib.Path("notes.txt").write_text("mine\n")
    return tmp_path


def refusal(program, arguments, capsys):
    """Runs a program in process; its one line of error, once nothing is changed on disk."""
    before = {path: path.read_bytes() for path in pathlib.Path().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        program(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert {
        path: path.read_bytes() for path in pathlib.Path().rglob("*") if path.is_file()
    } == before
    return said.err


@pytest.mark.parametrize(
    "output", ["given.jsonl", "folder/../given.jsonl", "link.jsonl", "hard.jsonl", "~/given.jsonl"]
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_output_that_is_the_input_is_refused(work, capsys, name, output):
    program, arguments = PROGRAMS[name]
    said = refusal(
        program,
        [argument.format(given="given.jsonl", output=output) for argument in arguments],
        capsys,
    )
    assert "is the input" in said


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder", "is a folder"),
        ("notes.txt/new", "is a file"),
        ("/dev/null", "is not a regular file"),
    ],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_output_that_cannot_be_written_is_refused(work, capsys, name, output, message):
    program, arguments = PROGRAMS[name]
    said = refusal(
        program,
        [argument.format(given="given.jsonl", output=output) for argument in arguments],
        capsys,
    )
    assert message in said


@pytest.mark.parametrize("name", ["generate", "score", "plan"])
def test_an_output_of_another_program_is_refused(work, capsys, name):
    program, arguments = PROGRAMS[name]
    said = refusal(
        program,
        [argument.format(given="given.jsonl", output="notes.txt") for argument in arguments],
        capsys,
    )
    assert "exists already, and would be replaced: name another file, or remove it first" in said


def test_judge_data_replaces_what_it_made_itself_and_nothing_else(work, capsys):
    pathlib.Path("pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    arguments = ["data", "--input", "pairs.jsonl", "--output", "~/judge.jsonl"]
    for _ in range(2):
        judge(arguments)
        assert capsys.readouterr().out == f"2 dialogues in {work / 'judge.jsonl'}\n"
    assert "exists already" in refusal(judge, [*arguments, "--levels", "3"], capsys)


def test_a_report_replaces_a_page_and_nothing_else(work, capsys, monkeypatch):
    run = pathlib.Path("run")
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")

    def write(output):
        monkeypatch.setattr("sys.argv", ["report", "~/run", "--output", output])
        report()

    for output, message in (
        ("run/metrics.jsonl", "is the input"),
        ("run/../run/config.json", "is the input"),
        ("notes.txt", "exists already"),
        ("folder", "is a folder"),
    ):
        assert message in refusal(lambda arguments, output=output: write(output), [], capsys)


def test_a_model_of_a_checkpoint_does_not_pass_for_a_finished_run(work):
    for target in ("run/model", "folder/../run/model", "run/checkpoints/0_sft/x"):
        with pytest.raises(CheckpointError, match="the run writes there itself"):
            _check_target(pathlib.Path(target), pathlib.Path("run"))
    _check_target(pathlib.Path("run/best"), pathlib.Path("run"))


@pytest.mark.parametrize(
    ("output", "message"), [("folder", "already exists"), ("notes.txt/x", "is a file")]
)
def test_converted_weights_replace_nothing(work, capsys, output, message):
    pathlib.Path("folder/thesis.txt").write_text("years")
    assert convert(["random", "--preset", "tiny", "--output", output]) == 2
    assert message in capsys.readouterr().err
    assert not list(pathlib.Path().rglob("*.incomplete"))
