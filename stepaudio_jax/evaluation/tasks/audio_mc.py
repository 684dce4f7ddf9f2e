"""Audio MultiChallenge: spoken conversations with a fixed context, judged by rubrics."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json, parse_literal
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import BenchmarkRow
from stepaudio_jax.evaluation.judge_replies import read_object, read_truth, remove_reasoning
from stepaudio_jax.evaluation.judged_task import JudgedTask, row_id
from stepaudio_jax.evaluation.metrics import (
    Metric,
    Scoring,
    groups_of,
    mean_metric,
    ratio_metric,
)
from stepaudio_jax.evaluation.prompt_files import Prompt, PromptFile
from stepaudio_jax.evaluation.task import Item, Judged, JudgeUse, ReplyScore, ScoredItem
from stepaudio_jax.judge.query import Query
from stepaudio_jax.storage import PathLike, read_text, to_path
from stepaudio_jax.text import Message, TextPart

_JUDGE_PROMPT = "judge_prompt.txt"
_HISTORY, _CRITERION = "«conversation_history»", "«rubric_item»"
_CARD = "README.md"
_FENCE = re.compile(r"(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)")
_TURN = re.compile(r"(user|assistant)_turn_(\d{1,3})_transcript")


class AudioMultiChallenge(JudgedTask):
    """Conversations whose last turn is answered, with one judge call for each rubric item.

    The context is fixed: no system prompt, the user's turns as sound alone, and the dataset's
    transcripts as the assistant's turns. A criterion without a readable verdict counts as not met,
    and a conversation without a reply as failed: the denominator is that of all conversations.

    The judge's prompt is read from the dataset's card (`README.md` in its folder) where it is
    there, and sent as one user message: the card calls it a system prompt, and some servers refuse
    a dialogue without a user's turn.
    """

    name: ClassVar[str] = "audio_mc"
    version: ClassVar[str] = "ScaleAI/audiomc, 452 conversations"
    title: ClassVar[str] = "Audio MultiChallenge"
    table_column: ClassVar[str | None] = "Audio MC"
    judge: ClassVar[JudgeUse] = "required"
    headline: ClassVar[tuple[Scoring, str]] = ("judge", "APR")
    notes: ClassVar[Sequence[str]] = (
        "APR: conversations with every criterion met; ARS: mean share of criteria met; pooled: of"
        " all criteria together, which one public script calls ARS.",
        "The card's judge is o4-mini, which takes no temperature but 1, so that verdicts vary from"
        " run to run. StepFun's judge and decoding settings are not published. Step-Audio-R1's"
        " 24.61 fits 111 of 451: one conversation had left its denominator.",
        "The dataset has a wrong transcript in conversation klvkcs0dggmesj0i, turn 5.",
    )

    tables: ClassVar[Sequence[str]] = ("*.jsonl",)
    files: ClassVar[str] = "data/test-00000-of-00001.parquet of ScaleAI/audiomc"
    prompt_files: ClassVar[Sequence[PromptFile]] = (
        PromptFile(_JUDGE_PROMPT, "audio_mc_judge.txt", (_HISTORY, _CRITERION)),
    )

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Asks about each criterion; a reply that is empty meets none, and is not asked about."""
        visible = remove_reasoning(reply).strip()
        if not visible:
            return []
        history = conversation_history(item.data, visible)
        return [
            Query(self._prompts[_JUDGE_PROMPT].fill({_HISTORY: history, _CRITERION: criterion}))
            for criterion in rubric_of(item.data)
        ]

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged:
        """Reads which criteria are met; without a verdict on each, the reply has no score.

        The details have `criteria_met`, null for no verdict, from which the metrics are computed.
        """
        rubric = rubric_of(item.data)
        if not answers:
            return Judged(0.0, {"criteria_met": [False] * len(rubric), "empty_reply": True})
        values = [read_object(answer, "criteria_met") for answer in answers]
        met = [None if value is None else read_truth(value["criteria_met"]) for value in values]
        details: dict[str, Any] = {"criteria_met": met}
        as_text = sum(
            value is not None and isinstance(value["criteria_met"], str) for value in values
        )
        if as_text:
            details["verdicts_written_as_text"] = as_text
        if None in met:
            reason = f"{met.count(None)} of {len(met)} criteria without a verdict"
            return Judged(None, details, reason)
        return Judged(met.count(True) / len(met), details)

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns APR, ARS and the pooled share of criteria, of all conversations and by axis."""
        metrics = []
        for group, part in groups_of(items):
            metrics += [
                mean_metric("APR", "judge", part, value=_passed, group=group),
                mean_metric("ARS", "judge", part, value=_share_met, group=group),
                ratio_metric("pooled", "judge", part, _met_of, group=group, lower_is_better=False),
            ]
        return metrics

    def headline_part(
        self, reply: ReplyScore | None, data: Mapping[str, Any]
    ) -> tuple[float, float] | None:
        """Returns whether every criterion is met, and 1; a missing reply counts as failed."""
        return float(reply is not None and all(_met(reply))), 1.0

    def item_of(self, row: BenchmarkRow) -> Item:
        """Returns the conversation of a row, without the model's own turns."""
        row = BenchmarkRow(_lower_keys(row.value), row.origin, row.folder)
        last = last_user_turn(row.value)
        if not last:
            raise DataError("has no user turn with a transcript that is not blank")
        messages: list[Message] = []
        for number in range(1, last + 1):
            said = transcript_of(row.value, "user", number)
            key = f"user_turn_{number}_audio"
            if said or row.value.get(key) is not None:
                clip = row.clip(key, transcript=said or None)
                messages.append(Message("user", (clip,)))
            answered = transcript_of(row.value, "assistant", number)
            if answered and number < last:
                messages.append(Message("assistant", (TextPart(answered),)))
        data = {key: value for key, value in row.value.items() if not key.endswith("_audio")}
        item_id = row_id(row, "id")
        return Item(
            id=item_id,
            record=Record(item_id, tuple(messages), self.name, row.origin),
            data={**data, "rubric": rubric_of(row.value)},
            groups=row.groups({"axis": ("axis",)}),
        )

    def find_prompts(self, folder: PathLike) -> None:
        """Reads the judge's prompt from the dataset's card, in the folder or the one above it."""
        base = to_path(folder)
        for card in (base / _CARD, base.parent / _CARD):
            if not card.is_file():
                continue
            try:
                blocks = fenced_blocks(read_text(card))
            except UnicodeDecodeError:
                continue
            for block in blocks:
                if _HISTORY in block and _CRITERION in block:
                    prompt = Prompt(f"of the benchmark's {_CARD}", block)
                    self._prompts.set_official(_JUDGE_PROMPT, prompt)
                    return


