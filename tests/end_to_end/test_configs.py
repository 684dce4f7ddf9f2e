"""The pod configurations train a small model on sixteen simulated devices."""

import json

import pytest

from tests.end_to_end.runs import metrics, train_in_processes
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import write_prompts

pytestmark = pytest.mark.slow  # sixteen devices on a few cores

DEVICES = 16
STAGES = {
    "sft_32b": ["sft"],
    "sft_mini_8b": ["sft"],
    "midtrain_32b": ["adaptor", "midtrain", "sft"],
}
SMALL = [
    "--config.model.preset=tiny",
    "--config.tokenizer=bytes",
    "--config.compute.dtype=float32",
    "--config.compute.loss_chunks=1",
]


def settings(config, run_dir, stages, data, **more):
    """Returns arguments of `launch.train`: one step of each stage on few short rows."""
    overrides = (
        {
            "steps": 1,
            "data.batch_size": DEVICES,
            "data.seq_len": 256,
            "data.audio_chunks_per_seq": 1,
        }
        | data
        | more
    )
    return [
        *(f"--config=configs/{config}.py", f"--config.run_dir={run_dir}", *SMALL),
        *(
            f"--config.stages.{stage}.{key}={value}"
            for stage in stages
            for key, value in overrides.items()
        ),
    ]


@pytest.mark.parametrize("config", STAGES)
def test_a_pod_configuration_trains(folder, tmp_path, config):
    source = {"path": str(folder / "data" / "tones.jsonl")}
    train_in_processes(
        1,
        DEVICES,
        settings(config, tmp_path / "run", STAGES[config], {"data.sources": json.dumps([source])}),
    )
    assert [line["stage"] for line in metrics(tmp_path / "run")] == STAGES[config]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_the_rlhf_configuration_trains(tmp_path):
    lines = write_prompts(tmp_path).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) | {"reference_reply": "a reply of some words"} for line in lines]
    prompts = tmp_path / "preferences.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    server = JudgeServer()
    small = {"data.sources.0.path": prompts, "data.seq_len": 512}
    rollout = {
        "num_prompts": 4,
        "num_generations": 2,
        "max_new_tokens": 16,
        "slots": 5,
        "tensor": 2,
    }
    judge = {"url": server.url, "api_key_env": None, "max_abstention_rate": 1.0}
    more = {f"objective.rollout.{key}": value for key, value in rollout.items()} | {
        f"objective.judge.{key}": value for key, value in judge.items()
    }
    try:
        train_in_processes(
            1, DEVICES, settings("rlhf_32b", tmp_path / "run", ["rlhf"], small, **more)
        )
    finally:
        server.close()
    (line,) = metrics(tmp_path / "run")
    assert line["reasoning_tokens"] > 0  # a random model seldom ends its reasoning
    assert (tmp_path / "run" / "model" / "config.json").is_file()
