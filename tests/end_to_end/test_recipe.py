"""Runs docs/recipe.md: every command of the page, in order, on base models made of the tiny one."""

import importlib.util
import json
import urllib.request

import jax
import numpy as np
import pytest

from stepaudio_jax import hub
from stepaudio_jax.evaluation.results_files import read_results
from tests.end_to_end.recipe_runs import (
    BENCHMARKS_JUDGE,
    SAMPLES,
    TINY,
    Workspace,
    is_program,
    link_benchmarks,
    page_commands,
    plan_commands,
    read_json,
)
from tests.end_to_end.runs import metrics, run
from tests.evaluation.chat_servers import verdict_in_form
from tests.judge.judge_server import JudgeServer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Runs all of the page's commands up to the benchmarks; returns the workspace and outputs."""
    workspace = Workspace(tmp_path_factory.mktemp("recipe"))
    outputs = {}
    try:
        for command in page_commands():
            if command[0] == "hf" or is_program(command, "launch.plan"):
                continue  # downloads; and plans, which have a test of their own
            if is_program(command, "launch.evaluate"):
                break
            if is_program(command, "launch.serve"):
                outputs[" ".join(command)] = serve(workspace, command)
                continue
            ended = workspace.run(command)
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr[-3000:]}"
            outputs[" ".join(command)] = ended.stdout
    finally:
        workspace.close()
    return workspace, outputs


def serve(workspace, command):
    """Starts a server of the page; that of a study gets verdicts, and is stopped again."""
    address = workspace.serve(command)
    with urllib.request.urlopen(address, timeout=60) as response:
        page = response.read().decode()
    if "--preferences" in command:
        workspace.stop_last_server()
        workspace.judge_dialogues("study", 8)
        workspace.judge_dialogues("held_out", 4)
    return page


def output_of(outputs, text):
    (output,) = (output for command, output in outputs.items() if text in command)
    return output


def test_the_page_has_no_command_that_is_not_run():
    commands = page_commands()
    assert all(command[0] in ("python", "hf") for command in commands)
    assert len(plan_commands()) >= 4
    programs = [command[2] for command in commands if command[0] == "python"]
    assert programs.count("launch.train") == 3
    # Of what follows the benchmarks nothing but the export may be left out.
    benchmarks = programs.index("launch.evaluate")
    assert programs[benchmarks:] == ["launch.evaluate", "tools.convert_weights"]


@pytest.mark.slow
def test_the_base_models_are_composed_and_trained(recipe):
    workspace, outputs = recipe
    assert "Qwen2-Audio" in output_of(outputs, "inspect Qwen2-Audio-7B")
    run_dir = workspace.folder / "runs" / "midtrain_32b"
    lines = metrics(run_dir)
    assert {line["stage"] for line in lines} == {"adaptor", "midtrain", "sft"}
    assert all(np.isfinite(line["loss"]) for line in lines)
    trained = hub.read_parameters(run_dir / "model")
    tiny = hub.read_parameters(TINY)
    jax.tree.map(
        lambda ours, base: np.testing.assert_array_equal(
            np.asarray(ours, np.float32), np.asarray(base, np.float32)
        ),
        trained["encoder"],  # frozen
        tiny["encoder"],
    )
    embedding = np.asarray(trained["decoder"]["embedding"], np.float32)
    start = np.asarray(tiny["decoder"]["embedding"], np.float32)
    np.testing.assert_allclose(embedding, start, atol=0.01)  # the base model's, after few steps


@pytest.mark.slow
def test_verdicts_make_a_judge_and_the_judge_rewards(recipe):
    workspace, outputs = recipe
    agreement = read_json(output_of(outputs, "report --human study"))
    assert agreement["annotators"]
    judged = read_json(output_of(outputs, "report --human held_out"))
    assert "abstained" in judged["judge"]
    assert "<html" in output_of(outputs, "--model-name judge")
    rlhf = workspace.folder / "runs" / "rlhf_32b"
    assert [line["step"] for line in metrics(rlhf)] == [1, 2]
    answers = (rlhf / "judge_rlhf.jsonl").read_text(encoding="utf-8").splitlines()
    assert any(json.loads(line)["text"] for line in answers)  # the server's
    assert (rlhf / "report.html").is_file()


@pytest.mark.slow
def test_the_policy_gets_its_row_in_table_1(recipe, shared_benchmarks):
    workspace, _ = recipe
    link_benchmarks(workspace.folder / "benchmarks", shared_benchmarks)
    judge = JudgeServer(verdict_in_form)
    workspace.replacements[BENCHMARKS_JUDGE] = judge.url
    programs = [command[2] for command in page_commands()]
    try:
        for command in page_commands()[programs.index("launch.evaluate") :]:
            ended = workspace.run(command)
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr[-3000:]}"
    finally:
        judge.close()
    folder = workspace.folder / "results" / "rlhf_32b"
    results = read_results(folder)
    assert {task.name for task in results.tasks} == set(SAMPLES)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Step-Audio-R1.5" in report.partition("Table 1 of the report")[2]
    assert (workspace.folder / "my-model" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='no TPU compiler: pip install -e ".[tpu]"',
)
@pytest.mark.parametrize("command", plan_commands(), ids=lambda command: " ".join(command[3:]))
def test_each_step_is_planned_for_32b(command):
    ended = run(*command[1:])
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert "fits" in ended.stdout
