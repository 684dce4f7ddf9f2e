"""`launch.train` in one, two and four real processes: one run, whatever their number."""

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
    wait_for,
)

pytestmark = pytest.mark.slow  # each process compiles for itself
DEVICES = 4
MESH = ["--config.mesh.fsdp=2", "--config.mesh.data=2"]


def run_in(processes: int, folder: pathlib.Path, name: str) -> None:
    """Runs the job to its end in so many processes of together four devices."""
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
def test_losses_and_data_are_those_of_one_process(alone, folder, processes):
    name = f"of_{processes}"
    run_in(processes, folder, name)
    found = metrics(folder / name)
    assert [(line["stage"], line["step"]) for line in found] == [
        (line["stage"], line["step"]) for line in alone
    ]
    for line, expected in zip(found, alone, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["token_accuracy"] == pytest.approx(expected["token_accuracy"], abs=1e-6)
        assert _records(line) == _records(expected)
        if "evaluation/loss" in expected:
            assert line["evaluation/loss"] == pytest.approx(expected["evaluation/loss"], rel=1e-5)


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_of_two_processes_restores_on_another_number(alone, folder, processes):
    """Two processes run it, all but the checkpoint of the fifth step is taken away, and others run it again from there."""
    name = f"two_then_{processes}"
    run_in(2, folder, name)
    run_dir = folder / name
    for left in ("model", "checkpoints/1_sft", "checkpoints/0_mid/10", "checkpoints/0_mid/12"):
        shutil.rmtree(run_dir / left)
    run_in(processes, folder, name)
    found = {(line["stage"], line["step"]): line["loss"] for line in metrics(run_dir)}
    for line in alone:
        assert found[line["stage"], line["step"]] == pytest.approx(line["loss"], rel=1e-5)


def test_two_processes_take_a_model_out_of_a_checkpoint(alone, folder):
    output, port = folder / "taken", free_port()
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
    said = read_errors(started)
    assert [process.returncode for process in started] == [0, 0], "".join(
        text[-3000:] for text in said
    )
    sources = [hub.weight_sources(str(model)) for model in (output, folder / "one" / "model")]
    shape = hub.read_model_config(sources[0])
    taken, finished = (
        hub.read_parameters(source, config=shape, dtype="float32") for source in sources
    )
    jax.tree.map(np.testing.assert_array_equal, taken, finished)


def test_sixteen_devices_need_no_settings_of_data_that_is_not_held_out(folder):
    """Without held-out data its default of eight rows must fit no mesh."""
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


def test_a_notice_to_one_process_stops_both_at_one_step(folder):
    """SIGTERM while the first stage runs, and once more in the second one, resumed and just saved; then on to the end."""
    settings = [*arguments(folder, "noticed"), *MESH]
    run_dir = folder / "noticed"
    for moment, stage in ((13, "mid"), (50, "sft")):
        started = start_processes(2, DEVICES // 2, settings)
        wait_for(started[0], lambda: num_logged_lines(run_dir) >= moment)  # noqa: B023 - called before the loop goes on
        started[1].send_signal(signal.SIGTERM)
        said = read_errors(started)
        assert [process.returncode for process in started] == [75, 75], "".join(
            text[-3000:] for text in said
        )
        assert num_logged_lines(run_dir) >= moment  # and not before
        steps = [
            re.search(r"stopped at step (\d+) of stage '(\w+)', and saved", text) for text in said
        ]
        assert steps[0] is not None
        assert steps[1] is not None
        assert steps[0].groups() == steps[1].groups()
        assert steps[0][2] == stage
    train_in_processes(2, DEVICES // 2, settings)
    assert [(line["stage"], line["step"]) for line in metrics(run_dir)] == STEPS


def _records(line: dict) -> dict:
    """How many have been used of each source, and in all."""
    return {name: count for name, count in line.items() if name.startswith("records")}
