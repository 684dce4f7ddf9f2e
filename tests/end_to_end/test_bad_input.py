"""User errors on the command lines: one line with file and remedy, exit code 2, nothing written."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import soundfile

from launch.errors import exit_on_error
from launch.generate import main as generate
from launch.score import main as score
from launch.train import main as train
from stepaudio_jax import hub
from stepaudio_jax.text import Tokenizer
from tests.end_to_end.runs import num_logged_lines, run, start, wait_for_logged_lines
from tests.end_to_end.tones import write_config, write_corpus, write_lines
from tests.generation.small_model import CONFIG, peaked_parameters
from tools.convert_weights.__main__ import main as convert

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    hub.save_checkpoint(
        folder, peaked_parameters(), CONFIG, Tokenizer.byte_level(), source="random"
    )
    return folder


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "hugging_face"
    hub.write_random_weights(
        CONFIG, folder, tokenizer=Tokenizer.byte_level(), dtype=np.dtype(np.float32)
    )
    return folder


@pytest.fixture
def work(tmp_path):
    """Returns a folder with a valid corpus and configuration, to which a test adds an error."""
    write_corpus(tmp_path / "data")
    write_config(tmp_path / "config.py", tmp_path / "data")
    return tmp_path


def refusal(program, arguments, capsys, folder):
    """Runs a program that must exit with code 2 and write nothing; returns its line of error."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        sys.exit(program([str(argument) for argument in arguments]))
    output, errors = capsys.readouterr()
    assert ended.value.code == 2
    assert output == ""
    assert re.fullmatch("error: [^\n]+\n", errors), errors
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return errors


def audio_question(clip):
    return {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": clip}]},
            {"role": "assistant", "content": "a"},
        ]
    }


def clip(write):
    """Returns a line that names clip.wav, which `write` creates (or does not)."""

    def line(folder):
        write(folder / "clip.wav")
        return json.dumps(audio_question("clip.wav"))

    return line


def nan_wave(path):
    soundfile.write(path, np.full(200 * 160, np.nan, np.float32), 16_000, subtype="FLOAT")


def right_channel_only(path):
    right = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    soundfile.write(path, np.stack([np.zeros(8000), right], axis=1), 16_000)


def messages(*turns):
    return lambda folder: json.dumps({"messages": list(turns)})


USER, REPLY = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}

# Error -> (line 3 of the file, the message after `file:3: `). A valid dialogue follows each.
BAD_LINES = {
    "missing audio file": (
        clip(lambda path: None),
        "audio {folder}/clip.wav: does not exist; correct the path",
    ),
    "text named wav": (
        clip(lambda path: path.write_text("no sound")),
        "audio {folder}/clip.wav: is not a sound file .* it holds text .*; name the right file",
    ),
    "0 bytes": (
        clip(lambda path: path.touch()),
        "audio {folder}/clip.wav: is empty .0 bytes.; get the whole file again",
    ),
    "NaN wave": (
        clip(nan_wave),
        "audio {folder}/clip.wav: has 32000 NaN or infinite samples of 32000; export it again",
    ),
    "silent first channel": (
        clip(right_channel_only),
        "audio {folder}/clip.wav: has a silent first channel, and channel 2 of 2 is not silent; "
        "set data.channel=mix ",
    ),
    "sound beside the messages": (
        lambda folder: json.dumps(
            {"messages": [{**USER, "content": "<audio>Who?"}, REPLY], "audios": ["a.wav", "b.wav"]}
        ),
        "the row has 2 clips and its turns have 1 placeholder",
    ),
    "not JSON": (
        lambda folder: '{"messages": [}',
        "is not JSON .* at column 15.; each line must be one JSON object",
    ),
    "unknown role": (
        messages({**USER, "role": "usr"}, REPLY),
        "message 1 has the unknown role \"usr\"; did you mean 'user'",
    ),
    "no content": (
        messages(USER, {"role": "assistant", "reasoning_content": "2."}, USER, REPLY),
        "message 2 .assistant. has no 'content'; give its text or parts, or remove the turn",
    ),
}


