"""`evaluation.tasks`: a stage's model answers a benchmark, and the best checkpoint goes by it."""

import pytest

from stepaudio_jax.reports import write_report
from tests.end_to_end.runs import arguments, metrics, run
from tests.reports.page_parser import Page

pytestmark = pytest.mark.slow  # trains a model

TASK = '''
"""Asks for the pitch of tones."""
import dataclasses
import os
from stepaudio_jax.data import read_records
from stepaudio_jax.evaluation.task import Item, Strict, Task

class Pitch(Task):
    name, version, title = "pitch", "1", "Pitch of tones"

    def items(self, folder):
        records = list(read_records(os.path.join(folder, "held_out.jsonl")))
        return [
            Item(
                str(number),
                dataclasses.replace(record, messages=record.messages[:-1]),
                {"answer": record.messages[-1].text},
            )
            for number, record in enumerate(records)
        ]

    def strict(self, data, output):
        if (output or "").strip() not in ("low", "middle", "high"):
            return Strict("unparsed")
        return Strict("correct" if output.strip() == data["answer"] else "wrong", output)
'''


@pytest.fixture(scope="module")
def trained(folder):
    task = folder / "pitch.py"
    task.write_text(TASK, encoding="utf-8")
    ended = run(
        *("-m", "launch.train", *arguments(folder, "with_tasks")),
        f"--config.stages.sft.evaluation.tasks=('{task}={folder / 'data'}',)",
        "--config.stages.sft.evaluation.task_every_steps=10",
        "--config.stages.sft.evaluation.task_max_new_tokens=24",
        "--config.stages.sft.evaluation.task_slots=6",
        "--config.checkpoint.keep=1",
        "--config.checkpoint.keep_best=1",
        "--config.checkpoint.best_metric=pitch",
    )
    assert ended.returncode == 0, ended.stderr
    return folder / "with_tasks"


def test_a_task_is_evaluated_every_so_many_steps_and_at_the_end(trained):
    lines = [line for line in metrics(trained) if "evaluation/pitch" in line]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("sft", step) for step in (10, 20, 30, 35)
    ]
    assert lines[-1]["evaluation/pitch"] >= 4 / 6
    assert all(line["evaluation_failed/pitch"] == 0 for line in lines)
    assert all(0 <= line["evaluation_unparsed/pitch"] <= 6 for line in lines)


def test_the_best_checkpoint_by_the_task_is_kept(trained):
    by_step = {
        line["step"]: line["evaluation/pitch"]
        for line in metrics(trained)
        if "evaluation/pitch" in line
    }
    kept = {int(path.name) for path in (trained / "checkpoints" / "1_sft").iterdir()}
    assert 35 in kept  # the newest
    assert max(by_step[step] for step in kept) == max(by_step.values())


def test_the_runs_report_shows_it(trained, tmp_path):
    text = " ".join(Page(write_report(tmp_path / "report.html", trained, "A run")).text)
    assert "Benchmarks" in text
    last = [line["evaluation/pitch"] for line in metrics(trained) if "evaluation/pitch" in line][-1]
    assert f"pitch {100 * last:.1f} %" in text


def test_a_task_that_cannot_be_read_stops_the_run_before_it_begins(folder):
    ended = run(
        *("-m", "launch.train", *arguments(folder, "without_data")),
        f"--config.stages.sft.evaluation.tasks=('mmau_mini={folder / 'nowhere'}',)",
    )
    assert ended.returncode == 2
    assert str(folder / "nowhere") in ended.stderr
    assert not (folder / "without_data" / "metrics.jsonl").exists()
    ended = run(
        *("-m", "launch.train", *arguments(folder, "without_data")),
        "--config.stages.sft.evaluation.tasks=('audio_mc=x',)",
    )
    assert ended.returncode == 2
    assert "stages.sft.evaluation.tasks" in ended.stderr
    assert "Traceback" not in ended.stderr
