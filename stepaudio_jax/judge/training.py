"""Making a judge: preferences and rubrics as dialogues to learn from, and how good a judge is on pairs held out."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepaudio_jax.data import Record, read_jsonl
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.judge import Judge, ReplyPair
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.verdict import comparisons, prefers_position
from stepaudio_jax.storage import atomic_text_writer, check_output_file


def judge_dialogues(record: Record, prompt: JudgePrompt) -> Iterator[dict[str, Any]]:
    """Two dialogues in JSON form, the pair in both orders: the judge's question, and the verdict that it should give.

    Where the record has a critique of each reply, these are what the judge reasons before its
    verdict.

    Raises:
        DataError: the record lacks one of the replies, one of the critiques or, for its rubric,
            what each reply meets; or its margin is no level.
    """
    pair = _pair(record)
    highest = prompt.levels // 2
    margin = record.margin if record.margin is not None else max(highest - 1, 1)
    if not 0 <= margin <= highest:
        raise DataError(
            f"{record.origin}: 'margin' is {margin}; a scale of {prompt.levels} levels has 0 to {highest}"
        )
    named = {level: text for text, level in comparisons(prompt.levels).items()}
    assert record.rejected_reply is not None
    better = (pair.reply, record.reference_meets, record.reference_critique)
    worse = (pair.reference, record.rejected_meets, record.rejected_critique)
    for order, (
        (first, first_meets, first_critique),
        (second, second_meets, second_critique),
        level,
    ) in enumerate(((better, worse, margin), (worse, better, -margin))):
        verdict: dict[str, Any] = {"comparison": named[level]}
        if record.rubric:
            verdict["criteria"] = [
                {"a": a, "b": b} for a, b in zip(first_meets, second_meets, strict=True)
            ]
        question = prompt.question(record.messages, first, second, record.rubric)
        if question.code is not None:
            verdict["code"] = question.code
        answer = {"role": "assistant", "content": json.dumps(verdict)}
        if first_critique is not None:
            answer["reasoning_content"] = f"A: {first_critique}\nB: {second_critique}"
        yield {
            "id": f"{record.id}-{'ab'[order]}",
            "source": record.source,
            "messages": [{"role": "user", "content": question.text}, answer],
        }


def write_judge_data(
    source: str | os.PathLike[str], output: str | os.PathLike[str], prompt: JudgePrompt
) -> int:
    """Turns a file of preferences into one of dialogues that a stage of `next_token` learns a judge from; returns how many.

    Raises:
        DataError: a record cannot be used; nothing is written then.
        OutputError: the output is the source, or is there already and holds something else.
    """
    check_output_file(output, [source], may_replace=lambda path: True)
    dialogues = [
        dialogue for record in read_jsonl(source) for dialogue in judge_dialogues(record, prompt)
    ]
    if not dialogues:
        raise DataError(f"{source}: has no records; give at least one preference")
    text = "".join(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues)
    path = pathlib.Path(output)
    if path.exists() and path.read_bytes() == text.encode():
        return len(dialogues)
    check_output_file(path, [source])
    with atomic_text_writer(path) as file:
        file.write(text)
    return len(dialogues)


@dataclasses.dataclass(frozen=True)
class JudgeReport:
    """How a judge did on pairs whose better reply is known.

    Attributes:
        pairs: asked about, each in both orders.
        abstained: share of them without a verdict in both orders.
        agreement: of the others, the share whose better reply it prefers, a tie counting half; of
            pairs whose margin is 0, the share that it sees as equal.
        position_bias: of the others, the share in which it prefers a place: its verdicts flip when
            the replies are swapped. None, like `agreement`, where it has a verdict on none.
        calibration: by the size of the pair's value, the share of right preferences and the number
            of pairs, but for those whose margin is 0.
        criteria_agreement: share of the rubrics' criteria that it sees as they are; None without
            rubrics.
    """

    pairs: int
    abstained: float
    agreement: float | None
    position_bias: float | None
    calibration: Mapping[float, tuple[float, int]]
    criteria_agreement: float | None


def evaluate_judge(judge: Judge, records: Sequence[Record]) -> JudgeReport:
    """Asks a judge about held-out preferences.

    Raises:
        DataError: there is no record, or one lacks one of the replies.
        JudgeError: more abstentions than the judge allows.
    """
    if not records:
        raise DataError("there are no pairs to ask the judge about; give at least one preference")
    judgements = judge.judge([_pair(record) for record in records])
    right: list[float] = []
    flipped: list[bool] = []
    by_size: dict[float, list[float]] = collections.defaultdict(list)
    criteria: list[bool] = []
    for record, judgement in zip(records, judgements, strict=True):
        if judgement.verdicts is None:
            continue
        original, swapped = judgement.verdicts
        value = (original.level - swapped.level) / 2
        if record.margin == 0:
            right.append(float(value == 0))
        else:
            right.append(0.5 if value == 0 else float(value > 0))
        flipped.append(prefers_position(original, swapped))
        if value and record.margin != 0:
            by_size[abs(value)].append(float(value > 0))
        for seen, true in (
            *(
                (verdict, record.reference_meets)
                for verdict in (original.first_met, swapped.second_met)
            ),
            *(
                (verdict, record.rejected_meets)
                for verdict in (original.second_met, swapped.first_met)
            ),
        ):
            criteria += [a == b for a, b in zip(seen, true, strict=True)] if record.rubric else []
    return JudgeReport(
        pairs=len(records),
        abstained=1 - len(right) / len(records),
        agreement=sum(right) / len(right) if right else None,
        position_bias=sum(flipped) / len(flipped) if flipped else None,
        calibration={
            size: (sum(found) / len(found), len(found)) for size, found in sorted(by_size.items())
        },
        criteria_agreement=sum(criteria) / len(criteria) if criteria else None,
    )


def _pair(record: Record) -> ReplyPair:
    """The better reply first."""
    if record.reference_reply is None or record.rejected_reply is None:
        raise DataError(
            f"{record.origin}: needs a better and a worse reply: 'chosen' and 'rejected'"
        )
    if record.rubric and not len(record.rubric) == len(record.reference_meets) == len(
        record.rejected_meets
    ):
        raise DataError(
            f"{record.origin}: its rubric has {len(record.rubric)} criteria; 'reference_meets' and 'rejected_meets' must say "
            "of each whether the reply meets it"
        )
    if (record.reference_critique is None) != (record.rejected_critique is None):
        raise DataError(
            f"{record.origin}: has a critique of one reply; give 'reference_critique' and 'rejected_critique'"
        )
    return ReplyPair(
        tuple(record.messages), record.reference_reply, record.rejected_reply, record.rubric
    )
