"""Clients that mean no good: random bodies, and many at once that go away."""

import base64
import concurrent.futures
import dataclasses
import json
import os
import random
import struct
import threading
import time

import hypothesis
import openai
import psutil
import pytest
from hypothesis import strategies as st

from stepaudio_jax.serving import ServingSettings
from stepaudio_jax.serving.chat_protocol import ChatRequest
from stepaudio_jax.serving.server import build_model
from tests.serving.running_server import (
    ENGINE,
    NAME,
    RunningServer,
    audio_part,
    small_model,
    user,
    wave_bytes,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(
        ["data:,", "data:audio/wav;base64,AAAA", "file:///etc/passwd", "<tool_call>"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
WAVE = wave_bytes(0.3)


def damaged_wave(draw):
    """A sound file with some bytes changed, or a header that promises far more than there is."""
    content = bytearray(WAVE)
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        content[4:8] = content[40:44] = struct.pack("<I", 2**32 - 9)
    if draw(st.booleans()):
        content[24:28] = struct.pack("<I", draw(st.sampled_from([0, 1, 2**31, 2**32 - 1])))
    if draw(st.booleans()):
        content[22:24] = struct.pack("<H", draw(st.sampled_from([0, 255, 65535])))
    return bytes(content[: draw(st.integers(0, len(content)))])


@st.composite
def parts(draw):
    kind = draw(st.sampled_from(["text", "sound", "url", "any"]))
    if kind == "text":
        return {"type": "text", "text": draw(st.text(max_size=12))}
    if kind == "sound":
        data = base64.b64encode(damaged_wave(draw)).decode()
        data = data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data
        return {"type": "input_audio", "input_audio": {"data": data}}
    if kind == "url":
        url = draw(
            st.sampled_from(
                [
                    "http://127.0.0.1/",
                    "https://[::1]/",
                    "https://localhost:22/",
                    "file:///dev/zero",
                    "data:",
                    "data:;base64,%%%",
                    "https://2130706433/",
                    "gopher://x",
                    "file:///proc/self/mem",
                ]
            )
            | st.text(max_size=30)
        )
        return {"type": "audio_url", "audio_url": {"url": url}}
    return draw(VALUES)


@st.composite
def bodies(draw):
    """Something like a request, some keys of it wrong."""
    roles = st.sampled_from(["user", "system", "assistant", "tool", "developer", "x"])
    content = st.text(max_size=20) | st.lists(parts(), max_size=3) | VALUES
    message = st.fixed_dictionaries({"role": roles, "content": content}) | VALUES
    body = {"messages": draw(st.lists(message, max_size=4))}
    keys = [name for name in ChatRequest.model_fields if name not in ("messages", "stream", "n")]
    for key in draw(st.lists(st.sampled_from(keys), max_size=3)):
        body[key] = draw(VALUES)
    if draw(st.integers(0, 9)) == 0:
        body[draw(st.text(max_size=6))] = draw(VALUES)
    body["max_tokens"] = 1
    return body


def check_answers(server, examples):
    """Sends bodies; every answer is a completion, or an error in OpenAI's form."""
    statuses = set()

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        derandomize=True,
        database=None,
    )
    @hypothesis.given(bodies(), st.integers(0, 30), st.integers(0, 200))
    def check(body, damage, cut):
        data = json.dumps(body).encode()
        if damage == 0:
            data = data[:cut]
        elif damage == 1:
            data = data[:cut] + bytes([cut % 256]) + data[cut:]
        status, answer = server.post(data)
        statuses.add(status)
        assert status < 500, (status, answer, data)
        if status == 200:
            assert answer["choices"]
        else:
            assert set(answer["error"]) == {"message", "type", "param", "code"}
            assert "Traceback" not in answer["error"]["message"]

    check()
    assert server.get("/health")[0] == 200
    return statuses


def test_no_body_gives_a_500(server):
    assert check_answers(server, 40) >= {400, 422}


@pytest.mark.slow
def test_no_body_of_thousands_gives_a_500(server):
    assert check_answers(server, 5000) >= {200, 400, 422}


def test_ten_megabytes_of_nesting_are_refused(server):
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        depth = 10_000_000 // len(opening + closing)
        body = b'{"messages": ' + opening.encode() * depth + b"1" + closing.encode() * depth + b"}"
        status, answer = server.post(body)
        assert (status, answer["error"]["code"]) == (400, "invalid_json")


def resources(server):
    """What could leak: threads, open files, memory in MB, slots in use, jobs, programs."""
    process = psutil.Process(os.getpid())
    return {
        "threads": threading.active_count(),
        "files": process.num_fds(),
        "memory": process.memory_info().rss / 1e6,
        "busy": server.metric("stepaudio_busy_slots"),
        "waiting": server.metric("stepaudio_waiting_replies"),
        "jobs": server.server.service.num_jobs,
        "programs": server.metric("stepaudio_compiled_programs"),
    }


def disturb(server, seconds, clients):
    """Clients that stream, stop reading, go away and send nonsense; returns what became of each."""
    expected, outcomes, lock = {}, [], threading.Lock()
    client = server.client()

    def options(number):
        sounds = (audio_part(0.5, seed=number),) if number % 3 == 0 else ()
        return {
            "model": NAME,
            "messages": [user(f"Say {number}", *sounds)],
            "max_tokens": 8 + 5 * (number % 7),
            "temperature": 1.0,
            "seed": number,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
        }

    for number in range(12):
        reply = client.chat.completions.create(**options(number))
        expected[number] = reply.choices[0].message.content

    deadline = time.monotonic() + seconds

    def visit(seed):
        rng = random.Random(seed)
        while time.monotonic() < deadline:
            number, kind = rng.randrange(12), rng.choice(("read", "read", "slow", "leave", "bad"))
            try:
                outcome = behave(rng, number, kind)
            except openai.RateLimitError:
                outcome = "refused"
                time.sleep(0.01)
            with lock:
                outcomes.append(outcome)

    def behave(rng, number, kind):
        if kind == "bad":
            status, answer = server.post(b'{"messages": [' + b"x" * rng.randrange(50))
            assert (status, answer["error"]["code"]) == (400, "invalid_json")
            return "bad"
        stream = client.chat.completions.create(**options(number), stream=True)
        text = ""
        for index, chunk in enumerate(stream):
            text += chunk.choices[0].delta.content or ""
            if kind == "leave" and index > rng.randrange(4):
                stream.close()
                return "left"
            if kind == "slow":
                time.sleep(0.01)
        assert text == expected[number], (number, kind)
        return "right"

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for job in [pool.submit(visit, seed) for seed in range(clients)]:
            job.result()
    return outcomes


def settle(server):
    deadline = time.monotonic() + 60
    while server.server.service.num_jobs or server.model.lane.engine.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)


def test_many_clients_that_come_and_go_leave_nothing_behind(server):
    disturb(server, 0.5, 12)  # what is made once is made now
    settle(server)
    before = resources(server)
    outcomes = disturb(server, 1.5, 12)
    settle(server)
    after = resources(server)
    assert {"right", "left", "bad"} <= set(outcomes)
    for name in ("busy", "waiting", "jobs"):
        assert after[name] == 0
    assert after["programs"] == before["programs"]
    assert after["threads"] <= before["threads"] + 1
    assert after["files"] <= before["files"] + 3


@pytest.mark.slow
def test_two_hundred_clients_for_two_minutes_leave_nothing_behind():
    engine = dataclasses.replace(ENGINE, slots=16)
    models = [build_model(NAME, small_model(), engine)]
    server = RunningServer(ServingSettings(port=0, max_queue=256), models)
    try:
        server.wait_until_ready()
        disturb(server, 60.0, 200)  # until the caches are full
        settle(server)
        before = resources(server)
        outcomes = disturb(server, 120.0, 200)
        settle(server)
        after = resources(server)
    finally:
        server.stop()
    print(before, after, {kind: outcomes.count(kind) for kind in set(outcomes)})
    assert after["busy"] == after["waiting"] == after["jobs"] == 0
    assert after["programs"] == before["programs"]
    assert after["threads"] <= before["threads"] + 1
    assert after["files"] <= before["files"] + 3
    assert after["memory"] <= before["memory"] + 100
