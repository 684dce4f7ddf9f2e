"""What may end a run before its time, and what is left of it: nothing is lost but time."""

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
)

NAMES = ((0, "tones"), (1, "sums"))

pytestmark = pytest.mark.slow  # runs, started again and again

# launch.train, with NaN in the log-mels of some steps: no file can bring it there, so it is put
# where batches are placed.
POISONED = """
import dataclasses, sys
from launch.train import main
from stepaudio_jax.parallel import BatchPlacement

first, last, *arguments = sys.argv[1:]
place, placed = BatchPlacement.__call__, 0

def place_poison(self, batch):
    global placed
    placed += 1
    poisoned = int(first) <= placed <= int(last)
    return place(self, dataclasses.replace(batch, mel=batch.mel * float("nan")) if poisoned else batch)

BatchPlacement.__call__ = place_poison
main(arguments)
"""


def test_killed_at_random_moments_and_while_a_checkpoint_is_written(uninterrupted, folder):
    run_dir = folder / "killed_often"
    rng = random.Random(0)
    moments = sorted(rng.sample(range(1, len(STEPS) - 1), 4))
    for number, moment in enumerate([*moments, None]):
        process = start("-m", "launch.train", *arguments(folder, run_dir.name))
        if moment is None:  # a folder that Orbax has not yet given its name
            wait_for(
                process,
                lambda: any(
                    ".orbax-checkpoint-tmp" in path.name for path in run_dir.glob("checkpoints/*/*")
                ),
            )
        else:
            wait_for(process, lambda: num_logged_lines(run_dir) >= moment)  # noqa: B023 - called before the loop goes on
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {number}: {errors}"
    ended = run("-m", "launch.train", *arguments(folder, run_dir.name))
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(uninterrupted)


def test_told_to_stop_it_saves_within_a_step_and_says_so_by_its_exit_code(uninterrupted, folder):
    run_dir = folder / "stopped"
    process = start("-m", "launch.train", *arguments(folder, run_dir.name))
    wait_for(process, lambda: num_logged_lines(run_dir) >= 13)
    before = num_logged_lines(run_dir)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    done = num_logged_lines(run_dir)
    assert done <= before + 2  # the step that was being computed, and one that was being logged
    assert f"stopped at step {done} of stage 'mid', and saved" in errors
    assert (run_dir / "checkpoints" / "0_mid" / str(done)).is_dir()
    ended = run("-m", "launch.train", *arguments(folder, run_dir.name))
    assert ended.returncode == 0, ended.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(uninterrupted)


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_it_used(uninterrupted, folder):
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


def test_a_clip_that_is_damaged_under_way_costs_nothing_once_it_is_mended(uninterrupted, folder):
    """One that is learnt from, then one that is held out: at first as good as others, and empty once the run has begun."""
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
    for clip, begun in (("3.wav", 13), ("16.wav", 50)):
        whole = (data / clip).read_bytes()
        process = start("-m", "launch.train", *settings)
        wait_for(process, lambda: num_logged_lines(run_dir) >= begun)  # noqa: B023 - called before the loop goes on
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
        (data / clip).write_bytes(whole)
    ended = run("-m", "launch.train", *settings)
    assert ended.returncode == 0, ended.stderr
    found, expected = untimed_metrics(run_dir), untimed_metrics(uninterrupted)
    assert [line["loss"] for line in found] == [line["loss"] for line in expected]
    evaluated = [
        {name: value for name, value in line.items() if name.startswith("evaluation/")}
        for line in expected
    ]
    assert [
        {name: value for name, value in line.items() if name.startswith("evaluation/")}
        for line in found
    ] == evaluated
    assert len(evaluated[-1]) == 2


def test_a_batch_that_is_not_finite_is_skipped_and_counted(uninterrupted, folder):
    ended = run("-c", POISONED, "7", "7", *arguments(folder, "poisoned"))
    assert ended.returncode == 0, ended.stderr
    lines = metrics(folder / "poisoned")
    assert [(line["stage"], line["step"]) for line in lines] == STEPS
    assert [number for number, line in enumerate(lines, 1) if line["skipped_steps"]] == [7]
    expected = metrics(uninterrupted)
    assert [line["loss"] for line in lines[:6]] == [line["loss"] for line in expected[:6]]
    assert max(line["loss"] for line in lines[-5:]) < 0.3


def test_a_run_that_diverges_ends_with_a_diagnosis(folder):
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
