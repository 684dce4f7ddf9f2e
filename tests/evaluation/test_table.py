"""The table of an evaluation."""

import pytest

from stepaudio_jax.evaluation import Results, as_markdown, as_text, score
from tests.evaluation.answers import answers


def scores(**correct):
    """Of 200 questions a task with two answers each."""
    return score(
        [
            answer
            for task, count in correct.items()
            for answer in answers(task, n=200, correct=count)
        ]
    )


def test_the_table_has_scores_silenced_scores_counts_and_intervals():
    results = Results(
        before=scores(gender=96, text_sum=0),
        after=scores(gender=197, text_sum=150),
        silenced=scores(gender=101),
    )
    assert as_text(results).splitlines() == [
        "task      chance  before   after  silenced    n   95 % interval",
        "--------  ------  ------  ------  --------  ---  --------------",
        "gender    50.0 %  48.0 %  98.5 %    50.5 %  200  95.7 to 99.5 %",
        "text_sum  50.0 %   0.0 %  75.0 %  no audio  200  68.6 to 80.5 %",
        "silenced: with the audio silenced, chance lies within the 95 % interval of every task.",
    ]
    assert as_markdown(results).splitlines() == [
        "| task | chance | before | after | silenced | n | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| gender | 50.0 % | 48.0 % | 98.5 % | 50.5 % | 200 | 95.7 to 99.5 % |",
        "| text\\_sum | 50.0 % | 0.0 % | 75.0 % | no audio | 200 | 68.6 to 80.5 % |",
        "",
        "silenced: with the audio silenced, chance lies within the 95 % interval of every task.",
    ]


def test_what_was_not_measured_has_no_column():
    assert as_text(Results(after=scores(gender=100))).startswith("task    chance   after    n ")


def test_a_task_answered_in_silence_is_marked():
    results = Results(
        after=scores(gender=190, rate=190, pitch=190),
        silenced=scores(gender=100, rate=115, pitch=0),
    )
    text = as_text(results)
    assert "50.0 %  200" in text
    assert "57.5 %*" in text
    assert "0.0 %*" in text
    assert (
        "* with the audio silenced, chance lies outside the 95 % interval:"
        " rate (50.6 to 64.1 %), pitch (0.0 to 1.9 %)." in text
    )
    assert "within" not in text


def test_malformed_replies_are_counted_below():
    after = score(
        answers("gender", n=200, correct=150, malformed=30)
        + answers("rate", n=200, correct=150, malformed=1)
    )
    results = Results(after=after, before=scores(gender=1, rate=1))
    notes = as_text(results).splitlines()[4:]
    assert notes == [
        "after: 31 of 400 replies were malformed and count as wrong: gender 30, rate 1."
    ]


def test_scores_of_other_questions_cannot_stand_beside_each_other():
    after = scores(gender=10, rate=10)
    with pytest.raises(ValueError, match="before has the tasks gender, and after gender, rate"):
        Results(after=after, before=scores(gender=10))
    with pytest.raises(ValueError, match="task 'pitch' of 'silenced' was not measured"):
        Results(after=after, silenced=scores(pitch=10))
    with pytest.raises(ValueError, match="task 'rate' of 'silenced' was not measured"):
        Results(after=after, silenced=score(answers("rate", n=199, correct=10)))
    with pytest.raises(ValueError, match="no scores"):
        Results(after={})


def test_hostile_names_stay_in_their_cell():
    results = Results(
        after=scores(**{"a|b\nc": 100, "<b>*x*</b>": 100, "\x1b[31mred": 100, "语言": 100})
    )
    lines = as_text(results).splitlines()
    assert len(lines) == 6
    assert "\x1b" not in as_text(results)
    assert lines[5].startswith(
        "语言" + " " * (lines[0].index("chance") - 4)
    )  # each takes two columns
    rows = as_markdown(results).splitlines()[2:]
    assert [row.replace("\\|", "").count("|") for row in rows] == [6] * 4
    assert "\\<b\\>\\*x\\*\\</b\\>" in rows[1]
