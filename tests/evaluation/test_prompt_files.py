"""Prompts are taken from the user, then from the benchmark, then from this project."""

import logging

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.prompt_files import DEFAULTS, Prompt, PromptFile, PromptSet

PLACES = ("{question}", "{official_answer}", "{candidate_answer}")
FILES = [
    PromptFile("judge_prompt.txt", "big_bench_audio_judge.txt", PLACES),
    PromptFile("model_prompt.txt", "big_bench_audio_model.txt"),
]
TEXT = "Q {question} A {official_answer} C {candidate_answer}"


def test_placeholders_are_replaced_in_one_pass():
    prompt = Prompt("a test", '{"json": 1} {a} {b} {a} {other} «c»')
    values = {"{a}": "{b}", "{b}": "{a} {0} \\1", "«c»": "{"}
    assert prompt.fill(values) == '{"json": 1} {b} {a} {0} \\1 {b} {other} {'


def test_the_line_of_a_file_has_no_line_end():
    assert Prompt("a test", "\nSay it.\n").line == "Say it."


def test_the_users_prompt_comes_first_then_the_benchmarks(tmp_path):
    user, official = tmp_path / "user", tmp_path / "benchmark"
    (official / "prompts").mkdir(parents=True)
    user.mkdir()
    prompts = PromptSet(FILES, "Test")
    assert set(prompts.sources) == {f"{file.name} (the project's own)" for file in FILES}
    for file in FILES:
        (official / "prompts" / file.name).write_text(f"official {TEXT}")
    prompts.find(official)
    assert prompts["judge_prompt.txt"].source == "of the benchmark"
    (user / "judge_prompt.txt").write_bytes(b"\xef\xbb\xbfuser " + TEXT.encode())
    prompts.use(user)
    assert prompts["judge_prompt.txt"] == Prompt("given by the user", f"user {TEXT}")
    assert prompts["model_prompt.txt"].text == f"official {TEXT}"
    prompts.use(user / "judge_prompt.txt")
    assert prompts["judge_prompt.txt"].source == "given by the user"
    prompts.use(None)
    assert prompts["judge_prompt.txt"].source == "of the benchmark"


def test_a_missing_placeholder_file_or_folder_is_named(tmp_path):
    prompts = PromptSet(FILES, "Test")
    (tmp_path / "judge_prompt.txt").write_text("Q {question}")
    with pytest.raises(DataError, match=r"judge_prompt\.txt: lacks \{official_answer\}"):
        prompts.use(tmp_path)
    with pytest.raises(DataError, match="lacks"):
        prompts.find(tmp_path)
    with pytest.raises(DataError, match="holds none of the prompts of Test"):
        prompts.use(DEFAULTS)
    with pytest.raises(DataError, match="no such file or folder"):
        prompts.use(tmp_path / "nowhere")
    (tmp_path / "judge.txt").write_text(TEXT)
    with pytest.raises(DataError, match=r"did you mean 'judge_prompt\.txt'"):
        prompts.use(tmp_path / "judge.txt")
    (tmp_path / "model_prompt.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        prompts.use(tmp_path / "model_prompt.txt")


def test_a_part_of_the_official_prompts_is_an_unfinished_download(tmp_path):
    (tmp_path / "judge_prompt.txt").write_text(TEXT)
    with pytest.raises(DataError, match=r"and not model_prompt\.txt; download"):
        PromptSet(FILES, "Test").find(tmp_path)


def test_a_benchmark_that_lacks_its_prompts_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        PromptSet(FILES, "Test").find(tmp_path)
        assert not caplog.messages
        PromptSet(FILES, "Test", ships=True).find(tmp_path)
    assert "the project's own stand for judge_prompt.txt, model_prompt.txt" in caplog.text
