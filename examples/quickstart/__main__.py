"""Trains a small model to answer spoken questions: `python -m examples.quickstart`.

Takes minutes on two cores. An interrupted command resumes; finished parts are not repeated.
"""

import argparse
import dataclasses
import pathlib
import shutil

import stepaudio_jax as sa
from examples import ON_INTERRUPT
from examples.quickstart.publish import check_replaceable_model
from examples.spoken_corpus import ensure_corpus
from launch.errors import exit_on_error
from stepaudio_jax import hub
from stepaudio_jax.config import Config, load_config
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation import Answer, Results, answer_questions, as_text, score
from stepaudio_jax.evaluation.evaluate import run_tasks, save_results
from stepaudio_jax.evaluation.model_under_test import FolderModel
from stepaudio_jax.evaluation.results import Mode
from stepaudio_jax.evaluation.runner import RunSettings
from stepaudio_jax.generation import load_model
from stepaudio_jax.reports import write_report
from stepaudio_jax.storage import Path, PathLike, expand_home, user_path
from stepaudio_jax.text import ParsedReply

_TASK = str(pathlib.Path(__file__).with_name("task.py"))
_ROUND_TRIP_QUESTIONS = 50  # asked of the model after its export and import


def run_quickstart(config: Config, corpus: pathlib.Path, folder: pathlib.Path) -> str:
    """Writes the corpus, trains the model, evaluates it, exports it and imports it again.

    The evaluation measures the model before training, after training, and after training with
    silenced audio. Writes `report.html`, `hugging_face/` and `imported/` into `folder`.

    Args:
        config: the configuration of the training run; `config.initial.model` is the base model.
        corpus: the corpus folder, written if it does not exist.
        folder: the folder of the results.

    Returns:
        The table of accuracies as text.

    Raises:
        RuntimeError: the imported model answers differently from the trained one.
        OutputError: a result would replace something else than an earlier result; raised before
            anything is written.
    """
    assert config.initial.model is not None
    for name in ("hugging_face", "imported"):
        check_replaceable_model(folder / name, (config.initial.model,))
    ensure_corpus(corpus, "quickstart")
    questions, evaluation = corpus / "evaluation", folder / "evaluation"
    shutil.rmtree(evaluation, ignore_errors=True)  # of an earlier model
    before = _evaluate(config.initial.model, questions, evaluation / "before")
    trained = sa.train(config)
    after = _evaluate(trained, questions, evaluation / "after")
    silenced = _evaluate(trained, questions, evaluation / "silenced", mode="silence")
    _check_round_trip(trained, folder, after)
    results = Results(
        before=score(before),
        after=score(after),
        silenced=score(answer for answer in silenced if _has_sound(answer)),
    )
    write_report(
        folder / "report.html",
        pathlib.Path(config.run_dir),
        "Quickstart: a small audio model",
        results,
        after,
    )
    return as_text(results)


def _evaluate(
    model: PathLike, questions: pathlib.Path, output: pathlib.Path, mode: Mode = "sound"
) -> list[Answer]:
    """Evaluates a model on the task of the quickstart; returns its answers."""
    settings = RunSettings(mode=mode)
    (run,) = run_tasks(FolderModel(model, slots=64), {_TASK: questions}, output, settings)
    if run.errors:
        raise DataError(next(iter(run.errors.values())))
    save_results(output, FolderModel(model).identity, [run], [questions])
    return [
        Answer(
            question=answered.item.record,
            expected=answered.item.data["answer"],
            parsed=ParsedReply(reply.reasoning, reply.reply, reply.problems),
        )
        for answered in run.items
        for reply in answered.replies
    ]


def _has_sound(answer: Answer) -> bool:
    return any(message.audio for message in answer.question.messages)


def _check_round_trip(trained: Path, folder: pathlib.Path, answers: list[Answer]) -> None:
    """Exports the model to Hugging Face's format, imports it, and compares its answers."""
    exported, imported = folder / "hugging_face", folder / "imported"
    for target in (exported, imported):
        shutil.rmtree(target, ignore_errors=True)
    hub.export_weights(trained, exported)
    hub.import_weights(exported, imported)
    expected = answers[:: max(1, len(answers) // _ROUND_TRIP_QUESTIONS)]
    actual = answer_questions(load_model(imported), [answer.question for answer in expected])
    for before, after in zip(expected, actual, strict=True):
        # The names of special tokens in a reply are not kept by an evaluation.
        if before.parsed != dataclasses.replace(after.parsed, special_tokens=()):
            raise RuntimeError(
                f"{before.question.id}: replied {before.parsed} before export and import, "
                f"{after.parsed} after"
            )


def main() -> None:
    """Parses the command line, runs the quickstart and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/quickstart.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/quickstart"))
    parser.add_argument("--output", type=user_path, default=pathlib.Path("runs/quickstart"))
    arguments = parser.parse_args()
    with exit_on_error(ON_INTERRUPT):
        config = load_config(arguments.config)
        print(run_quickstart(config, arguments.corpus, arguments.output))
        print(f"report: {arguments.output / 'report.html'}")
        print(f"talk to it: python -m launch.serve --model {config.run_dir}/model")


if __name__ == "__main__":
    main()
