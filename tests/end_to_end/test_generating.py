"""`launch.generate` on the real clips, killed and started again."""

import json
import signal
import time

import pytest

from tests.end_to_end.runs import run, start

pytestmark = pytest.mark.slow

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory, shared_audio):
    """Arguments of `launch.generate` for a question about each clip, without the output."""
    folder = tmp_path_factory.mktemp("generating")
    made = run("-m", "tools.convert_weights", "random", "--preset", "tiny", "--output", str(folder / "model"))
    assert made.returncode == 0, made.stderr
    clips = sorted(shared_audio.glob("*.wav"))
    assert len(clips) == 8
    lines = [
        {"id": clip.stem, "messages": [{"role": "user", "content": [_clip(clip), {"type": "text", "text": "What is it?"}]}]}
        for clip in clips
    ]
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [
        *("-m", "launch.generate", "--model", str(folder / "model"), "--input", str(folder / "dialogues.jsonl")),
        *("--max-new-tokens", str(NEW_TOKENS), "--slots", "2"),
    ]


def _clip(path):
    return {"type": "audio", "audio": str(path)}


def test_a_job_that_was_killed_makes_the_same_file(job, tmp_path):
    unbroken, killed = tmp_path / "unbroken.jsonl", tmp_path / "killed.jsonl"
    ended = run(*job, "--output", str(unbroken))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("8 of 8 dialogues answered")
    replies = [json.loads(line) for line in unbroken.read_text(encoding="utf-8").splitlines()]
    assert len({reply["id"] for reply in replies}) == 8
    assert all(reply["completion_tokens"] == NEW_TOKENS or reply["finish_reason"] == "stop" for reply in replies)
    assert all(reply["prompt_tokens"] > 50 for reply in replies)

    journal = killed.with_name(killed.name + ".partial")
    process = start(*job, "--output", str(killed))
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):  # the job, two replies
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not killed.exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 8
    again = run(*job, "--output", str(killed))
    assert again.returncode == 0, again.stderr
    assert killed.read_bytes() == unbroken.read_bytes()
    assert not journal.exists()
