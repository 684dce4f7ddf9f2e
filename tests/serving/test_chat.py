"""Chat completions through OpenAI's client: what they say is what the engine alone says."""

import concurrent.futures
import json

import openai
import pytest

from stepaudio_jax.generation import Engine, Sampling, build_prompt
from stepaudio_jax.serving import ServingSettings
from stepaudio_jax.serving.chat_protocol import UserMessage
from stepaudio_jax.serving.clips import ClipReader
from stepaudio_jax.serving.dialogue import build_chat_prompt
from stepaudio_jax.text import THINK_END, render_prompt
from stepaudio_jax.text.prompt_format import Segment
from tests.generation.small_model import BYTES
from tests.generation.small_model import user as user_turn
from tests.models.random_model import FLOAT32
from tests.serving.running_server import (
    NAME,
    SERVED_CONFIG,
    SLOT_TOKENS,
    audio_part,
    base64_wave,
    served_parameters,
    user,
)

NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Tells the time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def ask(client, *messages, **options):
    options = {"max_tokens": 24, "temperature": 0, **options}
    return client.chat.completions.create(model=NAME, messages=list(messages), **options)


def joined(stream):
    """What a stream says of each choice, and its last usage."""
    choices, usage = {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            entry = choices.setdefault(
                choice.index,
                {"reasoning": "", "content": "", "calls": [], "finish": None, "logprobs": []},
            )
            assert entry["finish"] is None, "nothing follows the end of a choice"
            delta = choice.delta
            entry["reasoning"] += getattr(delta, "reasoning", None) or ""
            entry["content"] += delta.content or ""
            entry["calls"] += [
                (c.function.name, c.function.arguments) for c in delta.tool_calls or ()
            ]
            entry["finish"] = choice.finish_reason
            if choice.logprobs:
                entry["logprobs"] += [(t.token, t.logprob) for t in choice.logprobs.content]
    return choices, usage


def of_whole(completion):
    """The same of a whole completion."""
    choices = {
        choice.index: {
            "reasoning": choice.message.reasoning or "",
            "content": choice.message.content or "",
            "calls": [
                (c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()
            ],
            "finish": choice.finish_reason,
            "logprobs": [(t.token, t.logprob) for t in choice.logprobs.content]
            if choice.logprobs
            else [],
        }
        for choice in completion.choices
    }
    return choices, completion.usage


@pytest.fixture(scope="module")
def alone():
    """An engine that prefills every prompt at once, as `launch.generate` has it."""
    return Engine(SERVED_CONFIG, served_parameters(), BYTES, compute=FLOAT32, slots=2)


def complete_alone(engine, words, *, thinking=True, **sampling):
    segments = render_prompt([user_turn(words)], BYTES)
    if not thinking:
        segments.append(Segment(tuple(BYTES.encode(THINK_END)), False, None, 1))
    prompt = build_prompt(segments, BYTES, SERVED_CONFIG.length_convention)
    ((_, completion),) = engine.generate([prompt], [Sampling(**sampling)])
    return completion


@pytest.mark.parametrize("thinking", [True, False])
def test_greedy_tokens_are_those_of_the_engine_alone(client, alone, thinking):
    expected = complete_alone(
        alone, "What is that?", thinking=thinking, temperature=0.0, max_new_tokens=24
    )
    extra = {} if thinking else NO_THINKING
    answer = ask(client, user("What is that?"), logprobs=True, extra_body=extra)
    logprobs = answer.choices[0].logprobs
    tokens = logprobs.reasoning_content if thinking else logprobs.content
    values = [token["logprob"] if thinking else token.logprob for token in tokens]
    assert values == pytest.approx(expected.logprobs, abs=1e-4)
    shown = answer.choices[0].message.reasoning if thinking else answer.choices[0].message.content
    plain = [token for token in expected.tokens if not BYTES.is_special(token)]
    assert shown == BYTES.decode(plain)
    assert answer.usage.completion_tokens == 24
    assert answer.usage.completion_tokens_details.reasoning_tokens == (24 if thinking else 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "temperature": 1.0, "seed": 5, "logprobs": True, "top_logprobs": 3},
        {"extra_body": {"thinking_budget": 5}, "logprobs": True},
        {"extra_body": NO_THINKING, "temperature": 0.9, "seed": 1, "top_p": 0.8},
        {"extra_body": NO_THINKING, "tools": [TOOL], "tool_choice": "required", "seed": 2},
        {"extra_body": {"thinking_budget": 3}, "response_format": {"type": "json_object"}},
    ],
    ids=["plain", "samples", "budget", "no thinking", "tools", "json"],
)
def test_a_stream_says_what_the_whole_answer_says(client, options):
    options = {"max_tokens": 60, **options}
    whole, usage = of_whole(ask(client, user("Say it"), **options))
    stream = ask(
        client, user("Say it"), stream=True, stream_options={"include_usage": True}, **options
    )
    streamed, streamed_usage = joined(stream)
    assert streamed == whole
    assert streamed_usage.completion_tokens == usage.completion_tokens
    assert streamed_usage.completion_tokens_details == usage.completion_tokens_details


