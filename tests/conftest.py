"""Fixtures shared by all tests."""

import os
import pathlib
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

from tests import shape_checks

shape_checks.install()  # before anything imports the package

_CACHE = "JAX_COMPILATION_CACHE_DIR"
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def _shared_folder(name: str) -> pathlib.Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder {name!r} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_audio() -> pathlib.Path:
    """Returns the folder with eight real clips."""
    return _shared_folder("audio")


@pytest.fixture(scope="session")
def shared_tokenizer() -> pathlib.Path:
    """Returns the folder with the real Qwen2 `vocab.json` and `merges.txt`."""
    return _shared_folder("tokenizer")


@pytest.fixture(scope="session")
def shared_benchmarks() -> pathlib.Path:
    """Returns the folder of benchmark outputs, judged by official scorers and by a human."""
    return _shared_folder("benchmarks")


@pytest.fixture(scope="session")
def formats() -> pathlib.Path:
    """Returns the folder with a sample of every format of data."""
    return pathlib.Path(__file__).parent / "data" / "formats"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag that writes the golden files of tests/config anew."""
    parser.addoption("--update-golden", action="store_true", help="write tests/config/golden anew")


def pytest_configure(config: pytest.Config) -> None:
    """Sets a compilation cache and signals, which workers and subprocesses inherit."""
    if _CACHE not in os.environ:  # a program is compiled once for all processes
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="jax_programs_")
        config.add_cleanup(lambda: shutil.rmtree(os.environ[_CACHE], ignore_errors=True))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # A shell that starts the tests in the background makes them and what they start ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts files marked `first` before others, so that no worker ends with a long one alone."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
