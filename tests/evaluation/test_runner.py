"""Tasks answered by an endpoint that really hears, and by a model in this process."""

import base64
import collections
import io
import json

import numpy as np
import pytest
import soundfile

from stepaudio_jax import evaluate
from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data import read_records
from stepaudio_jax.errors import ConfigError, DataError, EndpointError, JudgeError, OutputError
from stepaudio_jax.evaluation.evaluate import JudgeSettings, load_task, run_tasks
from stepaudio_jax.evaluation.model_under_test import (
    EndpointModel,
    LoadedModelUnderTest,
    split_reasoning,
)
from stepaudio_jax.evaluation.results import ModelIdentity
from stepaudio_jax.evaluation.runner import RunSettings
from stepaudio_jax.evaluation.selection import choose_items
from stepaudio_jax.judge.endpoint import ChatEndpoint
from tests.evaluation.constant_model import replying, tokenizer_with_think_end

TASK = '''
"""Asks how high a tone is; a judge says whether the reply is polite."""
import os
from stepaudio_jax.data import read_records
from stepaudio_jax.evaluation.task import Item, Judged, Strict, Task
from stepaudio_jax.judge.query import Query

class Pitch(Task):
    name, version, title, judge = "pitch", "1", "Pitch of tones", JUDGE

    def items(self, folder):
        return [
            Item(record.id, record, {"answer": record.answer}, {"kind": record.source})
            for record in read_records(os.path.join(folder, "*.jsonl"))
        ]

    def strict(self, data, output):
        if not (output or "").strip():
            return Strict("unparsed")
        return Strict("correct" if output == data["answer"] else "wrong", output)

    def queries(self, item, reasoning, reply):
        return [Query(f"Is {item.id}: {reply!r} polite?", "You judge.")]

    def judged(self, item, reasoning, reply, answers):
        scores = {"yes": 1.0, "no": 0.0}
        score = scores.get(answers[0])
        return Judged(score, {"said": answers[0]}, "" if score is not None else "unreadable")
'''


