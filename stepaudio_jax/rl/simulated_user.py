"""A simulated user: a model that writes the user's next turn of a dialogue.

It sees the dialogue from its side: its own words as its replies, those of the policy as what it is
told. Its answers are kept in a file, as a judge's are, so that a step that is repeated goes on with
the same words.
"""

import dataclasses
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Literal

from stepaudio_jax.config import FloatDtype, SimulatedUserConfig
from stepaudio_jax.data import Record
from stepaudio_jax.errors import ConfigError, JudgeError, SimulatedUserError
from stepaudio_jax.judge.backends import make_backend
from stepaudio_jax.judge.judge import AnswerSource
from stepaudio_jax.judge.query import JudgeAnswer, Query, QueryRole
from stepaudio_jax.rl.rollouts import said
from stepaudio_jax.storage import PathLike, read_text, to_path
from stepaudio_jax.text import Message

_DEFAULT_PROMPT = pathlib.Path(__file__).with_name("simulated_user.txt")
_FIELDS = ("scenario", "end")
_NO_SCENARIO = "There is nothing more to know: go on as the person of the conversation would."
# The person speaks first, and many chat templates refuse a dialogue that begins with a reply.
_OPENING = "(The conversation begins.)"
_NO_TRANSCRIPT = "(sound without a transcript)"
# The roles of a dialogue that a user hears, from the user's side.
_SIDES: Mapping[str, QueryRole] = {"user": "assistant", "assistant": "user"}


class UserPrompt:
    """The instructions of a simulated user, a template.

    Args:
        path: of a text file in which {scenario} and {end} are replaced, each as often as it stands
            there, if at all; braces of the text itself are doubled. None for the project's own.
        end: what the user writes to end the dialogue.

    Raises:
        ConfigError: the file has other fields, or single braces.
    """

    def __init__(self, path: PathLike | None = None, *, end: str = SimulatedUserConfig.end):
        source = _DEFAULT_PROMPT if path is None else to_path(path)
        self._template, self._end = read_text(source).strip(), end
        try:
            fields = [
                (name, form, conversion)
                for _, name, form, conversion in string.Formatter().parse(self._template)
                if name is not None
            ]
        except ValueError as error:
            raise ConfigError(
                f"{source}: {error}; write a brace of the text itself twice"
            ) from None
        for name, form, conversion in fields:
            if name not in _FIELDS or form or conversion:
                raise ConfigError(
                    f"{source}: has the field {{{name}}}; it may have {{scenario}} and {{end}}, and"
                    " a brace of the text itself is written twice"
                )

    def query(self, record: Record, continuation: Sequence[Message], seed: int) -> Query:
        """Returns the question for the next words.

        Args:
            record: whose dialogue it is; its system's and tools' turns are not the user's to see.
            continuation: the turns since then; the policy's is the last one.
            seed: of the draw.
        """
        system = self._template.format(scenario=record.scenario or _NO_SCENARIO, end=self._end)
        turns: list[tuple[QueryRole, str]] = [("user", _OPENING)]
        for message in (*record.messages, *continuation):
            if message.role not in _SIDES:
                continue
            role = _SIDES[message.role]
            text = said(message, without_transcript=_NO_TRANSCRIPT)
            if role == turns[-1][0]:  # two turns of one side: roles must alternate
                turns[-1] = (role, f"{turns[-1][1]}\n{text}")
            else:
                turns.append((role, text))
        *history, (_, last) = turns
        return Query(last, system, sample=seed, history=tuple(history))


@dataclasses.dataclass(frozen=True)
class UserAnswer:
    """What the simulated user answered.

    Attributes:
        kind: "words"; "end", if it ended the dialogue; or "failed", without words.
        text: the words, or what went wrong.
    """

    kind: Literal["words", "end", "failed"]
    text: str = ""


class SimulatedUser:
    """Writes the user's turns of many dialogues.

    Args:
        source: answers the questions, and keeps the answers.
        config: its settings.

    Raises:
        ConfigError: the file of instructions cannot be used.
    """

    def __init__(self, source: AnswerSource, config: SimulatedUserConfig):
        self._source, self._config = source, config
        self._prompt = UserPrompt(config.prompt, end=config.end)

    def query(self, record: Record, continuation: Sequence[Message], seed: int) -> Query:
        """Returns the question for the next words; see `UserPrompt.query`."""
        return self._prompt.query(record, continuation, seed)

    def prefetch(self, query: Query) -> None:
        """Begins to ask a question that `answers` will be called with; returns at once."""
        self._source.prefetch([query])

    def answers(self, queries: Sequence[Query]) -> list[UserAnswer]:
        """Returns the answer to each question.

        Raises:
            SimulatedUserError: nothing can be asked, or the answers cannot be kept.
        """
        try:
            answers = self._source.answers(queries)
        except JudgeError as error:  # it says that the simulated user cannot be asked
            raise SimulatedUserError(str(error)) from None
        return [self._read(answer) for answer in answers]

    def check_failures(self, problems: Mapping[Query, str], dialogues: int) -> None:
        """Checks that not too many dialogues of a step have failed.

        Args:
            problems: {question: why its dialogue has failed}.
            dialogues: how many there are.

        Raises:
            SimulatedUserError: more than allowed; what could not be used is asked for again by a
                run that goes on from here.
        """
        if len(problems) <= self._config.max_failure_rate * dialogues:
            return
        self._source.forget(list(problems))
        raise SimulatedUserError(
            f"the simulated user {self._source.name} failed in {len(problems)} of {dialogues} "
            f"dialogues, more than max_failure_rate={self._config.max_failure_rate:g} allows; the "
            f"first one: {next(iter(problems.values()))}"
        )

    def close(self) -> None:
        """Cancels the questions that are still waiting to be asked."""
        self._source.close()

    def _read(self, answer: JudgeAnswer | JudgeError) -> UserAnswer:
        if isinstance(answer, JudgeError):
            return UserAnswer("failed", str(answer))
        if self._config.end in answer.text:
            return UserAnswer("end")
        limit = self._config.max_tokens
        if answer.truncated:
            return UserAnswer("failed", f"its words were cut at max_tokens={limit}; raise it")
        words = answer.text.strip()
        return UserAnswer("words", words) if words else UserAnswer("failed", "it wrote nothing")


def make_simulated_user(
    config: SimulatedUserConfig,
    *,
    dtype: FloatDtype,
    slices: int = 1,
    cache: PathLike | None = None,
) -> SimulatedUser | None:
    """Builds the configured simulated user; returns None where none is configured.

    Args:
        config: names an endpoint or the folder of a model.
        dtype: of a model in this process, which is loaded onto all devices.
        slices: TPU slices that the devices form.
        cache: a file that keeps the answers.
    """
    backend = make_backend(
        config,
        dtype=dtype,
        slices=slices,
        temperature=config.temperature,
        uses_seeds=config.send_seed,
    )
    if backend is None:
        return None
    source = AnswerSource(
        backend, cache=cache, concurrency=config.concurrency, role="simulated user"
    )
    return SimulatedUser(source, config)