def write_bad(folder, kind, *, answered):
    """Writes a file whose line 3 is bad; returns its path and the expected message.

    Without `answered`, every dialogue ends before its last reply.
    """
    line, message = BAD_LINES[kind]
    good = {"messages": [USER, REPLY]}
    lines = [json.dumps(good), "", line(folder), json.dumps(good)]
    if not answered:
        shortened = []
        for text in lines:
            try:
                dialogue = json.loads(text)
                shortened.append(json.dumps({**dialogue, "messages": dialogue["messages"][:-1]}))
            except json.JSONDecodeError:
                shortened.append(text)
        lines = shortened
    path = folder / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, f"error: {re.escape(str(path))}:3: {message.format(folder=re.escape(str(folder)))}"


@pytest.mark.parametrize("split", ["stages.mid.data", "stages.sft.evaluation.data"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_training_rejects_bad_data_before_it_creates_a_folder(work, capsys, kind, split):
    """In the training data, and in the held-out data of a later stage."""
    path, message = write_bad(work / "data", kind, answered=True)
    arguments = [
        f"--config={work / 'config.py'}",
        f"--config.run_dir={work / 'run'}",
        f"--config.{split}.sources.0.path={path}",
    ]
    assert re.match(message, refusal(train, arguments, capsys, work))


@pytest.mark.parametrize("kind", BAD_LINES)
def test_scoring_rejects_bad_data(work, capsys, checkpoint, kind):
    path, message = write_bad(work / "data", kind, answered=True)
    arguments = ["--model", checkpoint, "--input", path, "--output", work / "new" / "output.jsonl"]
    assert re.match(message, refusal(score, arguments, capsys, work))


@pytest.mark.parametrize("kind", BAD_LINES)
def test_generation_reports_bad_lines_and_answers_the_others(work, capsys, checkpoint, kind):
    path, message = write_bad(work / "data", kind, answered=False)
    output = work / "new" / "output.jsonl"
    arguments = [
        "--model",
        checkpoint,
        "--input",
        path,
        "--output",
        output,
        "--max-new-tokens",
        8,
        "--temperature",
        0,
    ]
    assert generate([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"2 of 3 dialogues answered: {output}\n"
    *_, line = printed.err.splitlines()
    problem = message.removeprefix("error: ")
    assert re.match(f"error: 1 could not be answered; the first: {problem}", line)
    first, bad, last = (
        json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()
    )
    assert re.match(problem, bad["error"])
    assert bad["id"] == "bad:3"
    assert first["reply"] == last["reply"]
    assert [path.name for path in output.parent.iterdir()] == ["output.jsonl"]


@pytest.mark.parametrize("kind", BAD_LINES)
def test_generation_writes_nothing_if_no_line_can_be_answered(work, capsys, checkpoint, kind):
    path, message = write_bad(work / "data", kind, answered=False)
    path.write_text("\n\n" + path.read_text(encoding="utf-8").splitlines()[2], encoding="utf-8")
    arguments = [
        "--model",
        checkpoint,
        "--input",
        path,
        "--output",
        work / "new" / "output.jsonl",
        "--max-new-tokens",
        8,
    ]
    assert re.match(message, refusal(generate, arguments, capsys, work))


@pytest.mark.slow
def test_channel_mix_averages_a_silent_and_a_loud_channel(work, checkpoint):
    """Both programs give the same for a stereo clip as for the mean of its channels."""
    right_channel_only(work / "stereo.wav")
    soundfile.write(
        work / "mono.wav",
        soundfile.read(work / "stereo.wav")[0].mean(axis=1),
        16_000,
        subtype="FLOAT",
    )
    for program, turns, limits in (
        (generate, 1, ["--max-new-tokens", 8, "--temperature", 0]),
        (score, 2, []),
    ):
        records = [audio_question(f"{name}.wav")["messages"][:turns] for name in ("stereo", "mono")]
        write_lines(
            work / "input.jsonl", [{"id": "x", "messages": messages} for messages in records]
        )
        output = work / f"{program.__module__}.jsonl"
        arguments = [
            "--model",
            checkpoint,
            "--input",
            work / "input.jsonl",
            "--output",
            output,
            "--channel",
            "mix",
            *limits,
        ]
        assert not program([str(argument) for argument in arguments])
        stereo, mono = output.read_text(encoding="utf-8").splitlines()
        assert stereo == mono


@pytest.mark.parametrize("program", [generate, score])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("\n", "has no records; give at least one dialogue")],
)
def test_a_missing_or_empty_input_is_named(work, capsys, checkpoint, program, content, message):
    if content is not None:
        (work / "input.jsonl").write_text(content)
    arguments = [
        "--model",
        checkpoint,
        "--input",
        work / "input.jsonl",
        "--output",
        work / "output.jsonl",
    ]
    assert f"{work / 'input.jsonl'}: {message}" in refusal(program, arguments, capsys, work)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--top-p", "0"], "top_p=0.0"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--slots", "0"], "slots=0 and num_samples=1 must be positive"),
        (["--num-samples", "0"], "slots=16 and num_samples=0 must be positive"),
        (["--top-k", "-1"], "top_k=-1"),
        (["--presence-penalty", "3"], "presence_penalty=3.0 must lie between -2.0 and 2.0"),
        (["--frequency-penalty", "nan"], "frequency_penalty=nan must lie between"),
        (["--repetition-min-count", "3"], "max_pattern_size=0 and min_count=3 belong together"),
        (["--stop", ""], "stop_strings=.* must not be empty strings"),
        (["--max-new-tokens", "4000"], "asked.jsonl:1: .* lower max_new_tokens"),
    ],
)
def test_generation_settings_out_of_range_are_named(work, capsys, checkpoint, options, message):
    (work / "asked.jsonl").write_text(json.dumps({"messages": [USER]}))
    arguments = [
        "--model",
        checkpoint,
        "--input",
        work / "asked.jsonl",
        "--output",
        work / "output.jsonl",
        "--max-new-tokens",
        8,
    ]
    assert re.search(message, refusal(generate, [*arguments, *options], capsys, work))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.stages.mid.optimizer.learing_rate=1"],
            "stages.*learing_rate; did you mean 'learning_rate'",
        ),
        (
            ["--config.stages.mid.data.mel_frames_per_chunk=200"],
            "mel_frames_per_chunk=200 needs more than the encoder's 64 positions",
        ),
        (["--config.tokenizer=None"], "tokenizer is None, and there is no initial.model"),
        (
            ["--config.model.decoder.vocab_size=100"],
            "the tokenizer writes tokens up to 2.. and the vocabulary has 100 rows; "
            "it needs at least 2",
        ),
        (["--config.stages.mid.data.sources.0.path=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--config.initial.model=nowhere"], "nowhere"),
        (["--verbose"], "cannot read '--verbose': write --config=FILE"),
    ],
)
def test_invalid_training_settings_are_named(work, capsys, arguments, message):
    settings = [f"--config={work / 'config.py'}", f"--config.run_dir={work / 'run'}", *arguments]
    assert re.search(message, refusal(train, settings, capsys, work))


