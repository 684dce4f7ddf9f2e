"""Results on disk: read as they were written, and refused in one line where they are not."""

import json

import pytest

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.results import make_samples, metric_scalars, scored_items
from stepaudio_jax.evaluation.results_files import (
    RESULTS,
    SAMPLES,
    read_results,
    read_samples,
    write_results,
    write_tensorboard,
)
from stepaudio_jax.evaluation.statistics import repeated_runs
from stepaudio_jax.evaluation.task import ScoredItem
from stepaudio_jax.storage import to_path
from tests.evaluation.benchmarks import (
    CORRECT,
    UNPARSED,
    WRONG,
    Judging,
    Tones,
    benchmark_results,
    item,
    judged,
    model,
    renamed,
    task_results,
    write_folder,
    write_tone,
)
from tests.storage.bucket_fixtures import gcs  # noqa: F401  used by name

OUTCOMES = [CORRECT, WRONG, UNPARSED, (CORRECT, WRONG), "the clip is missing: /data/5.wav"]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "results", OUTCOMES, clips=[write_tone(tmp_path / "a.wav")])


def change_json(path, change):
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def test_results_are_read_as_they_were_written(tmp_path):
    question = item(0, None, task="judging", axis="memory")
    reply = judged(0.5, "", met=[True, False], note="\ud83d half", nested={"a": [1, None]})
    scored_item = ScoredItem(question.id, question.groups, question.cluster, (reply,))
    task = task_results(
        Judging, [scored_item], judge=model("judge"), judge_runs=repeated_runs([[1, 0], [1, 1]])
    )
    from stepaudio_jax.evaluation.results import JudgeExchange, Reply

    replies = [Reply("text \u2028 <b>", "why", None, (JudgeExchange("q", None, "system"),))]
    samples = make_samples(Judging(), question, scored_item, replies)
    written = write_results(tmp_path, benchmark_results(task), samples)
    assert read_results(tmp_path) == written
    assert read_results(tmp_path / RESULTS) == written
    assert read_samples(tmp_path) == samples
    assert samples[0].headline == (0.0, 1.0)


def test_samples_hold_items_replies_and_errors(folder, tmp_path):
    samples = read_samples(folder)
    assert [(s.id, s.sample, bool(s.error)) for s in samples] == [
        *(("item-0", 0, False), ("item-1", 0, False), ("item-2", 0, False)),
        *(("item-3", 0, False), ("item-3", 1, False), ("item-4", 0, True)),
    ]
    assert samples[0].messages[0]["content"][0] == {
        "type": "audio",
        "audio": str(tmp_path / "a.wav"),
        "transcript": "beep, boop",
    }
    assert samples[0].headline == samples[3].headline == (1, 1)
    assert samples[5].headline == (0, 1)
    assert samples[5].error == "the clip is missing: /data/5.wav"
    items = scored_items(samples)["tones"]
    assert [len(i.replies) for i in items] == [1, 1, 1, 2, 0]
    results = read_results(folder)
    assert Tones().metrics(items) == list(results.task("tones").metrics)
    assert results.task("tones").headline_metric.denominator == 5
    assert results.task("other") is None


def test_nothing_but_the_two_files_is_left(folder):
    assert sorted(path.name for path in folder.iterdir()) == [RESULTS, SAMPLES]


