"""The dialogues that a judge is trained on, and the report on a judge."""

import json

import pytest

from launch.judge import main as launch
from stepaudio_jax.data import read_records
from stepaudio_jax.errors import DataError, JudgeError
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.query import JudgeAnswer, Query
from stepaudio_jax.judge.training import evaluate_judge, judge_dialogues, write_judge_data
from stepaudio_jax.judge.verdict import Verdict, parse_verdict
from tests.judge.fakes import FunctionBackend
from tests.judge.judge_server import JudgeServer
from tests.rl.small_stage import base


def preference(number=0, **keys):
    return {
        "id": f"p{number}",
        "prompt": [{"role": "user", "content": f"Hello {number}?"}],
        "chosen": [{"role": "assistant", "content": f"good {number}"}],
        "rejected": [{"role": "assistant", "content": f"bad {number}"}],
        **keys,
    }


def records(folder, *values):
    path = folder / "preferences.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


RUBRIC = {
    "rubric": [{"criterion": "kind", "weight": 2}, {"criterion": "rude", "weight": -1}],
    "reference_meets": [True, False],
    "rejected_meets": [False, False],
}


@pytest.mark.parametrize("levels", [3, 5, 7])
def test_both_orders_have_the_right_verdict(tmp_path, levels):
    prompt = JudgePrompt(levels=levels)
    (record,) = read_records(records(tmp_path, preference(**RUBRIC, margin=1)))
    dialogues = list(judge_dialogues(record, prompt))
    right = (Verdict(1, (True, False), (False, False)), Verdict(-1, (False, False), (True, False)))
    orders = (("good 0", "bad 0"), ("bad 0", "good 0"))
    for dialogue, order, verdict in zip(dialogues, orders, right, strict=True):
        asked, answer = (message["content"] for message in dialogue["messages"])
        question = prompt.question(record.messages, *order, record.rubric)
        assert asked == question.text
        assert parse_verdict(answer, levels=levels, criteria=2, code=question.code) == verdict
        assert json.loads(answer)["code"] == question.code


def test_an_ordinal_judge_learns_one_comparison_in_the_light_of_the_rubric(tmp_path):
    prompt = JudgePrompt(rubric="ordinal")
    rubric = {"rubric": RUBRIC["rubric"]}  # what the replies meet is not asked
    (record,) = read_records(records(tmp_path, preference(**rubric, margin=3)))
    for dialogue, level in zip(judge_dialogues(record, prompt), (3, -3), strict=True):
        question, answer = (message["content"] for message in dialogue["messages"])
        assert "(+2) kind" in question
        assert json.loads(answer).keys() == {"comparison", "code"}
        assert parse_verdict(answer, levels=7, code=json.loads(answer)["code"]) == Verdict(level)
    with pytest.raises(DataError, match="'reference_meets'"):
        list(judge_dialogues(record, JudgePrompt(rubric="both")))


def test_a_template_without_a_code_gives_verdicts_without_one(tmp_path):
    (record,) = read_records(records(tmp_path, preference()))
    dialogues = judge_dialogues(record, JudgePrompt("configs/tiny_judge.txt", levels=3))
    assert [json.loads(dialogue["messages"][1]["content"]) for dialogue in dialogues] == [
        {"comparison": "a is better"},
        {"comparison": "b is better"},
    ]


def test_critiques_become_the_reasoning_in_the_order_of_the_replies(tmp_path):
    (record,) = read_records(
        records(tmp_path, preference(reference_critique="kind", rejected_critique="rude"))
    )
    answers = [dialogue["messages"][1] for dialogue in judge_dialogues(record, JudgePrompt())]
    assert [answer["reasoning_content"] for answer in answers] == [
        "A: kind\nB: rude",
        "A: rude\nB: kind",
    ]
    assert [parse_verdict(answer["content"], levels=7).level for answer in answers] == [2, -2]


def test_preferences_become_dialogues(tmp_path):
    source = records(tmp_path, preference(0), preference(1))
    assert write_judge_data(source, tmp_path / "judge.jsonl", JudgePrompt()) == 4
    made = list(read_records(tmp_path / "judge.jsonl"))
    assert [record.id for record in made] == ["p0-a", "p0-b", "p1-a", "p1-b"]
    assert [parse_verdict(record.messages[1].text, levels=7).level for record in made] == [
        2,
        -2,
        2,
        -2,
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"margin": 4}, "preferences.jsonl:1: 'margin' is 4; a scale of 7 levels has 0 to 3"),
        ({**RUBRIC, "rejected_meets": [True]}, "preferences.jsonl:1: its rubric has 2 criteria"),
        ({"rejected_critique": "rude"}, "preferences.jsonl:1: has a critique of one reply"),
        ({"margin": -1}, "'margin' must be a whole number"),
        ({"reference_meets": ["yes"]}, "'reference_meets' must be a list of true and false"),
    ],
)
def test_unusable_records_are_named(tmp_path, keys, message):
    source = records(tmp_path, preference(**keys))
    with pytest.raises(DataError, match=message):
        write_judge_data(source, tmp_path / "judge.jsonl", JudgePrompt())
    assert not (tmp_path / "judge.jsonl").exists()


