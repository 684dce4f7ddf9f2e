"""An RL run of `launch.train`, killed in each of its phases, resumes bit-exactly."""

import json
import random
import signal
import time

import pytest

from tests.end_to_end.runs import num_logged_lines, run, start, untimed_metrics
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import write_prompts

pytestmark = pytest.mark.slow  # starts many runs

STEPS = 5
CONFIG = """
import dataclasses
import pathlib

from stepaudio_jax.config import JudgeConfig, RewardConfig
from tests.rl.small_stage import stage_config

FOLDER = pathlib.Path({folder!r})


def get_config():
    config = stage_config(FOLDER, FOLDER / "prompts.jsonl", steps={steps})
    stage = config.stages[0]
    objective = dataclasses.replace(
        stage.policy_gradient,
        rewards=(
            RewardConfig(
                judge_weight=1.0, verifier="tests.rl.small_stage:even", verifier_weight=0.5
            ),
        ),
        judge=JudgeConfig(url={url!r}, model="judge", api_key_env=None),
    )
    return dataclasses.replace(config, stages=(dataclasses.replace(stage, objective=objective),))
"""


@pytest.fixture
def server():
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path, server):
    write_prompts(tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = [line | {"reference_reply": "a reply of some words"} for line in lines]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    config = CONFIG.format(folder=str(tmp_path), url=server.url, steps=STEPS)
    (tmp_path / "config.py").write_text(config, encoding="utf-8")
    return tmp_path


def arguments(folder, name):
    return [
        "-m",
        "launch.train",
        f"--config={folder / 'config.py'}",
        f"--config.run_dir={folder / name}",
    ]


def test_a_run_killed_in_rollouts_judging_updates_and_saving_resumes(folder, server):
    uninterrupted, killed = folder / "uninterrupted", folder / "killed"
    ended = run(*arguments(folder, uninterrupted.name))
    assert ended.returncode == 0, ended.stderr
    assert len(untimed_metrics(uninterrupted)) == STEPS
    asked = len(server.requests)

    rng = random.Random(0)
    begun = asked
    moments = (
        # while the first questions of the first step are answered
        lambda: len(server.requests) > begun + 3,
        lambda: num_logged_lines(killed) >= 1,  # then it saves
        lambda: any(
            ".orbax-checkpoint-tmp" in path.name for path in killed.glob("checkpoints/*/*")
        ),
        lambda: num_logged_lines(killed) >= 3,
    )
    for number, moment in enumerate(moments):
        process = start(*arguments(folder, killed.name))
        while process.poll() is None and not moment():
            time.sleep(0.002)
        # the last kill is in the rollouts or the update of the next step
        time.sleep(rng.uniform(0, 0.5) if number == 3 else 0)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {number}: {errors}"
    ended = run(*arguments(folder, killed.name))
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(killed) == untimed_metrics(uninterrupted)
    assert (killed / "samples.jsonl").read_bytes() == (uninterrupted / "samples.jsonl").read_bytes()
    questions = [body["messages"][0]["content"] for _, _, body in server.requests[asked:]]
    repeated = len(questions) - len(set(questions))
    assert repeated <= 8 * len(moments)  # at most the eight requests in flight at each kill


def test_a_judge_that_abstains_too_often_ends_the_run_with_everything_saved(folder, server):
    broken = folder / "broken"
    server.trouble = lambda number, handler: number > 6 and _refuse(handler)
    ended = run(*arguments(folder, broken.name))
    assert ended.returncode == 3
    assert "gave no verdict on" in ended.stderr
    assert "Traceback" not in ended.stderr
    done = num_logged_lines(broken)
    assert (broken / "checkpoints" / "0_rlvr" / str(done)).is_dir()
    server.trouble = lambda number, handler: False
    ended = run(*arguments(folder, broken.name))
    assert ended.returncode == 0, ended.stderr
    assert len(untimed_metrics(broken)) == STEPS


def _refuse(handler):
    handler.reply(400, {"error": "no"})
    return True
