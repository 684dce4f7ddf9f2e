"""The small base model: a corpus of synthesised speech, a tokenizer learnt from it, training, and a folder to ship."""

import itertools
import pathlib
from collections.abc import Iterator

from stepaudio_jax.config import Config
from stepaudio_jax.corpus import write_corpus
from stepaudio_jax.data import read_jsonl
from stepaudio_jax.evaluation import (
    Results,
    answer_questions,
    as_markdown,
    as_text,
    read_questions,
    score,
)
from stepaudio_jax.generation import load_model
from stepaudio_jax.quickstart.card import model_card
from stepaudio_jax.quickstart.shipping import check_replaceable_model, publish_model
from stepaudio_jax.text import Tokenizer, render_training, training_views
from stepaudio_jax.training import train

NUM_MERGES = 734  # with the bytes and the special tokens, 1024: nearly every word is a token
_TOKENIZER_RECORDS = 5000  # of each file
# What the base has been asked about in training; the tasks that need reasoning over it are the
# quickstart's.
BASE_TASKS = ("gender", "rate", "pitch", "language")


def make_tiny_base(config: Config, corpus: pathlib.Path, output: pathlib.Path) -> str:
    """Makes the base model, or goes on where an interrupted run was; returns its table as text.

    Args:
        config: of the training run; `config.tokenizer` is the folder that the learnt tokenizer is
        written to.
        corpus: where the corpus is, or is to be made.
        output: the Step-Audio folder to write, weights in bfloat16; a model that is there is
            replaced, and nothing else.
    """
    check_replaceable_model(output, (str(corpus), config.initial.model, config.tokenizer))
    if not corpus.exists():
        write_corpus(corpus, "base")
    tokenizer = pathlib.Path(config.tokenizer)
    if not tokenizer.exists():
        Tokenizer.train(_tokenizer_texts(corpus), NUM_MERGES).save(tokenizer)
    trained = train(config)
    with publish_model(trained, output) as fresh:
        model = load_model(fresh)  # what is shipped is what is measured
        questions = read_questions(corpus / "evaluation" / f"{task}.jsonl" for task in BASE_TASKS)
        results = Results(
            after=score(answer_questions(model, questions)),
            silenced=score(answer_questions(model, questions, silenced=True)),
        )
        (fresh / "README.md").write_text(
            model_card(corpus, pathlib.Path(config.run_dir), model.config, as_markdown(results)),
            encoding="utf-8",
        )
    return as_text(results)


def _tokenizer_texts(corpus: pathlib.Path) -> Iterator[str]:
    """What the model will read and write, in the pieces in which it is tokenised."""
    spell = Tokenizer.byte_level()
    for file in sorted((corpus / "train").glob("*.jsonl")):
        for record in itertools.islice(read_jsonl(file), _TOKENIZER_RECORDS):
            for view in training_views(record.messages, history_reasoning=True):
                for segment in render_training(view, spell, history_reasoning=True):
                    yield spell.decode(
                        token for token in segment.tokens if not spell.is_special(token)
                    )
