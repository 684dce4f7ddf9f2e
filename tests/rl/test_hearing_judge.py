"""A stage of RL whose judge hears the prompts' clips: at a server, and in this process."""

import base64
import dataclasses
import io
import json
import logging
import pathlib
import shutil

import pytest
import soundfile

from stepaudio_jax.config import JudgeConfig, RewardConfig
from stepaudio_jax.data import read_records
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.judge.clip_embeddings import ClipEmbeddings
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import BASE, run_stage, stage_config, write_prompts

pytestmark = pytest.mark.slow  # each runs a stage

ROOT = pathlib.Path(__file__).resolve().parents[2]


def judged_config(path, **judge):
    """Returns a run of one step whose rewards come of a judge that hears."""
    prompts = write_prompts(path)
    rows = [json.loads(line) | {"reference_reply": "yes"} for line in prompts.open()]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = stage_config(path, prompts, steps=1, rollout={"num_prompts": 6})
    stage = config.stages[0]
    objective = dataclasses.replace(
        stage.policy_gradient,
        rewards=(RewardConfig(judge_weight=1.0),),
        judge=JudgeConfig(inputs="audio", **judge),
    )
    return dataclasses.replace(config, stages=(dataclasses.replace(stage, objective=objective),))


def samples(config):
    """Returns {id: line} of samples.jsonl, and the lines of the judge's cache."""
    folder = pathlib.Path(config.run_dir)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    answers = [json.loads(line) for line in (folder / "judge_rlvr.jsonl").open()]
    return {line["id"]: line for line in lines}, answers


def test_a_server_is_sent_the_clip_of_each_prompt_with_its_replies(tmp_path):
    def answer(body):
        size = len(json.dumps(body))
        return json.dumps({"comparison": "a is better" if size % 2 else "b is better"})

    server = JudgeServer(answer)
    config = judged_config(tmp_path, url=server.url, model="m", api_key_env=None)
    run_stage(config)
    server.close()
    clips = {
        load_clip(part).tobytes()
        for record in read_records(tmp_path / "prompts.jsonl")
        for part in record.messages[0].audio
    }
    received = []
    for _, _, body in server.requests:
        content = body["messages"][0]["content"]
        if isinstance(content, str):
            continue
        (sound,) = [part for part in content if part["type"] == "input_audio"]
        data = base64.b64decode(sound["input_audio"]["data"])
        received.append(soundfile.read(io.BytesIO(data), dtype="float32")[0].tobytes())
    assert set(received) == clips
    assert len(clips) == 3
    by_id, answers = samples(config)
    for identity, line in by_id.items():
        given = line["judge_given"]
        assert given["inputs"] == "audio"
        assert len(given["clips"]) == int(identity[1:]) % 2
    assert len(answers) == len(server.requests)
    assert all("given" in line for line in answers)


def with_another_encoder(folder):
    """Copies the policy's folder, and changes the last bit of one weight of the encoder."""
    shutil.copytree(BASE, folder)
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])
    name = next(name for name in tensors if name.startswith("encoder.") and "weight" in name)
    content[start + tensors[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    return folder


@pytest.mark.parametrize("same", [True, False])
def test_a_judge_in_the_process_hears_through_the_rollouts_features(
    tmp_path, monkeypatch, caplog, same
):
    made = []
    plain = ClipEmbeddings.__call__

    def watch(self, engine, clips):
        if self not in made:
            made.append(self)
        return plain(self, engine, clips)

    monkeypatch.setattr(ClipEmbeddings, "__call__", watch)
    config = judged_config(
        tmp_path,
        folder=str(BASE if same else with_another_encoder(tmp_path / "judge")),
        prompt=str(ROOT / "configs" / "tiny_judge.txt"),
        max_tokens=8,
        slots=4,
        max_abstention_rate=1.0,
    )
    with caplog.at_level(logging.INFO):
        run_stage(config)
    (embeddings,) = made
    assert ("encodes the clips for itself" in caplog.text) == (not same)
    assert (embeddings.num_encoded == 0) == same
    by_id, answers = samples(config)
    assert {len(line["judge_given"]["clips"]) for line in by_id.values()} == {0, 1}
    assert any(line["given"]["clips"] for line in answers)