def test_a_stream_begins_inside_the_reasoning(client):
    first, second, *_ = ask(client, user("Say it"), stream=True)
    assert first.choices[0].delta.role == "assistant"
    assert second.choices[0].delta.reasoning_content == second.choices[0].delta.reasoning != ""


def test_a_thinking_budget_ends_the_reasoning(client):
    answer = ask(client, user("Say it"), extra_body={"thinking_budget": 5})
    message = answer.choices[0].message
    assert message.reasoning
    assert message.content
    end = len(BYTES.encode(THINK_END))
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5 + end


def test_seeds_repeat_alone_and_beside_others(client):
    def sample(seed):
        answer = ask(client, user("Say it"), temperature=1.0, seed=seed, n=2, max_tokens=16)
        return [choice.message.reasoning for choice in answer.choices]

    alone = {seed: sample(seed) for seed in (3, 4, 2**40)}
    assert len({text for texts in alone.values() for text in texts}) > 3
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        beside = list(pool.map(lambda seed: (seed, sample(seed)), [3, 4, 2**40] * 3))
    assert all(texts == alone[seed] for seed, texts in beside)


def test_sound_in_two_turns_finds_its_beginning_again(server, client):
    first = user("Listen: ", audio_part(1.0, seed=11), " What is it?")
    hits = server.metric("stepaudio_audio_cache_hits_total")
    reply = ask(client, first, extra_body=NO_THINKING)
    details = reply.usage.prompt_tokens_details
    assert details.audio_tokens == 13
    assert details.cached_tokens == 0
    past = {"role": "assistant", "content": reply.choices[0].message.content}
    messages = (first, past, user("And this? ", audio_part(0.5, seed=12)))
    second = ask(client, *messages, extra_body=NO_THINKING)
    assert second.usage.prompt_tokens_details.audio_tokens == 13 + 6
    assert second.usage.prompt_tokens_details.cached_tokens >= 32
    # The same from a server that has seen none of it: nothing of an answer comes from what is kept.
    server.model.lane.engine.chunked_prefill.forget()
    again = ask(client, *messages, extra_body=NO_THINKING)
    assert again.choices[0].message.content == second.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    third = ask(client, *messages, extra_body=NO_THINKING)
    assert third.choices[0].message.content == second.choices[0].message.content
    assert server.metric("stepaudio_audio_cache_hits_total") >= hits
    # Other sound has the same tokens, and is not taken for it.
    other = user("Listen: ", audio_part(1.0, seed=13), " What is it?")
    logprobs = [
        ask(client, turn, logprobs=True, extra_body=NO_THINKING).choices[0].logprobs.content[0]
        for turn in (first, other)
    ]
    assert abs(logprobs[0].logprob - logprobs[1].logprob) > 1e-4


