"""The small base model: a corpus of synthesised speech, a tokenizer learnt from it, training, and a folder to ship."""

import argparse
import itertools
import json
import pathlib
from collections.abc import Iterator

import jax

from examples.quickstart.publish import check_replaceable_model, publish_model
from examples.spoken_corpus import write_corpus
from launch.errors import exit_on_error
from stepaudio_jax.config import Config, ModelConfig, load_config, to_dict
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
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.storage import expand_home, user_path
from stepaudio_jax.text import Tokenizer, render_training, training_views
from stepaudio_jax.training import train

# The model card of the small base model: what it is, how it was made, how it did.

_POINTS = 20  # of the loss curve


def model_card(corpus: pathlib.Path, run_dir: pathlib.Path, model: ModelConfig, table: str) -> str:
    """The card in Markdown.

    Args:
        corpus: that it was trained on, with corpus.json.
        run_dir: of the training run, with config.json and metrics.jsonl.
        model: the shape.
        table: the evaluation, in Markdown.
    """
    shape = json.dumps(to_dict(model), indent=2)
    heard = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["train"]
    variants = len(heard["speakers"])
    return f"""---
license: apache-2.0
---

# A small model that hears

A model of the Step-Audio architecture with {_parameters(model):.1f} M parameters, trained from nothing on speech synthesised
with espeak-ng. It hears English and Mandarin phrases of up to two seconds: the words, and the speaker's gender, rate, pitch and
language. It is the starting point of `make quickstart`, and no model for use: it has heard no human being.

Made by `make tiny-base` (`configs/tiny_base.py`): mid-training on "what do you hear" and text, encoder, adaptor and decoder
trained together, with a word-level CTC loss and attribute classifiers that are left out of this folder. Weights are bfloat16.

It learnt from {heard["clips"]} clips of {heard["phrases"]} phrases, in {heard["voices"]} voices: {variants} of espeak-ng's
variants, and random relatives of those. Many phrases follow no template: any word may follow any other.

## On held-out speakers and held-out phrases

Held out are families of voices that sound alike, about a third of them, and every phrase of some templates. The corpus was
shaped while models were tried on them: the figures are those of a development set.

Greedy answers; 95 % intervals are Wilson's; "silenced" is the same with every clip replaced by zeros.

{table}
## Loss

{_loss_curve(run_dir)}
## Shape

```json
{shape}
```
"""


def _parameters(model: ModelConfig) -> float:
    """Millions of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(model))) / 1e6


def _loss_curve(run_dir: pathlib.Path) -> str:
    """Training and held-out loss at some twenty steps, as a Markdown table."""
    lines = [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    training = {line["step"]: line for line in lines if "loss/next_token" in line}
    held_out = {
        line["step"]: line["evaluation/loss"] for line in lines if "evaluation/loss" in line
    }
    steps = sorted(held_out.keys() & training.keys())
    shown = (
        sorted({steps[round(i * (len(steps) - 1) / (_POINTS - 1))] for i in range(_POINTS)})
        if steps
        else []
    )
    rows = [
        f"| {step} | {training[step]['loss/next_token']:.3f} | {training[step].get('loss/ctc', float('nan')):.2f} "
        f"| {training[step].get('loss/attributes', float('nan')):.3f} | {held_out[step]:.3f} |"
        for step in shown
    ]
    head = [
        "| step | next token | CTC | attributes | held-out next token |",
        "|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows]) + "\n"


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
    assert config.tokenizer is not None  # the configuration names where it is to be written
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


# Makes the small base model from nothing: `python -m examples.quickstart.tiny_base` (on two cores; interrupt and go on at will).


def main() -> None:
    """Parses arguments, makes the model, prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/tiny_base.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/base"))
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_base"))
    arguments = parser.parse_args()
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        print(make_tiny_base(load_config(arguments.config), arguments.corpus, arguments.output))


if __name__ == "__main__":
    main()
