"""Rule verdicts without a judge, beside those of a careful reader."""

import pytest

from stepaudio_jax.evaluation.tasks.big_bench_audio import BigBenchAudio
from stepaudio_jax.evaluation.tasks.step_du import StepDialogueUnderstanding
from stepaudio_jax.evaluation.tasks.step_spqa import StepParalinguistic
from tests.evaluation.verdicts import json_lines

TASKS = {
    "Big Bench Audio": BigBenchAudio,
    "Step-DU": StepDialogueUnderstanding,
    "Step-SPQA": StepParalinguistic,
}


@pytest.mark.parametrize("benchmark", TASKS)
def test_rules_agree_with_a_careful_reader(shared_benchmarks, benchmark):
    lines = [
        line
        for line in json_lines(shared_benchmarks / "sensible_only.jsonl")
        if line["benchmark"] == benchmark
    ]
    assert len(lines) >= 30
    task = TASKS[benchmark]()
    clear = agreed = 0
    for line in lines:
        strict = task.strict(line["item"], line["output"])
        is_right = strict.outcome == "correct"
        assert not (is_right and line["sensible"] == "wrong"), line
        if line["sensible"] != "unclear":
            clear += 1
            agreed += is_right == (line["sensible"] == "correct")
        elif strict.score is not None and line.get("sensible_score") is not None:
            assert strict.score == line["sensible_score"], line
    assert agreed >= 0.95 * clear
