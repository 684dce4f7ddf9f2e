"""The pairs of the arm "dpo": replies of a model, compared by a judge."""

import dataclasses
import json

import pytest

from examples.reward_trap import judged_pairs
from examples.reward_trap.style import REQUESTS, Style
from examples.reward_trap.style_data import rubric
from stepaudio_jax.config import SourceConfig, load_config
from stepaudio_jax.data import read_records
from tests.end_to_end.runs import ROOT
from tests.end_to_end.tones import write_lines

CLIP = str(ROOT / "examples" / "clips" / "kitchen.flac")


def prompt(number, request=None):
    heard = {"type": "audio", "audio": CLIP, "transcript": "gender female"}
    question = "What is the speaker's gender?" + (f" {request.text}" if request else "")
    style = request.style if request else Style(sentence=True)
    record = {
        "id": f"p{number}",
        "messages": [{"role": "user", "content": [heard, {"type": "text", "text": question}]}],
        "answer": "female",
        "reference_reply": style.render("female"),
    }
    return record | ({"rubric": rubric(request)} if request else {})


@pytest.fixture
def joint(tmp_path, monkeypatch):
    """Returns the joint stage on a few prompts, with two replies to each of six a seed."""
    monkeypatch.chdir(ROOT)
    request = next(iter(REQUESTS.values()))
    files = {"preference": None, "rubric": request}
    sources = tuple(
        SourceConfig(
            path=str(
                write_lines(
                    tmp_path / f"{name}.jsonl", [prompt(number, kind) for number in range(12)]
                )
            ),
            weight=2.0 if kind else 1.0,
        )
        for name, kind in files.items()
    )
    (stage,) = load_config("configs/quickstart_rlhf.py").stages
    objective = stage.policy_gradient
    rollout = dataclasses.replace(objective.rollout, num_prompts=3, num_generations=2, slots=4)
    # The start model here is one that was not trained to answer in styles.
    judge = dataclasses.replace(objective.judge, max_abstention_rate=1.0)
    return dataclasses.replace(
        stage,
        steps=2,
        data=dataclasses.replace(stage.data, sources=sources),
        objective=dataclasses.replace(objective, rollout=rollout, judge=judge),
    )


def test_prompts_are_drawn_in_the_shares_of_the_joint_stage(joint):
    first, again, other = (judged_pairs._draw_prompts(joint, seed) for seed in (0, 0, 1))
    assert [record.source for record in first].count("rubric") == 4
    assert len(first) == 6
    assert first == again
    assert {record.id for record in first if record.rubric} != {
        record.id for record in other if record.rubric
    } or first != other
    assert len({(record.source, record.id) for record in first}) == 6  # without replacement


@pytest.mark.slow
def test_interrupted_pairs_go_on_and_are_the_same(joint, tmp_path, monkeypatch):
    start = ROOT / "models" / "tiny_base"
    written = judged_pairs.write_judged_pairs(tmp_path / "a", start, joint, seed=0)
    replies = (tmp_path / "a" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert [len(json.loads(line)["samples"]) for line in replies] == [2] * 6
    pairs = list(read_records(written))
    assert pairs
    for record in pairs:
        assert record.reference_reply != record.rejected_reply
    # The judge fails after the replies are there; then everything goes on from them.
    stopped = pytest.raises(RuntimeError, match="stopped")
    with monkeypatch.context() as patch, stopped:
        patch.setattr(judged_pairs, "make_judge", _stop)
        judged_pairs.write_judged_pairs(tmp_path / "b", start, joint, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(judged_pairs, "answer_file", _stop)  # not asked again
        again = judged_pairs.write_judged_pairs(tmp_path / "b", start, joint, seed=0)
        assert again.read_bytes() == written.read_bytes()
        patch.setattr(judged_pairs, "make_judge", _stop)
        assert judged_pairs.write_judged_pairs(tmp_path / "b", start, joint, seed=0) == again


def _stop(*_, **__):
    raise RuntimeError("stopped")
