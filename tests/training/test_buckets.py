"""A run folder in a bucket: its checkpoints, lock, metrics and charts."""

import json
import logging
import os

import pytest

from stepaudio_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    SourceConfig,
    StageConfig,
    load_config,
)
from stepaudio_jax.errors import CheckpointError, ConfigError, StorageError
from stepaudio_jax.reports import write_report
from stepaudio_jax.storage import bucket_locks, read_step_lines, to_path
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import StageCheckpoints, saved_steps
from stepaudio_jax.training.monitoring import MetricsWriter
from stepaudio_jax.training.run_folder import (
    RunLock,
    check_same_run,
    prepare_run_folder,
    read_model_spec,
    read_run_config,
)
from tests.models.random_model import SMALL
from tests.training.test_checkpoints import abstract_of, assert_equal, at_step, small_state

RUN = "gs://bucket/runs/one"

__all__ = ["small_state"]  # a fixture


@pytest.fixture
def config():
    stage = StageConfig(
        name="sft", steps=10, data=DataConfig(sources=(SourceConfig(path="gs://bucket/a.jsonl"),))
    )
    return Config(run_dir=RUN, stages=(stage,), tokenizer="bytes")


def open_checkpoints(**settings):
    return StageCheckpoints(to_path(RUN), 1, "sft", CheckpointConfig(**settings))


def steps():
    return sorted(path.name for path in to_path(f"{RUN}/checkpoints/1_sft").iterdir())


def test_checkpoints_are_kept_and_restored(gcs, small_state):
    checkpoints = open_checkpoints(keep=2)
    assert checkpoints.latest_step is None
    for step in (5, 10, 15):
        checkpoints.save(at_step(small_state, step), {"index": step}, {"evaluation/loss": 1.0})
    checkpoints.close()
    assert steps() == ["10", "15"]
    assert saved_steps(to_path(RUN), 1, "sft") == [10, 15]
    checkpoints = open_checkpoints(keep=2)
    restored, data = checkpoints.restore(abstract_of(small_state))
    checkpoints.close()
    assert_equal(restored, at_step(small_state, 15))
    assert data == {"index": 15}


def test_a_checkpoint_whose_writer_was_killed_does_not_count(gcs, small_state):
    """In a bucket it has its final name from the beginning, and a file that Orbax writes last."""
    checkpoints = open_checkpoints(keep=3)
    for step in (5, 10):
        checkpoints.save(at_step(small_state, step), {"index": step}, {})
    checkpoints.close()
    del gcs.buckets["bucket"]["runs/one/checkpoints/1_sft/10/commit_success.txt"]
    assert saved_steps(to_path(RUN), 1, "sft") == [5]
    checkpoints = open_checkpoints(keep=3)
    assert checkpoints.latest_step == 5
    checkpoints.save(at_step(small_state, 10), {"index": 11}, {})
    checkpoints.close()
    checkpoints = open_checkpoints(keep=3)
    restored, data = checkpoints.restore(abstract_of(small_state))
    checkpoints.close()
    assert (int(restored.step), data) == (10, {"index": 11})


