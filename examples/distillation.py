r"""Distils the quickstart's model into half of its layers.

    python -m examples.distillation                                # both hear
    python -m examples.distillation --teacher-inputs transcripts   # the teacher reads

The teacher is the model that `make quickstart` trains. The student has every other layer of its
decoder, with the same encoder and adaptor, and learns the teacher's distributions on the
quickstart's training data. Reported are the KL of the teacher to the student on held-out
dialogues, before and after, and the accuracy of both on held-out questions.

A teacher that reads does not know the speaker's voice: then only turns about what is said are
learnt, and only such questions are asked. An interrupted command resumes.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import stepaudio_jax as sa
from examples import ON_INTERRUPT
from examples.spoken_corpus import ATTRIBUTES, TASKS, ensure_corpus
from launch.errors import exit_on_error
from stepaudio_jax import hub
from stepaudio_jax.config import (
    AugmentationConfig,
    Config,
    Distillation,
    InitialWeights,
    OptimizerConfig,
    TeacherInputs,
    load_config,
)
from stepaudio_jax.data import Record
from stepaudio_jax.evaluation import Table, answer_questions, as_text, read_questions, score
from stepaudio_jax.generation import LoadedModel, load_model
from stepaudio_jax.reports.logged_run import read_run
from stepaudio_jax.storage import expand_home, user_path
from stepaudio_jax.text import with_transcripts

# Tasks about what is said, which a transcript answers.
WORD_TASKS = ("keyword", "sum", "two_turn", "text_sum")
_VOICE_ANSWERS = {value for values in ATTRIBUTES.values() for value in values}


def run_distillation(
    config: Config,
    corpus: pathlib.Path,
    teacher: pathlib.Path,
    folder: pathlib.Path,
    teacher_inputs: TeacherInputs,
    steps: int | None = None,
) -> str:
    """Makes the student, distils the teacher into it, and evaluates both.

    Args:
        config: the quickstart's configuration, whose data and optimizer are used.
        corpus: the corpus folder, written if it does not exist.
        teacher: the folder of the quickstart's model.
        folder: of the results.
        teacher_inputs: what the teacher is given of a clip.
        steps: of distillation; None for as many as the quickstart's.

    Returns:
        The held-out KL before and after, and the table of accuracies, as text.
    """
    ensure_corpus(corpus, "quickstart")
    reads = teacher_inputs == "transcripts"
    student = folder / "student"
    if not student.exists():
        save_half(load_model(teacher, "float32"), student)
    data_folder = corpus
    if reads:
        data_folder = folder / "words"
        for split in ("train", "validation"):
            write_word_turns(corpus / split, data_folder / split)
    run = distillation_config(config, data_folder, teacher, student, folder, teacher_inputs)
    if steps is not None:
        before, distil = run.stages
        run = dataclasses.replace(run, stages=(before, dataclasses.replace(distil, steps=steps)))
    trained = sa.train(run)
    kl = [
        line.metrics["evaluation/student_kl"]
        for line in read_run(run.run_dir).lines
        if "evaluation/student_kl" in line.metrics
    ]
    tasks = WORD_TASKS if reads else tuple(TASKS)
    questions = list(read_questions(corpus / "evaluation" / f"{task}.jsonl" for task in tasks))
    columns = {"teacher": _accuracies(teacher, questions)}
    if reads:
        columns["teacher, reading"] = _accuracies(teacher, [*map(_read, questions)])
    columns["student, before"] = _accuracies(student, questions)
    columns["student, after"] = _accuracies(pathlib.Path(trained), questions)
    rows = tuple(
        (task, *(f"{100 * accuracies[task]:.1f} %" for accuracies in columns.values()))
        for task in tasks
    )
    return (
        f"KL(teacher, student) on held-out dialogues: {kl[0]:.4f} before, {kl[-1]:.4f} after "
        f"({kl[0] / kl[-1]:.1f} times less)\n" + as_text(Table(("task", *columns), rows, notes=()))
    )


def save_half(model: LoadedModel, folder: pathlib.Path) -> None:
    """Writes a model with every other layer of another one's decoder as a checkpoint."""
    layers = model.config.decoder.layers
    kept = slice(0, layers, 2)
    decoder = dict(model.parameters["decoder"])
    decoder["layers"] = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], decoder["layers"])
    parameters = jax.tree.map(np.asarray, {**model.parameters, "decoder": decoder})
    shape = dataclasses.replace(model.config.decoder, layers=len(range(layers)[kept]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    hub.save_checkpoint(
        folder,
        parameters,
        dataclasses.replace(model.config, decoder=shape),
        model.tokenizer,
        source=f"every other layer of {model.folder}",
    )


def write_word_turns(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the dialogues of a split with only the turns in the loss that are about words.

    A dialogue without such a turn is left out.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jsonl")):
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            row["messages"] = [_in_loss_if_about_words(turn) for turn in row["messages"]]
            if any(
                turn["role"] == "assistant" and turn.get("loss", True) for turn in row["messages"]
            ):
                for part in _clips(row["messages"]):
                    part["audio"] = str((source / part["audio"]).resolve())
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (target / path.name).write_text("".join(lines), encoding="utf-8")


def _in_loss_if_about_words(turn: dict[str, Any]) -> dict[str, Any]:
    if turn["role"] == "assistant" and turn["content"] in _VOICE_ANSWERS:
        return {**turn, "loss": False}
    return turn


def _clips(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        part
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "audio"
    ]


def distillation_config(
    config: Config,
    data_folder: pathlib.Path,
    teacher: pathlib.Path,
    student: pathlib.Path,
    folder: pathlib.Path,
    teacher_inputs: TeacherInputs,
) -> Config:
    """Returns the run: a step that changes nothing, to measure the student, then distillation."""
    (stage,) = config.stages

    def moved(data: Any) -> Any:
        sources = tuple(
            dataclasses.replace(
                source, path=str(data_folder.joinpath(*pathlib.PurePath(source.path).parts[-2:]))
            )
            for source in data.sources
        )
        return dataclasses.replace(data, sources=sources, augmentation=AugmentationConfig())

    evaluation = dataclasses.replace(
        stage.evaluation, data=moved(stage.evaluation.data), batches=1_000
    )
    distil = dataclasses.replace(
        stage,
        name="distil",
        data=moved(stage.data),
        evaluation=evaluation,
        objective=Distillation(teacher=str(teacher), teacher_inputs=teacher_inputs),
    )
    # Rates that float32 rounds away.
    unchanged = OptimizerConfig(learning_rate=1e-30, weight_decay=0.0)
    before = dataclasses.replace(distil, name="before", steps=1, optimizer=unchanged)
    return dataclasses.replace(
        config,
        run_dir=str(folder / "train"),
        initial=InitialWeights(model=str(student)),
        stages=(before, distil),
    )


def _read(question: Record) -> Record:
    return dataclasses.replace(question, messages=with_transcripts(question.messages))


def _accuracies(model: pathlib.Path, questions: Sequence[Record]) -> dict[str, float]:
    scores = score(answer_questions(load_model(model), questions))
    return {task: of_task.correct / of_task.n for task, of_task in scores.items()}


def main() -> None:
    """Parses the command line, distils, and prints the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=expand_home, default="configs/quickstart.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/quickstart"))
    parser.add_argument(
        "--teacher", type=user_path, default=pathlib.Path("runs/quickstart/train/model")
    )
    parser.add_argument("--teacher-inputs", choices=("audio", "transcripts"), default="audio")
    parser.add_argument("--output", type=user_path, default=None, help="folder of the results")
    parser.add_argument("--steps", type=int, help="of distillation (default: the quickstart's)")
    arguments = parser.parse_args()
    output = arguments.output or pathlib.Path("runs/distillation") / arguments.teacher_inputs
    with exit_on_error(ON_INTERRUPT):
        config = load_config(arguments.config)
        print(
            run_distillation(
                config,
                arguments.corpus,
                arguments.teacher,
                output,
                arguments.teacher_inputs,
                arguments.steps,
            )
        )


if __name__ == "__main__":
    main()
