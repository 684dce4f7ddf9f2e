"""DataChecker: what a run checks before it begins, and remembers in its folder."""

import json
import logging

import pytest

from stepaudio_jax.data import Preprocessor, Source
from stepaudio_jax.data.checking import CHECKED, SKIPPED_RECORDS, DataChecker
from stepaudio_jax.data.record import Content
from stepaudio_jax.errors import ConfigError, DataError
from tests.data.corpus import MODEL, TOKENIZER, settings, text_record, write_records


def raise_for_bad(record, *, decode):
    """Accepts every record without the word "bad"."""
    if "bad" in record.messages[0].text:
        raise DataError(f"{record.origin}: is bad")
    return Content(records=1, clips=len(record.messages[0].audio))


class Counted:
    """Counts the calls of a check."""

    def __init__(self):
        self.calls = 0

    def __call__(self, record, *, decode):
        self.calls += 1
        return raise_for_bad(record, decode=decode)


def run_check(run_dir, config, check, settings=None):
    data_check = DataChecker(run_dir, MODEL, TOKENIZER)
    sources = [Source(source) for source in config.sources]
    checked = data_check("stage 'sft'", sources, config, check, settings or {})
    run_dir.mkdir(exist_ok=True)
    data_check.write()
    return checked


@pytest.fixture
def path(tmp_path):
    records = [text_record(number, 3) for number in range(5)]
    records[3]["messages"][0]["content"] = "bad"
    return write_records(tmp_path / "d.jsonl", records)


def test_data_is_not_checked_again_until_it_changes(tmp_path, path, caplog):
    run_dir, check = tmp_path / "run", Counted()
    config = settings(path, on_bad_record="skip")
    with caplog.at_level(logging.WARNING):
        assert run_check(run_dir, config, check)
    assert (
        "1 of 5 records will be skipped (bad_record: 1);"
        f" they are listed in {run_dir / SKIPPED_RECORDS}" in caplog.text
    )
    (line,) = (json.loads(line) for line in (run_dir / SKIPPED_RECORDS).read_text().splitlines())
    assert line == {
        "checked": "stage 'sft'",
        "source": "d",
        "reason": "bad_record",
        "message": f"{path}:4: is bad",
    }
    assert not run_check(run_dir, config, check)
    assert not run_check(
        run_dir,
        settings(path, on_bad_record="skip", threads=7, workers=1, prefetch_batches=3),
        check,
    )
    kept = {"clip_cache_dir": str(tmp_path / "kept"), "clip_cache_gb": 1.0}
    assert not run_check(run_dir, settings(path, on_bad_record="skip", **kept), check)
    assert check.calls == 5
    assert run_check(run_dir, config, check, {"rewards": 1})
    assert run_check(run_dir, settings(path, on_bad_record="skip", seq_len=600), check)
    assert check.calls == 15
    path.write_text(path.read_text().replace("bad", "mended"))
    assert run_check(run_dir, settings(path, on_bad_record="skip"), check)
    assert (run_dir / SKIPPED_RECORDS).read_text() == ""


def test_data_is_checked_again_if_the_file_is_damaged(tmp_path, path):
    config = settings(path, on_bad_record="skip")
    run_check(tmp_path / "run", config, raise_for_bad)
    (tmp_path / "run" / CHECKED).write_text("{")
    assert run_check(tmp_path / "run", config, raise_for_bad)
    assert not run_check(tmp_path / "run", config, raise_for_bad)


def test_an_error_is_raised_before_anything_is_written(tmp_path, path):
    with pytest.raises(DataError, match=r"d\.jsonl:4: is bad"):
        run_check(tmp_path / "run", settings(path), raise_for_bad)
    assert not (tmp_path / "run").exists()

    def no_reward(record, *, decode):
        raise ConfigError("no reward for it")

    with pytest.raises(ConfigError, match="no reward for it"):
        run_check(tmp_path / "run", settings(path), no_reward)


def test_what_the_sources_hold_is_logged_also_where_nothing_is_checked(tmp_path, formats, caplog):
    config = settings(formats / "ms_swift" / "sft.jsonl")
    sources = [Source(source) for source in config.sources]
    check = Preprocessor(config, TOKENIZER, MODEL, None, sources, seed=0).check
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run_check(tmp_path / "run", config, check)
        assert (
            f"stage 'sft': sft ({formats}/ms_swift/sft.jsonl): 2 records, 3 clips (3.7 s of sound),"
            " 0 placeholders as text" in caplog.text
        )
