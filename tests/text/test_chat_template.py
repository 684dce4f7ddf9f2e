"""The exported chat template, rendered and tokenised by transformers, against `prompt_format`."""

import itertools
import json
import pathlib
import re

import jinja2
import numpy as np
import pytest
import transformers

from stepaudio_jax.data.containers.base import Row
from stepaudio_jax.data.sources.forms import to_project_form
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.text import (
    CHAT_TEMPLATE,
    Tokenizer,
    render_prompt,
    render_training,
    tokenize_dialogue,
    training_views,
)

ROOT = pathlib.Path(__file__).parents[2]
CHUNKS = [[2], [3, 1], [1], [4]]  # audio tokens of each chunk, clip by clip
CLIP = {"type": "audio", "audio": "a.wav"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Wetter für <Ort> & "Zeit"',
            "parameters": {"type": "object"},
        },
    },
    {"type": "function", "function": {"name": "uhr", "parameters": {}}},
]


def text(value):
    return {"type": "text", "text": value}


SYSTEM = {"role": "system", "content": "Be\n\nbrief。"}
DIALOGUES = {
    "one turn": [{"role": "user", "content": "Hi"}],
    "human": [{"role": "human", "content": "\n Who speaks?\n"}],
    "system": [SYSTEM, {"role": "user", "content": [text("Who "), CLIP, text("speaks?\n")]}],
    "parts of text": [
        {"role": "user", "content": [text("1"), text("2\n"), text("\n3 "), CLIP, CLIP, text(" 4")]}
    ],
    "turns": [
        SYSTEM,
        {"role": "user", "content": [CLIP, text("Who speaks?")]},
        {"role": "assistant", "reasoning_content": "A low\n\nvoice. ", "content": " A man.\n"},
        {"role": "user", "content": [text("And "), CLIP, text("\n\nhere?")]},
        {"role": "assistant", "content": "A woman's, 你好."},
        {"role": "user", "content": "1234  Done?"},
    ],
    "inline reasoning": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "\n<think>\nSay hello. </think>\n\nHello!"},
        {"role": "user", "content": "Again"},
    ],
    "greeting": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi"}],
    "tools": [
        {"role": "system", "content": "Be brief."},
        {"role": "tools", "content": json.dumps(TOOLS)},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning_content": "I must ask.", "content": 'weather("here")'},
        {"role": "tool", "content": "Rain.\n"},
    ],
    "tool results": [
        {"role": "tool_json_schemas", "content": "[]"},
        {"role": "user", "content": "Sound?"},
        {"role": "assistant", "content": "record()"},
        {"role": "input", "content": [text("heard: "), CLIP]},
    ],
    "not composed": [{"role": "user", "content": "e\u0301 Ａ \u1e9b\u0323"}],
}
REASONED = "inline reasoning", "turns", "tools"


@pytest.fixture(scope="module")
def automatic(tmp_path_factory):
    """Makes transformers' tokenizer of what a tokenizer saves."""
    made = {}

    def make(tokenizer):
        if id(tokenizer) not in made:
            folder = tmp_path_factory.mktemp("tokenizer")
            tokenizer.save(folder)
            made[id(tokenizer)] = transformers.AutoTokenizer.from_pretrained(folder)
        return made[id(tokenizer)]

    return make


@pytest.fixture(scope="module")
def tiny_base():
    return Tokenizer.from_folder(ROOT / "models" / "tiny_base")


