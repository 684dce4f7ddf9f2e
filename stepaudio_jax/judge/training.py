"""Training data for a judge from preferences, and a report on how well a judge does."""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepaudio_jax.config import JudgeInputs
from stepaudio_jax.data import Record
from stepaudio_jax.data.containers.places import absolute_path
from stepaudio_jax.data.sources.serialization import part_times, serialize_record
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.clips import ClipReader
from stepaudio_jax.judge.dialogue_records import pair_of_record, read_judged_records
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.pairs import Pair
from stepaudio_jax.judge.prompt import JudgePrompt, JudgeQuestion
from stepaudio_jax.judge.verdict import Verdict, comparisons, pair_value, prefers_position
from stepaudio_jax.storage import (
    PathLike,
    atomic_text_writer,
    check_output_file,
    read_bytes,
    to_path,
)
from stepaudio_jax.text import AudioPart, Message


def write_judge_data(
    source: PathLike, output: PathLike, prompt: JudgePrompt, clips: ClipReader | None = None
) -> int:
    """Writes the dialogues that a judge is trained on from a file of preferences; returns how many.

    Args:
        source: records of two replies, or of two dialogues.
        output: JSONL of dialogues; where the judge hears, they name the clips of the source.
        prompt: the judge's.
        clips: reads the clips that the judge hears, to check them; None reads them as
            `ClipReader()` does.

    Raises:
        DataError: a record or a clip cannot be used; nothing is written then.
        OutputError: the output is the source, or exists and holds something else.
    """
    check_output_file(output, [source], may_replace=lambda path: True)
    clips = ClipReader() if clips is None else clips
    dialogues: list[dict[str, Any]] = []
    for record in read_judged_records(source):
        dialogues += judge_dialogues(record, prompt)
        question = prompt.question(record.messages, *pair_of_record(record).sides)
        question.query(functools.partial(clips, origin=record.origin))
    if not dialogues:
        raise DataError(f"{source}: has no records; give at least one preference")
    text = "".join(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues)
    path = to_path(output)
    if path.exists() and read_bytes(path) == text.encode():
        return len(dialogues)
    check_output_file(path, [source])
    with atomic_text_writer(path) as file:
        file.write(text)
    return len(dialogues)


def judge_dialogues(record: Record, prompt: JudgePrompt) -> Iterator[dict[str, Any]]:
    """Yields two dialogues in JSON form, one for each order: the question and the right verdict.

    The judge's reasoning consists of the critiques of the replies, where the record has them.

    Raises:
        DataError: the record lacks a reply, a critique or, for its rubric, what each reply meets;
            or its margin is not a level of the scale.
    """
    pair = _checked_pair(record, says_criteria=prompt.rubric != "ordinal")
    highest = prompt.levels // 2
    margin = record.margin if record.margin is not None else max(highest - 1, 1)
    if not 0 <= margin <= highest:
        raise DataError(
            f"{record.origin}: 'margin' is {margin}; a scale of {prompt.levels} levels has 0 to "
            f"{highest}"
        )
    comparison_of_level = {level: text for text, level in comparisons(prompt.levels).items()}
    better_side, worse_side = pair.sides
    better = (better_side, record.reference_meets, record.reference_critique)
    worse = (worse_side, record.rejected_meets, record.rejected_critique)
    for suffix, first, second, level in (
        ("a", better, worse, margin),
        ("b", worse, better, -margin),
    ):
        reply_a, meets_a, critique_a = first
        reply_b, meets_b, critique_b = second
        question = prompt.question(record.messages, reply_a, reply_b, record.rubric)
        verdict: dict[str, Any] = {"comparison": comparison_of_level[level]}
        if question.criteria:
            verdict["criteria"] = [{"a": a, "b": b} for a, b in zip(meets_a, meets_b, strict=True)]
        if question.code is not None:
            verdict["code"] = question.code
        answer = {"role": "assistant", "content": json.dumps(verdict)}
        if critique_a is not None:
            answer["reasoning_content"] = f"A: {critique_a}\nB: {critique_b}"
        yield {
            "id": f"{record.id}-{suffix}",
            "source": record.source,
            "messages": [_question_turn(question), answer],
        }


