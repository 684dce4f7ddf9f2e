"""Users' mistakes become one line on standard error and exit code 2; anything else keeps its traceback."""

import contextlib
import sys
from collections.abc import Iterator

from stepaudio_jax.audio import AudioError
from stepaudio_jax.config import ConfigError
from stepaudio_jax.corpus import CorpusError
from stepaudio_jax.data import DataError
from stepaudio_jax.generation.engine import GenerationError
from stepaudio_jax.hub import CheckpointError
from stepaudio_jax.text import TextError

USER_ERRORS = (AudioError, ConfigError, CorpusError, DataError, CheckpointError, GenerationError, TextError)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a user's mistake into `error: ...` and exit code 2."""
    try:
        yield
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
