"""An RL step on one device, on eight, and in two processes: the same update and questions."""

import json
import pathlib

import jax
import numpy as np
import pytest

from stepaudio_jax.generation import load_model
from tests.end_to_end.runs import metrics, train_in_processes
from tests.end_to_end.test_rl import CONFIG
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import BASE, write_prompts

pytestmark = pytest.mark.slow  # every process compiles its own programs
LAYOUTS = {  # processes, devices of each, mesh
    "eight devices": (
        1,
        8,
        ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"],
    ),
    "two processes": (2, 2, ["--config.mesh.data=2", "--config.mesh.fsdp=2"]),
}


def run_on(
    folder: pathlib.Path, name: str, processes: int, devices: int, mesh: list[str]
) -> list[str]:
    """Runs one step with a judge; returns the questions that the judge was asked."""
    server = JudgeServer()
    try:
        (folder / f"{name}.py").write_text(
            CONFIG.format(folder=str(folder), url=server.url, steps=1), encoding="utf-8"
        )
        settings = [f"--config={folder / name}.py", f"--config.run_dir={folder / name}", *mesh]
        train_in_processes(processes, devices, settings)
        return sorted(body["messages"][0]["content"] for _, _, body in server.requests)
    finally:
        server.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_prompts(folder)
    lines = [
        json.loads(line)
        for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = [line | {"reference_reply": "a reply of some words"} for line in lines]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return run_on(folder, "alone", 1, 1, ["--config.mesh.fsdp=1"])


@pytest.mark.parametrize("inputs", ["transcripts", "audio"])
def test_a_model_judge_judges_in_two_processes_as_in_one(folder, inputs):
    judge = (
        'folder="models/tiny_judge", prompt="configs/tiny_judge.txt", preference_levels=3, '
        f'max_tokens=96, slots=4, max_abstention_rate=1.0, inputs="{inputs}"'
    )
    config = CONFIG.format(folder=str(folder), url="http://unused", steps=1)
    replaced = config.replace("url='http://unused', model=\"judge\", api_key_env=None", judge)
    assert judge in replaced
    (folder / "own.py").write_text(replaced, encoding="utf-8")
    lines, asked = [], []
    for name, processes, devices, mesh in (
        (f"one_{inputs}", 1, 1, []),
        (f"two_{inputs}", 2, 2, ["--config.mesh.data=2"]),
    ):
        train_in_processes(
            processes,
            devices,
            [f"--config={folder / 'own.py'}", f"--config.run_dir={folder / name}", *mesh],
        )
        lines += metrics(folder / name)
        answers = map(json.loads, (folder / name / "judge_rlvr.jsonl").open())
        asked.append({answer["key"]: answer["given"] for answer in answers})
    assert asked[0] == asked[1]
    assert any(given["clips"] for given in asked[0].values()) == (inputs == "audio")
    one, two = lines
    if inputs == "audio":  # this judge was trained on text: what it says of sound is noise
        return
    assert one["abstained"] == two["abstained"] < 1
    assert two["reward"] == pytest.approx(one["reward"], abs=1e-6)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_update_equals_that_of_one_device(folder, alone, layout):
    name = layout.replace(" ", "_")
    asked = run_on(folder, name, *LAYOUTS[layout])
    assert asked == alone  # each question once, whatever the number of processes
    (ours,), (theirs,) = metrics(folder / name), metrics(folder / "alone")
    assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-6)
    assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-5)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    before, expected, actual = (
        jax.tree.leaves(load_model(path, "float32").parameters)
        for path in (BASE, folder / "alone" / "model", folder / name / "model")
    )
    change = max(float(np.max(np.abs(a - b))) for a, b in zip(expected, before, strict=True))
    difference = max(float(np.max(np.abs(a - b))) for a, b in zip(actual, expected, strict=True))
    assert difference < 1e-5
    assert difference < 1e-3 * change  # the tolerance is small compared to the update