@pytest.fixture
def data(tmp_path):
    """Twelve tones, low and high, in two files of one folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    for kind, count in (("low", 8), ("high", 4)):
        lines = []
        for number in range(count):
            name = f"{kind}{number}"
            frequency = 300 + 10 * number if kind == "low" else 3000
            samples = 0.3 * np.sin(2 * np.pi * frequency * np.arange(4800) / SAMPLE_RATE)
            soundfile.write(folder / f"{name}.wav", samples.astype(np.float32), SAMPLE_RATE)
            audio = {"type": "audio", "audio": f"{name}.wav", "transcript": f"a {kind} tone"}
            content = [audio, {"type": "text", "text": "Low or high?"}]
            lines.append(
                {"id": name, "messages": [{"role": "user", "content": content}], "answer": kind}
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def task(tmp_path):
    def write(judge="none"):
        path = tmp_path / f"pitch_{judge}.py"
        path.write_text(TASK.replace("JUDGE", repr(judge)), encoding="utf-8")
        return str(path)

    return write


def hear(body):
    """Returns what a listener hears: the pitch of the sound; what is written, where there is none.

    It reasons first, as the server of a model without a reasoning parser would show it.
    """
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        is_high = content.startswith("a high tone\n")
        return f"<think>\nIt reads {content!r}.\n</think>\n{'high' if is_high else 'low'}"
    clips = [part["input_audio"] for part in content if part["type"] == "input_audio"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(clips[0]["data"])))
    assert (rate, len(samples), clips[0]["format"]) == (SAMPLE_RATE, 4800, "wav")
    if not samples.any():
        return "nothing"
    peak = np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)
    return f"<think>\n{peak:.0f} Hz.\n</think>\n{'high' if peak > 1000 else 'low'}"


def model_at(server, **settings):
    endpoint = ChatEndpoint(
        url=server.url, model="ear", api_key_env=None, retries=0, initial_backoff_s=0.01
    )
    return EndpointModel(endpoint, concurrency=3, **settings)


def figures(run):
    return {(metric.scoring, metric.group): metric.value for metric in run.metrics}


def test_an_endpoint_hears_the_sound_or_silence_or_reads_transcripts(data, task, serve, tmp_path):
    server = serve(hear)
    runs = {}
    for mode in ("sound", "silence", "transcripts"):
        (runs[mode],) = run_tasks(
            model_at(server), {task(): data}, tmp_path / mode, RunSettings(mode=mode)
        )
    assert figures(runs["sound"])["strict", ""] == 1
    assert figures(runs["silence"])["strict", ""] == 0
    assert figures(runs["transcripts"])["strict", ""] == 1
    first = runs["sound"].items[0]
    assert first.replies[0].reasoning.endswith("Hz.")
    assert first.replies[0].reply == "high"
    for body in (body for _, _, body in server.requests):
        assert body["model"] == "ear"
        assert body["temperature"] == 0.7
        assert "top_k" not in body


def test_a_missing_clip_is_an_error_of_its_item_and_is_asked_again(data, task, serve, tmp_path):
    (data / "low3.wav").rename(data / "away.wav")
    server = serve(hear)
    (run,) = run_tasks(model_at(server), {task(): data}, tmp_path / "out", RunSettings())
    assert list(run.errors) == ["low3"]
    assert "low3.wav" in run.errors["low3"]
    assert figures(run)["strict", ""] == pytest.approx(11 / 12)
    (data / "away.wav").rename(data / "low3.wav")
    asked = len(server.requests)
    (run,) = run_tasks(model_at(server), {task(): data}, tmp_path / "out", RunSettings())
    assert not run.errors
    assert len(server.requests) == asked + 1, "only what was missing is asked"
    assert figures(run)["strict", ""] == 1


def test_a_server_that_dies_ends_the_evaluation_which_goes_on_later(
    data, task, serve, tmp_path, monkeypatch
):
    monkeypatch.setattr("stepaudio_jax.evaluation.model_under_test._MAX_FAILURES_IN_A_ROW", 3)
    server = serve(hear)
    server.trouble = lambda number, handler: (
        number > 5 and (handler.reply(503, {"error": "gone"}) or True)
    )
    with pytest.raises(EndpointError, match=r"3 items in a row had no answer; the last one: .*503"):
        run_tasks(model_at(server), {task(): data}, tmp_path / "out", RunSettings())
    server.trouble = lambda number, handler: False
    asked = len(server.requests)
    (run,) = run_tasks(model_at(server), {task(): data}, tmp_path / "out", RunSettings())
    assert len(server.requests) == asked + 7
    assert figures(run)["strict", ""] == 1


def test_replies_of_other_settings_are_not_mixed(data, task, serve, tmp_path):
    server = serve(hear)
    run_tasks(model_at(server), {task(): data}, tmp_path / "out", RunSettings(limit=3))
    asked = len(server.requests)
    assert asked == 3
    run_tasks(model_at(server), {task(): data}, tmp_path / "out", RunSettings(limit=6))
    assert len(server.requests) == 6, "the items of a smaller limit are not asked again"
    for settings in (RunSettings(mode="silence"), RunSettings(sampling={"temperature": 0.0})):
        with pytest.raises(OutputError, match="made otherwise"):
            run_tasks(model_at(server), {task(): data}, tmp_path / "out", settings)


def test_a_limit_keeps_the_shares_of_the_categories(data, task):
    items = load_task(task()).items(data)
    for limit in range(1, len(items) + 1):
        chosen = choose_items(items, limit)
        assert len(chosen) == limit
        counts = collections.Counter(items[index].groups["kind"] for index in chosen)
        assert abs(counts["low"] - limit * 8 / 12) < 1
    assert choose_items(items, 100) == list(range(12))


def test_samples_are_drawn_from_seeds_of_their_own(data, task, serve, tmp_path):
    server = serve(hear)
    settings = RunSettings(num_samples=3, limit=2)
    (run,) = run_tasks(model_at(server), {task(): data}, tmp_path / "out", settings)
    assert [len(item.replies) for item in run.items] == [3, 3]
    assert len({body["seed"] for _, _, body in server.requests}) == 6


@pytest.mark.parametrize("judge", ["optional", "required"])
def test_the_judge_is_asked_once_and_its_abstentions_are_counted(
    data, task, serve, tmp_path, judge
):
    server = serve(hear)
    answers = collections.defaultdict(lambda: "yes", {"low1": "garbage", "high0": "no"})
    serve = serve(lambda body: answers[body["messages"][1]["content"].split()[1].rstrip(":")])
    settings = JudgeSettings(url=serve.url, model="judge", api_key_env=None, retries=0)
    for _ in range(2):
        (run,) = run_tasks(
            *(model_at(server), {task(judge): data}, tmp_path / "out", RunSettings()),
            judge=settings,
        )
    assert len(serve.requests) == 12
    assert serve.requests[0][2]["messages"][0] == {"role": "system", "content": "You judge."}
    judged = {item.item.id: item.scored.replies[0].judged for item in run.items}
    assert judged["low1"].score is None
    assert judged["low1"].reason == "unreadable"
    assert judged["high0"].score == 0
    assert run.judge.name == "judge"
    by_id = {item.item.id: item for item in run.items}
    assert by_id["high0"].exchanges[0][0].answer == "no"


def test_a_judge_that_contradicts_itself_is_measured(data, task, serve, tmp_path):
    server, times = serve(hear), collections.Counter()

    def say(body):
        question = body["messages"][1]["content"]
        times[question] += 1
        return "no" if "low0" in question and times[question] == 2 else "yes"

    serve = serve(say)
    settings = JudgeSettings(url=serve.url, model="judge", api_key_env=None, runs=3)
    for _ in range(2):
        (run,) = run_tasks(
            *(model_at(server), {task("required"): data}, tmp_path / "out", RunSettings()),
            judge=settings,
        )
    assert len(serve.requests) == 36, "each run asks everything, once"
    assert figures(run)["judge", ""] == 1, "the first run makes the figures"
    assert sorted(run.judge_runs.run_means) == pytest.approx([11 / 12, 1, 1])
    assert run.judge_runs.agreement == pytest.approx(11 / 12)
    assert run.judge_runs.standard_deviation == pytest.approx((1 / 3) ** 0.5 / 12)


def test_a_password_in_an_address_is_used_and_kept_nowhere(data, task, serve, tmp_path):
    servers = [serve(hear), serve(lambda body: "yes")]
    urls = [server.url.replace("://", "://me:s3cret%21@") for server in servers]
    model = EndpointModel(ChatEndpoint(url=urls[0], model="ear", api_key_env=None, retries=0))
    settings = JudgeSettings(url=urls[1], model="judge", api_key_env=None, retries=0)
    evaluation = evaluate(model, {task("required"): data}, tmp_path / "out", judge=settings)
    expected = "Basic " + base64.b64encode(b"me:s3cret!").decode()
    for server in servers:
        assert {headers["Authorization"] for _, headers, _ in server.requests} == {expected}
    assert evaluation.results.model.identity == servers[0].url
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes(), path
    servers[0].trouble = lambda number, handler: handler.reply(400, {"error": "no"}) or True
    with pytest.raises(EndpointError) as error:
        ChatEndpoint(url=urls[0], model="ear", api_key_env=None).complete([], {})
    assert "s3cret" not in str(error.value)
    with pytest.raises(ConfigError, match=r"'host/v1' must begin with http://") as bad:
        JudgeSettings(url="me:s3cret@host/v1", model="judge")
    assert "s3cret" not in str(bad.value)
    with pytest.raises(ConfigError, match="leave out the user"):
        ChatEndpoint(url=urls[0], model="ear", api_key_env="KEY").complete([], {})


def test_too_many_abstentions_stop_the_run_and_keep_what_is_done(data, task, serve, tmp_path):
    server, said = serve(hear), {"text": "no idea"}
    serve = serve(lambda body: "yes" if "low0" in str(body) else said["text"])
    settings = JudgeSettings(url=serve.url, model="judge", api_key_env=None, retries=0)

    def run():
        return run_tasks(
            *(model_at(server), {task("required"): data}, tmp_path / "out", RunSettings()),
            judge=settings,
        )

    with pytest.raises(JudgeError, match="no verdict on 11 of 12 replies"):
        run()
    asked, judged = len(server.requests), len(serve.requests)
    said["text"] = "no"
    (outcome,) = run()
    assert len(server.requests) == asked, "the model is not asked again"
    assert len(serve.requests) == judged + 11, "verdicts are kept, abstentions are not"
    assert figures(outcome)["judge", ""] == pytest.approx(1 / 12)


def test_a_judge_that_cannot_be_reached_ends_the_run(data, task, serve, tmp_path):
    gone = serve(hear)
    gone.close()
    settings = JudgeSettings(url=gone.url, model="judge", api_key_env=None, retries=0)
    with pytest.raises(JudgeError, match="has no answer to any question"):
        run_tasks(
            *(model_at(serve(hear)), {task("required"): data}, tmp_path / "o", RunSettings()),
            judge=settings,
        )


def test_a_task_that_needs_a_judge_is_refused_before_anything_is_asked(data, task, serve, tmp_path):
    server = serve(hear)
    with pytest.raises(ConfigError, match="the task pitch is scored by a judge: give --judge-url"):
        run_tasks(model_at(server), {task("required"): data}, tmp_path / "out", RunSettings())
    assert not server.requests


def test_a_model_in_this_process_answers_as_it_would_anywhere(data, task, tmp_path):
    tokenizer = tokenizer_with_think_end(tmp_path / "tokenizer")
    model = LoadedModelUnderTest(
        replying(tokenizer, "Hm", "low"), slots=4, identity=ModelIdentity("constant", "folder", "1")
    )
    (data / "high2.wav").write_bytes(b"RIFF")
    settings = RunSettings(sampling={"max_new_tokens": 24})
    (run,) = run_tasks(model, {task(): data}, tmp_path / "out", settings)
    assert {item.replies[0].reply for item in run.items if item.replies} == {"low"}
    assert list(run.errors) == ["high2"]
    assert figures(run)["strict", "kind=low"] == 1
    assert figures(run)["strict", "kind=high"] == 0


def test_clips_without_transcripts_cannot_be_replaced(data, task, serve, tmp_path):
    path = data / "low.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("a low tone", ""), encoding="utf-8")
    with pytest.raises(DataError, match=r"low\.jsonl:1: the clip .*low0\.wav has no transcript"):
        run_tasks(
            model_at(serve(hear)), {task(): data}, tmp_path / "o", RunSettings(mode="transcripts")
        )
    given = {record.id: ["a low tone"] for record in read_records(path)}
    settings = RunSettings(mode="transcripts", transcripts=given)
    (run,) = run_tasks(model_at(serve(hear)), {task(): data}, tmp_path / "o", settings)
    assert figures(run)["strict", ""] == 1


def test_items_of_the_same_id_are_an_error(data, task, serve, tmp_path):
    path = data / "high.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("high1", "low1"), encoding="utf-8")
    with pytest.raises(DataError, match=r"the id 'low1' is that of .*high\.jsonl:2 too"):
        run_tasks(model_at(serve(hear)), {task(): data}, tmp_path / "o", RunSettings())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", ("", "B", True)),
        ("<think>\nwell\n</think>\nB", ("well", "B", True)),
        ("well\n</think>\n\nB\n", ("well", "B", True)),
        ("<think>\nwell", ("well", "", False)),
        ("a</think>b<think>c", ("c", "", False)),
        ("", ("", "", True)),
    ],
)
def test_reasoning_within_the_text_of_a_server_is_split_off(text, expected):
    assert split_reasoning(text) == expected


def test_a_file_defines_one_task(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        load_task(str(tmp_path / "none.py"))
    path = tmp_path / "empty.py"
    path.write_text("from stepaudio_jax.evaluation.task import Task\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="defines 0 tasks"):
        load_task(str(path))
    with pytest.raises(ConfigError, match="did you mean 'mmau_mini'"):
        load_task("mmau_mino")
