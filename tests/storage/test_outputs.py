"""Outputs: what they may not replace, whatever they are called."""

import os
import pathlib

import pytest

from stepaudio_jax.errors import OutputError
from stepaudio_jax.storage import (
    atomic_directory,
    atomic_text_writer,
    check_output_directory,
    check_output_file,
)
from stepaudio_jax.storage.outputs import has_job_mark, is_finished_output_of, set_job_mark


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with an input of several names, from within which paths are given."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("questions.jsonl").write_text("{}\n")
    pathlib.Path("folder").mkdir()
    pathlib.Path("link.jsonl").symlink_to("questions.jsonl")
    pathlib.Path("link_to_link.jsonl").symlink_to("link.jsonl")
    pathlib.Path("same_folder").symlink_to(".")
    os.link("questions.jsonl", "hard.jsonl")
    return tmp_path


SPELLINGS = [
    "questions.jsonl",
    "./questions.jsonl",
    "folder/../questions.jsonl",
    "same_folder/questions.jsonl",
    "link.jsonl",
    "link_to_link.jsonl",
    "hard.jsonl",
    "{work}/questions.jsonl",
]


@pytest.mark.parametrize("given", SPELLINGS[:1] + SPELLINGS[4:5])
@pytest.mark.parametrize("output", SPELLINGS)
def test_an_output_that_is_the_input_is_refused_by_any_name(work, output, given):
    output = output.format(work=work)
    with pytest.raises(OutputError, match=r"is the input.*name another file") as raised:
        check_output_file(output, ["nowhere.jsonl", given], may_replace=lambda path: True)
    assert repr(output) in str(raised.value)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder", "--output='folder' is a folder"),
        ("new/", "--output='new/' names no file"),
        ("", "names no file"),
        ("/dev/null", "is not a regular file"),
        ("questions.jsonl/new", "a part of it before its last one is a file"),
        (
            "hard.jsonl",
            "exists already, and would be replaced: name another file, or remove it first",
        ),
        ("x" * 300, r"cannot be looked at \(File name too long\)"),
        ("a\0b", "cannot be looked at"),
    ],
)
def test_an_output_that_cannot_be_made_is_refused(work, output, message):
    with pytest.raises(OutputError, match=message) as raised:
        check_output_file(output)
    assert len(str(raised.value)) < 400


def test_a_data_uri_is_not_printed_at_length(work):
    with pytest.raises(OutputError) as raised:
        check_output_file("data:audio/wav;base64," + "A" * 300_000)
    assert len(str(raised.value)) < 400


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(work):
    pathlib.Path("folder").chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output_file("folder/new.jsonl")


def test_an_output_that_may_be_made_is_not_touched(work):
    before = sorted(work.rglob("*"))
    check_output_file("new.jsonl", ["questions.jsonl"])
    check_output_file("new/deep/new.jsonl", ["questions.jsonl"])
    check_output_file("hard.jsonl", may_replace=lambda path: path.read_text() == "{}\n")
    assert sorted(work.rglob("*")) == before


def test_a_file_appears_when_it_is_complete_and_behind_a_link(work):
    pathlib.Path("out.jsonl").symlink_to("folder/real.jsonl")
    with atomic_text_writer("out.jsonl") as file:
        file.write("é\n")
        assert not pathlib.Path("folder/real.jsonl").exists()
    assert pathlib.Path("out.jsonl").is_symlink()
    assert pathlib.Path("folder/real.jsonl").read_text(encoding="utf-8") == "é\n"
    with pytest.raises(KeyError), atomic_text_writer("new/deep/out.jsonl"):
        raise KeyError
    assert not pathlib.Path("new").exists()


def test_a_folder_appears_when_it_is_complete_and_behind_a_link(work):
    pathlib.Path("out").symlink_to("folder")
    check_output_directory("out")
    with atomic_directory("out") as folder:
        (folder / "a").write_text("a")
        assert not pathlib.Path("folder/a").exists()
    assert pathlib.Path("out").is_symlink()
    assert pathlib.Path("folder/a").exists()
    for output in ("out", "questions.jsonl"):
        with pytest.raises(OutputError, match=f"{output} already exists"):
            check_output_directory(output)
    with pytest.raises(OutputError, match=r"questions.jsonl' is a file"):
        check_output_directory("questions.jsonl/new")


def test_a_finished_output_is_known_by_its_job_and_its_content(work):
    job = {"input": "1", "settings": {"seed": 1}}
    output = pathlib.Path("out.jsonl")
    assert not is_finished_output_of(output, job)
    output.write_text("a\n")
    assert not has_job_mark(output)
    set_job_mark(output, job)
    if not has_job_mark(output):
        pytest.skip("this file system keeps no marks")
    assert is_finished_output_of(output, dict(reversed(job.items())))
    with pytest.raises(OutputError, match="is not what this job makes"):
        is_finished_output_of(output, {**job, "input": "2"})
    with output.open("a") as file:
        file.write("b\n")
    with pytest.raises(OutputError, match="is not what this job makes"):
        is_finished_output_of(output, job)
