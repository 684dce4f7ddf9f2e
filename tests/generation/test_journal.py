"""The journal of an unfinished job: what is gone on with, and what is refused in one line."""

import json
import os
import subprocess
import sys

import pytest

from stepaudio_jax.errors import DataError, OutputError
from stepaudio_jax.generation.journal import Journal, check_output_paths

JOB = {"program": "generate", "input": "0", "settings": {"é": 1}}
COUNT = 3
HOLD = """
import sys
from stepaudio_jax.storage import lock_file
held = lock_file(sys.argv[1])
print(flush=True)
sys.stdin.read()
"""
LINES = [{"id": "a", "reply": "é\u2028"}, {"id": "b", "error": "d.jsonl:2: no"}]


@pytest.fixture
def output(tmp_path):
    """An output of which two lines are written."""
    journal = Journal(tmp_path / "out.jsonl", JOB, COUNT)
    for index, line in enumerate(LINES):
        journal.write(index, line)
    journal.close()
    return tmp_path / "out.jsonl"


def partial(output):
    return output.with_name("out.jsonl.partial")


def test_a_journal_continues_and_becomes_the_output(output):
    journal = Journal(output, JOB, COUNT)
    assert len(journal) == 2
    assert journal.errors() == ["d.jsonl:2: no"]
    journal.write(2, {"id": "c"})
    journal.finish()
    assert [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]] == [
        *LINES,
        {"id": "c"},
    ]
    assert os.listdir(output.parent) == ["out.jsonl"]


@pytest.mark.parametrize("left", [1, 20])
def test_a_line_that_was_being_written_is_made_again(output, left):
    whole = partial(output).read_bytes()
    partial(output).write_bytes(whole[:-left])
    journal = Journal(output, JOB, COUNT)
    assert len(journal) == 1
    journal.close()
    partial(output).write_bytes(whole[:left])  # killed while it wrote its first line
    journal = Journal(output, JOB, COUNT)
    assert len(journal) == 0
    journal.write(0, LINES[0])
    journal.close()
    assert len(Journal(output, JOB, COUNT)) == 1


DAMAGED = {
    "garbage": b"garbage\n",
    "binary": b"\xff\xfe\x00\x80\n",
    "zeros": bytes(40) + b"\n",
    "blank": b"\n",
    "a list": b"[1, 2]\n",
    "no index": b'{"line": {}}\n',
    "no line": b'{"index": 1}\n',
    "an index that is none": b'{"index": "1", "line": {}}\n',
    "an index beyond the input": b'{"index": 3, "line": {}}\n',
    "a negative index": b'{"index": -1, "line": {}}\n',
    "a line that is none": b'{"index": 1, "line": 1}\n',
    "an error that is none": b'{"index": 1, "line": {"error": 1}}\n',
    "digits": b"1" * 5000 + b"\n",
    "nesting": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_named_and_nothing_is_touched(output, kind):
    first, second, third = partial(output).read_bytes().splitlines(keepends=True)
    content = first + second + DAMAGED[kind] + third
    partial(output).write_bytes(content)
    with pytest.raises(
        DataError, match=r"out\.jsonl\.partial:3: is damaged; delete that line, and"
    ) as raised:
        Journal(output, JOB, COUNT)
    assert len(str(raised.value).splitlines()) == 1
    assert partial(output).read_bytes() == content
    partial(output).write_bytes(first + second + third)
    assert len(Journal(output, JOB, COUNT)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"program": "score"}\n',
            "is of another job .*; delete it to start anew, or write to another file",
        ),
        (b"garbage\n", "does not say which job it is of"),
        (b"someone's half download", "does not say which job it is of"),
        (bytes(100), "does not say which job it is of"),
        (b'"text"\n', "does not say which job it is of"),
    ],
)
def test_files_other_than_this_jobs_journal_stay_as_they_are(output, content, message):
    partial(output).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Journal(output, JOB, COUNT)
    assert partial(output).read_bytes() == content


def test_a_second_job_with_the_same_output_is_refused(output):
    journal = Journal(output, JOB, COUNT)
    with pytest.raises(
        OutputError, match="another job is writing it; wait for that job or stop it"
    ):
        Journal(output, JOB, COUNT)
    journal.close()
    command = [sys.executable, "-c", HOLD, partial(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(OutputError, match="another job is writing it"):
            Journal(output, JOB, COUNT)
        other.kill()
    Journal(output, JOB, COUNT).close()


def test_an_input_that_is_the_output_or_its_journal_is_refused(tmp_path):
    given = tmp_path / "a.jsonl.partial"
    given.write_text("{}\n")
    for output, message in (
        ("a.jsonl.partial", "is the input"),
        ("a.jsonl", "unfinished lines would go to .*, which is the input"),
    ):
        with pytest.raises(OutputError, match=message):
            check_output_paths(tmp_path / output, given)
    (tmp_path / "b.jsonl.partial").mkdir()
    with pytest.raises(OutputError, match=r"b\.jsonl\.partial' is a folder"):
        check_output_paths(tmp_path / "b.jsonl", given)