@pytest.mark.parametrize("where", ["url", "qwen", "input_audio as a URI"])
def test_a_clip_may_be_written_in_several_ways(client, where):
    plain = audio_part(1.0, seed=3)
    uri = f"data:audio/wav;base64,{plain['input_audio']['data']}"
    part = {
        "url": {"type": "audio_url", "audio_url": {"url": uri}},
        "qwen": {"type": "audio", "audio": uri},
        "input_audio as a URI": {"type": "input_audio", "input_audio": {"data": uri}},
    }[where]
    expected = ask(client, user("Hear: ", plain))
    assert ask(client, user("Hear: ", part)).choices[0].message == expected.choices[0].message


def test_logprobs_have_the_alternatives_of_each_token(client):
    answer = ask(client, user("Say it"), logprobs=True, top_logprobs=4, extra_body=NO_THINKING)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 24
    for token in tokens:
        assert len(token.top_logprobs) == 4
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.logprob == pytest.approx(values[0], abs=1e-5)  # the greedy token
        assert token.token == bytes(token.bytes).decode(errors="replace")


def test_a_stop_text_ends_the_reply_before_it(client):
    options = {"max_tokens": 60, "extra_body": NO_THINKING}
    words = ask(client, user("Say it"), **options).choices[0].message.content
    stop = next(letter for letter in words[5:] if letter.isascii())
    answer = ask(client, user("Say it"), stop=["~~never~~", stop], **options)
    assert answer.choices[0].message.content == words[: words.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_penalties_and_restrictions_reach_the_sampler(client):
    plain = ask(client, user("Say it"), max_tokens=48).choices[0].message.reasoning
    for key, value in (("repetition_penalty", 3.0), ("min_p", 1.0), ("top_k", 1)):
        options = {"extra_body": {key: value}, "max_tokens": 48}
        if key != "repetition_penalty":  # keep only the best token, so that chance has no part
            options |= {"temperature": 1.0}
        changed = ask(client, user("Say it"), **options).choices[0].message.reasoning
        assert (changed == plain) == (key != "repetition_penalty")
    penalised = ask(client, user("Say it"), presence_penalty=2, frequency_penalty=2, max_tokens=48)
    assert penalised.choices[0].message.reasoning != plain


@pytest.mark.parametrize("thinking", [True, False])
def test_json_mode_gives_json(client, thinking):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["calm", "angry"]}, "loud": {"type": "boolean"}},
        "required": ["mood", "loud"],
        "additionalProperties": False,
    }
    answer = ask(
        client,
        user("Say it"),
        temperature=1.0,
        seed=7,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"thinking_budget": 6} if thinking else NO_THINKING,
    )
    value = json.loads(answer.choices[0].message.content)
    assert value.keys() == {"mood", "loud"}
    assert value["mood"] in ("calm", "angry")
    assert isinstance(value["loud"], bool)
    assert answer.choices[0].finish_reason == "stop"
    assert bool(answer.choices[0].message.reasoning) == thinking


def test_a_tool_is_called_and_its_result_read(client):
    question = user("What time is it?")
    answer = ask(
        client,
        question,
        tools=[TOOL],
        tool_choice="required",
        extra_body=NO_THINKING,
        max_tokens=200,
        parallel_tool_calls=False,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_time"
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")
    assert choice.message.content is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "12:00"}
    reply = choice.message.model_dump()
    after = ask(client, question, reply, result, tools=[TOOL], extra_body=NO_THINKING)
    assert after.choices[0].message.content
    named = {"type": "function", "function": {"name": "get_time"}}
    again = ask(
        client, question, tools=[TOOL], tool_choice=named, extra_body=NO_THINKING, max_tokens=200
    )
    assert [c.function.name for c in again.choices[0].message.tool_calls] == ["get_time"]