def test_an_unknown_key_in_a_config_file_is_named_with_its_line(work, capsys):
    text = (work / "config.py").read_text()
    (work / "config.py").write_text(text.replace("warmup_steps", "warmup_step"))
    line = 1 + next(
        number for number, line in enumerate(text.splitlines()) if "warmup_steps" in line
    )
    expected = (
        f"{work / 'config.py'}, line {line}: unknown key OptimizerConfig.warmup_step; "
        "did you mean 'warmup_steps'"
    )
    assert expected in refusal(train, [f"--config={work / 'config.py'}"], capsys, work)


def without_a_tensor(folder, source):
    """Copies a model without one tensor of the decoder; returns what errors must name."""
    shutil.copytree(source, folder)
    if (folder / "parameters").is_dir():
        shutil.rmtree(folder / "parameters" / "state" / "decoder.norm.scale")
        return "no readable parameter decoder/norm/scale"
    name = "model.norm.weight"
    for shard in folder.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(shard)
        tensors.pop(name, None)
        safetensors.numpy.save_file(tensors, shard)
    return f"missing {name}"


@pytest.mark.parametrize("kind", ["checkpoint", "hugging_face"])
@pytest.mark.parametrize("program", [generate, score, train, convert])
def test_weights_without_a_tensor_are_an_error_that_names_it(work, capsys, request, kind, program):
    problem = without_a_tensor(work / "model", request.getfixturevalue(kind))
    (work / "asked.jsonl").write_text(json.dumps({"messages": [USER]}))
    command = "export" if kind == "checkpoint" else "import"
    arguments = {
        generate: [
            "--model",
            work / "model",
            "--input",
            work / "asked.jsonl",
            "--output",
            work / "output.jsonl",
        ],
        score: [
            "--model",
            work / "model",
            "--input",
            work / "asked.jsonl",
            "--output",
            work / "output.jsonl",
        ],
        train: [
            f"--config={work / 'config.py'}",
            f"--config.run_dir={work / 'run'}",
            f"--config.initial.model={work / 'model'}",
        ],
        convert: [command, "--source", work / "model", "--output", work / "converted"],
    }[program]
    error = refusal(program, arguments, capsys, work)
    assert str(work / "model") in error
    assert problem in error
    assert "copy or convert the folder again" in error


