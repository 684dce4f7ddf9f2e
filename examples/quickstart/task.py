r"""The quickstart's evaluation as a task: the held-out questions of the spoken corpus.

    python -m launch.evaluate run --model runs/quickstart/train/model \
      --task examples/quickstart/task.py=runs/corpus/quickstart/evaluation --output runs/evaluation

A task of one's own looks like this: `items` reads the questions, `strict` scores a reply.
"""

import os
from collections.abc import Mapping
from typing import Any

from examples.spoken_corpus import TASKS
from stepaudio_jax.evaluation.grading import normalize_answer
from stepaudio_jax.evaluation.questions import read_questions
from stepaudio_jax.evaluation.task import Item, Strict, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.storage import PathLike


class Quickstart(Task):
    """Asks about voices, words and sums; a reply is right if it is the answer, word for word."""

    name = "quickstart"
    version = "1"
    title = "Quickstart: questions about short spoken phrases"
    sampling = Sampling(temperature=0.0, max_new_tokens=128)

    def items(self, folder: PathLike) -> list[Item]:
        """Reads FOLDER/TASK.jsonl of every task of the corpus."""
        files = [os.path.join(os.fspath(folder), f"{name}.jsonl") for name in TASKS]
        return [
            Item(
                id=f"{record.source}/{record.id}",
                record=record,
                data={"answer": record.answer},
                groups={"task": record.source},
            )
            for record in read_questions(files)
        ]

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict:
        """Compares a reply with the answer, without regard to case and a full stop at the end."""
        answer = normalize_answer(output or "")
        if not answer:
            return Strict("unparsed")
        is_right = answer == normalize_answer(data["answer"])
        return Strict("correct" if is_right else "wrong", answer)
