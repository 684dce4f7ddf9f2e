"""The end of a server, limits in time, and several models in a process."""

import concurrent.futures
import dataclasses
import threading
import time

import jax
import numpy as np
import openai
import pytest

from stepaudio_jax.config import LoRAConfig
from stepaudio_jax.generation import Sampling, build_prompt
from stepaudio_jax.generation.loaded_model import with_adapter
from stepaudio_jax.hub import Adapter
from stepaudio_jax.hub.peft_adapter import write_adapter
from stepaudio_jax.models import abstract_lora, attach_lora
from stepaudio_jax.serving import ServingSettings
from stepaudio_jax.serving.engine_thread import EngineThread
from stepaudio_jax.serving.jobs import Job, Work
from stepaudio_jax.serving.server import build_model
from stepaudio_jax.storage import to_path
from stepaudio_jax.text import render_prompt
from tests.generation.small_model import BYTES
from tests.generation.small_model import user as user_turn
from tests.serving.running_server import (
    ENGINE,
    NAME,
    SERVED_CONFIG,
    RunningServer,
    served_parameters,
    small_model,
    user,
)


def begin(client, tokens, **options):
    """A stream that has begun, and what it has said so far."""
    stream = client.chat.completions.create(
        model=NAME,
        messages=[user("Say it")],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        **options,
    )
    next(stream)
    return stream


def rest(stream):
    return "".join(getattr(c.choices[0].delta, "reasoning", None) or "" for c in stream)


def started(**settings):
    running = RunningServer(ServingSettings(port=0, **settings))
    running.wait_until_ready()
    return running


def test_running_replies_end_whole_and_no_new_ones_begin():
    running = started()
    client = running.client()
    expected = rest(begin(client, 120))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        streams = [begin(client, 120) for _ in range(6)]  # two of them wait for a slot
        read = [pool.submit(rest, stream) for stream in streams]
        running.server.stop()
        with pytest.raises(openai.APIError):  # refused, or not connected any more
            client.chat.completions.create(model=NAME, messages=[user("x")], max_tokens=2)
        assert [job.result(120) for job in read] == [expected] * 6
    running.stop()
    assert running.exit_code == 0


def test_replies_that_take_too_long_to_drain_are_ended_with_an_error():
    running = started(drain_timeout_s=0.3)
    stream = begin(running.client(), 380, n=16)
    stopper = threading.Thread(target=running.stop)
    stopper.start()
    with pytest.raises(openai.APIError, match="could not finish"):
        rest(stream)
    stopper.join(120)
    assert running.exit_code == 0


def test_a_request_that_takes_too_long_is_ended(monkeypatch):
    running = started(request_timeout_s=0.2)
    client = running.client()
    with pytest.raises(openai.InternalServerError, match=r"longer than 0\.2 s") as caught:
        client.chat.completions.create(model=NAME, messages=[user("x")], max_tokens=380, n=16)
    assert caught.value.status_code == 503
    with pytest.raises(openai.APIError, match=r"longer than 0\.2 s"):
        rest(begin(client, 380, n=16))
    fetch = running.server.service.clips.fetch

    def fetch_slowly(*arguments):
        time.sleep(1.0)
        return fetch(*arguments)

    monkeypatch.setattr(running.server.service.clips, "fetch", fetch_slowly)
    clip = {"type": "audio_url", "audio_url": {"url": "data:,x"}}
    with pytest.raises(openai.InternalServerError, match=r"longer than 0\.2 s"):
        client.chat.completions.create(model=NAME, messages=[user(clip)], max_tokens=2)
    assert running.metric("stepaudio_requests_total", 'status="503"') == 3
    deadline = time.monotonic() + 60
    while running.model.lane.engine.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.stop()


def test_an_engine_that_fails_ends_the_server_and_tells_its_clients(monkeypatch):
    running = started()
    stream = begin(running.client(), 380)

    def fail():
        raise MemoryError("as a device out of memory")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(running.model.lane.engine, "step", fail)
    with pytest.raises(openai.APIError, match="could not finish"):
        rest(stream)
    running._thread.join(60)
    assert "the engine has failed" in str(running.error)


def test_a_job_that_an_engine_fails_at_is_told_and_no_later_one_is_taken(monkeypatch):
    model, told = build_model(NAME, small_model(), ENGINE), []

    def fail(*_, **__):
        raise MemoryError("as a device out of memory")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(model.lane.engine, "warm_up", lambda: ())
    monkeypatch.setattr(model.lane.engine, "submit", fail)
    segments = render_prompt([user_turn("Say it")], BYTES)
    prompt = build_prompt(segments, BYTES, SERVED_CONFIG.length_convention)
    work = Work(NAME, "client", prompt, (Sampling(),))
    thread = EngineThread({NAME: model.lane})
    for _ in range(2):  # the engine fails at the first, and the second waits for it
        assert thread.try_submit(Job(work, on_failure=told.append), 8)
    thread.start()
    thread.join(60)
    assert thread.state == "failed"
    assert told == [None, None]
    assert not thread.try_submit(Job(work, on_failure=told.append), 8)


def test_models_and_adapters_in_one_process_answer_as_alone(tmp_path):
    rng = np.random.default_rng(1)
    lora = LoRAConfig(rank=2, alpha=4.0, targets=("query", "value"))
    matrices = jax.tree.map(
        lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32),
        abstract_lora(SERVED_CONFIG, lora).shapes,
    )
    write_adapter(to_path(str(tmp_path)), Adapter(lora, matrices))
    base = small_model()
    other = served_parameters()
    other["decoder"]["embedding"] = -other["decoder"]["embedding"]
    second = dataclasses.replace(base, parameters=other)
    models = [
        build_model(NAME, base, ENGINE),
        build_model("second", second, ENGINE),
        build_model("adapted", with_adapter(base, tmp_path), ENGINE, base=NAME),
    ]
    kernels = [
        model.lane.engine._parameters["decoder"]["layers"][0]["mlp"]["up"]["kernel"]
        for model in (models[0], models[2])
    ]
    assert kernels[0] is kernels[1]  # shared, and not copied
    convention = SERVED_CONFIG.length_convention
    prompt = build_prompt(render_prompt([user_turn("Say it")], BYTES), BYTES, convention)
    plain = served_parameters()
    adapted = {**plain, "decoder": attach_lora(plain["decoder"], matrices, lora.scale)}
    expected = {}
    for name, parameters in ((NAME, plain), ("second", other), ("adapted", adapted)):
        alone = build_model(name, dataclasses.replace(base, parameters=parameters), ENGINE)
        sampling = Sampling(temperature=0.0, max_new_tokens=40)
        ((_, completion),) = alone.lane.engine.generate([prompt], [sampling])
        tokens = [token for token in completion.tokens if not BYTES.is_special(token)]
        expected[name] = BYTES.decode(tokens)
    assert len(set(expected.values())) == 3
    running = RunningServer(models=models)
    running.wait_until_ready()
    client = running.client()
    assert [model.id for model in client.models.list().data] == [NAME, "second", "adapted"]

    def answer(name):
        reply = client.chat.completions.create(
            model=name, messages=[user("Say it")], max_tokens=40, temperature=0
        )
        return name, reply.choices[0].message.reasoning

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(answer, [*expected] * 3))
    assert all(expected[name] == text for name, text in answers)
    running.stop()