@dataclasses.dataclass(frozen=True)
class JudgeReport:
    """How well a judge does on pairs whose better reply is known.

    Attributes:
        pairs: number of pairs, each asked about in both orders.
        abstained: share of pairs without a verdict in both orders; the fields below are of the
            other pairs, and None where there are none.
        agreement: share of pairs whose better reply the judge prefers, a tie counting half; of
            pairs with a margin of 0, the share that it calls equal.
        position_bias: share of pairs in which it prefers a position: its verdict does not follow
            the replies when they are swapped.
        calibration: {size of the pair's value: (share of right preferences, number of pairs)},
            without the pairs with a margin of 0.
        criteria_agreement: share of the rubrics' criteria that it judges right; None without
            rubrics.
        inputs: what the judge was given of the dialogues' clips.
        clips: number of different clips that it was given as sound.
    """

    pairs: int
    abstained: float
    agreement: float | None
    position_bias: float | None
    calibration: Mapping[float, tuple[float, int]]
    criteria_agreement: float | None
    inputs: JudgeInputs = "transcripts"
    clips: int = 0


def evaluate_judge(judge: Judge, records: Sequence[Record]) -> JudgeReport:
    """Compares a judge with held-out preferences.

    Raises:
        DataError: there is no record, or one lacks a reply.
        JudgeError: the judge abstains more often than it may.
    """
    if not records:
        raise DataError("there are no pairs to ask the judge about; give at least one preference")
    judgements = judge.judge(
        [_checked_pair(record, says_criteria=judge.says_criteria) for record in records]
    )
    agreement: list[float] = []
    biased: list[bool] = []
    agreement_by_size: dict[float, list[float]] = collections.defaultdict(list)
    criteria: list[bool] = []
    for record, judgement in zip(records, judgements, strict=True):
        if judgement.verdicts is None:
            continue
        original, swapped = judgement.verdicts
        value = pair_value(original, swapped)
        if record.margin == 0:
            agreement.append(float(value == 0))
        else:
            agreement.append(0.5 if value == 0 else float(value > 0))
            if value:
                agreement_by_size[abs(value)].append(float(value > 0))
        biased.append(prefers_position(original, swapped))
        criteria += _criteria_agreement(record, original, swapped)
    return JudgeReport(
        pairs=len(records),
        abstained=1 - len(agreement) / len(records),
        agreement=_mean(agreement),
        position_bias=_mean(biased),
        calibration={
            size: (sum(agreed) / len(agreed), len(agreed))
            for size, agreed in sorted(agreement_by_size.items())
        },
        criteria_agreement=_mean(criteria),
        inputs=judge.inputs,
        clips=len({clip for judgement in judgements for clip in judgement.given.clips}),
    )


def _question_turn(question: JudgeQuestion) -> dict[str, Any]:
    """Returns a question as a turn in JSON form; clips are named from the root."""
    if not question.clips:
        return {"role": "user", "content": question.text}
    record = Record("", (Message("user", question.parts),), "", "")
    return serialize_record(record, _clip_keys)["messages"][0]


def _clip_keys(part: AudioPart) -> dict[str, Any]:
    path = part.path if part.path.startswith("data:") else absolute_path(part.path)
    return {"audio": path, **part_times(part)}


def _checked_pair(record: Record, *, says_criteria: bool) -> Pair:
    """Returns what the judge compares of a record, the better one first.

    Args:
        record: of two replies or two dialogues.
        says_criteria: whether the judge says of each criterion whether a reply meets it.

    Raises:
        DataError: the record lacks a reply, a critique, or what each reply meets of the rubric.
    """
    pair = pair_of_record(record)
    num_criteria = len(record.rubric)
    if (
        says_criteria
        and record.rubric
        and (
            len(record.reference_meets) != num_criteria
            or len(record.rejected_meets) != num_criteria
        )
    ):
        raise DataError(
            f"{record.origin}: its rubric has {num_criteria} criteria; 'reference_meets' and "
            "'rejected_meets' must say of each whether the reply meets it"
        )
    if (record.reference_critique is None) != (record.rejected_critique is None):
        raise DataError(
            f"{record.origin}: has a critique of one reply; give 'reference_critique' and "
            "'rejected_critique'"
        )
    return pair


def _criteria_agreement(record: Record, original: Verdict, swapped: Verdict) -> list[bool]:
    """Returns for each criterion, reply and order whether the judge is right about it."""
    if not original.first_met:
        return []
    judged_and_true = (
        (original.first_met, record.reference_meets),
        (swapped.second_met, record.reference_meets),
        (original.second_met, record.rejected_meets),
        (swapped.first_met, record.rejected_meets),
    )
    return [
        judged == true
        for judged_met, true_met in judged_and_true
        for judged, true in zip(judged_met, true_met, strict=True)
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
