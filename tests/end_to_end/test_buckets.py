"""A run whose config, data, clips, model and run folder are in a bucket is the local run.

The bucket is a server on loopback; docs/tpu.md says what that cannot show.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stepaudio_jax import hub
from stepaudio_jax.storage import bucket_clients, copy_file, read_step_lines, to_path
from tests.end_to_end.runs import ROOT, STEPS, arguments, run, untimed_metrics
from tests.end_to_end.tones import write_config
from tests.storage.gcs_server import gcs_server

pytestmark = pytest.mark.slow  # starts many runs

TIMES = ("per_second", "wait_fraction", "compile_seconds", "goodput")


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


def start(*command):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.train", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )


def logged(server, run_dir):
    """Returns the number of lines that a run in the bucket has logged."""
    path = f"gs://bucket/{run_dir}/metrics.jsonl"
    has_any = any(
        name.startswith(f"{run_dir}/metrics.jsonl") for name in list(server.buckets["bucket"])
    )
    return len(read_step_lines(path)) if has_any else 0


def untimed(lines):
    return [
        {name: value for name, value in line.items() if not any(time in name for time in TIMES)}
        for line in lines
    ]


def assert_same_model(left, right):
    for first, second in zip(hub_leaves(left), hub_leaves(right), strict=True):
        np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))


def hub_leaves(folder):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(hub.read_parameters(folder))]


def wait_for(process, happened):
    while process.poll() is None and not happened():
        time.sleep(0.05)


def test_a_run_in_a_bucket_killed_and_resumed_equals_the_local_run(server, uninterrupted):
    run_arguments = ["--config=gs://bucket/config.py", "--config.run_dir=gs://bucket/runs/one"]
    rng = random.Random(1)
    for moment in [*sorted(rng.sample(range(1, len(STEPS) - 1), 3)), None]:
        process = start(*run_arguments)
        if moment is None:  # while a checkpoint is being written
            seen = set(server.buckets["bucket"])

            def writes_a_checkpoint(seen=seen):
                new = set(server.buckets["bucket"]) - seen
                steps = {name.rpartition("/state/")[0] for name in new if "/state/" in name}
                return any(
                    step and f"{step}/commit_success.txt" not in server.buckets["bucket"]
                    for step in steps
                )

            wait_for(process, writes_a_checkpoint)
        else:
            wait_for(process, lambda moment=moment: logged(server, "runs/one") >= moment)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    process = start(*run_arguments)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert printed == "gs://bucket/runs/one/model\n"

    lines = read_step_lines("gs://bucket/runs/one/metrics.jsonl")
    assert untimed(lines) == untimed_metrics(uninterrupted)
    assert_same_model("gs://bucket/runs/one/model", uninterrupted / "model")
    assert any("/tensorboard/mid/events" in name for name in server.buckets["bucket"])
    assert "runs/one/.lock" not in server.buckets["bucket"]

    # The same command again finds the finished model.
    process = start(*run_arguments)
    assert process.communicate()[0] == "gs://bucket/runs/one/model\n"


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
    assert untimed(read_step_lines("gs://bucket/runs/tuned/metrics.jsonl")) == untimed_metrics(
        folder / "tuned"
    )
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