def test_the_schemas_of_tools_are_in_the_prompt(server, client):
    body = {"messages": [user("Hi")]}
    _, plain = server.post(body, "/tokenize")
    _, with_tools = server.post({**body, "tools": [TOOL]}, "/tokenize")
    text = BYTES.decode(with_tools["tokens"])
    assert text.startswith('<|BOT|>tool_json_schemas\n[{"type": "function"')
    assert text.endswith(BYTES.decode(plain["tokens"]))
    assert plain["max_model_len"] == SLOT_TOKENS


def test_chinese_is_counted_and_comes_whole(server, client):
    text = "请问这是什么声音？"
    _, tokens = server.post({"prompt": text}, "/tokenize")
    assert tokens["tokens"] == list(text.encode())
    grammar = {"type": "object", "properties": {"答": {"const": text}}, "required": ["答"]}
    options = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": grammar}},
        "extra_body": NO_THINKING,
        "max_tokens": 200,
    }
    answer = ask(client, user(text), **options)
    assert json.loads(answer.choices[0].message.content)["答"] == text
    pieces, _ = joined(ask(client, user(text), stream=True, **options))
    assert pieces[0]["content"] == answer.choices[0].message.content


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "other"}, openai.NotFoundError, "no model 'other'"),
        ({"max_tokens": 1000}, openai.BadRequestError, "640 tokens for prompt and reply"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"top_logprobs": 3}, openai.BadRequestError, "needs logprobs"),
        ({"n": 17}, openai.BadRequestError, "more than this server's 16"),
        ({"extra_body": {"temprature": 1}}, openai.UnprocessableEntityError, "temperature"),
        ({"tool_choice": "required"}, openai.BadRequestError, "no tools"),
        (
            {"extra_body": {"thinking_budget": 5, "reasoning_effort": "none"}},
            openai.BadRequestError,
            "no effect without thinking",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            openai.BadRequestError,
            "no user turn",
        ),
        (
            {"messages": [user({"type": "image_url", "image_url": {"url": "x"}})]},
            openai.UnprocessableEntityError,
            "image_url",
        ),
        (
            {
                "messages": [
                    user({"type": "audio_url", "audio_url": {"url": "https://127.0.0.1/a"}})
                ]
            },
            openai.BadRequestError,
            "does not read from",
        ),
        (
            {"messages": [user({"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}})]},
            openai.BadRequestError,
            "--audio-folder",
        ),
        (
            {"messages": [user({"type": "input_audio", "input_audio": {"data": "!!"}})]},
            openai.BadRequestError,
            "not base64",
        ),
        (
            {"messages": [user({"type": "input_audio", "input_audio": {"data": "AAAA"}})]},
            openai.BadRequestError,
            "message 1: part 1",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nothing"}},
                }
            },
            openai.BadRequestError,
            "schema",
        ),
    ],
)
def test_mistakes_are_refused_by_class_and_named(client, options, error, words):
    options = {"model": NAME, "messages": [user("Hi")], "max_tokens": 4, **options}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**options)
    assert words in str(caught.value)
    assert caught.value.body["type"] in ("invalid_request_error", "not_found_error")


def test_a_clip_longer_than_the_encoder_holds_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="encoder"):
        ask(client, user(audio_part(5.0)))


def test_all_urls_of_a_request_share_their_time(server):
    seen = []

    class Recording(ClipReader):
        def fetch(self, source, where, url_time):
            seen.append(url_time)
            return super().fetch(source, where, url_time)

    url = f"data:audio/wav;base64,{base64_wave(0.3)}"
    content = [{"type": "audio_url", "audio_url": {"url": url}}] * 2
    settings = ServingSettings(url_timeout_s=7.0)
    build_chat_prompt(
        server.model,
        [UserMessage.model_validate({"role": "user", "content": content})],
        [],
        enable_thinking=True,
        clips=Recording(settings, 1_000_000),
        settings=settings,
    )
    assert seen[0] is seen[1]
    assert seen[0].left == 7.0
