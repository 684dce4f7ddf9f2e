"""A file of dialogues in, a file of replies or scores out: one line for each, in order."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from stepaudio_jax import hub
from stepaudio_jax.errors import DataError, OutputError
from stepaudio_jax.generation import (
    JobSummary,
    LoadedModel,
    Sampling,
    Scorer,
    answer_file,
    finished_generation,
    is_scoring_finished,
    load_model,
    score_file,
)
from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.journal import Journal, describe_job
from stepaudio_jax.models import quantize_weights, unstack_layers
from stepaudio_jax.storage import has_job_mark
from stepaudio_jax.text import Message, TextPart
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters, user, write_clip
from tests.models.random_model import FLOAT32

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"
SAMPLING = Sampling(temperature=0.9, max_new_tokens=6, seed=5)


@pytest.fixture(scope="module")
def model():
    return LoadedModel("lively", CONFIG, peaked_parameters(), BYTES, FLOAT32)


def dialogue(*parts, **keys):
    return {"messages": [{"role": "user", "content": list(parts)}], **keys}


def text(words):
    return {"type": "text", "text": words}


def write(path, *lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


def read(path):
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def dialogues(tmp_path):
    """Short and long, with and without sound, so that the engine's order is not the file's."""
    write_clip(tmp_path / "a.wav", 0.5)
    clip = {"type": "audio", "audio": "a.wav"}
    return write(
        tmp_path / "dialogues.jsonl",
        dialogue(text("1+1?")),
        dialogue(text("Listen: "), clip, id="日本"),
        "",
        dialogue(text("a much longer question than any other one here"), id=7),
        dialogue(clip, text("é\u2028☂?"), id="q"),
        dialogue(text("1+1?")),
    )


def test_one_line_out_for_each_dialogue_in_order(model, dialogues, tmp_path):
    output = tmp_path / "new" / "folder" / "replies.jsonl"
    assert answer_file(model, dialogues, output, SAMPLING, slots=3) == JobSummary(5, 0, "")
    replies = read(output)
    assert [reply["id"] for reply in replies] == ["dialogues:1", "日本", "7", "q", "dialogues:6"]
    questions = [
        "1+1?",
        "Listen: ",
        "a much longer question than any other one here",
        "é\u2028☂?",
        "1+1?",
    ]
    audio = [0, 6 + 2, 0, 6 + 2, 0]
    around = len("Bhuman\nEBassistant\n<think>\n")
    assert [reply["prompt_tokens"] for reply in replies] == [
        around + len(question.encode()) + tokens
        for question, tokens in zip(questions, audio, strict=True)
    ]
    for reply in replies:
        assert reply.keys() == {
            *("id", "reasoning", "reply", "finish_reason", "well_formed"),
            *("problems", "prompt_tokens", "completion_tokens"),
        }
        assert reply["finish_reason"] == "length"
        assert reply["completion_tokens"] == 6
        assert "not_ended" in reply["problems"]
        assert reply["well_formed"] is False
    assert "日本" in output.read_text(encoding="utf-8")  # written as it is, not as \u escapes
    assert files(output.parent) == ["replies.jsonl"]

    # What a dialogue is batched with changes nothing; equal dialogues draw from seeds of their own.
    answer_file(model, dialogues, tmp_path / "together.jsonl", SAMPLING, slots=5)
    assert read(tmp_path / "together.jsonl") == replies
    assert replies[0]["reasoning"] != replies[4]["reasoning"]


def test_the_seed_decides(model, tmp_path):
    given = write(tmp_path / "d.jsonl", dialogue(text("1+1?")))
    outputs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        answer_file(model, given, tmp_path / name, dataclasses.replace(SAMPLING, seed=seed))
        outputs.append(read(tmp_path / name))
    assert outputs[0] == outputs[1] != outputs[2]


def scored(*turns):
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[index % 2], "content": content} for index, content in enumerate(turns)
        ]
    }


def test_scores_are_those_of_the_scorer(model, tmp_path):
    given = write(tmp_path / "d.jsonl", scored("1+1?", "2"), scored("x?", "y", "z?", "é"))
    assert score_file(model, given, tmp_path / "scores.jsonl") == 2
    first, second = read(tmp_path / "scores.jsonl")
    assert (first["id"], second["id"]) == ("d:1", "d:2")
    scorer = Scorer(CONFIG, model.parameters, BYTES, compute=FLOAT32)
    turns = [
        user("x?"),
        Message("assistant", (TextPart("y"),)),
        user("z?"),
        Message("assistant", (TextPart("é"),)),
    ]
    for written, score in zip(second["turns"], scorer.score(turns), strict=True):
        assert written["token_ids"] == list(score.token_ids)
        np.testing.assert_allclose(written["logprobs"], score.logprobs, rtol=1e-6)


def test_past_turns_are_rendered_as_the_model_was_trained(model, tmp_path):
    past = {"role": "assistant", "reasoning_content": "One, two.", "content": "2"}
    turns = [
        {"role": "user", "content": "1+1?"},
        past,
        {"role": "user", "content": "And one more?"},
    ]
    given = write(tmp_path / "d.jsonl", {"messages": turns})

    def prompt_tokens(name, **changes):
        answer_file(dataclasses.replace(model, **changes), given, tmp_path / name, SAMPLING)
        return read(tmp_path / name)[0]["prompt_tokens"]

    whole = prompt_tokens("whole")
    assert prompt_tokens("reasoning", history_reasoning=True) - whole == len(
        BYTES.encode("<think>\nOne, two.\n</think>\n")
    )
    assert whole - prompt_tokens("no_end", history_eot=False) == 1


BAD_ANSWER = {
    "not JSON": ("{", "dialogues.jsonl:3: is not JSON"),
    "missing clip": (
        dialogue({"type": "audio", "audio": "b.wav"}),
        "dialogues.jsonl:3: audio .*b.wav: does not exist",
    ),
    "answered": (scored("1+1?", "2"), "dialogues.jsonl:3: message 2 .assistant. is the last one"),
    "too long": (dialogue(text("x" * 500)), "dialogues.jsonl:3: the dialogue has 527 tokens"),
    "unknown setting": (
        dialogue(text("1?"), sampling={"temprature": 0}),
        "dialogues.jsonl:3: 'sampling' has the unknown key 'temp",
    ),
    "setting out of range": (
        dialogue(text("1?"), sampling={"top_p": 2}),
        "dialogues.jsonl:3: top_p=2 must lie in",
    ),
    "setting of another type": (
        dialogue(text("1?"), sampling={"top_p": "x"}),
        "dialogues.jsonl:3: top_p='x' must be a number",
    ),
    "one string for several": (
        dialogue(text("1?"), sampling={"stop_strings": "END"}),
        "dialogues.jsonl:3: stop_strings='END' must be a list of texts",
    ),
    "more than 31 bits": (
        dialogue(text("1?"), sampling={"top_k": 10**10}),
        "dialogues.jsonl:3: top_k=10000000000 must lie",
    ),
    "no end of reasoning": (
        dialogue(text("1?"), sampling={"max_reasoning_tokens": 3 * 10**9}),
        "dialogues.jsonl:3: max_reasoning_tokens=3000000000 must lie between 1 and 2147483647",
    ),
    "no token": (
        dialogue(text("1?"), sampling={"stop_tokens": [2**40]}),
        "dialogues.jsonl:3: stop_tokens=.* must lie between",
    ),
    "a loop without a count": (
        dialogue(text("1?"), sampling={"repetition_detection": {"max_pattern_size": 4}}),
        "dialogues.jsonl:3: repetition_detection.*max_pattern_size=4 and min_count=0 belong together",
    ),
    "a loop of an unknown key": (
        dialogue(text("1?"), sampling={"repetition_detection": {"min_counts": 4}}),
        "dialogues.jsonl:3: .*repetition_detection.min_counts.*did you mean 'min_count'",
    ),
    "half a seed": (
        dialogue(text("1?"), sampling={"seed": 1.5}),
        "dialogues.jsonl:3: seed=1.5 must be a whole number",
    ),
    "no settings": (
        dialogue(text("1?"), sampling=1),
        "dialogues.jsonl:3: 'sampling' must be an object of settings, got 1",
    ),
}


@pytest.mark.parametrize("kind", BAD_ANSWER)
def test_one_bad_dialogue_is_reported_and_the_others_are_answered(model, tmp_path, kind):
    line, message = BAD_ANSWER[kind]
    own = {"id": "my-own-77", **line} if isinstance(line, dict) else line
    given = write(tmp_path / "dialogues.jsonl", dialogue(text("1+1?")), "", own)
    outcome = answer_file(model, given, tmp_path / "replies.jsonl", SAMPLING)
    assert (outcome.dialogues, outcome.failed) == (2, 1)
    assert re.search(message, outcome.first_failure)
    reply, failure = read(tmp_path / "replies.jsonl")
    assert reply["completion_tokens"] == 6
    assert failure == {
        "id": "dialogues:3" if own == "{" else "my-own-77",
        "error": outcome.first_failure,
    }
    assert files(tmp_path) == ["dialogues.jsonl", "replies.jsonl"]


@pytest.mark.parametrize("output", ["new/replies.jsonl", "old.jsonl"])
def test_where_no_dialogue_can_be_answered_nothing_is_written(model, tmp_path, output):
    given = write(tmp_path / "dialogues.jsonl", "{", dialogue(text("x" * 500)))
    (tmp_path / "old.jsonl").write_text("kept")
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"dialogues\.jsonl:1: is not JSON"):
        answer_file(model, given, tmp_path / output, SAMPLING)
    assert files(tmp_path) == before
    assert (tmp_path / "old.jsonl").read_text() == "kept"


def test_a_dialogue_has_settings_of_its_own(model, tmp_path):
    own = [
        {},
        {"max_new_tokens": 3},
        {"temperature": 0, "max_new_tokens": 40},
        {"stop_tokens": [1, 2], "top_k": 1},
    ]
    given = write(
        tmp_path / "d.jsonl", *(dialogue(text("1+1?"), sampling=settings) for settings in own)
    )
    answer_file(model, given, tmp_path / "a.jsonl", SAMPLING, slots=2)
    answer_file(model, given, tmp_path / "b.jsonl", dataclasses.replace(SAMPLING, seed=6), slots=2)
    first, second = read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl")
    assert [reply["completion_tokens"] for reply in first] == [6, 3, 40, 6]
    assert first[0] != second[0]
    assert first[2:] == second[2:], "greedy replies do not depend on the seed"


def test_samples_of_a_dialogue_stand_together(model, tmp_path):
    given = write(tmp_path / "d.jsonl", dialogue(text("1+1?")), "{", dialogue(text("2+2?")))
    answer_file(model, given, tmp_path / "r.jsonl", SAMPLING, slots=3, num_samples=4)
    first, failed, last = read(tmp_path / "r.jsonl")
    assert failed.keys() == {"id", "error"}
    for line in (first, last):
        assert len({sample["reasoning"] for sample in line["samples"]}) == 4


def test_an_interrupted_job_goes_on_and_makes_the_same_file(
    model, dialogues, tmp_path, monkeypatch
):
    """Interrupted after the second reply, in the middle of writing the third: two are not answered again."""
    whole, output = tmp_path / "whole.jsonl", tmp_path / "replies.jsonl"
    answer_file(model, dialogues, whole, SAMPLING, slots=1)
    asked = []
    submit, write_line = Engine.submit, Journal.write
    monkeypatch.setattr(
        Engine, "submit", lambda self, *given: asked.append(given) or submit(self, *given)
    )

    def write_two(self, index, line):
        if len(self) == 2:
            raise KeyboardInterrupt
        write_line(self, index, line)

    with monkeypatch.context() as context:
        context.setattr(Journal, "write", write_two)
        with pytest.raises(KeyboardInterrupt):
            answer_file(model, dialogues, output, SAMPLING, slots=1)
    partial = tmp_path / "replies.jsonl.partial"
    assert not output.exists()
    with partial.open("ab") as file:
        file.write(b'{"index": 2, "li')
    with pytest.raises(
        DataError, match=r"replies.jsonl.partial: is of another job .*; delete it to start anew"
    ):
        answer_file(model, dialogues, output, dataclasses.replace(SAMPLING, seed=9), slots=1)
    with pytest.raises(DataError, match=r"is of another job"):
        answer_file(dataclasses.replace(model, channel="mix"), dialogues, output, SAMPLING, slots=1)
    asked.clear()
    answer_file(model, dialogues, output, SAMPLING, slots=1)
    assert len(asked) == 3
    assert output.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_a_finished_job_is_known_and_another_one_refused(tmp_path):
    """By its output alone: the model is not loaded."""
    given = write(tmp_path / "d.jsonl", dialogue(text("1+1?")), dialogue(text("2+2?")))
    output = tmp_path / "r.jsonl"

    def before(sampling=SAMPLING, path=given, **settings):
        return finished_generation(BASE, path, output, sampling, "float32", **settings)

    assert before() is None
    settings = {
        "num_samples": 1,
        "int8_weights": False,
        "cache_dtype": None,
        "history_reasoning": False,
        "history_eot": True,
    }
    settings["channel"] = "first"
    config = hub.read_model_config(BASE)
    job = describe_job(
        "generate", given, BASE, config, dtype="float32", sampling=repr(SAMPLING), **settings
    )
    journal = Journal(output, job, 2)
    journal.write(1, {"id": "d:2", "error": "d.jsonl:2: no"})
    journal.write(0, {"id": "d:1", "reply": "2"})
    journal.finish()
    if not has_job_mark(output):
        pytest.skip("this file system keeps no marks")
    assert before() == JobSummary(2, 1, "d.jsonl:2: no")
    assert before(path=write(tmp_path / "copy.jsonl", *given.read_text().splitlines())) is not None
    others = [
        lambda: before(dataclasses.replace(SAMPLING, seed=6)),
        lambda: before(num_samples=2),
        lambda: before(int8_weights=True),
        lambda: before(channel="mix"),
        lambda: before(path=write(tmp_path / "other.jsonl", dialogue(text("1?")))),
        lambda: is_scoring_finished(BASE, given, output, "float32"),
    ]
    for other in others:
        with pytest.raises(OutputError, match="is not what this job makes"):
            other()
    output.write_text(output.read_text() + "\n")
    with pytest.raises(OutputError, match="or changed since"):
        before()


def test_an_output_that_is_the_input_is_refused_in_python_too(model, tmp_path):
    given = write(tmp_path / "d.jsonl", scored("1+1?", "2"))
    (tmp_path / "link.jsonl").symlink_to(given)
    before = given.read_bytes()
    for program in (functools.partial(answer_file, sampling=SAMPLING), score_file):
        with pytest.raises(OutputError, match="is the input"):
            program(model, given, tmp_path / "link.jsonl")
    assert given.read_bytes() == before


def test_scoring_goes_on_where_it_was_interrupted(model, tmp_path, monkeypatch):
    given = write(
        tmp_path / "d.jsonl", scored("1+1?", "2"), scored("1+1?", "3"), scored("1+1?", "4")
    )
    score_file(model, given, tmp_path / "unbroken.jsonl")
    score, asked = Scorer.score, []

    def interrupt(self, messages):
        asked.append(messages)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return score(self, messages)

    monkeypatch.setattr(Scorer, "score", interrupt)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, given, tmp_path / "scores.jsonl")
    assert score_file(model, given, tmp_path / "scores.jsonl") == 3
    assert len(asked) == 4
    assert (tmp_path / "scores.jsonl").read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()
    assert not (tmp_path / "scores.jsonl.partial").exists()


def test_slots_grow_with_the_dialogues(model, tmp_path):
    """The first ones are short; the engine that answers them has no room for the last."""
    given = write(
        tmp_path / "d.jsonl", *(dialogue(text("x" * length)) for length in (1, 2, 3, 300))
    )
    assert answer_file(model, given, tmp_path / "r.jsonl", SAMPLING, slots=1).failed == 0
    assert [line["completion_tokens"] for line in read(tmp_path / "r.jsonl")] == [6] * 4


BAD_SCORE = {
    "not JSON": ("{", "d.jsonl:2: is not JSON"),
    "no reply": (scored("1+1?"), "d.jsonl:2: no assistant turn"),
    "too long": (scored("x" * 500, "2"), "d.jsonl:2: the dialogue has .* shorten the dialogue"),
}


@pytest.mark.parametrize("kind", BAD_SCORE)
def test_one_dialogue_that_cannot_be_scored_and_nothing_is_written(model, tmp_path, kind):
    """The first one was scored by then: neither its line nor the folders made for it stay."""
    line, message = BAD_SCORE[kind]
    given = write(tmp_path / "d.jsonl", scored("1+1?", "2"), line)
    (tmp_path / "old.jsonl").write_text("kept")
    before = files(tmp_path)
    for output in ("new/folder/scores.jsonl", "old.jsonl"):
        with pytest.raises(DataError, match=message):
            score_file(model, given, tmp_path / output)
    assert files(tmp_path) == before
    assert (tmp_path / "old.jsonl").read_text() == "kept"


@pytest.mark.parametrize("program", [functools.partial(answer_file, sampling=SAMPLING), score_file])
def test_a_file_without_dialogues_is_a_mistake(model, tmp_path, program):
    given = write(tmp_path / "d.jsonl", "", "  ")
    with pytest.raises(DataError, match=r"d\.jsonl: has no records"):
        program(model, given, tmp_path / "o")
    assert files(tmp_path) == ["d.jsonl"]


@pytest.mark.parametrize("int8_weights", [False, True])
def test_an_engine_needs_no_second_copy_of_a_model_that_only_writes(int8_weights):
    settings = {"slots": 1, "slot_tokens": 32}
    model = load_model(BASE, "float32", int8_weights=int8_weights, for_generation=True)
    engine = Engine(
        model.config, model.parameters, model.tokenizer, compute=model.compute, **settings
    )
    held, given = (jax.tree.leaves(tree) for tree in (engine._parameters, model.parameters))
    assert [ours.unsafe_buffer_pointer() for ours in held] == [
        theirs.unsafe_buffer_pointer() for theirs in given
    ]
    stacked = load_model(BASE, "float32", int8_weights=int8_weights)
    other = Engine(
        stacked.config, stacked.parameters, stacked.tokenizer, compute=stacked.compute, **settings
    )
    for ours, theirs in zip(held, jax.tree.leaves(other._parameters), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_matrices_in_int8_are_expanded_within_the_loop_that_writes():
    """Before it, all of them would be there at once, beside the small ones."""
    program = device.EngineSpec(CONFIG, FLOAT32, "float32")
    parameters = unstack_layers(quantize_weights(CONFIG, peaked_parameters()))
    slots = device.empty_slots(program, 2, 32)
    (call,) = jax.make_jaxpr(device.decode, static_argnums=(0, 5))(
        program, parameters, slots, np.zeros(4, np.int32), False, 8
    ).eqns
    outside = [
        equation for equation in call.params["jaxpr"].eqns if equation.primitive.name != "while"
    ]
    assert len(outside) < len(call.params["jaxpr"].eqns)
    assert not [
        equation
        for equation in outside
        if any(value.aval.dtype == np.int8 for value in equation.invars)
    ]
