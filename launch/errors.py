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
from stepaudio_jax.parallel import ShardingError
from stepaudio_jax.rl.judge import JudgeError
from stepaudio_jax.text import TextError
from stepaudio_jax.training.stopping import DivergedError, InterruptedRunError

USER_ERRORS = (
    *(AudioError, ConfigError, CorpusError, DataError, CheckpointError, GenerationError, ReportError, ShardingError, TextError),
    OSError,  # it names the file that the system refused, and why: a full disk, a folder that may not be written
)
MISTAKE = 2
INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended
TRY_AGAIN = 75  # EX_TEMPFAIL: start the same command again
DIVERGED = 3


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns what ends a program into one line on standard error and an exit code.

    2 for a user's mistake, 75 for a run that was told to stop and has saved everything, 3 for one that diverged or whose judge
    gave too few verdicts; and 130, without a word, for Ctrl-C.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's chatter
    try:
        yield
    except USER_ERRORS as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)
        sys.exit(MISTAKE)
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        sys.exit(TRY_AGAIN)
    except (DivergedError, JudgeError) as error:
        print("error:", error, file=sys.stderr)
        sys.exit(DIVERGED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
