"""Errors that end a run: they say what is saved, and how to continue."""

from stepaudio_jax.errors import DataError
from stepaudio_jax.training.preemption import data_error
from tests.data.corpus import settings, text_record, write_records


def test_a_run_that_ends_at_a_record_says_what_is_saved_and_how_to_continue(tmp_path):
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 3)])
    bad = DataError("d.jsonl:4: audio a.wav: is empty", kind="bad_audio")
    ended = (
        "d.jsonl:4: audio a.wav: is empty; this ended stage 'sft', and step 12 of it is saved:"
        " once that is fixed"
    )
    fixed = "the same command continues the run"
    said = str(data_error(bad, "sft", 12, settings(path)))
    assert said == f"{ended}, or skipped by data.on_bad_audio='skip', {fixed}"
    for data in (None, settings(path, on_bad_audio="skip")):
        assert str(data_error(bad, "sft", 12, data)) == f"{ended}, {fixed}"
    said = str(data_error(OSError(5, "Input/output error", "d.jsonl"), "sft", None, settings(path)))
    assert said.endswith(
        "nothing of it is saved yet: once that is fixed, the same command continues the run"
    )
