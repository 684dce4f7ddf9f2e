"""A file of dialogues in, a file of replies out: one line for each, in order."""

import dataclasses
import functools
import itertools
import pathlib
import re

import numpy as np
import pytest
import soundfile

from stepaudio_jax import hub
from stepaudio_jax.errors import DataError, OutputError
from stepaudio_jax.generation import (
    JobSummary,
    Sampling,
    answer_file,
    finished_generation,
    is_scoring_finished,
    score_file,
)
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.journal import Journal, describe_job
from stepaudio_jax.storage import has_job_mark
from tests.generation.job_files import (
    dialogue,
    list_files,
    read_lines,
    scored,
    small_loaded_model,
    text,
    write_lines,
)
from tests.generation.small_model import BYTES, write_clip

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"
SAMPLING = Sampling(temperature=0.9, max_new_tokens=6, seed=5)


@pytest.fixture(scope="module")
def model():
    return small_loaded_model()


@pytest.fixture
def dialogues(tmp_path):
    """Short and long, with and without sound, so that the engine's order is not the file's."""
    write_clip(tmp_path / "a.wav", 0.5)
    clip = {"type": "audio", "audio": "a.wav"}
    return write_lines(
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
    replies = read_lines(output)
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
    assert list_files(output.parent) == ["replies.jsonl"]

    # What a dialogue is batched with changes nothing; equal dialogues draw from seeds of their own.
    answer_file(model, dialogues, tmp_path / "together.jsonl", SAMPLING, slots=5)
    assert read_lines(tmp_path / "together.jsonl") == replies
    assert replies[0]["reasoning"] != replies[4]["reasoning"]


@pytest.mark.slow
def test_equal_seeds_write_equal_files(model, tmp_path):
    given = write_lines(tmp_path / "d.jsonl", dialogue(text("1+1?")))
    outputs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        answer_file(model, given, tmp_path / name, dataclasses.replace(SAMPLING, seed=seed))
        outputs.append(read_lines(tmp_path / name))
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.slow
def test_past_turns_are_rendered_as_the_model_was_trained(model, tmp_path):
    past = {"role": "assistant", "reasoning_content": "One, two.", "content": "2"}
    turns = [
        {"role": "user", "content": "1+1?"},
        past,
        {"role": "user", "content": "And one more?"},
    ]
    given = write_lines(tmp_path / "d.jsonl", {"messages": turns})

    def prompt_tokens(name, **changes):
        answer_file(dataclasses.replace(model, **changes), given, tmp_path / name, SAMPLING)
        return read_lines(tmp_path / name)[0]["prompt_tokens"]

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
        "dialogues.jsonl:3: repetition_detection.*max_pattern_size=4 and min_count=0 belong",
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
    given = write_lines(tmp_path / "dialogues.jsonl", dialogue(text("1+1?")), "", own)
    outcome = answer_file(model, given, tmp_path / "replies.jsonl", SAMPLING)
    assert (outcome.dialogues, outcome.failed) == (2, 1)
    assert re.search(message, outcome.first_failure)
    reply, failure = read_lines(tmp_path / "replies.jsonl")
    assert reply["completion_tokens"] == 6
    assert failure == {
        "id": "dialogues:3" if own == "{" else "my-own-77",
        "error": outcome.first_failure,
    }
    assert list_files(tmp_path) == ["dialogues.jsonl", "replies.jsonl"]


@pytest.mark.parametrize("output", ["new/replies.jsonl", "old.jsonl"])
def test_where_no_dialogue_can_be_answered_nothing_is_written(model, tmp_path, output):
    given = write_lines(tmp_path / "dialogues.jsonl", "{", dialogue(text("x" * 500)))
    (tmp_path / "old.jsonl").write_text("kept")
    before = list_files(tmp_path)
    with pytest.raises(DataError, match=r"dialogues\.jsonl:1: is not JSON"):
        answer_file(model, given, tmp_path / output, SAMPLING)
    assert list_files(tmp_path) == before
    assert (tmp_path / "old.jsonl").read_text() == "kept"


@pytest.mark.slow
def test_a_dialogue_has_settings_of_its_own(model, tmp_path):
    own = [
        {},
        {"max_new_tokens": 3},
        {"temperature": 0, "max_new_tokens": 40},
        {"stop_tokens": [1, 2], "top_k": 1},
    ]
    given = write_lines(
        tmp_path / "d.jsonl", *(dialogue(text("1+1?"), sampling=settings) for settings in own)
    )
    answer_file(model, given, tmp_path / "a.jsonl", SAMPLING, slots=2)
    answer_file(model, given, tmp_path / "b.jsonl", dataclasses.replace(SAMPLING, seed=6), slots=2)
    first, second = read_lines(tmp_path / "a.jsonl"), read_lines(tmp_path / "b.jsonl")
    assert [reply["completion_tokens"] for reply in first] == [6, 3, 40, 6]
    assert first[0] != second[0]
    assert first[2:] == second[2:], "greedy replies do not depend on the seed"


def test_samples_of_a_dialogue_stand_together(model, tmp_path):
    given = write_lines(tmp_path / "d.jsonl", dialogue(text("1+1?")), "{", dialogue(text("2+2?")))
    answer_file(model, given, tmp_path / "r.jsonl", SAMPLING, slots=3, num_samples=4)
    first, failed, last = read_lines(tmp_path / "r.jsonl")
    assert failed.keys() == {"id", "error"}
    for line in (first, last):
        assert len({sample["reasoning"] for sample in line["samples"]}) == 4


def test_an_interrupted_job_continues_and_writes_the_same_file(
    model, dialogues, tmp_path, monkeypatch
):
    """Interrupted while the third reply is written: the first two are not answered again."""
    uninterrupted, output = tmp_path / "uninterrupted.jsonl", tmp_path / "replies.jsonl"
    answer_file(model, dialogues, uninterrupted, SAMPLING, slots=1)
    submitted = []
    submit, write_line = Engine.submit, Journal.write
    monkeypatch.setattr(
        Engine, "submit", lambda self, *request: submitted.append(request) or submit(self, *request)
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
    submitted.clear()
    answer_file(model, dialogues, output, SAMPLING, slots=1)
    assert len(submitted) == 3
    assert output.read_bytes() == uninterrupted.read_bytes()
    assert not partial.exists()


def test_a_finished_job_is_recognised_and_another_one_refused(tmp_path):
    """By its output alone: the model is not loaded."""
    given = write_lines(tmp_path / "d.jsonl", dialogue(text("1+1?")), dialogue(text("2+2?")))
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
    assert (
        before(path=write_lines(tmp_path / "copy.jsonl", *given.read_text().splitlines()))
        is not None
    )
    others = [
        lambda: before(dataclasses.replace(SAMPLING, seed=6)),
        lambda: before(num_samples=2),
        lambda: before(int8_weights=True),
        lambda: before(channel="mix"),
        lambda: before(path=write_lines(tmp_path / "other.jsonl", dialogue(text("1?")))),
        lambda: is_scoring_finished(BASE, given, output, "float32"),
    ]
    for other in others:
        with pytest.raises(OutputError, match="is not what this job makes"):
            other()
    output.write_text(output.read_text() + "\n")
    with pytest.raises(OutputError, match="or changed since"):
        before()


def test_an_output_that_is_the_input_is_refused_in_python_too(model, tmp_path):
    given = write_lines(tmp_path / "d.jsonl", scored("1+1?", "2"))
    (tmp_path / "link.jsonl").symlink_to(given)
    before = given.read_bytes()
    for program in (functools.partial(answer_file, sampling=SAMPLING), score_file):
        with pytest.raises(OutputError, match="is the input"):
            program(model, given, tmp_path / "link.jsonl")
    assert given.read_bytes() == before


@pytest.mark.slow
def test_slots_grow_with_the_dialogues(model, tmp_path):
    """The first ones are short; the engine that answers them has no room for the last."""
    given = write_lines(
        tmp_path / "d.jsonl", *(dialogue(text("x" * length)) for length in (1, 2, 3, 300))
    )
    assert answer_file(model, given, tmp_path / "r.jsonl", SAMPLING, slots=1).failed == 0
    assert [line["completion_tokens"] for line in read_lines(tmp_path / "r.jsonl")] == [6] * 4


@pytest.mark.parametrize("program", [functools.partial(answer_file, sampling=SAMPLING), score_file])
def test_a_file_without_dialogues_is_a_mistake(model, tmp_path, program):
    given = write_lines(tmp_path / "d.jsonl", "", "  ")
    with pytest.raises(DataError, match=r"d\.jsonl: has no records"):
        program(model, given, tmp_path / "o")
    assert list_files(tmp_path) == ["d.jsonl"]


@pytest.fixture
def long_recording(tmp_path, model):
    """A recording of four seconds more than the model holds: bursts of noise between silences."""
    seconds = round(model.config.decoder.max_positions / 12.5) + 4
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, seconds * 16_000).astype(np.float32)
    samples[np.arange(len(samples)) % 32_000 > 24_000] *= 1e-3  # half a second of every two
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    return seconds


@pytest.mark.slow
def test_a_recording_that_does_not_fit_is_answered_in_parts(model, tmp_path, long_recording):
    clip = {"type": "audio", "audio": "long.wav"}
    path = write_lines(
        tmp_path / "d.jsonl",
        dialogue(text("1+1?"), id="short"),
        dialogue(clip, text("What?"), id="long"),
    )
    summary = answer_file(model, path, tmp_path / "error.jsonl", SAMPLING, slots=2)
    assert summary.failed == 1
    assert re.search(r"d\.jsonl:2: .* more than", summary.first_failure)
    answer_file(model, path, tmp_path / "split.jsonl", SAMPLING, slots=2, on_too_long="split")
    first, *parts = read_lines(tmp_path / "split.jsonl")
    assert first == read_lines(tmp_path / "error.jsonl")[0]
    assert len(parts) >= 2
    assert all(line["id"] == "long" and line["finish_reason"] for line in parts)
    ends = [(line["start_s"], line["end_s"]) for line in parts]
    assert ends[0][0] == 0
    assert ends[-1][1] == long_recording
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ends))
    assert all(end % 2 > 1.5 for _, end in ends[:-1])  # within a silence
    limit = model.config.decoder.max_positions - SAMPLING.max_new_tokens
    assert all(line["prompt_tokens"] <= limit for line in parts)
    # Each part is answered as the same part of the file is when it is named.
    named = write_lines(
        tmp_path / "named.jsonl",
        dialogue(text("1+1?"), id="short"),
        *[dialogue({**clip, "start_s": start, "end_s": end}, text("What?")) for start, end in ends],
    )
    answer_file(model, named, tmp_path / "named_replies.jsonl", SAMPLING, slots=2)
    assert [line["reply"] for line in read_lines(tmp_path / "named_replies.jsonl")[1:]] == [
        line["reply"] for line in parts
    ]


def test_two_long_clips_in_a_dialogue_are_not_split(model, tmp_path, long_recording):
    clip = {"type": "audio", "audio": "long.wav"}
    path = write_lines(
        tmp_path / "d.jsonl", dialogue(clip, {**clip, "end_s": 1.0}), dialogue(text("1+1?"))
    )
    summary = answer_file(model, path, tmp_path / "o.jsonl", SAMPLING, on_too_long="split")
    assert "d.jsonl:1: the dialogue is too long and has 2 clips" in summary.first_failure
