"""The model that ships, served by `launch.serve`, and OpenAI's client."""

import base64
import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import time

import openai
import pytest

from launch import generate
from tests.serving.test_chat import NO_THINKING, TOOL, joined, of_whole

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "tiny_base"
CLIPS = ROOT / "examples" / "clips"
HEAR = "What do you hear?"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    """Starts the program with its defaults; yields a client of it once it is ready."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "launch.serve", "--model", str(MODEL), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = ""
        while not line.startswith("ready: "):
            line = process.stdout.readline()
            assert line, f"the server ended with {process.wait()}"
        print(f"ready after {time.perf_counter() - start:.1f} s")
        yield openai.OpenAI(base_url=f"{line.split()[1]}/v1", api_key="none", max_retries=0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.stdout.close()


def clip(name):
    return sound(CLIPS / f"{name}.flac")


def sound(path):
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": path.suffix[1:]}}


def user(*parts):
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def ask(client, *messages, **options):
    options = {"max_tokens": 100, "temperature": 0, **options}
    return client.chat.completions.create(model="tiny_base", messages=list(messages), **options)


def test_replies_are_those_of_launch_generate(client, tmp_path):
    questions = [[clip("kitchen"), HEAR], [clip("river"), HEAR], ["1+2?"], ["请问你好吗？"]]
    source, output = tmp_path / "questions.jsonl", tmp_path / "replies.jsonl"
    local = [
        [{"type": "audio", "audio": str(CLIPS / "kitchen.flac")}, HEAR],
        [{"type": "audio", "audio": str(CLIPS / "river.flac")}, HEAR],
        *questions[2:],
    ]
    lines = [json.dumps({"messages": [user(*parts)]}) + "\n" for parts in local]
    source.write_text("".join(lines), encoding="utf-8")
    generate.main(
        [
            *(f"--model={MODEL}", f"--input={source}", f"--output={output}"),
            *("--temperature=0", "--max-new-tokens=100"),
        ]
    )
    replies = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    for parts, reply in zip(questions, replies, strict=True):
        message = ask(client, user(*parts)).choices[0].message
        assert (message.reasoning or "", message.content) == (reply["reasoning"], reply["reply"])
        if parts[0] == questions[0][0]:
            assert "kitchen" in message.content


def test_a_spoken_dialogue_of_three_turns(client, formats):
    messages, cached = [], []
    for part in (sound(formats / "media" / "speech.opus"), clip("camel"), clip("dolphin")):
        messages.append(user(part, HEAR))
        whole, usage = of_whole(ask(client, *messages))
        stream = ask(client, *messages, stream=True, stream_options={"include_usage": True})
        streamed, _ = joined(stream)
        assert streamed == whole
        assert usage.prompt_tokens_details.audio_tokens > 60 + 15 * len(messages)
        cached.append(usage.prompt_tokens_details.cached_tokens)
        messages.append({"role": "assistant", "content": whole[0]["content"]})
    assert cached[2] > 0


def test_files_of_phones_and_browsers_are_heard_alike(client, formats):
    texts = set()
    for name in ("speech.opus", "speech.webm", "speech_live.webm", "speech.m4a"):
        data = base64.b64encode((formats / "media" / name).read_bytes()).decode()
        part = {"type": "audio_url", "audio_url": {"url": f"data:audio/x;base64,{data}"}}
        answer = ask(client, user(part, HEAR))
        assert 80 < answer.usage.prompt_tokens_details.audio_tokens < 95
        if name != "speech.m4a":  # another codec; the others hold the same packets
            texts.add(answer.choices[0].message.content)
    assert len(texts) == 1


def test_samples_repeat_alone_and_under_load(client):
    options = {"temperature": 2.0, "n": 3, "logprobs": True, "top_logprobs": 2}

    def sample(seed):
        return of_whole(ask(client, user(clip("camel"), HEAR), seed=seed, **options))[0]

    def without_logprobs(choices):
        return {
            index: {**choice, "logprobs": [token for token, _ in choice["logprobs"]]}
            for index, choice in choices.items()
        }

    def logprobs(choices):
        return [logprob for choice in choices.values() for _, logprob in choice["logprobs"]]

    alone = {seed: sample(seed) for seed in range(4)}
    assert len({str(choice) for choices in alone.values() for choice in choices.values()}) > 3
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for seed, choices in pool.map(lambda seed: (seed, sample(seed)), [*range(4)] * 8):
            assert without_logprobs(choices) == without_logprobs(alone[seed])
            # The number of replies beside it changes how a CPU rounds: see docs/serving.md.
            assert logprobs(choices) == pytest.approx(logprobs(alone[seed]), abs=1e-4)


def test_stop_tools_and_json(client):
    whole = ask(client, user(clip("kitchen"), HEAR)).choices[0].message.content
    stop = whole.split()[1]
    reply = ask(client, user(clip("kitchen"), HEAR), stop=stop).choices[0]
    assert (reply.message.content, reply.finish_reason) == (whole[: whole.index(stop)], "stop")

    options = {"tools": [TOOL], "tool_choice": "required", "extra_body": NO_THINKING}
    (call,) = ask(client, user("What time is it?"), **options).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")

    schema = {
        "type": "object",
        "properties": {"听": {"const": "厨房里有人"}},
        "required": ["听"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "heard", "schema": schema}}
    options = {"response_format": response_format, "extra_body": NO_THINKING}
    whole, _ = of_whole(ask(client, user(clip("kitchen"), HEAR), **options))
    streamed, _ = joined(ask(client, user(clip("kitchen"), HEAR), stream=True, **options))
    assert streamed == whole
    assert json.loads(whole[0]["content"]) == {"听": "厨房里有人"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"max_tokens": 10**6}, openai.BadRequestError),
        ({"temperature": "warm"}, openai.UnprocessableEntityError),
        ({"messages": [user({"type": "video_url"})]}, openai.UnprocessableEntityError),
        ({"messages": [user(clip("kitchen"))] * 200}, openai.APIStatusError),
    ],
)
def test_mistakes_have_the_clients_classes(client, options, error):
    options = {"model": "tiny_base", "messages": [user("Hi")], **options}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**options)
    assert caught.value.body["message"]
