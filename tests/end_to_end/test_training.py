"""`launch.train` from audio files to a model that answers, uninterrupted and after kills."""

import json
import shutil
import signal

import pytest

from launch.checkpoint import main as export_checkpoint
from launch.train import main as train
from stepaudio_jax.config import Config, build
from stepaudio_jax.generation import Sampling, answer_file, load_model
from stepaudio_jax.training.run_folder import read_run_config
from tests.end_to_end.runs import STEPS, arguments, metrics, run, untimed_metrics
from tests.end_to_end.tones import PITCHES, SUMS, sum_question, write_lines

# launch.train, which sends itself SIGKILL when a step is logged: no handler runs, and nothing is
# flushed or closed.
KILLED = """
import os, signal, sys
from launch.train import main
from stepaudio_jax.training.monitoring import MetricsWriter

stage, step, *arguments = sys.argv[1:]
write = MetricsWriter.write

def write_and_die(writer, at, metrics):
    write(writer, at, metrics)
    if (writer._log._stage, at) == (stage, int(step)):
        os.kill(os.getpid(), signal.SIGKILL)

MetricsWriter.write = write_and_die
main(arguments)
"""


def test_every_step_is_logged_once_and_the_loss_falls(uninterrupted):
    lines = metrics(uninterrupted)
    assert [(line["stage"], line["step"]) for line in lines] == STEPS
    losses = [line["loss"] for line in lines]
    assert losses[0] > 5  # near ln(290), that of a guess
    assert max(losses[-5:]) < 0.3
    evaluated = {
        line["step"]: line["evaluation/loss"] for line in lines if "evaluation/loss" in line
    }
    assert evaluated.keys() == {10, 20, 30, 35}
    assert evaluated[35] < 0.3
    assert lines[-1]["evaluation/token_accuracy"] > 0.9
    assert lines[44]["records"] == lines[44]["records/tones"] + lines[44]["records/sums"]
    for line in lines:
        assert 0 <= line["data_wait_fraction"] <= 1
        assert line["tokens_per_second"] > 0
        assert line["audio_seconds_per_second"] > 0


def test_the_run_folder_holds_configuration_metrics_checkpoints_and_model(uninterrupted):
    assert {path.name for path in uninterrupted.iterdir()} == {
        *("config.json", "data_check.json", "metrics.jsonl", "tensorboard", "checkpoints", "model")
    }
    config = build(Config, read_run_config(uninterrupted))
    assert config.run_dir == str(uninterrupted)
    assert [stage.steps for stage in config.stages] == [45, 35]
    kept = {
        path.name: sorted(step.name for step in path.iterdir())
        for path in (uninterrupted / "checkpoints").iterdir()
    }
    assert kept.pop("shape") == ["config.json", "tokenizer"]
    assert kept.pop("1_sft.frozen")  # the first stage trains all
    assert kept == {"0_mid": ["40", "45"], "1_sft": ["30", "35"]}


def test_the_model_of_any_checkpoint_can_be_exported(uninterrupted, folder, capsys):
    export_checkpoint([str(uninterrupted), "--output", str(folder / "last")])
    assert capsys.readouterr().out == f"{folder / 'last'}\n"
    assert contents(folder / "last") == contents(uninterrupted / "model")
    export_checkpoint(
        [str(uninterrupted), "--output", str(folder / "earlier"), "--stage", "mid", "--step", "40"]
    )
    earlier = contents(folder / "earlier")
    assert earlier.keys() == contents(uninterrupted / "model").keys()
    assert earlier != contents(uninterrupted / "model")
    with pytest.raises(SystemExit) as exit_:
        export_checkpoint([str(uninterrupted), "--output", str(folder / "none"), "--step", "34"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {uninterrupted} has no checkpoint of stage 'sft' step 34; "
        "saved steps are: mid: 40, 45; sft: 30, 35\n"
    )


def contents(folder):
    """Reads the files of a model's folder, except those with the time and origin of its writing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("config.json", "commit_success.txt", "_CHECKPOINT_METADATA")
    }


def test_the_model_answers_about_held_out_audio(uninterrupted, folder):
    held_out = [
        json.loads(line) for line in (folder / "data" / "held_out.jsonl").read_text().splitlines()
    ]
    questions = [*held_out, *(sum_question(a, b) for a, b in SUMS)]
    expected = [
        (dialogue["messages"][1].get("reasoning_content", ""), dialogue["messages"][1]["content"])
        for dialogue in questions
    ]
    assert {reply for _, reply in expected} >= set(PITCHES.values())
    asked = write_lines(
        folder / "data" / "asked.jsonl",
        [{"messages": dialogue["messages"][:1]} for dialogue in questions],
    )
    model = load_model(uninterrupted / "model")
    outcome = answer_file(
        model, asked, folder / "replies.jsonl", Sampling(temperature=0, max_new_tokens=40)
    )
    assert (outcome.dialogues, outcome.failed) == (len(questions), 0)
    replies = [
        json.loads(line)
        for line in (folder / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(reply["reasoning"], reply["reply"]) for reply in replies] == expected
    assert all(reply["well_formed"] and reply["finish_reason"] == "stop" for reply in replies)


def test_a_finished_run_is_not_changed(uninterrupted, folder, capsys):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}

    before = stamps()
    train(arguments(folder, "uninterrupted"))
    assert capsys.readouterr().out == f"{uninterrupted / 'model'}\n"
    assert stamps() == before


def test_a_changed_setting_of_an_existing_run_is_an_error_that_names_it(
    uninterrupted, folder, capsys
):
    before = (uninterrupted / "config.json").read_bytes()
    with pytest.raises(SystemExit) as exit_:
        train(
            [*arguments(folder, "uninterrupted"), "--config.stages.sft.optimizer.learning_rate=0.5"]
        )
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "differs in stages.1.optimizer.learning_rate" in captured.err
    assert (uninterrupted / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "kills",
    [[("sft", 17)], pytest.param([("mid", 13), ("sft", 17)], marks=pytest.mark.slow)],
    ids=["once", "in each stage"],
)
def test_a_killed_run_resumes_bit_exactly(uninterrupted, folder, kills):
    """Killed between two checkpoints."""
    killed = f"killed_{len(kills)}"
    for stage, step in kills:
        ended = run("-c", KILLED, stage, str(step), *arguments(folder, killed))
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert [(line["stage"], line["step"]) for line in metrics(folder / killed)] == STEPS[
            : STEPS.index((stage, step)) + 1
        ]
    ended = run("-m", "launch.train", *arguments(folder, killed))
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(folder / killed) == untimed_metrics(uninterrupted)


def test_a_stage_killed_before_its_first_checkpoint_restarts_from_the_previous_stage(
    uninterrupted, folder
):
    """Such a run leaves the checkpoints of the first stage, and metrics of both stages."""
    killed = folder / "killed_early"
    shutil.copytree(uninterrupted, killed)
    shutil.rmtree(killed / "model")
    shutil.rmtree(killed / "checkpoints" / "1_sft")
    lines = (killed / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (killed / "metrics.jsonl").write_text(
        "".join(lines[: STEPS.index(("sft", 3)) + 1]), encoding="utf-8"
    )
    train(arguments(folder, killed.name))
    assert untimed_metrics(killed) == untimed_metrics(uninterrupted)
