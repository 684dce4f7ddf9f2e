"""Fixtures shared by all tests."""

import os
import pathlib
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A program is compiled once for the whole session: its workers, and the processes that tests start, find it here.
_CACHE = "" if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="jax_programs_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def _shared_folder(name: str) -> pathlib.Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder {name!r} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_audio() -> pathlib.Path:
    """The folder with eight real clips."""
    return _shared_folder("audio")


@pytest.fixture(scope="session")
def shared_tokenizer() -> pathlib.Path:
    """The folder with the real Qwen2 `vocab.json` and `merges.txt`."""
    return _shared_folder("tokenizer")


def pytest_unconfigure() -> None:
    """Removes the compiled programs, in the process that made their folder."""
    if _CACHE:
        shutil.rmtree(_CACHE, ignore_errors=True)