@pytest.mark.parametrize("program", ["data", "report"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rejected": [{"role": "assistant", "content": "good 0 "}]},
            "'chosen' and 'rejected' are the same reply",
        ),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "'chosen' is an empty reply"),
        ({"audios": ["clip.wav"]}, "the row has 1 clip"),
    ],
)
def test_records_that_are_no_preference_are_rejected_by_both_commands(
    tmp_path, capsys, program, keys, message
):
    source = records(tmp_path, preference(1), preference(**keys))
    arguments = {
        "data": ["--output", str(tmp_path / "judge.jsonl")],
        "report": ["--model", "nowhere"],
    }[program]
    with pytest.raises(SystemExit) as ended:
        launch([program, "--input", str(source), *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {source}:2: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "judge.jsonl").exists()


@pytest.mark.parametrize("levels", [3, 5, 7])
def test_a_margin_of_0_teaches_that_replies_are_equal(tmp_path, levels):
    source = records(
        tmp_path,
        preference(rejected=[{"role": "assistant", "content": "good 0"}], margin=0, **RUBRIC),
    )
    (record,) = read_records(source)
    prompt = JudgePrompt(levels=levels)
    for dialogue in judge_dialogues(record, prompt):
        answer = dialogue["messages"][1]["content"]
        assert parse_verdict(answer, levels=levels, criteria=2).level == 0


def test_a_report_separates_agreement_from_position_bias(tmp_path):
    """The judge is right on the first pairs, prefers A on others, and abstains on the last."""
    source = records(tmp_path, *(preference(number) for number in range(6)))

    def ask(question):
        number = int(question.split("Hello ")[1][0])
        good_first = question.index("good") < question.index("bad")
        if number == 5:
            return JudgeAnswer("I cannot say.")
        level = 3 if number < 3 else 1
        better = "a" if good_first or number >= 3 else "b"
        return JudgeAnswer(
            json.dumps({"comparison": f"{better} is {'much' if level == 3 else 'slightly'} better"})
        )

    judge = Judge(FunctionBackend("scripted", ask), JudgePrompt(), max_abstention_rate=1.0)
    report = evaluate_judge(judge, list(read_records(source)))
    assert report.pairs == 6
    assert report.abstained == pytest.approx(1 / 6)
    assert report.agreement == pytest.approx((3 + 2 * 0.5) / 5)
    assert report.position_bias == pytest.approx(2 / 5)
    assert report.calibration == {3.0: (1.0, 3)}
    assert report.criteria_agreement is None


def test_a_judge_without_verdicts_has_no_agreement(tmp_path):
    judge = Judge(
        FunctionBackend("silent", lambda question: JudgeAnswer("I cannot say.")),
        JudgePrompt(),
        max_abstention_rate=1.0,
    )
    report = evaluate_judge(judge, list(read_records(records(tmp_path, preference(0)))))
    assert (report.abstained, report.agreement, report.position_bias) == (1, None, None)
    with pytest.raises(DataError, match="no pairs"):
        evaluate_judge(judge, [])


def test_a_report_on_a_judge_behind_a_server(tmp_path, capsys):
    server = JudgeServer()
    source = records(tmp_path, *(preference(number) for number in range(3)))
    launch(
        [
            "report",
            "--url",
            server.url,
            "--model",
            "m",
            "--key-variable",
            "",
            "--input",
            str(source),
        ]
    )
    server.close()
    report = json.loads(capsys.readouterr().out)
    assert (report["pairs"], report["abstained"], report["agreement"], report["position_bias"]) == (
        3,
        0,
        1,
        0,
    )
    assert len(server.requests) == 6


def test_agreement_on_equal_replies(tmp_path):
    source = records(tmp_path, *(preference(number, margin=0) for number in range(2)))

    def ask(question):
        comparison = (
            "both are equal" if "Hello 0" in question or "A: good" in question else "b is better"
        )
        return JudgeAnswer(json.dumps({"comparison": comparison}))

    template = tmp_path / "prompt.txt"
    template.write_text(
        "{dialogue} {fence} A: {reply_a} {fence} B: {reply_b} {fence} {criteria}", encoding="utf-8"
    )
    judge = Judge(FunctionBackend("scripted", ask), JudgePrompt(template))
    report = evaluate_judge(judge, list(read_records(source)))
    assert report.agreement == 0.5
    assert not report.calibration


@pytest.mark.slow
def test_one_of_our_models_as_the_judge(tmp_path):
    model = base()
    template = tmp_path / "prompt.txt"
    fields = (
        "{dialogue} {fence} {reply_a} {fence} {reply_b} {fence} {criteria} {form} {comparisons}"
    )
    template.write_text(fields, encoding="utf-8")
    backend = ModelBackend(model, slots=4, max_tokens=24)
    judge = Judge(backend, JudgePrompt(template), max_abstention_rate=1.0)
    report = evaluate_judge(
        judge, list(read_records(records(tmp_path, preference(0), preference(1))))
    )
    assert report.abstained == 1
    assert judge.num_generated == 4
    answers = dict(
        backend.generate_batch([Query(f"What is {number} plus 4?") for number in range(1, 4)])
    )
    assert sorted(answers) == [0, 1, 2]
    assert any(answer.text for answer in answers.values())
    ((_, longer),) = backend.generate_batch([Query("What is 1 plus 4? " * 20)])
    assert isinstance(longer, JudgeAnswer)
    ((_, not_encodable),) = backend.generate_batch([Query("half a pair: \ud800")])
    assert isinstance(not_encodable, JudgeError)
    ((_, too_long),) = backend.generate_batch([Query("What is 1 plus 4? " * 1000)])
    assert isinstance(too_long, JudgeError)
