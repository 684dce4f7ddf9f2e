"""A run whose config, data, clips, model and run folder are in a bucket is the local run.

The bucket is a server on loopback; docs/tpu.md says what that cannot show.
"""

import json
import random

import pytest

from stepaudio_jax.storage import bucket_clients, copy_file, to_path
from tests.end_to_end.bucket_runs import (
    assert_same_model,
    finish,
    is_saving,
    kill_when,
    num_logged,
    train,
    untimed,
)
from tests.end_to_end.runs import STEPS, arguments, run
from tests.end_to_end.tones import write_config
from tests.storage.gcs_server import gcs_server

pytestmark = pytest.mark.slow  # starts many runs


@pytest.fixture(scope="module")
def server(folder):
    """A bucket with what a run reads: `data/` and `config.py`."""
    pytest.importorskip("gcsfs")
    context = pytest.MonkeyPatch()
    with gcs_server("bucket") as server:
        for name, value in server.environment.items():
            context.setenv(name, value)
        bucket_clients.forget_clients()
        for file in (folder / "data").iterdir():
            server.put("bucket", f"data/{file.name}", file.read_bytes())
        config = write_config(folder / "config_in_bucket.py", to_path("gs://bucket/data"))
        server.put("bucket", "config.py", config.read_bytes())
        yield server
        bucket_clients.forget_clients()
    context.undo()


def test_a_run_in_a_bucket_killed_and_resumed_equals_the_local_run(server, uninterrupted):
    run_arguments = ["--config=gs://bucket/config.py", "--config.run_dir=gs://bucket/runs/one"]
    rng = random.Random(1)
    for moment in sorted(rng.sample(range(1, len(STEPS) - 1), 3)):
        kill_when(
            train(run_arguments), lambda moment=moment: num_logged(server, "runs/one") >= moment
        )
    before = set(server.buckets["bucket"])
    kill_when(train(run_arguments), lambda: is_saving(server, before))
    assert finish(train(run_arguments)) == "gs://bucket/runs/one/model\n"

    assert untimed("gs://bucket/runs/one") == untimed(uninterrupted)
    assert_same_model("gs://bucket/runs/one/model", uninterrupted / "model")
    assert any("/tensorboard/mid/events" in name for name in server.buckets["bucket"])
    assert "runs/one/.lock" not in server.buckets["bucket"]

    # The same command again finds the finished model.
    assert finish(train(run_arguments)) == "gs://bucket/runs/one/model\n"


def test_programs_read_and_write_the_bucket(server, uninterrupted, folder):
    """After the run above: its model answers, is scored, exported and fine-tuned."""
    model = "gs://bucket/runs/one/model"
    if f"{model}/config.json".removeprefix("gs://bucket/") not in server.buckets["bucket"]:
        for file in uninterrupted.rglob("*"):
            if file.is_file():
                place = file.relative_to(uninterrupted).as_posix()
                copy_file(file, f"gs://bucket/runs/one/{place}")
    questions = [json.loads(line) for line in (folder / "data" / "held_out.jsonl").open()]
    local = folder / "questions.jsonl"
    for question in questions:
        for part in question["messages"][0]["content"]:
            if part["type"] == "audio":
                part["audio"] = f"data/{part['audio']}"
    text = "".join(
        json.dumps({"messages": question["messages"][:1]}) + "\n" for question in questions
    )
    local.write_text(text)
    server.put("bucket", "questions.jsonl", text.encode())

    answers = ["--temperature", "0", "--max-new-tokens", "8", "--slots", "2"]
    for model_folder, root in ((uninterrupted / "model", folder), (model, "gs://bucket")):
        ended = run(
            *("-m", "launch.generate", f"--model={model_folder}"),
            *(f"--input={root}/questions.jsonl", f"--output={root}/answers.jsonl", *answers),
        )
        assert ended.returncode == 0, ended.stderr
    assert (
        server.buckets["bucket"]["answers.jsonl"].content == (folder / "answers.jsonl").read_bytes()
    )
    assert not any("answers.jsonl.partial" in name for name in server.buckets["bucket"])
    again = run(
        *("-m", "launch.generate", f"--model={model}", "--input=gs://bucket/questions.jsonl"),
        *("--output=gs://bucket/answers.jsonl", *answers),
    )
    assert "already answered" in again.stdout + again.stderr

    ended = run("-m", "launch.report", "gs://bucket/runs/one")
    assert ended.returncode == 0, ended.stderr
    assert server.buckets["bucket"]["runs/one/report.html"].content.startswith(b"<!DOCTYPE html>")

    ended = run("-m", "launch.checkpoint", "gs://bucket/runs/one", "--output=gs://bucket/taken")
    assert ended.returncode == 0, ended.stderr
    assert_same_model("gs://bucket/taken", uninterrupted / "model")
    ended = run(
        *("-m", "tools.convert_weights", "export", "--source=gs://bucket/taken"),
        "--output=gs://bucket/exported",
    )
    assert ended.returncode == 0, ended.stderr
    assert_same_model("gs://bucket/exported", uninterrupted / "model")

    # Fine-tuning from the exported model, whose data are clips of a bucket too.
    steps = ["--config.stages.mid.steps=2", "--config.stages.sft.steps=2"]
    for config, model_folder, run_dir in (
        (folder / "config.py", uninterrupted / "model", folder / "tuned"),
        ("gs://bucket/config.py", "gs://bucket/exported", "gs://bucket/runs/tuned"),
    ):
        ended = run(
            *("-m", "launch.train", f"--config={config}", f"--config.run_dir={run_dir}"),
            *steps,
            f"--config.initial.model={model_folder}",
            "--config.tokenizer=None",
        )
        assert ended.returncode == 0, ended.stderr
    assert untimed("gs://bucket/runs/tuned") == untimed(folder / "tuned")
    assert_same_model("gs://bucket/runs/tuned/model", folder / "tuned" / "model")


def test_mistakes_are_one_line_and_leave_nothing(server, folder):
    server.forbidden.add("forbidden")
    server.buckets.setdefault("forbidden", {})
    before = set(server.buckets["bucket"])
    for settings, message in (
        (["--config.run_dir=s3://bucket/run"], "Orbax cannot keep checkpoints in s3:// yet"),
        (["--config.run_dir=gs://no-bucket/run"], "there is no bucket gs://no-bucket"),
        (["--config.run_dir=gs://forbidden/run"], "access is refused (403"),
        (["--config.run_dir=az://bucket/run"], "az:// is not read"),
        (
            ["--config.stages.mid.data.sources.0.path=gs://no-bucket/x.jsonl"],
            "there is no bucket gs://no-bucket",
        ),
    ):
        ended = run("-m", "launch.train", *arguments(folder, "mistaken"), *settings)
        assert ended.returncode == 2, ended.stderr
        last = ended.stderr.strip().splitlines()
        assert message in last[-1], ended.stderr
        assert len(last) == 1, ended.stderr
    assert set(server.buckets["bucket"]) == before
    assert not (folder / "mistaken").exists()