def test_values_that_are_not_json_are_refused_and_nothing_is_replaced(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    samples = read_samples(folder)
    for bad in (float("nan"), float("inf"), {1, 2}):
        with pytest.raises(DataError, match=r"task tones, item 'item-0'.*written as JSON"):
            write_results(folder, read_results(folder), renamed(samples, data={"x": bad}))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda v: v.update(format=2), r"format=2 is not 1: a newer stepaudio_jax wrote it"),
        (lambda v: v.update(format="1"), r'format="1" is not 1$'),
        (lambda v: v.update(kind="lm-eval"), "does not hold results of benchmarks"),
        (lambda v: v.pop("kind"), "does not hold results of benchmarks"),
        (lambda v: v.pop("model"), "results needs a value for: model"),
        (lambda v: v["tasks"][0].update(items="5"), r"results\.tasks\.0\.items='5' is not of type"),
        (lambda v: v["tasks"][0].update(itmes=5), r"unknown key results\.tasks\.0\.itmes; did you"),
        (lambda v: v.update(mode="loud"), r"results\.mode='loud' is not one of"),
        (lambda v: v["tasks"].append(v["tasks"][0]), "has a task twice"),
        (lambda v: v["tasks"][0]["metrics"][0].update(value=None, interval=[0, 1]), "interval"),
    ],
)
def test_foreign_newer_and_damaged_results_are_named(folder, change, complaint):
    change_json(folder / RESULTS, change)
    with pytest.raises(DataError, match=complaint) as caught:
        read_results(folder)
    assert str(caught.value).startswith(f"{folder / RESULTS}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_results_that_are_no_object_are_named(folder, text):
    (folder / RESULTS).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=RESULTS):
        read_results(folder)


def test_missing_and_exchanged_files_are_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"gone/results\.json does not exist"):
        read_results(tmp_path / "gone")
    path = folder / SAMPLES
    content = path.read_bytes()
    for changed in (content[:-1], content + content, content.replace(b"item-1", b"item-9")):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=rf"{path} is not the file that {RESULTS}"):
            read_samples(folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} does not exist"):
        read_samples(folder)


def test_a_damaged_line_of_an_edited_file_is_named(folder):
    """Whoever edits samples and mends the hash is told the line and the key."""
    import hashlib

    path = folder / SAMPLES
    for old, new, complaint in (
        (b'"sample": 1', b'"sample": 1.5', r"samples\.jsonl:5: sample\.sample=1\.5 is not of type"),
        (b'"item-2"', b"item-2", r"samples\.jsonl:3: is not JSON"),
        (b'"outcome": "wrong"', b'"outcome": "bad"', r"samples\.jsonl:2.*sample\.scores\.strict"),
    ):
        content = path.read_bytes()
        changed = content.replace(old, new, 1)
        path.write_bytes(changed)
        digest = hashlib.sha256(changed).hexdigest()
        change_json(folder / RESULTS, lambda v, digest=digest: v.update(samples_hash=digest))
        with pytest.raises(DataError, match=complaint):
            read_samples(folder)
        path.write_bytes(content)


def test_results_lie_in_buckets_too(gcs, folder):  # noqa: F811
    results, samples = read_results(folder), read_samples(folder)
    write_results("gs://bucket/runs/a", results, samples)
    assert read_results("gs://bucket/runs/a") == results
    assert read_samples("gs://bucket/runs/a") == samples
    assert not list(to_path("gs://bucket/runs/a").glob("*.tmp*"))


def test_scalars_have_figures_intervals_and_counts(folder):
    scalars = metric_scalars(read_results(folder))
    assert scalars["tones/strict/accuracy"] == pytest.approx(1.5 / 5)
    assert scalars["tones/strict/accuracy_low"] < 0.3 < scalars["tones/strict/accuracy_high"]
    assert (scalars["tones/unparsed"], scalars["tones/dropped"], scalars["tones/failed"]) == (
        1,
        1,
        1,
    )
    assert "tones/strict/pass_at_2" in scalars


def test_tensorboard_has_the_scalars(folder, tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write_tensorboard(tmp_path / "run", read_results(folder), step=300)
    (path,) = (tmp_path / "run" / "tensorboard" / "evaluation").iterdir()
    points = {
        value.tag: (event.step, value.simple_value)
        for event in map(Event.FromString, tf_records(path.read_bytes()))
        for value in event.summary.value
    }
    assert points["tones/strict/accuracy"] == (300, pytest.approx(0.3))
    assert points.keys() == metric_scalars(read_results(folder)).keys()


def tf_records(content):
    """Yields the records of a TFRecord file: length (8 bytes), its sum (4), record, its sum (4)."""
    start = 0
    while start < len(content):
        length = int.from_bytes(content[start : start + 8], "little")
        yield content[start + 12 : start + 12 + length]
        start += length + 16
