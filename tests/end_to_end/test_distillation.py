"""`launch.train` distils a trained model into one with other sizes, on data."""

import pytest

from tests.end_to_end.runs import arguments, metrics, run

pytestmark = pytest.mark.slow


def test_a_student_approaches_its_teacher(folder, uninterrupted):
    """The teacher knows the tones and sums; the student begins at random, half as wide."""
    objective = f"{{'name': 'distillation', 'teacher': '{uninterrupted / 'model'}'}}"
    settings = [
        f"--config.stages.sft.objective={objective}",
        f"--config.stages.mid.objective={objective}",
        "--config.model.decoder.ffn=32",
        "--config.stages.mid.steps=30",
        "--config.stages.sft.steps=60",
        "--config.stages.sft.evaluation.every_steps=20",
    ]
    ended = run("-m", "launch.train", *arguments(folder, "student"), *settings)
    assert ended.returncode == 0, ended.stderr
    lines = metrics(folder / "student")
    first, last = lines[0], lines[-1]
    assert first["loss"] == first["loss/divergence"] == first["student_kl"] > 1
    assert last["evaluation/student_kl"] < 0.1 * first["student_kl"]


def test_a_teacher_of_another_vocabulary_is_refused(folder, uninterrupted):
    objective = f"{{'name': 'distillation', 'teacher': '{uninterrupted / 'model'}'}}"
    settings = [
        f"--config.stages.mid.objective={objective}",  # the first stage: no data are checked before
        "--config.model.decoder.vocab_size=300",
    ]
    ended = run("-m", "launch.train", *arguments(folder, "other"), *settings)
    assert ended.returncode == 2
    assert "decoder.vocab_size=290" in ended.stderr
    assert ended.stderr.count("\n") == 1