def test_a_process_prints_one_line_and_exits_with_code_2(work):
    """In a subprocess: no library logs, warns or prints a traceback beside the line."""
    path, message = write_bad(work / "data", "text named wav", answered=True)
    arguments = [
        f"--config={work / 'config.py'}",
        "--config.run_dir=run",
        f"--config.stages.mid.data.sources.0.path={path}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.train", *arguments]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True, env=environment)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(f"{message}[^\n]*\n", ended.stderr)
    assert not (work / "run").exists()


def test_an_error_of_several_lines_is_printed_on_one(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise FileNotFoundError(2, "No such file", "a\nb")
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), exit_on_error():
        raise KeyError("a bug")


def test_an_interrupt_exits_quietly_with_code_130(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_ctrl_c_saves_a_second_job_is_refused_and_a_killed_one_resumes(work):
    """During a run, with threads that read data and a progress bar."""
    run_dir = work / "run"
    arguments = [
        f"--config={work / 'config.py'}",
        f"--config.run_dir={run_dir}",
        "--config.stages.mid.steps=100000",
    ]

    def start_until(more):
        """Starts the program and waits until it has logged `more` steps."""
        process = start("-m", "launch.train", *arguments)
        wanted = num_logged_lines(run_dir) + more
        wait_for_logged_lines(process, run_dir, wanted)
        return process

    first = start_until(3)
    second = run("-m", "launch.train", *arguments)
    assert second.returncode == 2
    assert re.fullmatch(
        rf"error: run_dir='.*run' is in use by another job \(process {first.pid} on .*\n",
        second.stderr,
    )
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate()
    assert first.returncode == 130
    assert "Traceback" not in errors
    assert "rror" not in errors
    assert "stopping: the step under way is finished and saved; Ctrl-C again ends at once" in errors
    (step,) = re.findall(
        r"stopped at step (\d+) of stage 'mid', and saved; the same command continues it", errors
    )
    assert (run_dir / "checkpoints" / "0_mid" / step).is_dir()
    killed = start_until(2)
    killed.kill()
    killed.communicate()
    after = start_until(2)
    assert after.poll() is None
    assert num_logged_lines(run_dir) > int(step)
    after.send_signal(signal.SIGINT)
    after.send_signal(signal.SIGINT)
    after.communicate()
    assert after.returncode == 130
