"""`launch.generate` and `launch.score` on real clips: resumed after a kill, and on many devices."""

import json
import pathlib
import signal
import time

import numpy as np
import pytest

from tests.end_to_end.runs import run, start

pytestmark = pytest.mark.slow

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory, shared_audio):
    """Returns arguments of `launch.generate` for a question about each clip, without the output."""
    folder = tmp_path_factory.mktemp("generating")
    converted = run(
        "-m",
        "tools.convert_weights",
        "random",
        "--preset",
        "tiny",
        "--output",
        str(folder / "model"),
    )
    assert converted.returncode == 0, converted.stderr
    clips = sorted(shared_audio.glob("*.wav"))
    assert len(clips) == 8
    lines = [
        {
            "id": clip.stem,
            "messages": [
                {"role": "user", "content": [_clip(clip), {"type": "text", "text": "What is it?"}]}
            ],
        }
        for clip in clips
    ]
    (folder / "dialogues.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return [
        *(
            "-m",
            "launch.generate",
            "--model",
            str(folder / "model"),
            "--input",
            str(folder / "dialogues.jsonl"),
        ),
        *("--max-new-tokens", str(NEW_TOKENS), "--slots", "2"),
    ]


def _clip(path):
    return {"type": "audio", "audio": str(path)}


def test_a_killed_job_resumes_and_writes_the_same_file(job, tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted.jsonl", tmp_path / "killed.jsonl"
    ended = run(*job, "--output", str(uninterrupted))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("8 of 8 dialogues answered")
    replies = [json.loads(line) for line in uninterrupted.read_text(encoding="utf-8").splitlines()]
    assert len({reply["id"] for reply in replies}) == 8
    assert all(
        reply["completion_tokens"] == NEW_TOKENS or reply["finish_reason"] == "stop"
        for reply in replies
    )
    assert all(reply["prompt_tokens"] > 50 for reply in replies)

    journal = killed.with_name(killed.name + ".partial")
    process = start(*job, "--output", str(killed))
    header_and_two_replies = 3
    while process.poll() is None and not (
        journal.exists() and journal.read_bytes().count(b"\n") >= header_and_two_replies
    ):
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not killed.exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 8
    again = run(*job, "--output", str(killed))
    assert again.returncode == 0, again.stderr
    assert killed.read_bytes() == uninterrupted.read_bytes()
    assert not journal.exists()


def test_eight_devices_generate_and_score_as_one_does(job, tmp_path):
    """`tiny` has two KV heads: tensor parallelism over two devices, slots over four such pairs."""
    greedy = (*job[:-2], "--temperature", "0", "--slots", "4", "--output")
    for devices in (1, 8):
        ended = run(*greedy, str(tmp_path / f"{devices}.jsonl"), devices=devices)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "8.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    refused = run(*greedy, str(tmp_path / "none.jsonl"), "--tensor", "3", devices=8)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "none.jsonl").exists()

    lines = [
        json.loads(line)
        for line in pathlib.Path(job[job.index("--input") + 1])
        .read_text(encoding="utf-8")
        .splitlines()
    ]
    for line in lines:
        line["messages"].append(
            {"role": "assistant", "content": "A sound.", "reasoning_content": "I hear it."}
        )
    (tmp_path / "answered.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    scores = []
    for devices in (1, 8):
        output = tmp_path / f"scores_{devices}.jsonl"
        files = ("--input", str(tmp_path / "answered.jsonl"), "--output", str(output))
        ended = run("-m", "launch.score", *job[2:4], *files, devices=devices)
        assert ended.returncode == 0, ended.stderr
        turns = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        scores.append(
            [logprob for line in turns for turn in line["turns"] for logprob in turn["logprobs"]]
        )
    assert len(scores[0]) > 100
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
