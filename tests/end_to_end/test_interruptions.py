"""Interrupted runs resume with the same metrics: kills, signals, damaged files, NaN, full disks."""

import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.end_to_end.runs import (
    STEPS,
    arguments,
    metrics,
    num_logged_lines,
    run,
    start,
    untimed_metrics,
    wait_for,
    wait_for_logged_lines,
)

NAMES = ((0, "tones"), (1, "sums"))

pytestmark = pytest.mark.slow  # starts many runs

# launch.train, with NaN in the log-mels of some steps. No file can cause that, so the test adds it
# where batches are placed on devices.
POISONED = """
import dataclasses, sys
from launch.train import main
from stepaudio_jax.parallel import BatchPlacement

first, last, *arguments = sys.argv[1:]
place, placed = BatchPlacement.__call__, 0

def place_poison(self, batch):
    global placed
    placed += 1
    if int(first) <= placed <= int(last):
        batch = dataclasses.replace(batch, mel=batch.mel * float("nan"))
    return place(self, batch)

BatchPlacement.__call__ = place_poison
main(arguments)
"""


def test_a_run_killed_at_random_moments_and_while_saving_resumes(uninterrupted, folder):
    run_dir = folder / "killed_often"
    rng = random.Random(0)
    moments = sorted(rng.sample(range(1, len(STEPS) - 1), 4))
    for number, moment in enumerate([*moments, None]):
        process = start("-m", "launch.train", *arguments(folder, run_dir.name))
        if moment is None:  # while Orbax writes a folder that does not have its final name
            wait_for(
                process,
                lambda: any(
                    ".orbax-checkpoint-tmp" in path.name for path in run_dir.glob("checkpoints/*/*")
                ),
            )
        else:
            wait_for_logged_lines(process, run_dir, moment)
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {number}: {errors}"
    ended = run("-m", "launch.train", *arguments(folder, run_dir.name))
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(uninterrupted)


def test_sigterm_saves_within_a_step_and_exits_with_75(uninterrupted, folder):
    run_dir = folder / "stopped"
    process = start("-m", "launch.train", *arguments(folder, run_dir.name))
    wait_for_logged_lines(process, run_dir, 13)
    before = num_logged_lines(run_dir)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    done = num_logged_lines(run_dir)
    assert done <= before + 2  # the step in progress, and one that was being logged
    assert f"stopped at step {done} of stage 'mid', and saved" in errors
    assert (run_dir / "checkpoints" / "0_mid" / str(done)).is_dir()
    ended = run("-m", "launch.train", *arguments(folder, run_dir.name))
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(uninterrupted)


def test_a_truncated_checkpoint_is_set_aside_and_the_previous_one_used(uninterrupted, folder):
    run_dir = folder / "truncated"
    shutil.copytree(uninterrupted, run_dir)
    shutil.rmtree(run_dir / "model")
    last = run_dir / "checkpoints" / "1_sft" / "35"
    largest = max(
        (path for path in last.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    ended = run("-m", "launch.train", *arguments(folder, run_dir.name))
    assert ended.returncode == 0, ended.stderr
    assert f"damaged checkpoint set aside: {last}" in ended.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(uninterrupted)


def test_a_run_resumes_after_a_damaged_clip_is_repaired(uninterrupted, folder):
    """A training clip, then a held-out clip becomes empty while the run is in progress."""
    run_dir, data = folder / "damaged", folder / "damaged_data"
    shutil.copytree(folder / "data", data)
    stages = [
        f"--config.stages.{stage}.data.sources.{n}.path={data / name}.jsonl"
        for stage in ("mid", "sft")
        for n, name in NAMES
    ]
    settings = [
        *arguments(folder, run_dir.name),
        *stages,
        f"--config.stages.sft.evaluation.data.sources.0.path={data / 'held_out'}.jsonl",
        "--config.checkpoint.every_steps=0",
    ]
    for clip, steps in (("3.wav", 13), ("16.wav", 50)):
        content = (data / clip).read_bytes()
        process = start("-m", "launch.train", *settings)
        wait_for_logged_lines(process, run_dir, steps)
        (data / clip).write_bytes(b"")
        _, errors = process.communicate()
        assert process.returncode == 2, errors
        assert f"audio {data / clip}: is empty" in errors
        last = metrics(run_dir)[-1]
        index = ["mid", "sft"].index(last["stage"])
        assert (run_dir / "checkpoints" / f"{index}_{last['stage']}" / str(last["step"])).is_dir()
        assert (
            f"this ended stage {last['stage']!r}, and step {last['step']} of it is saved" in errors
        )
        (data / clip).write_bytes(content)
    ended = run("-m", "launch.train", *settings)
    assert ended.returncode == 0, ended.stderr
    actual, expected = untimed_metrics(run_dir), untimed_metrics(uninterrupted)
    assert [line["loss"] for line in actual] == [line["loss"] for line in expected]
    evaluated = [
        {name: value for name, value in line.items() if name.startswith("evaluation/")}
        for line in expected
    ]
    assert [
        {name: value for name, value in line.items() if name.startswith("evaluation/")}
        for line in actual
    ] == evaluated
    assert len(evaluated[-1]) == 2


def test_a_nan_batch_is_skipped_and_counted(uninterrupted, folder):
    ended = run("-c", POISONED, "7", "7", *arguments(folder, "poisoned"))
    assert ended.returncode == 0, ended.stderr
    lines = metrics(folder / "poisoned")
    assert [(line["stage"], line["step"]) for line in lines] == STEPS
    assert [number for number, line in enumerate(lines, 1) if line["skipped_steps"]] == [7]
    expected = metrics(uninterrupted)
    assert [line["loss"] for line in lines[:6]] == [line["loss"] for line in expected[:6]]
    assert max(line["loss"] for line in lines[-5:]) < 0.3


def test_a_diverged_run_writes_a_diagnosis(folder):
    ended = run(
        "-c",
        POISONED,
        "5",
        "100",
        *arguments(folder, "diverged"),
        "--config.max_consecutive_skips=3",
    )
    assert ended.returncode == 3
    assert (
        "stage 'mid', step 8: loss or gradient were not finite for the last 4 steps" in ended.stderr
    )
    found = {path.name for path in (folder / "diverged" / "diagnosis" / "mid_8").iterdir()}
    assert found == {"steps.json", "data_state.json", "batch_0.npz"}


@pytest.fixture
def small_disk(folder):
    """A file system of a few megabytes."""
    disk = folder / "small_disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(small_disk, uninterrupted, folder):
    settings = [*arguments(folder, "small_disk/run"), "--config.checkpoint.keep=100"]
    ended = run("-m", "launch.train", *settings)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in ended.stderr.splitlines()[-1]
    assert any(
        path.name.isdigit() for path in (small_disk / "run" / "checkpoints" / "0_mid").iterdir()
    )
    subprocess.run(["mount", "-o", "remount,size=256m", small_disk], check=True)
    ended = run("-m", "launch.train", *settings)
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(small_disk / "run") == untimed_metrics(uninterrupted)
