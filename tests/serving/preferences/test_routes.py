"""The routes of preferences over HTTP: what a page is told, and what an attacker gets."""

import http.client
import io
import json
import urllib.parse

import pytest
import soundfile

from stepaudio_jax.serving.preferences.journals import read_study
from stepaudio_jax.serving.preferences.records import write_records
from tests.serving.page.scripted_api import ScriptedModel, serving
from tests.serving.preferences.studies import RUBRIC, comparison, sound


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("preferences") / "study"


@pytest.fixture(scope="module")
def host(folder):
    with serving(ScriptedModel(), preferences_folder=str(folder), max_body_mb=1.0) as (address, _):
        yield urllib.parse.urlparse(address).netloc


def send(host, method, path, body=None, kind="application/json"):
    """Returns (status, body) of an answer."""
    connection = http.client.HTTPConnection(host, timeout=120)
    content = json.dumps(body).encode() if isinstance(body, dict | list) else body
    connection.request(method, path, content, {"Content-Type": kind} if content else {})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, answer


def post(host, path, body, **options):
    status, answer = send(host, "POST", f"/preferences/{path}", body, **options)
    return status, json.loads(answer)


def test_a_comparison_from_sound_to_record(host, folder, tmp_path):
    records = tmp_path / "records.jsonl"
    body = comparison(content=[sound(0.5), {"type": "text", "text": "?"}], rubric=RUBRIC)
    status, shown = post(host, "comparisons", {**body, "annotator": "ann"})
    assert status == 200
    assert {shown[side][0]["parts"][0]["text"] for side in ("first", "second")} == {"Hello!", "No."}
    assert "model" not in json.dumps(shown)  # nothing says which is which before the verdict
    (clip,) = [part["clip"] for part in shown["messages"][0]["parts"] if part["type"] == "audio"]
    status, wav = send(host, "GET", f"/preferences/clips/{shown['assignment']}/{clip}")
    assert (status, len(soundfile.read(io.BytesIO(wav))[0])) == (200, 8000)
    verdict = {
        "id": "verdict-1",
        "assignment": shown["assignment"],
        "annotator": "ann",
        "verdict": 2,
        "criteria": [{"first": True, "second": False}] * 2,
        "seconds_listened": 0.5,
    }
    status, kept = post(host, "verdicts", verdict)
    assert (status, kept["is_kept"], kept["progress"]["verdicts"]) == (200, True, 1)
    assert kept["origins"]["first"] == {"model": "m", "sampling": {"temperature": 0.7}}
    assert post(host, "verdicts", verdict)[0] == 200
    assert post(host, "verdicts", {**verdict, "verdict": -2})[0] == 409
    assert len(read_study(folder).verdicts) == 1
    assert send(host, "GET", "/preferences/records")[0] == 404  # nobody reads others' words here
    write_records(folder, records)
    (row,) = map(json.loads, records.read_text().splitlines())
    assert row["chosen"][0]["content"] == shown["first"][0]["parts"][0]["text"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("verdicts", b"{}", "text/plain", 415),
        ("verdicts", b"{}", "application/x-www-form-urlencoded", 415),
        ("verdicts", b"[]", "application/json", 400),
        ("verdicts", b"{" * 100_000, "application/json", 400),
        ("verdicts", b'{"a":' * 100_000, "application/json", 400),
        ("verdicts", b'{"id": "\\ud800"}', "application/json", 400),
        ("verdicts", b"\xff\xfe", "application/json", 400),
        ("verdicts", {}, "application/json", 422),
        ("verdicts", {"id": ["x"]}, "application/json", 422),
        ("verdicts", {"id": "a" * 8, "assignment": {"$ne": 1}}, "application/json", 422),
        ("next", {"annotator": "../../etc"}, "application/json", 422),
        ("next", {"annotator": 7}, "application/json", 422),
        ("consent", {"annotator": "ann", "consent": None}, "application/json", 422),
        ("comparisons", {"annotator": "ann", "a": 3}, "application/json", 422),
        ("comparisons", {"annotator": "ann", "messages": "x" * 2_000_000}, "application/json", 413),
    ],
)
def test_bad_bodies_get_one_clear_line(host, path, body, kind, status):
    answered, error = post(host, path, body, kind=kind)
    assert answered == status
    assert 0 < len(error["error"]["message"]) <= 1003
    assert "Traceback" not in error["error"]["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "/etc/passwd"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "data:,x"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "file:/"}}]}
            ]
        },
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": {"type": "text"}}]},
        {"a": {"turns": [{"role": "user", "content": "x"}]}},
        {"a": {"turns": [{"role": "assistant", "content": "x"}], "path": "/etc"}},
        {"a": {"turns": [{"role": "assistant", "content": "x"}], "sampling": {"t": [1]}}},
        {"shown_first": "left"},
        {"rubric": "kind"},
        {"id": "mine"},
    ],
)
def test_a_comparison_names_no_file_and_no_foreign_key(host, folder, change):
    before = len(read_study(folder).assignments)
    status, error = post(host, "comparisons", {**comparison(), "annotator": "ann", **change})
    assert (status, error["error"]["type"]) == (422, "invalid_request_error")
    assert len(read_study(folder).assignments) == before


@pytest.mark.parametrize(
    "path",
    [
        "clips/../../settings.json/0",
        "clips/%2e%2e%2fsettings.json/0",
        "clips/00000000/0",
        f"clips/00000000/{10**30}",
        "clips/00000000/-1",
        "clips/00000000/x",
        "../verdicts.jsonl",
    ],
)
def test_no_other_file_is_read(host, path):
    status, answer = send(host, "GET", f"/preferences/{path}")
    assert status in (400, 404, 422)
    assert b"levels" not in answer