@pytest.fixture(params=["tiny_base", "byte_level", "qwen2"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def parsed(messages):
    return parse_record(
        {"messages": messages}, origin="test:1", folder="", source="", default_id=""
    ).messages


def chunks_of(messages):
    clips = sum(
        part["type"] == "audio"
        for message in messages
        for part in message["content"]
        if isinstance(part, dict)
    )
    return CHUNKS[:clips]


def ours(segments, tokenizer, chunks):
    clips = iter(chunks)
    return tokenize_dialogue(segments, lambda _: next(clips), tokenizer)


@pytest.mark.parametrize("name", DIALOGUES)
def test_prompts_are_equal(tokenizer, automatic, name):
    messages = DIALOGUES[name]
    auto, chunks = automatic(tokenizer), chunks_of(messages)
    options = {"add_generation_prompt": True, "audio_chunks": chunks}
    for history_eot, history_reasoning in itertools.product([True, False], repeat=2):
        history = {"history_eot": history_eot, "history_reasoning": history_reasoning}
        expected = ours(
            render_prompt(parsed(messages), tokenizer, **history), tokenizer, chunks
        ).tokens
        encoding = auto.apply_chat_template(messages, **options, **history)
        if history_reasoning and any(
            message.role == "assistant" and not message.reasoning for message in parsed(messages)
        ):
            assert decoded(tokenizer, encoding["input_ids"]) == decoded(
                tokenizer, expected
            )  # see the test of seams
        else:
            assert encoding["input_ids"] == expected.tolist()
    assert auto.apply_chat_template(messages, **options)["input_ids"] == (
        ours(render_prompt(parsed(messages), tokenizer), tokenizer, chunks).tokens.tolist()
    )


def decoded(tokenizer, tokens):
    return tokenizer.decode([int(token) for token in tokens])


@pytest.mark.parametrize("history_reasoning", [False, True])
@pytest.mark.parametrize("name", REASONED)
def test_training_views_and_masks_are_equal(tokenizer, automatic, name, history_reasoning):
    """Tokens and loss of each view; a reasoning that is in no view must not be rendered."""
    messages = [
        message
        for message in DIALOGUES[name]
        if message != {"role": "assistant", "content": "A woman's, 你好."}
    ]
    messages = [
        *messages,
        {"role": "assistant", "reasoning_content": "Now,\nlisten.", "content": "Yes."},
    ]
    auto, options = automatic(tokenizer), {"history_reasoning": history_reasoning}
    views = training_views(parsed(messages), **options)
    for view in views:
        chunks = chunks_of(messages[: len(view)])
        expected = ours(render_training(view, tokenizer, **options), tokenizer, chunks)
        encoding = auto.apply_chat_template(
            messages[: len(view)], audio_chunks=chunks, return_assistant_tokens_mask=True, **options
        )
        assert encoding["input_ids"] == expected.tokens.tolist()
        assert encoding["assistant_masks"] == expected.loss_mask.astype(int).tolist()
    prompt = auto.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=False, **options
    )
    assert (
        auto.apply_chat_template(messages, tokenize=False, **options)
        == prompt + "Now,\nlisten.\n</think>\nYes.<|EOT|>"
    )


def test_turns_outside_the_loss_have_no_mask(byte_level, automatic):
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "reasoning_content": "x", "content": "a", "loss": False},
        {"role": "user", "content": "2"},
        {"role": "assistant", "reasoning_content": "y", "content": "b", "weight": 0},
        {"role": "user", "content": "3"},
        {"role": "assistant", "reasoning_content": "z", "content": "c", "weight": 1},
    ]
    encoding = automatic(byte_level).apply_chat_template(
        messages, history_reasoning=True, return_assistant_tokens_mask=True
    )
    learnt = np.array(encoding["input_ids"])[np.array(encoding["assistant_masks"]) == 1]
    assert decoded(byte_level, learnt) == "z\n</think>\nc<|EOT|>"


def test_tools_go_after_the_system_s_turn(byte_level, automatic):
    written = {"role": "tools", "content": json.dumps(TOOLS, ensure_ascii=False)}
    for messages in (DIALOGUES["system"], DIALOGUES["one turn"]):
        place = messages[0]["role"] == "system"
        options = {"add_generation_prompt": True}
        by_argument = automatic(byte_level).apply_chat_template(messages, tools=TOOLS, **options)
        by_message = automatic(byte_level).apply_chat_template(
            [*messages[:place], written, *messages[place:]], **options
        )
        assert by_argument["input_ids"] == by_message["input_ids"]


def call(name, arguments, number):
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": f"c{number}", "function": function}


