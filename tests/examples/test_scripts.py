"""The short scripts and the notebook of examples/ run on models/tiny_base, and do what they say."""

import importlib
import json
import re

import pytest

from tests.end_to_end.runs import ROOT

HEARD = "female, normal, high, English: today the kitchen is here"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run_example(name, *arguments):
    importlib.import_module(f"examples.{name}").main(*map(str, arguments))


@pytest.mark.slow  # test_front_door runs the README's first lines of it
def test_the_chat_example_answers(capsys):
    run_example("chat")
    assert capsys.readouterr().out.splitlines() == [
        HEARD,
        "and the speaker: female",
        f"streamed: </think> {HEARD}",
        "'female' is more probable than 'male'",
    ]


@pytest.mark.slow
def test_the_chat_notebook_runs(capsys):
    """Its cells in order, as a kernel runs them."""
    notebook = json.loads((ROOT / "examples" / "chat.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "the notebook is stored without outputs"
            exec(compile("".join(cell["source"]), "chat.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert names["reply"].text == HEARD
    assert HEARD in printed
    logprobs = {
        answer: float(value)
        for answer, value in re.findall(r"(female|male): log p = (\S+)", printed)
    }
    assert logprobs["female"] > logprobs["male"]


@pytest.mark.slow
def test_lora_teaches_a_reasoning(tmp_path, capsys):
    run_example("lora_sft", tmp_path / "lora")
    before, after = (
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("before", "after"))
    )
    assert "thinking ''" in before
    assert "thinking 'I hear a female voice.'" in after
    logprobs = [float(re.search(r"log p = (-?[\d.]+)", line)[1]) for line in (before, after)]
    assert logprobs[1] > logprobs[0] / 4


@pytest.mark.slow
def test_a_verifier_of_ones_own_teaches_what_it_accepts(tmp_path, capsys):
    run_example("rl_verifier", tmp_path / "rl")
    first, last = map(int, re.findall(r"(\d+)%", capsys.readouterr().out))
    assert last >= first + 20


@pytest.mark.slow
def test_a_graded_reward_rises(tmp_path, capsys):
    run_example("custom_reward", tmp_path / "rl")
    first, last = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out))
    assert last > first + 0.1
