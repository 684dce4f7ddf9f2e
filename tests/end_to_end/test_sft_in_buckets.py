"""`configs/sft.py` on tiny_base is the same run, bit for bit, wherever its files lie.

In `gs://` everything is in the bucket; in `s3://`, where Orbax keeps no checkpoints, all but the
run folder. Both are killed and resumed, and export to the bucket.
"""

import random

import pytest

from stepaudio_jax.storage import to_path
from tests.end_to_end import bucket_runs
from tests.end_to_end.runs import ROOT, free_port, num_logged_lines, read_errors, run, start

pytestmark = pytest.mark.slow  # starts many programs

STEPS = 24
# The sizes of the configuration are those of a pod.
SMALL = (
    "--config=configs/sft.py",
    *("--config.log_every_steps=1", "--config.checkpoint.every_steps=5"),
    *(
        f"--config.stages.sft.{key}={value}"
        for key, value in {
            "steps": STEPS,
            "optimizer.warmup_steps": 3,
            "optimizer.learning_rate": 1e-3,
            "data.batch_size": 2,
            "data.seq_len": 192,
            "data.mel_frames_per_chunk": 64,
            "data.augmentation": {"noise_probability": 0.5, "gain_db": (-3.0, 3.0)},
        }.items()
    ),
)


def arguments(root, run_dir, *more):
    """Returns what a run whose files are in a folder or a bucket is started with."""
    return [
        *SMALL,
        f"--config.run_dir={run_dir}",
        f"--config.initial.model={root}/tiny_base",
        f"--config.tokenizer={root}/tiny_base",
        f"--config.stages.sft.data.sources.0.path={root}/data/tones.jsonl",
        *more,
    ]


@pytest.fixture(scope="module")
def inputs(folder):
    """A folder with the model and the data."""
    (folder / "tiny_base").symlink_to(ROOT / "models" / "tiny_base")
    return folder


@pytest.fixture(scope="module")
def local(inputs):
    """The local run that nothing has interrupted, its model, and that model exported."""
    finished = bucket_runs.finish(
        bucket_runs.train(arguments(inputs, inputs / "runs" / "local"))
    ).strip()
    assert finished == str(inputs / "runs" / "local" / "model")
    assert len(bucket_runs.untimed(inputs / "runs" / "local")) == STEPS
    convert("export", finished, inputs / "exported")
    return inputs / "runs" / "local"


def put_inputs(inputs, bucket):
    for name in ("data", "tiny_base"):
        bucket_runs.upload((inputs / name).resolve(), f"{bucket}/{name}")


def convert(command, source, output):
    ended = run(
        *("-m", "tools.convert_weights", command), f"--source={source}", f"--output={output}"
    )
    assert ended.returncode == 0, ended.stderr


def contents(folder):
    return {
        str(path.relative_to(to_path(folder))): path.read_bytes()
        for path in to_path(folder).rglob("*")
        if path.is_file()
    }


def assert_exports_to(bucket, model, local):
    """Exports a model to the bucket and imports it back, without a difference in any byte."""
    exported = local.parent.parent / "exported"
    convert("export", model, f"{bucket}/exported")
    assert contents(f"{bucket}/exported") == contents(exported)
    convert("import", f"{bucket}/exported", f"{bucket}/imported")
    bucket_runs.assert_same_model(f"{bucket}/imported", local / "model")


def test_everything_in_gs(gcs, inputs, local, tmp_path):
    put_inputs(inputs, "gs://bucket")
    run_dir = "gs://bucket/runs/sft"
    command = arguments("gs://bucket", run_dir)
    for moment in sorted(random.Random(0).sample(range(1, STEPS - 4), 2)):
        bucket_runs.kill_when(
            bucket_runs.train(command),
            lambda moment=moment: bucket_runs.num_logged(gcs, "runs/sft") >= moment,
        )
    # Where clips are kept may change while a run is stopped.
    kept = tmp_path / "clips"
    command.append(f"--config.stages.sft.data.clip_cache_dir={kept}")
    before = set(gcs.buckets["bucket"])
    bucket_runs.kill_when(bucket_runs.train(command), lambda: bucket_runs.is_saving(gcs, before))
    assert bucket_runs.finish(bucket_runs.train(command)) == f"{run_dir}/model\n"
    assert list(kept.rglob("??/*"))

    assert bucket_runs.untimed(run_dir) == bucket_runs.untimed(local)
    bucket_runs.assert_same_model(f"{run_dir}/model", local / "model")
    assert_exports_to("gs://bucket", f"{run_dir}/model", local)
    ended = run("-m", "launch.checkpoint", run_dir, "--output=gs://bucket/taken", "--step=20")
    assert ended.returncode == 0, ended.stderr
    ended = run("-m", "launch.checkpoint", local, f"--output={tmp_path / 'taken'}", "--step=20")
    bucket_runs.assert_same_model("gs://bucket/taken", tmp_path / "taken")


def test_everything_but_the_run_folder_in_s3(s3, inputs, local, tmp_path):
    bucket = "s3://bucket"
    put_inputs(inputs, bucket)
    before = set(to_path(bucket).rglob("*"))
    ended = run("-m", "launch.train", *arguments(bucket, f"{bucket}/runs/sft"))
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "Orbax cannot keep checkpoints in s3:// yet; name a folder in gs://" in ended.stderr
    assert set(to_path(bucket).rglob("*")) == before

    run_dir = tmp_path / "run"
    command = arguments(bucket, run_dir)
    moment = random.Random(1).randrange(6, STEPS - 4)
    bucket_runs.kill_when(bucket_runs.train(command), lambda: num_logged_lines(run_dir) >= moment)
    assert bucket_runs.finish(bucket_runs.train(command)) == f"{run_dir}/model\n"
    assert bucket_runs.untimed(run_dir) == bucket_runs.untimed(local)
    bucket_runs.assert_same_model(run_dir / "model", local / "model")
    assert_exports_to(bucket, run_dir / "model", local)
    # A model of a checkpoint, on one device, on several, and of several processes.
    take = ("-m", "launch.checkpoint", str(run_dir))
    for devices in (1, 2):
        ended = run(*take, f"--output={bucket}/taken{devices}", devices=devices)
        assert ended.returncode == 0, ended.stderr
        bucket_runs.assert_same_model(f"{bucket}/taken{devices}", local / "model")
    address = f"127.0.0.1:{free_port()}"
    started = [
        start(*take, f"--output={bucket}/together", f"--distributed={address},2,{index}")
        for index in range(2)
    ]
    errors = read_errors(started)
    assert [process.returncode for process in started] == [0, 0], errors
    bucket_runs.assert_same_model(f"{bucket}/together", local / "model")
