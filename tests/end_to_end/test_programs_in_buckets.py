"""Every program reads and writes `gs://` as it reads and writes a folder."""

import json
import random
import re

import pytest

from stepaudio_jax.storage import read_text, to_path
from tests.end_to_end import bucket_runs
from tests.end_to_end.runs import ROOT, run
from tests.end_to_end.tones import write_config, write_lines
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import write_prompts

pytestmark = pytest.mark.slow  # starts many programs

# {root} is a folder, or a bucket with the same files.
PROGRAMS = {
    "generate": "launch.generate --model={root}/tiny_base --input={root}/questions.jsonl"
    " --output={root}/out/answers.jsonl --temperature=0 --max-new-tokens=8",
    "score": "launch.score --model={root}/tiny_base --input={root}/data/tones.jsonl"
    " --output={root}/out/scores.jsonl",
    "inspect": "launch.data inspect {root}/data/tones.jsonl --tokenizer={root}/tiny_base",
    "check": "launch.data check --config={root}/config.py --config.run_dir={root}/none"
    " --config.stages.mid.data.sources.0.path={root}/data/tones.jsonl",
    "convert": "launch.data convert {root}/data/tones.jsonl --output={root}/out --workers=2"
    " --shards=2",
    "convert to ArrayRecord": "launch.data convert {root}/data/tones.jsonl --output={root}/out"
    " --container=array_record",
    "judge data": "launch.judge data --input={root}/preferences.jsonl"
    " --output={root}/out/dialogues.jsonl --prompt={root}/prompt.txt",
    "judge report": "launch.judge report --input={root}/preferences.jsonl"
    " --model={root}/tiny_judge --max-tokens=64",
    "random weights": "tools.convert_weights random --preset=tiny --output={root}/out/random"
    " --tokenizer={root}/tiny_base",
    "import": "tools.convert_weights import --source={root}/tiny_base --output={root}/out/model",
    "inspect weights": "tools.convert_weights inspect {root}/tiny_base",
    "plan": "launch.plan --config={root}/config.py --topology=v5e:1x1"
    " --config.initial.model={root}/tiny_base --config.tokenizer=None --json={root}/out/plan.json",
}


@pytest.fixture(scope="module")
def inputs(folder, tmp_path_factory):
    """A folder with what the programs read."""
    inputs = tmp_path_factory.mktemp("inputs")
    for name in ("tiny_base", "tiny_judge"):
        (inputs / name).symlink_to(ROOT / "models" / name)
    (inputs / "data").symlink_to(folder / "data")
    (inputs / "prompt.txt").write_text(
        (ROOT / "stepaudio_jax" / "judge" / "judge_prompt.txt").read_text()
    )
    write_config(inputs / "config.py", folder / "data")
    lines = [json.loads(line) for line in (folder / "data" / "held_out.jsonl").open()]
    for line in lines:
        line["messages"][0]["content"][0]["audio"] = (
            "data/" + (line["messages"][0]["content"][0]["audio"])
        )
    questions = [{"messages": line["messages"][:1]} for line in lines]
    write_lines(inputs / "questions.jsonl", questions)
    write_lines(
        inputs / "preferences.jsonl",
        [{"prompt": "Hello?", "chosen": f"good {n}", "rejected": "bad"} for n in range(2)],
    )
    return inputs


def put_inputs(inputs):
    for path in inputs.iterdir():
        if path.is_dir() and path.name != "out":
            bucket_runs.upload(path.resolve(), f"gs://bucket/{path.name}")
        elif path.is_file():
            to_path(f"gs://bucket/{path.name}").write_bytes(path.read_bytes())


