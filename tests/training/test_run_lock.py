"""A run folder has one job at a time."""

import json
import subprocess
import sys

import pytest

from stepaudio_jax import train
from stepaudio_jax.config import Config, DataConfig, SourceConfig, StageConfig, to_dict
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.training.run_folder import LAYOUT, LOCK, RunLock

HOLD = """
import sys
from stepaudio_jax.storage import lock_file
held = lock_file(sys.argv[1])
held.file.write(sys.argv[2].encode())
held.file.flush()
print(flush=True)
sys.stdin.read()
"""
HOLDER = json.dumps({"process": 77, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"})


@pytest.fixture
def run_dir(tmp_path):
    """A folder that holds a run."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def holder_of(run_dir, note):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, run_dir / LOCK, note]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("note", "shown"),
    [
        (HOLDER, r" \(process 77 on elsewhere, since 2026-01-01T00:00:00\+00:00\)"),
        ("", ""),
        ("garbage", ""),
        ("[1]", ""),
    ],
)
def test_a_second_job_is_refused_until_the_first_one_is_dead(run_dir, note, shown):
    with holder_of(run_dir, note) as other:
        for _ in range(2):
            with pytest.raises(
                ConfigError,
                match=f"run' is in use by another job{shown}: wait for it or stop it, or choose another",
            ):
                RunLock(str(run_dir)).acquire_if_exists()
        other.kill()
        other.wait()
        lock = RunLock(str(run_dir))
        lock.acquire_if_exists()
    lock.acquire()  # it is held already
    assert (run_dir / LOCK).exists()
    lock.close()
    assert not (run_dir / LOCK).exists()


def test_jobs_of_one_process_follow_each_other_and_do_not_overlap(run_dir):
    first = RunLock(str(run_dir))
    first.acquire_if_exists()
    with pytest.raises(ConfigError, match="in use by another job in this process"):
        RunLock(str(run_dir)).acquire_if_exists()
    first.close()
    second = RunLock(str(run_dir))
    second.acquire_if_exists()
    second.close()


def test_of_two_that_begin_one_makes_the_folder(tmp_path):
    run_dir = tmp_path / "new" / "run"
    first, second, third = (RunLock(str(run_dir)) for _ in range(3))
    for lock in (first, second, third):
        lock.acquire_if_exists()
    assert not run_dir.parent.exists()
    first.acquire()
    with pytest.raises(ConfigError, match="in use by another job"):
        second.acquire()
    (run_dir / "config.json").write_text("{}")
    first.close()
    with pytest.raises(
        ConfigError, match="another job has begun there meanwhile; start the same command again"
    ):
        third.acquire()
    for lock in (second, third):
        lock.close()


def test_training_says_so_before_it_loads_anything(run_dir):
    """The tokenizer and the data do not exist: a job that came to them would say that."""
    stage = StageConfig(
        name="sft", steps=1, data=DataConfig(sources=(SourceConfig(path="nowhere.jsonl"),))
    )
    config = Config(run_dir=str(run_dir), stages=(stage,), tokenizer="nowhere")
    saved = {"layout": LAYOUT, **to_dict(config)}
    (run_dir / "config.json").write_text(json.dumps(saved))
    with holder_of(run_dir, HOLDER) as other:
        with pytest.raises(ConfigError, match="process 77 on elsewhere"):
            train(config)
        other.kill()
    with pytest.raises(Exception, match="nowhere"):
        train(config)
