"""From verdicts to a judge and a policy: the programs read a study's records as they are."""

import json
import math
import pathlib

import pytest

from launch.data import main as data
from launch.judge import main as judge
from launch.train import main as train
from stepaudio_jax.serving.preferences.store import PreferenceStore
from tests.serving.preferences.studies import RUBRIC, compare, prefer, sound
from tests.serving.preferences.test_records import both

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def records(tmp_path):
    """Returns the records of ten spoken comparisons, half of them with a rubric."""
    store = PreferenceStore(tmp_path / "study")
    for number in range(10):
        content = [sound(0.5, transcript="a tone"), {"type": "text", "text": "What is it?"}]
        rubric = RUBRIC if number % 2 else []
        a, b = f"A tone, the {number}th.", f"I do not know, {number}."
        assignment = compare(store, a=a, b=b, content=content, rubric=rubric)
        marks = both((True, False), (False, True), assignment) if rubric else []
        prefer(store, assignment, "ab"[number % 3 == 0], 1, criteria=marks)
    store.close()
    assert data(["preferences", str(store.folder)]) == 0
    return store.folder / "records.jsonl"


def test_a_judge_is_trained_and_a_policy_improved(records, tmp_path):
    prompt = ["--prompt", str(ROOT / "configs" / "tiny_judge.txt")]
    dialogues = tmp_path / "judge.jsonl"
    judge(["data", "--input", str(records), "--output", str(dialogues), *prompt])
    base = f"--config.initial.model={ROOT / 'models' / 'tiny_base'}"
    train(
        [
            f"--config={ROOT / 'configs' / 'tiny_judge.py'}",
            base,
            f"--config.run_dir={tmp_path / 'judge'}",
            *(
                f"--config.stages.{stage}.{key}"
                for stage in ("judge", "judge_again")
                for key in (f"data.sources.0.path={dialogues}", "steps=2")
            ),
        ]
    )
    lines = (tmp_path / "judge" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} == {"judge", "judge_again"}
    train(
        [
            f"--config={ROOT / 'configs' / 'quickstart_rlhf.py'}",
            base,
            f"--config.run_dir={tmp_path / 'policy'}",
            *(
                f"--config.stages.joint.{key}"
                for key in (
                    f"data.sources.0.path={records}",
                    f"data.sources.1.path={records}",
                    "steps=1",
                    "objective.rollout.num_prompts=2",
                    "objective.rollout.num_generations=2",
                    "objective.judge.max_abstention_rate=1.0",
                    f"objective.judge.folder={ROOT / 'models' / 'tiny_judge'}",
                    f"objective.judge.prompt={ROOT / 'configs' / 'tiny_judge.txt'}",
                )
            ),
        ]
    )
    assert (tmp_path / "policy" / "model").is_dir()


def test_dpo_learns_from_the_records(records, tmp_path):
    train(
        [
            f"--config={ROOT / 'configs' / 'tone_dpo.py'}",
            f"--config.initial.model={ROOT / 'models' / 'tiny_base'}",
            f"--config.run_dir={tmp_path / 'dpo'}",
            *(
                f"--config.stages.{stage}.{key}"
                for stage in ("dpo", "silent")
                for key in (f"data.sources.0.path={records}", "evaluation.data.sources=()")
            ),
            "--config.stages.dpo.steps=2",
            "--config.stages.dpo.optimizer.warmup_steps=0",
            "--config.stages.dpo.optimizer.name=adamw",
            "--config.stages.dpo.optimizer.learning_rate=1e-5",
            "--config.log_every_steps=1",
        ]
    )
    first, second, _ = map(json.loads, (tmp_path / "dpo" / "metrics.jsonl").open(encoding="utf-8"))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["pairs"] >= 8
    assert second["loss"] < first["loss"]
