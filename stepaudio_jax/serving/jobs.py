"""What the engines' thread is asked for: work, the job that it becomes, and commands about jobs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Prompt, RequestOutput, Sampling


@dataclasses.dataclass(frozen=True)
class Work:
    """A prompt that is to be answered.

    Attributes:
        model: the name of the model that answers.
        client: whose it is; clients take turns.
        prompt: the prompt.
        samplings: how each of the replies is sampled.
        num_top_logprobs: alternatives of each token.
        grammar: what every reply must follow; None for nothing.
    """

    model: str
    client: str
    prompt: Prompt
    samplings: tuple[Sampling, ...]
    num_top_logprobs: int = 0
    grammar: str | None = None


Deliver = Callable[[Sequence[tuple[int, RequestOutput]]], None]
"""Takes what a step has added to a job: (which of its replies, output). Called in the thread."""


@dataclasses.dataclass(eq=False)
class Job:
    """Work in the thread's hands.

    Attributes:
        work: what is to be done.
        deliver: takes the outputs.
        on_failure: called in the thread where the job will not be finished, with the reason; None
            where the engine ends.
        requests: the engine's numbers of the replies; empty until the engine has the job.
        started: whether all replies have a slot.
    """

    work: Work
    deliver: Deliver = lambda outputs: None
    on_failure: Callable[[GenerationError | None], None] = lambda error: None
    requests: list[int] = dataclasses.field(default_factory=list)
    started: bool = False


@dataclasses.dataclass(frozen=True)
class Command:
    """What the thread is told between two steps.

    Attributes:
        kind: take up a job, give it up, or end.
        job: which one; None for "stop", and for a job that has ended.
    """

    kind: Literal["submit", "cancel", "stop"]
    job: Job | None = None
