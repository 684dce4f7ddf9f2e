"""Routes beside chat, limits, access: on the shared server, and on some that only answer those."""

import asyncio
import concurrent.futures
import json
import time
import types

import openai
import pytest
import uvicorn
from starlette.requests import Request

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.generation.chunked_prefill import MIN_CHUNK_TOKENS
from stepaudio_jax.serving import EngineSettings, ServingSettings
from stepaudio_jax.serving.access import client_of, read_api_keys
from stepaudio_jax.serving.app import create_app
from stepaudio_jax.serving.server import bind
from stepaudio_jax.serving.settings import MIN_PREFILL_CHUNK
from tests.serving.running_server import NAME, SLOT_TOKENS, RunningServer, user


def test_health_is_503_until_all_programs_are_compiled(server):
    assert all(status == 503 for status, _ in server.not_ready)
    assert server.get("/health") == (200, {"status": "ok"})


def test_no_request_compiles_a_program(server, client):
    before = server.metric("stepaudio_compiled_programs")
    assert before >= 8
    for length in (1, 40, 70, 200):
        for options in ({}, {"temperature": 1.0}, {"logprobs": True, "top_logprobs": 2}):
            client.chat.completions.create(
                model=NAME, messages=[user("x" * length)], max_tokens=6, **options
            )
    assert server.metric("stepaudio_compiled_programs") == before


def test_models_are_listed_and_described(server, client):
    (model,) = client.models.list().data
    assert model.id == NAME
    assert model.max_model_len == SLOT_TOKENS
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_the_description_is_complete_and_needs_no_other_host(server):
    status, page = server.get("/docs")
    assert status == 200
    assert "POST /v1/chat/completions" in page
    assert "temperature" in page
    assert "<script" not in page
    assert "https://" not in page
    _, schema = server.get("/openapi.json")
    text = json.dumps(schema)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
        assert reference.removeprefix("#/components/schemas/") in schema["components"]["schemas"]


def test_the_page_is_there_and_what_is_not_is_404_in_openais_form(server):
    status, page = server.get("/")
    assert status == 200
    assert page.startswith("<!doctype html>")
    for path in ("/nothing", "/page/nothing.js", "/page/%2e%2e/settings.py", "/v1/completions"):
        status, body = server.get(path)
        assert status == 404
        assert body["error"]["type"] == "not_found_error"
    assert server.get("/v1/chat/completions")[0] == 405


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[" * 100_000, 400),
        (b'{"messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", 400),
        (b"\xff\xfe", 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b"[]", 422),
        (b"null", 422),
        (b'{"messages": []}', 422),
        (b'{"messages": "hi"}', 422),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 422),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 1e300}', 422),
        (b'{"messages": [{"role": "user", "content": ""}]}', 400),
    ],
)
def test_bodies_that_are_no_request_are_refused(server, body, status):
    got, answer = server.post(body)
    assert (got, answer["error"]["type"]) == (status, "invalid_request_error")
    assert "Traceback" not in answer["error"]["message"]


def test_only_json_is_read(server):
    body = json.dumps({"messages": [user("x")]})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, answer, _ = server.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": kind}
        )
        assert status == 415
        assert answer["error"]["code"] == "not_json"


def test_a_full_queue_says_when_to_come_back():
    running = RunningServer(ServingSettings(port=0, max_queue=2))
    running.wait_until_ready()
    client = running.client()
    with pytest.raises(openai.BadRequestError, match="4 slots and the 2 replies that may wait"):
        client.chat.completions.create(model=NAME, messages=[user("x")], max_tokens=2, n=7)
    # Four replies have slots, two wait for them, and there is no room for a seventh.
    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        jobs = [
            pool.submit(
                client.chat.completions.create, model=NAME, messages=[user("x")], max_tokens=300
            )
            for _ in range(7)
        ]
        concurrent.futures.wait(jobs)
    refused = [job.exception() for job in jobs if job.exception() is not None]
    assert len(refused) == 1
    assert isinstance(refused[0], openai.RateLimitError)
    assert 1 <= int(refused[0].response.headers["retry-after"]) <= 60
    assert refused[0].body["code"] == "queue_full"
    assert running.server.service.thread.num_waiting == 0
    assert running.model.lane.engine.free_slots == 4
    running.stop()


def gone(server):
    """How many requests were counted as ended by their clients."""
    return server.metric("stepaudio_requests_total", 'status="499"')


def test_a_client_that_goes_away_frees_its_slots(server):
    engine = server.model.lane.engine
    client = server.client()
    before = [gone(server), server.metric("stepaudio_completion_tokens_total")]
    stream = client.chat.completions.create(
        model=NAME, messages=[user("x")], max_tokens=300, n=4, stream=True
    )
    next(stream)
    while engine.free_slots:
        time.sleep(0.005)
    stream.close()
    deadline = time.monotonic() + 60
    while engine.free_slots < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(openai.APITimeoutError):  # the same of one that waits for a whole answer
        client.with_options(timeout=0.2).chat.completions.create(
            model=NAME, messages=[user("x")], max_tokens=380, n=16
        )
    while server.server.service.num_jobs or engine.busy or gone(server) < before[0] + 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert gone(server) == before[0] + 2
    assert server.metric("stepaudio_completion_tokens_total") > before[1]  # of what was cut short


