"""Files that grow in buckets: their parts, what a kill leaves of them, and two writers of one."""

import pytest

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage import (
    JsonLinesFile,
    StepLog,
    appended_exists,
    read_appended,
    read_json_lines,
    read_step_lines,
    to_path,
)
from stepaudio_jax.storage.parts import PartsWriter


def names(path):
    return [entry.name for entry in to_path(f"{path}.parts").iterdir()]


def test_appends_are_read_in_order(bucket, monkeypatch):
    monkeypatch.setattr("stepaudio_jax.storage.parts._MERGED_PARTS", 5)
    path = f"{bucket}/run/metrics.jsonl"
    assert not appended_exists(path)
    writer = PartsWriter(path)
    for number in range(13):
        writer.append(f"{number}\n".encode())
    assert read_appended(path) == b"".join(f"{number}\n".encode() for number in range(13))
    assert names(path) == [
        "00000001-00000005",
        "00000006-00000010",
        *(f"{number:08d}-{number:08d}" for number in range(11, 14)),
    ]
    PartsWriter(path).append(b"13\n")
    assert read_appended(path).endswith(b"12\n13\n")


def test_merged_parts_are_merged_again(gcs, monkeypatch):
    monkeypatch.setattr("stepaudio_jax.storage.parts._MERGED_PARTS", 3)
    writer = PartsWriter("gs://bucket/x")
    for number in range(13):
        writer.append(bytes([number]))
    assert names("gs://bucket/x") == [
        "00000001-00000009",
        "00000010-00000012",
        "00000013-00000013",
    ]
    assert read_appended("gs://bucket/x") == bytes(range(13))


def test_a_kill_between_merging_and_removing_repeats_no_line(gcs, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr("stepaudio_jax.storage.parts._MERGED_PARTS", 3)
        context.setattr(PartsWriter, "_remove", lambda self, part: None)
        writer = PartsWriter("gs://bucket/x")
        for number in range(5):
            writer.append(bytes([number]))
    assert len(names("gs://bucket/x")) == 6
    assert read_appended("gs://bucket/x") == bytes(range(5))
    again = PartsWriter("gs://bucket/x")
    again.append(b"\5")
    assert read_appended("gs://bucket/x") == bytes(range(6))
    again.replace(b"new")
    assert names("gs://bucket/x") == ["00000000-00000007"]
    assert read_appended("gs://bucket/x") == b"new"


def test_the_second_of_two_writers_is_refused(bucket):
    first, second = PartsWriter(f"{bucket}/x"), PartsWriter(f"{bucket}/x")
    first.append(b"a")
    with pytest.raises(LockHeldError, match="another job is writing it"):
        second.append(b"b")
    assert read_appended(f"{bucket}/x") == b"a"


def test_step_log(bucket):
    path = f"{bucket}/run/metrics.jsonl"
    log = StepLog(path, "sft", 0)
    for step in range(1, 6):
        log.append(step, {"loss": step / 2})
    assert log.find(3) == {"stage": "sft", "step": 3, "loss": 1.5}
    resumed = StepLog(path, "sft", 3)
    assert [line["step"] for line in read_step_lines(path)] == [1, 2, 3]
    resumed.append(4, {"loss": 0.0})
    assert [line["loss"] for line in read_step_lines(path)] == [0.5, 1.0, 1.5, 0.0]
    other = StepLog(path, "dpo", 0)
    other.append(1, {"loss": 9.0})
    assert [line["stage"] for line in read_step_lines(path)] == ["sft"] * 4 + ["dpo"]
    assert len(names(path)) == 2


def test_a_run_folder_that_moved_is_read_and_continued(gcs, tmp_path):
    local = StepLog(tmp_path / "metrics.jsonl", "sft", 0)
    local.append(1, {"loss": 1.0})
    local.append(2, {"loss": 2.0})
    gcs.put("bucket", "run/metrics.jsonl", (tmp_path / "metrics.jsonl").read_bytes())
    log = StepLog("gs://bucket/run/metrics.jsonl", "sft", 1)
    log.append(2, {"loss": 3.0})
    assert [line["loss"] for line in read_step_lines("gs://bucket/run/metrics.jsonl")] == [1.0, 3.0]

    for name, stored in gcs.buckets["bucket"].items():
        target = tmp_path / "back" / name.removeprefix("run/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(stored.content)
    back = tmp_path / "back" / "metrics.jsonl"
    assert [line["loss"] for line in read_step_lines(back)] == [1.0, 3.0]
    StepLog(back, "sft", 2).append(3, {"loss": 4.0})
    assert [line["loss"] for line in read_step_lines(back)] == [1.0, 3.0, 4.0]


def test_json_lines_are_sent_when_the_file_is_closed(bucket):
    path = f"{bucket}/out.partial"
    file = JsonLinesFile(path, lock=True)
    assert file.lines == []
    with pytest.raises(LockHeldError):
        JsonLinesFile(path, lock=True)
    for number in range(3):
        file.append({"index": number})
    file.close()
    file.close()
    again = JsonLinesFile(path, lock=True)
    assert [line.value for line in again.lines] == [{"index": n} for n in range(3)]
    assert [line.value for line in read_json_lines(path)] == [{"index": n} for n in range(3)]
    again.append({"index": 3})
    again.remove()
    assert not appended_exists(path)
    assert not to_path(f"{path}.lock").exists()


def test_json_lines_are_sent_by_and_by(gcs, monkeypatch):
    monkeypatch.setattr("stepaudio_jax.storage.jsonl._SEND_EVERY_SECONDS", 0.05)
    file = JsonLinesFile("gs://bucket/cache.jsonl")
    file.append({"a": 1})
    for _ in range(100):
        if appended_exists("gs://bucket/cache.jsonl"):
            break
        file._appender._thread.join(0.05)
    assert read_appended("gs://bucket/cache.jsonl") == b'{"a": 1}\n'
    gcs.forbidden.add("bucket")
    file.append({"a": 2})
    file._appender._thread.join(5)
    for _ in range(2):
        with pytest.raises(OSError, match="access is refused"):
            file.append({"a": 3})
    file.close()
    gcs.forbidden.clear()
    again = JsonLinesFile("gs://bucket/cache.jsonl")
    again.append({"a": 4})
    gcs.forbidden.add("bucket")
    with pytest.raises(OSError, match="access is refused"):
        again.close()


def test_an_unfinished_line_of_an_uploaded_file_is_cut_off(gcs):
    gcs.put("bucket", "a.jsonl", b'{"a": 1}\n{"a": 2')
    file = JsonLinesFile("gs://bucket/a.jsonl")
    assert [line.value for line in file.lines] == [{"a": 1}]
    assert file.unfinished == b'{"a": 2'
    file.append({"a": 3})
    file.close()
    assert [line.value for line in read_json_lines("gs://bucket/a.jsonl")] == [{"a": 1}, {"a": 3}]


def test_two_jobs_share_a_file_that_is_not_locked(gcs):
    first, second = JsonLinesFile("gs://bucket/cache"), JsonLinesFile("gs://bucket/cache")
    first.append({"a": 1})
    second.append({"b": 1})
    first.close()
    second.close()
    assert [line.value for line in read_json_lines("gs://bucket/cache")] == [{"a": 1}, {"b": 1}]
