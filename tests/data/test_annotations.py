"""The annotations of a record: what is read, what is refused, and that nothing is changed."""

import json

import pytest

from stepaudio_jax.data.annotations import Annotation, CriterionMet
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.data.sources.serialization import check_reads_back, serialize_record
from stepaudio_jax.errors import DataError

PAIR = {
    "messages": [{"role": "user", "content": "Hello?"}],
    "chosen": [{"role": "assistant", "reasoning_content": "Greets.", "content": "Hello!"}],
    "rejected": [{"role": "assistant", "content": "No."}],
    "rubric": ["greets"],
}
ANNOTATION = {
    "annotator": "ann",
    "verdict": -2,
    "shown_first": "b",
    "criteria": [{"a": True, "b": False}],
    "reasons": ["tone"],
    "critique": "短い",
    "better_reply": "Hi!",
    "seconds_listened": 2.5,
    "time": "2026-11-30T12:00:00Z",
}


def parse(annotations):
    value = json.loads(json.dumps({**PAIR, "annotations": annotations}))
    return parse_record(value, origin="f.jsonl:3", folder="", source="s", default_id="1")


def test_every_key_is_read_and_written_back():
    record = parse([ANNOTATION, {"annotator": "bo", "verdict": None}])
    full, skipped = record.annotations
    assert full == Annotation(
        annotator="ann",
        verdict=-2,
        shown_first="b",
        criteria=(CriterionMet(a=True, b=False),),
        reasons=("tone",),
        critique="短い",
        better_reply="Hi!",
        seconds_listened=2.5,
        time="2026-11-30T12:00:00Z",
    )
    assert skipped == Annotation("bo", None)
    check_reads_back(record)
    assert serialize_record(record, lambda part: {})["annotations"][0] == ANNOTATION


def test_exchanged_replies_change_the_sides_of_an_annotation():
    (annotation,) = parse([ANNOTATION]).annotations
    assert annotation.swapped.verdict == 2
    assert annotation.swapped.shown_first == "a"
    assert annotation.swapped.criteria == (CriterionMet(a=False, b=True),)
    assert annotation.swapped.swapped == annotation


def test_annotations_of_other_tools_are_not_read():
    for foreign in ([], ["tone"], {"boxes": [1]}, [{"label": "dog"}], "good", 3):
        assert parse(foreign).annotations == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": 4}, r"f\.jsonl:3: annotation 1: 'verdict' must be .* -3 to 3, .* got 4"),
        ({"verdict": True}, "'verdict' must be a whole number"),
        ({"verdict": 1.5}, "'verdict' must be a whole number"),
        ({"annotator": ""}, "has no 'annotator'"),
        ({"annotator": 3}, "'annotator' must be a string"),
        ({"shown_first": "left"}, "'shown_first' must be"),
        ({"criteria": [{"a": True}]}, "'criteria' must be a list of"),
        ({"criteria": [{"a": True, "b": False}] * 2}, "'criteria' has 2 entries, and the rubric 1"),
        ({"reasons": "tone"}, "'reasons' must be a list"),
        ({"seconds_listened": -1}, "'seconds_listened' must be a number"),
        ({"is_gold": "yes"}, "'is_gold' must be true or false"),
        ({"verdickt": 1}, "unknown key \"verdickt\"; did you mean 'verdict'"),
    ],
)
def test_errors_name_the_line_and_the_key(change, message):
    with pytest.raises(DataError, match=message):
        parse([{**ANNOTATION, **change}])


def test_an_annotation_outside_of_a_list_is_refused():
    with pytest.raises(DataError, match="'annotations' must be a list"):
        parse(ANNOTATION)
    with pytest.raises(DataError, match="annotation 2 must be an object"):
        parse([ANNOTATION, "tone"])
