"""Judge backends for tests."""

import dataclasses
from collections.abc import Callable

from stepaudio_jax.judge.query import JudgeAnswer, Query


@dataclasses.dataclass(frozen=True)
class FunctionBackend:
    """Answers questions by a function."""

    name: str
    function: Callable[[str], JudgeAnswer]

    def generate(self, question: Query) -> JudgeAnswer:
        return self.function(question.text)