def last_user_turn(data: Mapping[str, Any]) -> int:
    """Returns the greatest number of a user's turn whose transcript is not blank; 0 for none."""
    turns = [match for key in data if (match := _TURN.fullmatch(key)) and match[1] == "user"]
    return max(
        (int(turn[2]) for turn in turns if transcript_of(data, "user", int(turn[2]))), default=0
    )


def transcript_of(data: Mapping[str, Any], speaker: str, number: int) -> str:
    """Returns what is said in a turn; "" where it is null, blank, or not there."""
    value = data.get(f"{speaker}_turn_{number}_transcript")
    return value.strip() if isinstance(value, str) else ""


def conversation_history(data: Mapping[str, Any], reply: str) -> str:
    """Returns a conversation as the judge reads it, with a reply as its last turn.

    Each turn is `User: ..` or `Assistant: ..`, with a blank line between; blank ones are left out.
    """
    last = last_user_turn(data)
    turns = []
    for number in range(1, last + 1):
        for speaker, label in (("user", "User"), ("assistant", "Assistant")):
            text = transcript_of(data, speaker, number)
            if text and not (speaker == "assistant" and number == last):
                turns.append(f"{label}: {text}")
    return "\n\n".join([*turns, f"Assistant: {reply}"])


def rubric_of(data: Mapping[str, Any]) -> list[str]:
    """Returns the criteria of a row, a list of texts or one that is written as JSON.

    Raises:
        DataError: there are none.
    """
    rubric = parse_literal(data.get("rubric"))
    if (
        not isinstance(rubric, list)
        or not rubric
        or not all(isinstance(each, str) and each.strip() for each in rubric)
    ):
        raise DataError(
            f"'rubric' must be a list of texts, or one written as JSON, got"
            f" {format_json(data.get('rubric'))}"
        )
    return list(rubric)


def fenced_blocks(markdown: str) -> list[str]:
    """Returns the contents of a Markdown text's fenced blocks.

    A block ends at a fence of the same character that is at least as long, so that a block within
    four backticks may hold one within three (CommonMark, section 4.5).
    """
    blocks: list[str] = []
    lines: list[str] = []
    opening = ""
    for line in markdown.splitlines():
        fence = _FENCE.fullmatch(line.strip())
        if not opening:
            if fence:
                opening, lines = fence["fence"], []
        elif fence and not fence["info"] and fence["fence"].startswith(opening):
            blocks.append("\n".join(lines))
            opening = ""
        else:
            lines.append(line)
    return blocks


def _lower_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with its keys in small letters: the card has had both."""
    return {key.lower(): item for key, item in value.items()}


def _met(reply: ReplyScore) -> list[bool]:
    """Returns for each criterion whether it is met; one without a verdict is not."""
    details = {} if reply.judged is None else reply.judged.details
    return [met is True for met in details.get("criteria_met", ())] or [False]


def _passed(item: ScoredItem) -> float:
    return _mean([float(all(_met(reply))) for reply in item.replies])


def _share_met(item: ScoredItem) -> float:
    return _mean([sum(_met(reply)) / len(_met(reply)) for reply in item.replies])


def _met_of(item: ScoredItem) -> tuple[float, float]:
    criteria = len(rubric_of(item.data))
    return _share_met(item) * criteria, criteria


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
