"""A synthetic corpus of spoken dialogues: espeak-ng's speech with known or measured labels."""

from examples.spoken_corpus.corpus import DEFAULT_CLIPS, Recipe, ensure_corpus, write_corpus
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
    "ensure_corpus",
    "vocabulary",
    "write_corpus",
]