def test_a_damaged_checkpoint_is_set_aside(gcs, small_state, caplog):
    checkpoints = open_checkpoints(keep=3)
    for step in (5, 10):
        checkpoints.save(at_step(small_state, step), {"index": step}, {})
    checkpoints.close()
    for name in list(gcs.buckets["bucket"]):
        if "/1_sft/10/state/" in name and "commit" not in name:
            content = gcs.buckets["bucket"][name].content
            gcs.put("bucket", name, content[: len(content) // 2])
    checkpoints = open_checkpoints(keep=3)
    restored, data = checkpoints.restore(abstract_of(small_state))
    checkpoints.close()
    assert (int(restored.step), data) == (5, {"index": 5})
    assert "damaged checkpoint set aside" in caplog.text
    assert steps() == ["5"]
    assert to_path(f"{RUN}/checkpoints/1_sft.damaged/10").is_dir()


def test_a_bucket_that_refuses_a_checkpoint_is_one_line(gcs, small_state, no_waiting):
    checkpoints = open_checkpoints(keep=3)
    gcs.forbidden.add("bucket")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with pytest.raises((CheckpointError, StorageError)) as error:
        save_and_close(checkpoints, at_step(small_state, 10))
    assert "gs://bucket" in str(error.value)
    gcs.forbidden.clear()


def save_and_close(checkpoints, state):
    checkpoints.save(state, {}, {})
    checkpoints.close()


def test_the_folder_of_a_run(gcs, config):
    check_same_run(config)
    run_dir = prepare_run_folder(config, SMALL, Tokenizer.byte_level(), begins=True)
    assert str(run_dir) == RUN
    assert read_run_config(run_dir)["run_dir"] == RUN
    assert read_model_spec(run_dir)[0] == SMALL
    check_same_run(config)
    prepare_run_folder(config, SMALL, Tokenizer.byte_level(), begins=True)
    gcs.put("bucket", "runs/one/config.json", json.dumps({"stages": [], "layout": 2}).encode())
    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        check_same_run(config)


def test_run_folders_that_cannot_be(s3, gcs, config):
    import dataclasses

    for run_dir, message in (
        ("s3://bucket/run", "Orbax cannot keep checkpoints in s3:// yet"),
        ("gs://no-bucket/run", "there is no bucket gs://no-bucket"),
        ("az://bucket/run", "az:// is not read"),
    ):
        with pytest.raises((ConfigError, StorageError), match=message):
            check_same_run(dataclasses.replace(config, run_dir=run_dir))


def test_a_second_job_is_refused_while_the_first_one_runs(gcs):
    lock = RunLock(RUN)
    lock.acquire()
    with pytest.raises(ConfigError, match="in use by another job in this process"):
        RunLock(RUN).acquire()
    parent = os.getppid()
    holder = {"machine": bucket_locks._machine(), "started": bucket_locks._start_time(parent)}
    holder |= {"process": parent, "host": "here", "since": "noon", "beat": 0}
    gcs.put("bucket", "runs/two/.lock", json.dumps(holder).encode())
    with pytest.raises(ConfigError, match=rf"job \(process {parent} on here, since noon\)"):
        RunLock("gs://bucket/runs/two").acquire()
    lock.close()
    lock.close()
    again = RunLock(RUN)
    again.acquire()
    again.close()
    del gcs.buckets["bucket"]["runs/two/.lock"]
    assert not gcs.buckets["bucket"]


def test_metrics_charts_and_report(gcs, config):
    prepare_run_folder(config, SMALL, Tokenizer.byte_level(), begins=True)
    writer = MetricsWriter(to_path(RUN), stage="sft", resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2, "tokens": 10})
    writer.add_to_step(3, {"evaluation/loss": 4.0})
    assert not writer.is_missing(3, "evaluation/loss")
    writer.close()
    assert [line["loss"] for line in read_step_lines(f"{RUN}/metrics.jsonl")] == [0.5, 1.0, 1.5]
    events = [name for name in gcs.buckets["bucket"] if "/tensorboard/sft/events" in name]
    assert len(events) == 1
    assert b"evaluation/loss" in gcs.buckets["bucket"][events[0]].content
    page = write_report(f"{RUN}/report.html", RUN, "a title")
    assert str(page) == f"{RUN}/report.html"
    assert "a title" in page.read_text()
    write_report(f"{RUN}/report.html", RUN, "another title")
    assert "another title" in page.read_text()


def test_a_configuration_file_in_a_bucket(gcs):
    text = "from stepaudio_jax.config import *\n\n\ndef get_config():\n    return Config({})\n"
    values = 'run_dir="gs://bucket/run", stages=(StageConfig(name="sft", steps=1),)'
    gcs.put("bucket", "config.py", text.format(values).encode())
    with pytest.raises(ConfigError, match=r"line 5: .*missing"):
        load_config("gs://bucket/config.py")
    values = values.replace(
        "steps=1", "steps=1, data=DataConfig(sources=(SourceConfig(path='gs://bucket/x.jsonl'),))"
    )
    gcs.put("bucket", "config.py", text.format(values).encode())
    assert load_config("gs://bucket/config.py", [("seed", "3")]).seed == 3
    gcs.put("bucket", "config.py", text.format("unknown=1").encode())
    with pytest.raises(ConfigError, match=r"config file gs://bucket/config\.py, line 5"):
        load_config("gs://bucket/config.py")
    with pytest.raises(ConfigError, match=r"gs://bucket/none\.py does not exist"):
        load_config("gs://bucket/none.py")
