"""What a simulated user is told, and the checks before a run."""

import dataclasses

import pytest

from stepaudio_jax.config import RewardConfig, SimulatedUserConfig
from stepaudio_jax.data import Record
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.rl.simulated_user import UserPrompt
from stepaudio_jax.text import AudioPart, Message, TextPart
from tests.rl.small_stage import stage_config, write_prompts
from tests.rl.test_trainer import check_stage


def said(role, text):
    return Message(role, (TextPart(text),))


def record(*messages, **fields):
    return Record("r", tuple(messages), "s", "file:1", **fields)


def test_the_scenario_and_the_end_stand_in_the_instructions():
    query = UserPrompt(end="<bye>").query(
        record(said("user", "Hi"), scenario="A pilot with {braces}."),
        [said("assistant", "Hello")],
        7,
    )
    assert "A pilot with {braces}." in query.system
    assert "<bye>" in query.system
    assert query.sample == 7
    assert query.history == (("user", "(The conversation begins.)"), ("assistant", "Hi"))
    assert query.text == "Hello"
    without = UserPrompt().query(record(said("user", "Hi")), [said("assistant", "Hello")], 7)
    assert "no scenario" not in without.system
    assert "{" not in without.system


def test_roles_alternate_and_the_user_sees_no_system_and_no_tools():
    clip = AudioPart("a.wav", transcript="Words.")
    messages = (
        said("system", "SECRET"),
        said("tool_json_schemas", "TOOLS"),
        said("user", "One."),
        Message("user", (clip, AudioPart("b.wav"), TextPart("Two."))),
        Message("assistant", (TextPart("CALL"),), reasoning="THOUGHT"),
        said("input", "RESULT"),
    )
    query = UserPrompt().query(record(*messages), [said("assistant", "Three.")], 0)
    words = "One.\nWords.\n(sound without a transcript)\nTwo."
    assert query.history == (("user", "(The conversation begins.)"), ("assistant", words))
    assert query.text == "CALL\nThree."
    assert "SECRET" not in query.system


def test_questions_differ_by_seed_and_by_what_was_said():
    prompt, start = UserPrompt(), record(said("user", "Hi"))
    keys = {
        str(prompt.query(start, [said("assistant", text)], seed).key)
        for text in ("a", "b")
        for seed in (1, 2)
    }
    longer = [said("assistant", "a"), said("user", "x"), said("assistant", "a")]
    assert len({*keys, str(prompt.query(start, longer, 1).key)}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Play {somebody}.", r"has the field \{somebody\}; it may have \{scenario\} and \{end\}"),
        ("{scenario!r}", r"has the field \{scenario\}"),
        ("A brace }", r"write a brace of the text itself twice"),
        ("{}", r"has the field \{\}"),
    ],
)
def test_instructions_with_other_fields_are_refused(tmp_path, text, message):
    path = tmp_path / "user.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        UserPrompt(path)
    assert str(path) in str(error.value)


def test_instructions_of_ones_own_may_leave_out_fields(tmp_path):
    path = tmp_path / "user.txt"
    path.write_text("Say {{x}} to {end}. {end}\n", encoding="utf-8")
    query = UserPrompt(path, end="E").query(record(said("user", "Hi")), [said("assistant", "a")], 0)
    assert query.system == "Say {x} to E. E"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speak": ("no-such-program", "-x")}, r"speak=.*there is no program 'no-such-program'"),
        ({"speak": ("cat -n",)}, r"there is no program 'cat -n'.*no shell splits them"),
        ({"api_key_env": "NO_SUCH_KEY"}, r"NO_SUCH_KEY holds no key"),
        ({"prompt": "{prompts}"}, r"simulated_user: .*write a brace|has the field"),
        ({"prompt": "no/such/file"}, r"simulated_user: .*no/such/file"),
        ({"url": None, "model": None, "folder": "{folder}"}, r"has no config\.json"),
    ],
)
def test_a_run_is_refused_before_it_begins(tmp_path, monkeypatch, settings, message):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    prompts = write_prompts(tmp_path, 2)
    places = {"{prompts}": str(prompts), "{folder}": str(tmp_path)}
    settings = {
        name: places.get(value, value) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    user = SimulatedUserConfig(
        **{"url": "http://localhost:1/v1", "model": "m", "api_key_env": None, **settings}
    )
    stage = stage_config(tmp_path, prompts, steps=1, rollout={"simulated_user": user}).stages[0]
    with pytest.raises(ValueError, match=message):
        check_stage(tmp_path, stage)


def test_records_are_checked_for_their_continuation(tmp_path):
    prompts = write_prompts(tmp_path, 2)
    user = SimulatedUserConfig(url="http://localhost:1/v1", model="m", api_key_env=None)
    stage = stage_config(tmp_path, prompts, steps=1, rollout={"simulated_user": user}).stages[0]
    objective = stage.policy_gradient
    judge = dataclasses.replace(
        objective.judge, url="http://localhost:1/v1", model="m", api_key_env=None
    )
    rewards = (RewardConfig(judge_weight=1.0),)
    stage = dataclasses.replace(
        stage, objective=dataclasses.replace(objective, rewards=rewards, judge=judge)
    )
    with pytest.raises(ValueError, match=r"prompts.jsonl:1: .*'reference_continuation'"):
        check_stage(tmp_path, stage)
