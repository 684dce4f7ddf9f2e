"""A corpus of tones and an uninterrupted training run on it, with which other runs are compared."""

import pytest

from tests.data.url_fixtures import web  # noqa: F401  used by name
from tests.end_to_end.runs import arguments, run
from tests.end_to_end.tones import write_config, write_corpus
from tests.storage.bucket_fixtures import gcs, no_waiting, s3  # noqa: F401  used by name


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    write_corpus(folder / "data")
    write_config(folder / "config.py", folder / "data")
    return folder


@pytest.fixture(scope="session")
def uninterrupted(folder):
    ended = run("-m", "launch.train", *arguments(folder, "uninterrupted"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{folder / 'uninterrupted' / 'model'}\n"
    assert "error" not in ended.stderr.lower()
    assert "warning" not in ended.stderr.lower()
    return folder / "uninterrupted"
