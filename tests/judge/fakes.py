"""Judge backends for tests."""

import dataclasses
from collections.abc import Callable

from stepaudio_jax.judge.cache import JudgeAnswer


@dataclasses.dataclass(frozen=True)
class FunctionBackend:
    """Answers questions by a function."""

    name: str
    function: Callable[[str], JudgeAnswer]

    def generate(self, question: str) -> JudgeAnswer:
        return self.function(question)