def test_calls_of_tools_are_rendered_as_they_are_trained_on(tokenizer, automatic):
    """As rows with `tool_calls` become dialogues: schemas, calls behind the text, results."""
    calls = [call("weather", {"place": "Köln", "days": [1, 2]}, 1), call("uhr", {}, 2)]
    messages = [
        *DIALOGUES["system"],
        {"role": "assistant", "reasoning_content": "Ask.", "content": "Let me see.\n"}
        | {"tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "Rain"},
        {"role": "tool", "tool_call_id": "c2", "name": "uhr", "content": '{"h": 7}'},
        {"role": "assistant", "reasoning_content": "Again.", "content": None}
        | {"tool_calls": [{"name": "uhr", "arguments": {}}]},
        {"role": "tool", "content": "8"},
        {"role": "assistant", "content": "<think>Now.</think>", "tool_calls": calls[:1]},
    ]
    row = Row({"messages": messages, "tools": TOOLS}, "test:1", "", "")
    dialogue = parse_record(
        to_project_form(row), origin="test:1", folder="", source="", default_id=""
    ).messages
    auto, chunks = automatic(tokenizer), CHUNKS[:1]
    for stop, history_reasoning in itertools.product((4, 6, 7, 8), (False, True)):
        options = {"tools": TOOLS, "audio_chunks": chunks, "history_reasoning": history_reasoning}
        view = dialogue[: stop + 1]  # with the turn of the schemas
        asked = messages[stop - 1]["role"] != "assistant"
        render = render_prompt if asked else render_training
        if not asked and not history_reasoning:
            view = training_views(view)[-1]
        expected = ours(
            render(view, tokenizer, history_reasoning=history_reasoning), tokenizer, chunks
        )
        encoding = auto.apply_chat_template(
            messages[:stop],
            add_generation_prompt=asked,
            return_assistant_tokens_mask=True,
            **options,
        )
        assert decoded(tokenizer, encoding["input_ids"]) == decoded(tokenizer, expected.tokens)
        if not history_reasoning:  # else see the test of seams
            assert encoding["input_ids"] == expected.tokens.tolist()
            assert encoding["assistant_masks"] == expected.loss_mask.astype(int).tolist()
    (named,) = re.findall(r"<tool_call>function\nweather\n(.*)</tool_call>", dialogue[-1].text)
    assert named == '{"place": "Köln", "days": [1, 2]}'


def test_arguments_that_are_a_string_are_written_as_they_are(byte_level, automatic):
    messages = [*DIALOGUES["one turn"], {"role": "assistant", "tool_calls": [call("f", "{}", 1)]}]
    string = automatic(byte_level).apply_chat_template(messages, tokenize=False)
    assert string.endswith("\n</think>\n<tool_call>function\nf\n{}</tool_call><|EOT|>")


def test_a_clip_is_one_patch_where_its_length_is_not_known(byte_level, automatic):
    """The released server's processor replaces it by <audio_start>, patches and <audio_end>."""
    for kind in ("audio", "input_audio", "audio_url"):
        messages = [{"role": "user", "content": [text("a"), {"type": kind, kind: "x"}, text("b")]}]
        string = automatic(byte_level).apply_chat_template(messages, tokenize=False)
        assert string == "<|BOT|>human\na<audio_patch>b<|EOT|>"


def test_an_empty_system_turn_is_dropped(byte_level, automatic):
    messages = [{"role": "system", "content": ""}, *DIALOGUES["one turn"]]
    assert (
        automatic(byte_level).apply_chat_template(messages, tokenize=False)
        == "<|BOT|>human\nHi<|EOT|>"
    )


SPELLED = "Say <|EOT|><|BOT|>assistant\n<think>\n, <audio_patch> and <|endoftext|>!"


def test_text_that_spells_special_tokens(tokenizer, automatic):
    """transformers makes them special tokens unless told to sanitize; our tokenizer never does."""
    messages = [{"role": "user", "content": SPELLED}]
    auto, options = automatic(tokenizer), {"add_generation_prompt": True}
    expected = ours(render_prompt(parsed(messages), tokenizer), tokenizer, []).tokens
    special = [token for token in expected.tolist() if tokenizer.is_special(token)]
    assert decoded(tokenizer, special) == "<|BOT|><|EOT|><|BOT|>"
    read = auto.apply_chat_template(messages, **options)["input_ids"]
    assert sum(map(tokenizer.is_special, read)) == 7
    sanitized = auto.apply_chat_template(messages, **options, sanitize_control_tokens=True)[
        "input_ids"
    ]
    assert [token for token in sanitized if tokenizer.is_special(token)] == special
    assert decoded(tokenizer, sanitized) == decoded(tokenizer, expected)
    if (
        len(tokenizer.encode("ab")) == 2
    ):  # no merges, which transformers does not make across the ends of such a word
        assert sanitized == expected.tolist()


def test_tool_tokens_are_text_too(qwen2, automatic):
    """Qwen2.5's <tool_call> is an added token that is not special."""
    messages = [{"role": "user", "content": "a <tool_call> b"}]
    sanitized = automatic(qwen2).apply_chat_template(messages, sanitize_control_tokens=True)[
        "input_ids"
    ]
    assert sum(map(qwen2.is_special, sanitized)) == 2
    assert 151_657 not in sanitized


@pytest.mark.parametrize(
    ("reasoning", "reply", "same"),
    [
        ("Why?", "So.", True),
        (" Why?\n", " So.", True),
        ("", "So.", False),
        ("\nWhy?", "So.", False),
        ("Why?", "\nSo.", False),
    ],
)
def test_token_boundaries(qwen2, automatic, reasoning, reply, same):
    r"""The string is always the same. A newline after `<think>\n` or `</think>\n` merges with it in
    transformers, and never here, where prompt, reasoning and reply are tokenised separately."""
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning_content": reasoning, "content": reply},
    ]
    expected = ours(render_training(parsed(messages), qwen2), qwen2, []).tokens.tolist()
    tokens = automatic(qwen2).apply_chat_template(messages)["input_ids"]
    assert decoded(qwen2, tokens) == decoded(qwen2, expected)
    assert (tokens == expected) == same


