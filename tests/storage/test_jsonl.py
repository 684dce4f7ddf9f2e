import logging

import pytest

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage import (
    JsonLinesFile,
    StepLog,
    format_json_line,
    read_json_lines,
    read_step_lines,
)


def test_unfinished_last_line_is_cut_off_when_appending(tmp_path):
    """A kill during a write leaves half a line; the file is not touched before the next write."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    file = JsonLinesFile(path)
    assert [line.value for line in file.lines] == [{"a": 1}]
    assert file.unfinished == b'{"a": 2'
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2'
    file.append({"a": 3})
    file.append({"b": "ä"})
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"a": 3}\n{"b": "ä"}\n'
    file.close()
    assert [line.value for line in read_json_lines(path)] == [{"a": 1}, {"a": 3}, {"b": "ä"}]


def test_damaged_line_has_no_value_but_a_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nnonsense\n\n{"a": 2}\n')
    assert [(line.number, line.value) for line in read_json_lines(path)] == [
        (1, {"a": 1}),
        (2, None),
        (3, None),
        (4, {"a": 2}),
    ]


def test_locked_file_cannot_be_opened_again(tmp_path):
    path = tmp_path / "a.jsonl"
    file = JsonLinesFile(path, lock=True)
    file.append({"a": 1})
    with pytest.raises(LockHeldError):
        JsonLinesFile(path, lock=True)
    file.close()
    again = JsonLinesFile(path, lock=True)
    assert [line.value for line in again.lines] == [{"a": 1}]
    again.close()


def test_half_a_surrogate_pair_is_escaped():
    assert format_json_line({"text": "\ud800ä"}) == '{"text": "\\ud800\\u00e4"}\n'


def test_step_log_drops_lines_after_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = StepLog(path, "sft", 0)
    assert log.find(1) is None
    log.append(1, {"loss": 2.0})
    log.append(2, {"loss": 1.0}, {"held_out": 3.0})
    assert log.find(2, "held_out") == {"stage": "sft", "step": 2, "held_out": 3.0}
    StepLog(path, "rl", 0).append(1, {"reward": 0.5})
    StepLog(path, "sft", 1)
    assert read_step_lines(path) == [
        {"stage": "sft", "step": 1, "loss": 2.0},
        {"stage": "rl", "step": 1, "reward": 0.5},
    ]


@pytest.mark.parametrize(
    ("last", "steps", "warnings"),
    [
        ('{"stage": "sft", "step": 2', [1], 0),
        ('{"stage": "sft", "step": 2}', [1, 2], 0),
        ('{"step": 2}\n', [1], 1),
        ("nonsense\n", [1], 1),
    ],
)
def test_step_log_without_its_last_line_end(tmp_path, caplog, last, steps, warnings):
    """A last line without its end counts if it is JSON; damaged lines are reported."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "sft", "step": 1}\n' + last)
    with caplog.at_level(logging.WARNING):
        assert [line["step"] for line in read_step_lines(path)] == steps
    assert len(caplog.records) == warnings
