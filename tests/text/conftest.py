import pytest

from stepaudio_jax.text import Tokenizer


@pytest.fixture(scope="session")
def qwen2(shared_tokenizer) -> Tokenizer:
    """The real vocabulary with Step-Audio's special tokens."""
    return Tokenizer.from_folder(shared_tokenizer)


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer.byte_level()