def test_a_reasoning_can_be_continued(byte_level, automatic):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning_content": "I hear", "content": "."},
    ]
    auto = automatic(byte_level)
    string = auto.apply_chat_template(
        messages, continue_final_message="reasoning_content", tokenize=False
    )
    assert string.endswith("<|BOT|>assistant\n<think>\nI hear")


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        (
            [{"role": "robot", "content": "x"}],
            {},
            r"message 1 has the unknown role 'robot' \(allowed: system, user, human",
        ),
        (
            [USER, {"role": "assistant", "content": "x"}],
            {"add_generation_prompt": True},
            r"message 2 \(assistant\) is the last",
        ),
        (
            [USER, {"role": "assistant", "content": [CLIP]}],
            {},
            r"message 2 \(assistant\) has audio",
        ),
        (
            [USER, {"role": "user", "content": [CLIP, {"type": "image"}]}],
            {},
            "message 2 has a part of type 'image'",
        ),
        (
            [USER, {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}, USER],
            {},
            "message 2 has a call without a name",
        ),
        (
            [{**USER, "tool_calls": [call("f", {}, 1)]}],
            {},
            r"message 1 \(user\) has tool_calls, which only an assistant's",
        ),
        (
            [
                USER,
                {"role": "assistant", "tool_calls": [call("f", {}, 1), call("g", {}, 2)]},
                {"role": "tool", "tool_call_id": "c2", "content": "x"},
            ],
            {},
            "message 3 is the result of the call 'c2'; .* in the order of the calls: c1, c2",
        ),
        (
            [USER, {"role": "assistant", "content": "<think>x"}],
            {},
            "message 2 opens <think> and never closes it",
        ),
        (
            [USER, {"role": "assistant", "content": "<think>x</think>y", "reasoning_content": "z"}],
            {},
            "has both",
        ),
        ([USER, {"role": "assistant", "content": "a</think>b"}], {}, "has </think> in its text"),
        (
            [{"role": "user", "content": [CLIP]}],
            {"audio_chunks": []},
            "audio_chunks has 0 clips and the messages have more",
        ),
        ([USER], {"audio_chunks": [[3]]}, "audio_chunks has 1 clips and the messages have 0"),
    ],
)
def test_errors_of_the_template(byte_level, automatic, messages, options, reason):
    with pytest.raises(jinja2.TemplateError, match=reason):
        automatic(byte_level).apply_chat_template(messages, **options)


@pytest.mark.parametrize("model", ["tiny_base", "tiny_judge"])
def test_the_models_of_the_project_have_it(model):
    assert (ROOT / "models" / model / "chat_template.jinja").read_text(
        encoding="utf-8"
    ) == CHAT_TEMPLATE
