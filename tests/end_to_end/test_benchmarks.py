"""`launch.evaluate` on each benchmark's sample: a model, a server, a judge, kills, bad clips."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile

from launch.evaluate import main
from stepaudio_jax.evaluation.results_files import read_results, read_samples
from tests.end_to_end.runs import ROOT, run, start, wait_for
from tests.evaluation.chat_servers import REPLIES, reply_without_hearing, verdict_in_form
from tests.judge.judge_server import JudgeServer

pytestmark = pytest.mark.slow  # a model answers, and programs are killed

# Of each sample that has sound: its path, the number of its items.
WITH_SOUND = {
    "mmau_mini": ("MMAU/sample_hf.parquet", 8),
    "mmsu": ("MMSU", 32),
    "big_bench_audio": ("BigBenchAudio", 20),
    "spoken_mqa": ("SpokenMQA", 19),
    "audio_mc": ("AudioMC", 6),
    "step_caption": ("StepCaption", 20),
    "step_du": ("StepDU", 87),
    "step_spqa": ("StepSPQA", 44),
}
WITHOUT_SOUND = {
    "mmau_mini": ("MMAU/mmau-test-mini.json", 1000),
    "mmar": ("MMAR/sample.jsonl", 30),
    "mmar_rubrics": ("MMAR-Rubrics/sample.jsonl", 12),
}
TINY = ROOT / "models" / "tiny_base"


@pytest.fixture
def serve():
    """Returns a function that starts a chat server; all are stopped at the end."""
    servers = []

    def start_server(write):
        servers.append(JudgeServer(write))
        return servers[-1]

    yield start_server
    for server in servers:
        server.close()


@pytest.fixture
def judged(serve):
    """The options of a scripted judge."""
    judge = serve(verdict_in_form)
    return ["--judge-url", judge.url, "--judge-model", "judge", "--judge-key-variable", ""]


def run_deaf(serve, output, *options):
    """Evaluates an endpoint that hears nothing; returns the exit code."""
    server = serve(reply_without_hearing)
    model = ["--url", server.url, "--model-name", "deaf", "--key-variable", ""]
    return main(["run", *model, *options, f"--output={output}"])


def tasks(shared, names=WITH_SOUND):
    return [f"--task={name}={shared / WITH_SOUND[name][0]}" for name in names]


def outcome(folder):
    """What a run found, without the time at which it did."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del results["created"]
    return results, (folder / "samples.jsonl").read_bytes()


def check_results(folder, names):
    results = read_results(folder)
    assert [(task.name, task.items) for task in results.tasks] == [
        (name, WITH_SOUND[name][1]) for name in names
    ]
    samples = read_samples(folder)
    for task in results.tasks:
        assert not task.errors
        of_task = [sample for sample in samples if sample.task == task.name]
        assert len(of_task) == task.items
        assert task.headline_metric.value is not None
        assert task.headline_metric.interval is not None
        total = sum(sample.headline[0] for sample in of_task if sample.headline)
        counted = sum(sample.headline[1] for sample in of_task if sample.headline)
        assert task.headline_metric.value == pytest.approx(total / counted)
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    assert list((folder / "tensorboard" / "evaluation").iterdir())
    return samples


def test_an_endpoint_that_hears_nothing_on_every_sample(
    shared_benchmarks, serve, judged, tmp_path, capsys
):
    code = run_deaf(serve, tmp_path / "out", *judged, *tasks(shared_benchmarks))
    assert code == 0, capsys.readouterr().err
    samples = check_results(tmp_path / "out", WITH_SOUND)
    assert {sample.reply for sample in samples} <= {
        reply.rpartition("</think>")[2].strip() for reply in REPLIES
    }
    printed = capsys.readouterr().out
    for name in WITH_SOUND:
        assert name in printed


def test_a_model_folder_on_every_sample_killed_and_started_again(
    shared_benchmarks, judged, tmp_path
):
    if not TINY.is_dir():
        pytest.skip(f"needs {TINY}")
    command = [
        *("-m", "launch.evaluate", "run", f"--model={TINY}", *judged, *tasks(shared_benchmarks)),
        *("--limit=6", "--slots=4"),
    ]
    ended = run(*command, f"--output={tmp_path / 'straight'}")
    assert ended.returncode == 0, ended.stderr
    assert len(read_results(tmp_path / "straight").tasks) == len(WITH_SOUND)

    def num_replies():
        logs = (tmp_path / "killed" / "replies").glob("*.jsonl")
        return sum(log.read_bytes().count(b"\n") for log in logs)

    for enough in (3, 17):
        process = start(*command, f"--output={tmp_path / 'killed'}")
        wait_for(process, lambda enough=enough: num_replies() >= enough)
        assert process.poll() is None, process.communicate()[1]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    ended = run(*command, f"--output={tmp_path / 'killed'}")
    assert ended.returncode == 0, ended.stderr
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


@pytest.mark.parametrize("name", WITHOUT_SOUND)
def test_clips_that_are_not_there_are_counted(
    shared_benchmarks, serve, judged, tmp_path, capsys, name
):
    path, count = WITHOUT_SOUND[name]
    task_option = f"--task={name}={shared_benchmarks / path}"
    code = run_deaf(serve, tmp_path / "out", *judged, task_option)
    assert code == 2
    assert f"error: {count} of {count} items have no reply" in capsys.readouterr().err
    (task,) = read_results(tmp_path / "out").tasks
    assert len(task.errors) == count
    assert (tmp_path / "out" / "report.html").is_file()


def test_missing_and_damaged_clips_are_errors_with_their_ids(
    shared_benchmarks, serve, judged, tmp_path, capsys
):
    folder = tmp_path / "StepDU"
    shutil.copytree(shared_benchmarks / "StepDU", folder)
    folder.chmod(0o755)
    for path in [folder / "audio", *(folder / "audio").iterdir()]:
        path.chmod(0o755)
    audio = folder / "audio"
    healthy = (audio / "2.wav").read_bytes()
    (audio / "01.wav").unlink()
    (audio / "2.wav").write_bytes(b"")
    (audio / "05.wav").write_bytes(healthy[:30])
    (audio / "09.wav").write_text("<html>404</html>", encoding="utf-8")
    (audio / "10.wav").unlink()
    (audio / "10.wav").mkdir()
    soundfile.write(audio / "11.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(audio / "12.wav", np.full(800, np.nan, np.float32), 16_000, subtype="FLOAT")
    code = run_deaf(serve, tmp_path / "out", *judged, f"--task=step_du={folder}")
    (task,) = read_results(tmp_path / "out").tasks
    rows = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    by_clip = {row["audio_path"]: str(row["id"]) for row in map(json.loads, rows)}
    bad = [f"audio/{name}.wav" for name in ("01", "2", "05", "09", "10", "11", "12")]
    assert [error.id for error in task.errors] == sorted((by_clip[clip] for clip in bad), key=int)
    assert code == 2
    assert "error: 7 of 87 items have no reply" in capsys.readouterr().err
    # They leave the judge's denominator, are counted, and are 0 in the figure beside it.
    assert (task.headline_metric.denominator, task.headline_metric.failed) == (80, 7)
    assert len([s for s in read_samples(tmp_path / "out") if not s.error]) == 80
