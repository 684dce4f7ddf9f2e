"""A judge in the same process: one of our own models, which answers all questions of a step side by side."""

from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from stepaudio_jax.config import LengthConvention
from stepaudio_jax.generation import Engine, GenerationError, LoadedModel, Prompt, Sampling, hear_prompt
from stepaudio_jax.rl.judge import JudgeAnswer, JudgeError
from stepaudio_jax.text import Message, TextPart, Tokenizer, parse_reply, render_prompt


class ModelJudge:
    """Answers a judge's questions; its verdict is the reply, what it reasons before that is its own affair.

    Args:
        model: the judge.
        slots: questions answered side by side.
        max_tokens: of an answer.
        mesh: where its weights lie; None for one device.
    """

    def __init__(self, model: LoadedModel, *, slots: int, max_tokens: int, mesh: Mesh | None = None):
        self._tokenizer, self._convention = model.tokenizer, model.config.length_convention
        self._sampling = Sampling(temperature=0.0, max_new_tokens=max_tokens)
        self._engine = Engine(model.config, model.parameters, model.tokenizer, compute=model.compute, slots=slots, mesh=mesh)
        self.name = f"{model.folder}, {model.compute.dtype}, {max_tokens} tokens"

    def __call__(self, questions: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Each question's index and answer, in the order in which they are ready; an error for one that does not fit a slot."""
        asked: dict[int, int] = {}
        for index, question in enumerate(questions):
            try:
                (request,) = self._engine.submit(_prompt(question, self._tokenizer, self._convention), [self._sampling])
            except GenerationError as error:
                yield index, JudgeError(str(error))
            else:
                asked[request] = index
        for news in self._engine.run():
            if news.completion is None:
                continue
            truncated = news.completion.finish_reason == "length"
            written = parse_reply(news.completion.tokens, self._tokenizer, ended=not truncated)
            yield asked[news.request], JudgeAnswer(written.reply, truncated)


def _prompt(question: str, tokenizer: Tokenizer, convention: LengthConvention) -> Prompt:
    message = Message(role="user", parts=(TextPart(question),))
    return hear_prompt(render_prompt([message], tokenizer), tokenizer, convention)