def outputs(folder):
    """Returns what a program has written; journals and Orbax's notes hold paths and times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not re.search(r"/parameters/|\.conversion\.jsonl", str(path))
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_in_a_bucket(gcs, inputs, tmp_path, name):
    put_inputs(inputs)
    local = tmp_path / "local"
    local.mkdir()
    for path in inputs.iterdir():
        (local / path.name).symlink_to(path)
    before = set(gcs.buckets["bucket"])
    printed = []
    for root in (str(local), "gs://bucket"):
        ended = run("-m", *PROGRAMS[name].format(root=root).split())
        assert ended.returncode == 0, ended.stderr
        printed.append(re.sub(r"\d+(\.\d+)? ?s\b", "", ended.stdout.replace(root, "ROOT")))
    assert printed[0] == printed[1]
    written = outputs(to_path("gs://bucket/out"))
    assert written == outputs(local / "out")
    assert bool(written) == ("{root}/out" in PROGRAMS[name])
    changed = set(gcs.buckets["bucket"]) - before
    assert all(path.startswith("out/") for path in changed)
    if name == "import":
        bucket_runs.assert_same_model("gs://bucket/out/model", local / "out" / "model")


RL_CONFIG = """
import dataclasses
import pathlib

from stepaudio_jax.config import InitialWeights, JudgeConfig, RewardConfig
from tests.rl.small_stage import stage_config


def get_config():
    config = stage_config(pathlib.Path({folder!r}), "{root}/rl/prompts.jsonl", steps=4)
    stage = config.stages[0]
    objective = dataclasses.replace(
        stage.policy_gradient,
        rewards=(RewardConfig(judge_weight=1.0, verifier_weight=0.5),),
        judge=JudgeConfig(
            url={url!r}, model="judge", api_key_env=None, prompt="{root}/prompt.txt"
        ),
    )
    stage = dataclasses.replace(stage, objective=objective)
    initial = InitialWeights(model="{root}/tiny_base")
    return dataclasses.replace(config, initial=initial, stages=(stage,))
"""


def test_reinforcement_learning_in_a_bucket(gcs, inputs, tmp_path):
    """Its judge's answers, samples and metrics grow in numbered parts; killed and resumed."""
    judge = JudgeServer()
    (tmp_path / "rl").mkdir()
    write_prompts(tmp_path / "rl")
    lines = [json.loads(line) for line in (tmp_path / "rl" / "prompts.jsonl").open()]
    write_lines(
        tmp_path / "rl" / "prompts.jsonl", [line | {"reference_reply": "ab"} for line in lines]
    )
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    put_inputs(inputs)
    bucket_runs.upload(tmp_path / "rl", "gs://bucket/rl")
    for root in (str(tmp_path), "gs://bucket"):
        text = RL_CONFIG.format(folder=str(tmp_path), root=root, url=judge.url)
        to_path(f"{root}/rl/config.py").write_text(text)

    def command(root):
        return [f"--config={root}/rl/config.py", f"--config.run_dir={root}/runs/rl"]

    assert bucket_runs.finish(bucket_runs.train(command(tmp_path)))
    asked = len(judge.requests)
    for moment in (1, random.Random(0).randrange(2, 4)):
        bucket_runs.kill_when(
            bucket_runs.train(command("gs://bucket")),
            lambda moment=moment: bucket_runs.num_logged(gcs, "runs/rl") >= moment,
        )
    finished = bucket_runs.finish(bucket_runs.train(command("gs://bucket")))
    assert finished == "gs://bucket/runs/rl/model\n"
    run_dir, local = to_path("gs://bucket/runs/rl"), tmp_path / "runs" / "rl"

    def steps(folder):
        return [
            {name: value for name, value in line.items() if not name.startswith("seconds/")}
            for line in bucket_runs.untimed(folder)
        ]

    assert steps(run_dir) == steps(local)
    bucket_runs.assert_same_model(run_dir / "model", local / "model")
    assert any(name.startswith("runs/rl/judge_rlvr.jsonl") for name in gcs.buckets["bucket"])
    # Of an answer that was kept, the judge is not asked again.
    assert len(judge.requests) - asked <= asked + 2 * 8
    ended = run("-m", "launch.report", "gs://bucket/runs/rl")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "gs://bucket/runs/rl/report.html\n"
    assert "judge" in read_text(run_dir / "report.html")
    judge.close()
