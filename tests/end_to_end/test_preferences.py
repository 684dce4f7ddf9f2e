"""`launch.train` learns from preferences: what it hears decides, and a kill changes nothing."""

import signal

import numpy as np
import pytest

from launch.train import main as train
from tests.end_to_end.preference_runs import write_pairs, write_preference_config
from tests.end_to_end.runs import arguments, metrics, run, train_in_processes, untimed_metrics
from tests.end_to_end.test_training import KILLED, contents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    write_pairs(folder / "data")
    write_preference_config(folder / "config.py", folder / "data")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder):
    train(arguments(folder, "uninterrupted"))
    return folder / "uninterrupted"


@pytest.mark.slow
def test_dpo_learns_to_prefer_what_is_heard(uninterrupted):
    lines = metrics(uninterrupted)
    first, last = lines[0], lines[39]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margin"] == pytest.approx(0, abs=1e-4)
    assert last["evaluation/rewards/accuracy"] >= 0.9
    assert last["evaluation/rewards/margin"] > 1
    assert last["evaluation/loss"] < 0.4
    assert last["evaluation/reference_kl"] > 0
    # Without the sound every two names are preferred alike.
    assert lines[40]["evaluation/rewards/accuracy"] == 0.5


def test_pairs_without_a_better_reply_are_an_error_that_names_the_line(folder, capsys):
    bad = folder / "data" / "bad.jsonl"
    bad.write_text('{"prompt": "1+1?", "chosen": "2"}\n', encoding="utf-8")
    source = f"--config.stages.dpo.data.sources.0.path={bad}"
    with pytest.raises(SystemExit) as exit_:
        train([*arguments(folder, "bad"), source])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{bad}:1" in error
    bad.write_text('{"messages": [{"role": "user", "content": "1+1?"}], "answer": "2"}\n', "utf-8")
    with pytest.raises(SystemExit):
        train([*arguments(folder, "bad"), source])
    assert "'chosen' and 'rejected'" in capsys.readouterr().err
    assert not (folder / "bad").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(folder, uninterrupted):
    settings = ["--config.stages.dpo.objective.precompute_reference=true"]
    killed = run("-c", KILLED, "dpo", "13", *arguments(folder, "killed"), *settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ended = run("-m", "launch.train", *arguments(folder, "killed"), *settings)
    assert ended.returncode == 0, ended.stderr
    ended = run("-m", "launch.train", *arguments(folder, "stored"), *settings)
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(folder / "killed") == untimed_metrics(folder / "stored")
    assert contents(folder / "killed" / "model") == contents(folder / "stored" / "model")
    # Log-probabilities that are stored, or computed in each step, differ by rounding.
    for stored, live in zip(metrics(folder / "stored"), metrics(uninterrupted), strict=True):
        if stored["step"] < 10:
            assert stored["loss"] == pytest.approx(live["loss"], abs=1e-3)


@pytest.mark.slow
def test_devices_and_processes_change_nothing(folder, uninterrupted):
    settings = ["--config.stages.dpo.steps=6", "--config.stages.dpo.evaluation.every_steps=3"]
    runs = {"one": (1, 1), "devices": (1, 4), "processes": (2, 2)}
    for name, (processes, devices) in runs.items():
        train_in_processes(processes, devices, [*arguments(folder, name), *settings])
    expected = untimed_metrics(folder / "one")
    for name in ("devices", "processes"):
        for line, expected_line in zip(untimed_metrics(folder / name), expected, strict=True):
            for key in ("loss", "rewards/margin", "evaluation/loss"):
                if key in expected_line:
                    assert line[key] == pytest.approx(expected_line[key], abs=1e-5), (name, key)