def test_requests_are_counted_by_the_status_that_their_clients_got(server, client):
    def count(status):
        return server.metric("stepaudio_requests_total", f'status="{status}"')

    before = {status: count(status) for status in (200, 400, 500)}
    options = {"model": NAME, "messages": [user("x")], "max_tokens": 2}
    list(client.chat.completions.create(**options, stream=True))  # counted just after its end
    client.chat.completions.create(**options)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**options, response_format=schema)
    assert {status: count(status) - before[status] for status in before} == {200: 2, 400: 1, 500: 0}


def test_a_text_that_no_slot_holds_is_not_tokenized(server, monkeypatch):
    def encode(text):
        raise AssertionError("it would take long")

    monkeypatch.setattr(server.model.loaded.tokenizer, "encode", encode)
    text = "x" * 10_000_000
    for body in ({"prompt": text}, {"messages": [user(text)]}):
        status, answer = server.post(body, "/tokenize")
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


class KeyedServer:
    """The routes that need no model, behind API keys."""

    def __init__(self, settings):
        app = create_app(settings)
        self.web = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self.listener = bind(settings)
        self.address = self.listener.getsockname()[:2]

    def __enter__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.job = self.pool.submit(asyncio.run, self.web.serve([self.listener]))
        while not self.web.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.web.should_exit = True
        self.job.result(60)
        self.pool.shutdown()

    request = RunningServer.request
    get = RunningServer.get


def test_keys_are_asked_for_but_on_the_page(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nsecond\n\n", encoding="utf-8")
    settings = ServingSettings(port=0, api_keys=("first", *read_api_keys(keys)))
    with KeyedServer(settings) as keyed:
        assert keyed.get("/")[0] == 200
        assert keyed.get("/page/index.html")[0] == 200
        for path in ("/docs", "/openapi.json", "/v1/models", "/nothing"):
            status, body, headers = keyed.request("GET", path)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
        for wrong in ("first", "Bearer third", "Basic first", "Bearer ", "Bearer first second"):
            assert keyed.get("/docs", Authorization=wrong)[0] == 401
        for right in ("Bearer first", "bearer second"):
            assert keyed.get("/docs", Authorization=right)[0] == 200


def test_a_key_is_one_client_however_its_header_is_written():
    app = types.SimpleNamespace(state=types.SimpleNamespace())

    def name(header, keys=("first", "second")):
        app.state.settings = ServingSettings(api_keys=keys)
        headers = [(b"authorization", header.encode())]
        scope = {"type": "http", "headers": headers, "client": ("192.0.2.1", 5), "app": app}
        return client_of(Request(scope))

    assert len({name(f"{scheme} first") for scheme in ("Bearer", "bearer", "BEARER ")}) == 1
    assert name("Bearer first") != name("Bearer second")
    assert name("Bearer first", keys=()) == "192.0.2.1"


def test_a_file_without_keys_is_a_mistake(tmp_path):
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    for name in ("keys", "missing"):
        with pytest.raises(ConfigError, match="api_key_file"):
            read_api_keys(tmp_path / name)


def test_other_sites_are_let_in_only_where_they_are_named():
    origin = {"Origin": "https://example.org"}
    with KeyedServer(ServingSettings(port=0)) as closed:
        assert "access-control-allow-origin" not in closed.request("GET", "/docs", None, origin)[2]
    settings = ServingSettings(port=0, cors_origins=("https://example.org",))
    with KeyedServer(settings) as opened:
        headers = opened.request("GET", "/docs", None, origin)[2]
        assert headers["access-control-allow-origin"] == "https://example.org"


def test_large_bodies_are_refused_before_they_are_read(server):
    limit = round(server.settings.max_body_mb * 1e6)
    headers = {"Content-Type": "application/json", "Content-Length": str(limit + 1)}
    status, body, _ = server.request("POST", "/v1/chat/completions", None, headers)
    assert (status, body["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 70_000),
        ("max_body_mb", 0.0),
        ("max_queue", -1),
        ("audio_domains", ("https://example.org",)),
        ("audio_domains", ("127.0.0.1",)),
        ("audio_domains", ("localhost",)),
        ("api_keys", ("two words",)),
    ],
)
def test_settings_out_of_range_are_named(key, value):
    with pytest.raises(ConfigError, match=key.removesuffix("s")):
        ServingSettings(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prefill_chunk", 100),
        ("prefill_chunk", 16),
        ("prefill_chunk", 0),
        ("prefill_chunk", -64),
        ("slot_tokens", 2),
        ("slots", 0),
        ("steps", 0),
        ("prefix_cache_gb", float("inf")),
    ],
)
def test_engine_settings_out_of_range_are_named(key, value):
    with pytest.raises(ConfigError, match=f"{key}={value} must"):
        EngineSettings(**{key: value})
    assert MIN_PREFILL_CHUNK == MIN_CHUNK_TOKENS


def test_an_address_in_use_is_a_mistake_of_the_user():
    taken = bind(ServingSettings(port=0))
    taken.listen()
    with pytest.raises(ConfigError, match="cannot serve there"):
        bind(ServingSettings(port=taken.getsockname()[1]))
    taken.close()
