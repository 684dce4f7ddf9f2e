"""Fixtures shared by all tests."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
