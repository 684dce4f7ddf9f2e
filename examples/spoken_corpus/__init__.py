"""A synthetic spoken corpus: real speech from espeak-ng, with labels that are known or measured. No download, no weights."""

from examples.spoken_corpus.corpus import DEFAULT_CLIPS, Recipe, write_corpus
from examples.spoken_corpus.espeak import CorpusError
from examples.spoken_corpus.phrases import vocabulary
from examples.spoken_corpus.sessions import ATTRIBUTES
from examples.spoken_corpus.tasks import TASKS, Task

__all__ = [
    "ATTRIBUTES",
    "DEFAULT_CLIPS",
    "TASKS",
    "CorpusError",
    "Recipe",
    "Task",
    "vocabulary",
    "write_corpus",
]
