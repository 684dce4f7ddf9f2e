"""Users' mistakes become one line on standard error and exit code 2; anything else keeps its traceback."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from stepaudio_jax.audio import AudioError
from stepaudio_jax.config import ConfigError
from stepaudio_jax.corpus import CorpusError
from stepaudio_jax.data import DataError
from stepaudio_jax.evaluation import ReportError
from stepaudio_jax.generation import GenerationError
from stepaudio_jax.hub import CheckpointError
from stepaudio_jax.text import TextError

USER_ERRORS = (
    *(AudioError, ConfigError, CorpusError, DataError, CheckpointError, GenerationError, ReportError, TextError),
    OSError,  # it names the file that the system refused, and why: a full disk, a folder that may not be written
)
INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a user's mistake into one line `error: ...` and exit code 2, and Ctrl-C into exit code 130 without a word."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's chatter
    try:
        yield
    except USER_ERRORS as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
