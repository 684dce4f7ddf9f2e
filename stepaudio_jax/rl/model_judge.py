"""A judge in the same process: one of our own models, which answers all questions of a step side by side."""

from collections.abc import Iterator, Sequence

from stepaudio_jax import hub
from stepaudio_jax.config import LengthConvention
from stepaudio_jax.generation import (
    Engine,
    GenerationError,
    LoadedModel,
    Prompt,
    Sampling,
    build_engine,
    build_prompt,
)
from stepaudio_jax.rl.judge import JudgeAnswer, JudgeError
from stepaudio_jax.text import Message, TextError, TextPart, Tokenizer, parse_reply, render_prompt


class ModelBackend:
    """Answers a judge's questions; its verdict is the reply, what it reasons before that is its own affair.

    Args:
        model: the judge.
        slots: questions answered side by side.
        max_tokens: of an answer.
    """

    def __init__(self, model: LoadedModel, *, slots: int, max_tokens: int):
        self._model, self._slots = model, slots
        self._sampling = Sampling(temperature=0.0, max_new_tokens=max_tokens)
        self._engine: Engine | None = None
        self._longest = 0  # tokens of the question that the engine was made for
        # The cache tells judges apart by the name: one that is trained anew into its folder is
        # another judge.
        held = hub.fingerprint_folder(model.folder)[:12]
        self.name = f"{model.folder} ({held}), {model.compute.dtype}, {max_tokens} tokens"

    def __call__(self, questions: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer | JudgeError]]:
        """Each question's index and answer, as each is ready; an error for one that no tokens spell or that fits no slot."""
        prompts: dict[int, Prompt] = {}
        for index, question in enumerate(questions):
            try:
                prompts[index] = _prompt(
                    question, self._model.tokenizer, self._model.config.length_convention
                )
            except TextError as error:
                yield index, JudgeError(str(error))
        if not prompts:
            return
        engine = self._engine_for(list(prompts.values()))
        asked: dict[int, int] = {}
        for index, prompt in prompts.items():
            try:
                (request,) = engine.submit(prompt, [self._sampling])
            except GenerationError as error:
                yield index, JudgeError(str(error))
            else:
                asked[request] = index
        for output in engine.run():
            if output.completion is None:
                continue
            truncated = output.completion.finish_reason == "length"
            written = parse_reply(
                output.completion.tokens, self._model.tokenizer, ended=not truncated
            )
            yield asked[output.request], JudgeAnswer(written.reply, truncated)

    def _engine_for(self, prompts: Sequence[Prompt]) -> Engine:
        """The engine, made anew where a question is longer than all before: short slots are read faster than long ones."""
        longest = max(prompts, key=lambda prompt: prompt.length)
        grown = (
            longest.length > self._longest
        )  # one too long for the model, seen before, is no reason
        if self._engine is None or (
            grown and not self._engine.fits_slot(longest, [self._sampling])
        ):
            self._engine = None  # its slots and its copy of the weights go first
            self._engine = build_engine(
                self._model, prompts, self._sampling.max_new_tokens, slots=self._slots
            )
            self._longest = longest.length
        return self._engine


def _prompt(question: str, tokenizer: Tokenizer, convention: LengthConvention) -> Prompt:
    message = Message(role="user", parts=(TextPart(question),))
    return build_prompt(render_prompt([message], tokenizer), tokenizer, convention)
