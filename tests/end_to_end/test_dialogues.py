"""RL on dialogues with a simulated user over HTTP: rewarded, killed, resumed exactly."""

import json
import random
import signal
import time

import pytest

from tests.end_to_end.runs import (
    metrics,
    num_logged_lines,
    run,
    start,
    train_in_processes,
    untimed_metrics,
)
from tests.judge.judge_server import JudgeServer
from tests.rl.simulated_user import write_speaker
from tests.rl.small_stage import write_prompts

pytestmark = pytest.mark.slow  # starts many runs

STEPS = 3
CONFIG = """
import dataclasses
import pathlib

from stepaudio_jax.config import JudgeConfig, RewardConfig, SimulatedUserConfig
from tests.rl.small_stage import stage_config

FOLDER = pathlib.Path({folder!r})


def get_config():
    user = SimulatedUserConfig(
        url={user!r}, model="user", api_key_env=None, turns=3, speak={speak!r}
    )
    config = stage_config(
        FOLDER,
        FOLDER / "prompts.jsonl",
        steps={steps},
        data={{"seq_len": 320, "audio_chunks_per_seq": 4}},
        rollout={{
            "num_prompts": 2,
            "num_generations": 3,
            "max_new_tokens": 40,
            "simulated_user": user,
        }},
    )
    stage = config.stages[0]
    objective = dataclasses.replace(
        stage.policy_gradient,
        rewards=(
            RewardConfig(
                judge_weight=1.0,
                compare_with={compare!r},
                verifier="tests.rl.small_stage:even",
                verifier_weight=0.5,
            ),
        ),
        judge=JudgeConfig(url={judge!r}, model="judge", api_key_env=None),
    )
    return dataclasses.replace(config, stages=(dataclasses.replace(stage, objective=objective),))
"""


class NumberedUser:
    """Answers with a number that it never says twice: only kept answers can be repeated."""

    def __init__(self):
        self._count = 0

    def __call__(self, body):
        self._count += 1
        return f"What is {self._count} plus 3?"


@pytest.fixture
def judge():
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def user():
    server = JudgeServer(NumberedUser())
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path):
    path = write_prompts(tmp_path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    turns = [
        {"role": "assistant", "content": "a reply of some words"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "another one"},
    ]
    lines = [line | {"reference_continuation": turns, "scenario": "In a hurry."} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def arguments(folder, name, user, judge, *, compare="reference", speak=(), steps=STEPS):
    config = CONFIG.format(
        folder=str(folder),
        user=user.url,
        judge=judge.url,
        compare=compare,
        speak=speak,
        steps=steps,
    )
    (folder / f"{name}.py").write_text(config, encoding="utf-8")
    return [f"--config={folder / name}.py", f"--config.run_dir={folder / name}"]


def test_dialogues_of_a_killed_run_go_on_with_the_same_words(folder, user, judge):
    """Steps that are repeated ask the user nothing again that it has answered."""
    settings = arguments(folder, "killed", user, judge)
    killed = folder / "killed"
    rng = random.Random(0)
    moments = (
        lambda: len(user.requests) > 3,  # in the first turn of the first step
        lambda: len(judge.requests) > 2,  # while the first dialogues are judged
        lambda: num_logged_lines(killed) >= 2,
    )
    words = {}
    for number, moment in enumerate(moments):
        process = start("-m", "launch.train", *settings)
        while process.poll() is None and not moment():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5) if number == 2 else 0)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {number}: {errors}"
        cache = (killed / "user_rlvr.jsonl").read_text(encoding="utf-8")
        for line in cache.splitlines(keepends=True):
            if line.endswith("\n"):
                answer = json.loads(line)
                assert words.setdefault(answer["key"], answer["text"]) == answer["text"]
    ended = run("-m", "launch.train", *settings)
    assert ended.returncode == 0, ended.stderr
    lines = untimed_metrics(killed)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert lines[0]["kl"] == 0
    for line in lines:
        assert line["sampler_mismatch"] < 1.001
        assert line["abstained"] == line["user_failures"] == 0
        assert 1 < line["turns"] <= 3
        assert "win_rate" in line

    # The same run, with the words that were kept and not one question more, has the same steps.
    again = arguments(folder, "again", user, judge)
    (folder / "again").mkdir()
    for name in ("user_rlvr.jsonl", "judge_rlvr.jsonl"):
        (folder / "again" / name).write_bytes((killed / name).read_bytes())
    asked = len(user.requests)
    ended = run("-m", "launch.train", *again)
    assert ended.returncode == 0, ended.stderr
    assert len(user.requests) == asked
    assert untimed_metrics(folder / "again") == lines
    samples = (killed / "samples.jsonl").read_bytes()
    assert (folder / "again" / "samples.jsonl").read_bytes() == samples
    sample = json.loads(samples.splitlines()[0])
    assert [turn["role"] for turn in sample["dialogue"]][::2].count("assistant") >= 1
    assert any("plus 3" in turn["content"] for turn in sample["dialogue"])


def test_spoken_dialogues_compared_in_their_group_are_the_same_in_two_processes(
    folder, judge, tmp_path
):
    def write(body):
        said = sum(message["role"] == "assistant" for message in body["messages"])
        return f"What is {body['seed'] % 7} plus {said}?"

    user = JudgeServer(write)
    try:
        speak = write_speaker(tmp_path)
        options = {"compare": "group", "speak": speak, "steps": 1}
        train_in_processes(1, 1, arguments(folder, "alone", user, judge, **options))
        asked = len(user.requests)
        two = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
        train_in_processes(2, 2, [*arguments(folder, "two", user, judge, **options), *two])
        assert len(user.requests) == 2 * asked  # the first process asks
    finally:
        user.close()
    (alone,), (both,) = metrics(folder / "alone"), metrics(folder / "two")
    for name in ("reward", "turns", "reply_tokens", "user_tokens_turn_1", "audio_chunks_encoded"):
        assert both[name] == pytest.approx(alone[name]), name
    assert both["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert alone["reward_preference"] == pytest.approx(0, abs=1e-6)  # antisymmetric in a group
    assert alone["reward_std"] > 0
