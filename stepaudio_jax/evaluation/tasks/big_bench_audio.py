"""Big Bench Audio: spoken questions of logic and counting, judged by rule and by a judge."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.answer_counts import read_count
from stepaudio_jax.evaluation.answer_polarity import Question, read_polarity, read_validity
from stepaudio_jax.evaluation.benchmark_rows import BenchmarkRow
from stepaudio_jax.evaluation.judge_replies import read_word, remove_reasoning
from stepaudio_jax.evaluation.judged_task import JudgedTask, row_id
from stepaudio_jax.evaluation.metrics import (
    Metric,
    Scoring,
    default_metrics,
    mean_metric,
    scorings_of,
)
from stepaudio_jax.evaluation.prompt_files import PromptFile
from stepaudio_jax.evaluation.task import Item, Judged, JudgeUse, ScoredItem, Strict
from stepaudio_jax.judge.query import Query
from stepaudio_jax.text import Message, TextPart

Answer = Literal["valid", "invalid", "yes", "no"]

_MODEL_PROMPT, _JUDGE_PROMPT = "model_prompt.txt", "judge_prompt.txt"
_QUESTION, _OFFICIAL, _CANDIDATE = "{question}", "{official_answer}", "{candidate_answer}"
# What yes and no mean in a category.
_QUESTIONS: Mapping[str, Question] = {"navigate": "return", "web_of_lies": "truth"}


class BigBenchAudio(JudgedTask):
    r"""A thousand spoken questions with closed answers: valid or invalid, yes or no, a count.

    The sound comes first, then one line of text, as StepFun asks; the line is in words of this
    project. An empty `model_prompt.txt` asks with the sound alone, as Artificial Analysis does. The
    published judge's prompt has a written-out `\n` (two characters) twice: a user's file is sent as
    it is.

    A judge that does not reply CORRECT or INCORRECT has failed: the item leaves the denominator, as
    failed items have in the paper's figures, and the figure with such items as wrong stands beside.
    """

    name: ClassVar[str] = "big_bench_audio"
    version: ClassVar[str] = "ArtificialAnalysis/big_bench_audio, 1000 questions"
    title: ClassVar[str] = "Big Bench Audio"
    table_column: ClassVar[str | None] = "Big Bench"
    judge: ClassVar[JudgeUse] = "optional"
    headline: ClassVar[tuple[Scoring, str]] = ("judge", "accuracy")
    notes: ClassVar[Sequence[str]] = (
        "Published figures of Artificial Analysis are means of three runs with a judge that is not"
        " named. The paper's 98.29, 59.59 and 73.03 are not k of 1000: failed items had left the"
        " denominator.",
        "The data have no text of the questions, so that the judge's prompt has none either, unless"
        " a column `transcript` gives it.",
    )

    files: ClassVar[str] = "metadata.jsonl with the clips of Big Bench Audio"
    prompt_files: ClassVar[Sequence[PromptFile]] = (
        PromptFile(_MODEL_PROMPT, "big_bench_audio_model.txt"),
        PromptFile(_JUDGE_PROMPT, "big_bench_audio_judge.txt", (_OFFICIAL, _CANDIDATE)),
    )

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict:
        """Reads the closed answer of a reply, by the kind of the official one."""
        right, reply = answer_of(data), output or ""
        read: float | str | None
        if isinstance(right, int):
            read = read_count(reply)
        elif right in ("valid", "invalid"):
            read = _named(read_validity(reply), "valid", "invalid")
        else:
            question = _QUESTIONS.get(str(data.get("category")))
            read = _named(read_polarity(reply, question), "yes", "no")
        if read is None:
            return Strict("unparsed")
        return Strict("correct" if read == right else "wrong", _shown(read))

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Asks whether a reply agrees with the official answer; an empty one is wrong unasked."""
        visible = remove_reasoning(reply).strip()
        if not visible:
            return []
        values = {
            _QUESTION: question_of(item.data),
            _OFFICIAL: str(_official(item.data)),
            _CANDIDATE: visible,
        }
        return [Query(self._prompts[_JUDGE_PROMPT].fill(values))]

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged:
        """Reads CORRECT or INCORRECT; the details say where the judge was given no question."""
        if not answers:
            return Judged(0.0, {"empty_reply": True})
        details = {} if question_of(item.data) else {"question_known": False}
        word = read_word(answers[0], ("CORRECT", "INCORRECT"))
        if word is None:
            return Judged(None, details, "the judge's reply is not CORRECT or INCORRECT")
        return Judged(float(word == "CORRECT"), details)

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns accuracy by rule and by judge, of all items and by category."""
        metrics = default_metrics(items, failures="left_out", stratify_by="category")
        if "judge" in scorings_of(items):
            metrics.append(mean_metric("accuracy_failures_0", "judge", items))
        return metrics

    def item_of(self, row: BenchmarkRow) -> Item:
        """Returns the question of a row; its id is the row's, and says nothing of its place."""
        item_id = row_id(row, "id")
        answer_of(row.value)
        line = self._prompts[_MODEL_PROMPT].line
        clip = row.clip("file_name", "audio", transcript=row.optional_text("transcript"))
        parts = (clip, TextPart(line)) if line else (clip,)
        return Item(
            id=item_id,
            record=Record(item_id, (Message("user", parts),), self.name, row.origin),
            data=row.without_sound("audio"),
            groups=row.groups({"category": ("category",)}),
        )


def answer_of(data: Mapping[str, Any]) -> int | Answer:
    """Returns the official answer of a row: a count, or one of four words in small letters.

    Raises:
        DataError: it is none of these.
    """
    official = _official(data)
    if isinstance(official, int) and not isinstance(official, bool):
        return official
    word = official.strip().lower() if isinstance(official, str) else ""
    match word:
        case "valid" | "invalid" | "yes" | "no":
            return word
    if word.isascii() and word.isdecimal() and len(word) < 10:
        return int(word)
    raise DataError(
        f"'official_answer' must be valid, invalid, yes, no or a count, got {format_json(official)}"
    )


def question_of(data: Mapping[str, Any]) -> str:
    """Returns the text of a question; "" where the data have none, as the published ones."""
    texts = (data.get("transcript"), data.get("question"))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _official(data: Mapping[str, Any]) -> Any:
    return data.get("official_answer", data.get("answer"))


def _named(value: bool | None, true: Answer, false: Answer) -> Answer | None:
    return None if value is None else true if value else false


def _shown(read: float | str) -> str:
    return read if isinstance(read, str) else f"{read:g}"
