"""`launch.train` in one, two and four processes gives the same run."""

import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from stepaudio_jax import hub
from tests.end_to_end.runs import (
    STEPS,
    arguments,
    free_port,
    metrics,
    num_logged_lines,
    read_errors,
    start,
    start_processes,
    train_in_processes,
    wait_for_logged_lines,
)

pytestmark = pytest.mark.slow  # each process compiles its own programs
DEVICES = 4
MESH = ["--config.mesh.fsdp=2", "--config.mesh.data=2"]


def run_in(processes: int, folder: pathlib.Path, name: str) -> None:
    """Runs the job to its end in several processes with four devices in total."""
    settings = [
        *arguments(folder, name),
        "--config.stages.mid.steps=12",
        "--config.stages.sft.steps=6",
        "--config.checkpoint.every_steps=5",
        "--config.checkpoint.keep=10",
        *MESH,
    ]
    train_in_processes(processes, DEVICES // processes, settings)


@pytest.fixture(scope="module")
def alone(folder):
    run_in(1, folder, "one")
    return metrics(folder / "one")


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_data_equal_those_of_one_process(alone, folder, processes):
    name = f"of_{processes}"
    run_in(processes, folder, name)
    lines = metrics(folder / name)
    assert [(line["stage"], line["step"]) for line in lines] == [
        (line["stage"], line["step"]) for line in alone
    ]
    for line, expected in zip(lines, alone, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["token_accuracy"] == pytest.approx(expected["token_accuracy"], abs=1e-6)
        assert _records(line) == _records(expected)
        if "evaluation/loss" in expected:
            assert line["evaluation/loss"] == pytest.approx(expected["evaluation/loss"], rel=1e-5)


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_of_two_processes_restores_on_another_number_of_processes(
    alone, folder, processes
):
    """Only the checkpoint of step 5 is kept of a run of two processes; others resume from it."""
    name = f"two_then_{processes}"
    run_in(2, folder, name)
    run_dir = folder / name
    for later in ("model", "checkpoints/1_sft", "checkpoints/0_mid/10", "checkpoints/0_mid/12"):
        shutil.rmtree(run_dir / later)
    run_in(processes, folder, name)
    losses = {(line["stage"], line["step"]): line["loss"] for line in metrics(run_dir)}
    for line in alone:
        assert losses[line["stage"], line["step"]] == pytest.approx(line["loss"], rel=1e-5)


def test_two_processes_export_the_model_of_a_checkpoint(alone, folder):
    output, port = folder / "exported", free_port()
    started = [
        start(
            "-m",
            "launch.checkpoint",
            str(folder / "one"),
            "--output",
            str(output),
            f"--distributed=127.0.0.1:{port},2,{index}",
        )
        for index in range(2)
    ]
    errors = read_errors(started)
    assert [process.returncode for process in started] == [0, 0], "".join(
        text[-3000:] for text in errors
    )
    sources = [hub.weight_sources(str(model)) for model in (output, folder / "one" / "model")]
    shape = hub.read_model_config(sources[0])
    exported, finished = (
        hub.read_parameters(source, config=shape, dtype="float32") for source in sources
    )
    jax.tree.map(np.testing.assert_array_equal, exported, finished)


def test_the_default_batch_of_unused_evaluation_data_need_not_fit_the_mesh(folder):
    """Without held-out data, the default of 8 rows is not checked against 16 devices."""
    stages = [
        f"--config.stages.{stage}.{setting}"
        for stage in ("mid", "sft")
        for setting in ("steps=2", "data.batch_size=16", "evaluation.data.sources=()")
    ]
    train_in_processes(
        1,
        16,
        [*arguments(folder, "sixteen"), *stages, "--config.mesh.data=16", "--config.mesh.fsdp=1"],
    )
    assert (folder / "sixteen" / "model" / "config.json").is_file()


def test_sigterm_to_one_process_stops_both_at_the_same_step(folder):
    """Once in the first stage and once in the second, after resuming; then the run finishes."""
    settings = [*arguments(folder, "noticed"), *MESH]
    run_dir = folder / "noticed"
    for moment, stage in ((13, "mid"), (50, "sft")):
        started = start_processes(2, DEVICES // 2, settings)
        wait_for_logged_lines(started[0], run_dir, moment)
        started[1].send_signal(signal.SIGTERM)
        errors = read_errors(started)
        assert [process.returncode for process in started] == [75, 75], "".join(
            text[-3000:] for text in errors
        )
        assert num_logged_lines(run_dir) >= moment  # and not before
        steps = [
            re.search(r"stopped at step (\d+) of stage '(\w+)', and saved", text) for text in errors
        ]
        assert steps[0] is not None
        assert steps[1] is not None
        assert steps[0].groups() == steps[1].groups()
        assert steps[0][2] == stage
    train_in_processes(2, DEVICES // 2, settings)
    assert [(line["stage"], line["step"]) for line in metrics(run_dir)] == STEPS


def _records(line: dict) -> dict:
    """Returns the numbers of records used, in total and by source."""
    return {name: count for name, count in line.items() if name.startswith("records")}
