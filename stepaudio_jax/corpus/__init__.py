"""A synthetic spoken corpus: real speech from espeak-ng, with labels that are known or measured. No download, no weights."""

from stepaudio_jax.corpus.error import CorpusError
from stepaudio_jax.corpus.espeak import EspeakError
from stepaudio_jax.corpus.phrases import vocabulary
from stepaudio_jax.corpus.recording import ATTRIBUTES
from stepaudio_jax.corpus.tasks import TASKS, Task
from stepaudio_jax.corpus.writing import DEFAULT_CLIPS, Recipe, write_corpus

__all__ = [
    "ATTRIBUTES",
    "DEFAULT_CLIPS",
    "TASKS",
    "CorpusError",
    "EspeakError",
    "Recipe",
    "Task",
    "vocabulary",
    "write_corpus",
]
