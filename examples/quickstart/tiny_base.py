"""Trains the small base model from nothing: `python -m examples.quickstart.tiny_base`.

Writes a corpus of synthetic speech, trains a tokenizer on its texts and the model on its dialogues,
and publishes the model as `models/tiny_base`. Takes long on two cores; an interrupted command
resumes.
"""

import argparse
import itertools
import json
import pathlib
from collections.abc import Iterator

import jax

import stepaudio_jax as sa
from examples import ON_INTERRUPT
from examples.quickstart.publish import check_replaceable_model, publish_model
from examples.spoken_corpus import ensure_corpus
from launch.errors import exit_on_error
from stepaudio_jax.config import Config, ModelConfig, load_config, to_dict
from stepaudio_jax.data import read_records
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.evaluation import (
    Results,
    Table,
    answer_questions,
    as_markdown,
    as_text,
    read_questions,
    score,
)
from stepaudio_jax.generation import load_model
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.reports.logged_run import read_run
from stepaudio_jax.storage import expand_home, user_path
from stepaudio_jax.text import Tokenizer, render_training, training_views

NUM_MERGES = 734  # with bytes and special tokens a vocabulary of 1024: nearly every word is a token
# The tasks of the base model's training. The others need reasoning, which the quickstart trains.
BASE_TASKS = ("gender", "rate", "pitch", "language")
_TOKENIZER_RECORDS = 5000  # of each file of the corpus
_CURVE_POINTS = 20


def make_tiny_base(config: Config, corpus: pathlib.Path, output: pathlib.Path) -> str:
    """Trains, evaluates and publishes the base model, or resumes an interrupted run.

    Args:
        config: the configuration of the training run; the trained tokenizer is written to
            `config.tokenizer`.
        corpus: the corpus folder, written if it does not exist.
        output: the Step-Audio folder to write, in bfloat16; it may replace an earlier model.

    Returns:
        The table of accuracies as text.

    Raises:
        ConfigError: `config.tokenizer` is not set.
        OutputError: `output` exists and is not a model.
    """
    if not config.tokenizer:
        raise ConfigError("tokenizer is not set: name the folder for the trained tokenizer")
    check_replaceable_model(output, (str(corpus), config.initial.model, config.tokenizer))
    ensure_corpus(corpus, "base")
    tokenizer = pathlib.Path(config.tokenizer)
    if not tokenizer.exists():
        Tokenizer.train(_tokenizer_texts(corpus), NUM_MERGES).save(tokenizer)
    trained = sa.train(config)
    with publish_model(trained, output) as published:
        model = load_model(published)  # evaluates the weights that ship, in bfloat16
        questions = read_questions(corpus / "evaluation" / f"{task}.jsonl" for task in BASE_TASKS)
        results = Results(
            after=score(answer_questions(model, questions)),
            silenced=score(answer_questions(model, questions, silenced=True)),
        )
        card = model_card(corpus, pathlib.Path(config.run_dir), model.config, as_markdown(results))
        (published / "README.md").write_text(card, encoding="utf-8")
    return as_text(results)


def _tokenizer_texts(corpus: pathlib.Path) -> Iterator[str]:
    """Yields the texts that the model reads and writes, in the segments that are tokenized."""
    byte_level = Tokenizer.byte_level()
    for file in sorted((corpus / "train").glob("*.jsonl")):
        for record in itertools.islice(read_records(file), _TOKENIZER_RECORDS):
            for view in training_views(record.messages, history_reasoning=True):
                for segment in render_training(view, byte_level, history_reasoning=True):
                    yield byte_level.decode(
                        token for token in segment.tokens if not byte_level.is_special(token)
                    )


def model_card(corpus: pathlib.Path, run_dir: pathlib.Path, model: ModelConfig, table: str) -> str:
    """Writes the model card in Markdown.

    Args:
        corpus: the corpus that the model was trained on; its corpus.json is read.
        run_dir: the training run; its metrics.jsonl is read.
        model: the shape of the model.
        table: the evaluation, in Markdown.
    """
    shape = json.dumps(to_dict(model), indent=2)
    training = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["train"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(model))) / 1e6
    return f"""---
license: apache-2.0
---

# A small audio model

A model of the Step-Audio architecture with {parameters:.1f} M parameters, trained from random
weights on speech synthesized with espeak-ng. It understands English and Mandarin phrases of up to
two seconds: the words, and the speaker's gender, rate, pitch and language. It is the starting point
of `make quickstart` and not meant for use: it was trained on synthetic voices only.

Made by `make tiny-base` (`configs/tiny_base.py`): mid-training on audio descriptions and text.
Encoder, adaptor and decoder are trained together, with a word-level CTC loss and attribute
classifiers that are not part of this folder. Weights are bfloat16.

The training data has {training["clips"]} clips of {training["phrases"]} phrases in
{training["voices"]} voices: {len(training["speakers"])} variants of espeak-ng and random variations
of those. Many phrases follow no template: any word may follow any other.

## On held-out speakers and held-out phrases

Held out are about a third of the voices (in families that sound alike) and all phrases of some
templates. The corpus was developed while models were evaluated on them, so these are results on a
development set.

Greedy decoding; 95 % Wilson intervals; "silenced" replaces every clip by zeros.

{table}
## Loss

{_loss_curve(run_dir)}
## Shape

```json
{shape}
```
"""


def _loss_curve(run_dir: pathlib.Path) -> str:
    """Returns the training and held-out losses at about twenty steps, as a Markdown table."""
    lines = {line.step: line.metrics for line in read_run(run_dir).lines}
    steps = sorted(
        step
        for step, metrics in lines.items()
        if "loss/next_token" in metrics and "evaluation/loss" in metrics
    )
    if steps:
        spacing = (len(steps) - 1) / (_CURVE_POINTS - 1)
        steps = sorted({steps[round(i * spacing)] for i in range(_CURVE_POINTS)})
    rows = tuple(
        (
            str(step),
            f"{lines[step]['loss/next_token']:.3f}",
            f"{lines[step]['loss/ctc']:.2f}",
            f"{lines[step]['loss/attributes']:.3f}",
            f"{lines[step]['evaluation/loss']:.3f}",
        )
        for step in steps
    )
    header = ("step", "next token", "CTC", "attributes", "held-out next token")
    return as_markdown(Table(header, rows, notes=()))


def main() -> None:
    """Parses the command line, makes the model and prints its table."""
    parser = argparse.ArgumentParser(description="Trains the small base model from nothing.")
    parser.add_argument("--config", type=expand_home, default="configs/tiny_base.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/base"))
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_base"))
    arguments = parser.parse_args()
    with exit_on_error(ON_INTERRUPT):
        print(make_tiny_base(load_config(arguments.config), arguments.corpus, arguments.output))


if __name__ == "__main__":
    main()
