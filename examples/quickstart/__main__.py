"""A small model learns to answer spoken questions: `python -m examples.quickstart` (minutes on two cores)."""

import argparse
import pathlib
import shutil

from examples.quickstart.publish import check_replaceable_model
from examples.spoken_corpus import TASKS, write_corpus
from launch.errors import exit_on_error
from stepaudio_jax import hub
from stepaudio_jax.config import Config, load_config
from stepaudio_jax.evaluation import (
    Answer,
    Results,
    answer_questions,
    as_text,
    read_questions,
    score,
)
from stepaudio_jax.generation import load_model
from stepaudio_jax.reports import write_report
from stepaudio_jax.storage import expand_home, user_path
from stepaudio_jax.training import train

# The quickstart: a small model learns to answer spoken questions, and is shown to hear.

_ROUND_TRIP_QUESTIONS = 50  # questions put to the model that went to Hugging Face's format and back


def run_quickstart(config: Config, corpus: pathlib.Path, folder: pathlib.Path) -> str:
    """Makes the corpus, trains, evaluates before and after and with the audio silenced, exports, imports and asks again.

    Writes `folder`/report.html, `folder`/hugging_face and `folder`/imported. Goes on where an
    interrupted run was.

    Args:
        config: of the training run; `config.initial.model` is the base.
        corpus: where the corpus is, or is to be made.
        folder: where the results go.

    Returns:
        The table as text.

    Raises:
        RuntimeError: the model changed on its way to Hugging Face's format and back.
        OutputError: results would replace what is not theirs; nothing is made then.
    """
    for name in ("hugging_face", "imported"):
        check_replaceable_model(folder / name, (config.initial.model,))
    if not corpus.exists():
        write_corpus(corpus, "quickstart")
    questions = read_questions(corpus / "evaluation" / f"{task}.jsonl" for task in TASKS)
    before = answer_questions(load_model(config.initial.model), questions)
    trained = train(config)
    model = load_model(trained)
    after = answer_questions(model, questions)
    silenced = answer_questions(model, questions, silenced=True)
    _round_trip(trained, folder, after)
    results = Results(before=score(before), after=score(after), silenced=score(silenced))
    write_report(
        folder / "report.html",
        pathlib.Path(config.run_dir),
        "Quickstart: a small model that hears",
        results,
        after,
    )
    return as_text(results)


def _round_trip(trained: pathlib.Path, folder: pathlib.Path, after: list[Answer]) -> None:
    """Exports the model to Hugging Face's format, imports that, and asks again."""
    exported, imported = folder / "hugging_face", folder / "imported"
    for target in (exported, imported):
        shutil.rmtree(target, ignore_errors=True)
    hub.export_weights(trained, exported)
    hub.import_weights(exported, imported)
    asked = after[:: max(1, len(after) // _ROUND_TRIP_QUESTIONS)]
    again = answer_questions(load_model(imported), [answer.question for answer in asked])
    for first, second in zip(asked, again, strict=True):
        if first.parsed != second.parsed:
            raise RuntimeError(
                f"{first.question.id}: replied {first.parsed}, and after export and import {second.parsed}"
            )


def main() -> None:
    """Parses arguments, runs the quickstart, prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/quickstart.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/quickstart"))
    parser.add_argument("--output", type=user_path, default=pathlib.Path("runs/quickstart"))
    arguments = parser.parse_args()
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        print(run_quickstart(load_config(arguments.config), arguments.corpus, arguments.output))
        print(f"report: {arguments.output / 'report.html'}")


if __name__ == "__main__":
    main()
