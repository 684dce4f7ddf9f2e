"""A report on people's verdicts: agreement among them and with a judge, and position bias."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stepaudio_jax.config import JudgeInputs
from stepaudio_jax.data import Record
from stepaudio_jax.data.annotations import Annotation
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.agreement import krippendorff_alpha, share_of_first, weighted_kappa
from stepaudio_jax.judge.dialogue_records import pair_of_record
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.verdict import pair_value, prefers_position


@dataclasses.dataclass(frozen=True)
class GroupAgreement:
    """How far a group of verdicts agree.

    Attributes:
        records: that have a verdict in the group.
        verdicts: without skips.
        alpha: Krippendorff's, ordinal, of the verdicts as they are written: a is the record's
            reference reply. None where no record has two verdicts, or all are the same.
        alpha_both_orders: the same with each record counted in both orders of its replies. Where
            the reference is the reply that people prefer, as `launch.data preferences` writes it,
            the sign of a verdict says little, and this is the figure to read.
        kappa: of people's verdicts and the judge's, with quadratic weights; None without a judge.
        kappa_both_orders: the same with each record counted in both orders.
    """

    records: int
    verdicts: int
    alpha: float | None
    alpha_both_orders: float | None
    kappa: float | None
    kappa_both_orders: float | None


@dataclasses.dataclass(frozen=True)
class AnnotatorReport:
    """How a person judged.

    Attributes:
        verdicts: without skips.
        skipped: number of skips.
        first_preferred: share of their verdicts, without "equal", that prefer the reply that was
            shown first; 0.5 without a position bias.
        gold: number of verdicts on gold pairs.
        gold_right: share of these that agree with the known answer.
    """

    verdicts: int
    skipped: int
    first_preferred: float | None
    gold: int
    gold_right: float | None


@dataclasses.dataclass(frozen=True)
class JudgeAgainstPeople:
    """How a judge does beside people.

    Attributes:
        name: of the judge.
        abstained: share of the records without a verdict in both orders.
        agreement: share of people's verdicts, without "equal", whose better reply the judge
            prefers; that it calls both equal counts half.
        position_bias: share of records where its verdict does not follow the exchanged replies.
        first_preferred: of its verdicts in either order, without "equal", the share that prefers
            the reply that stood first.
        criteria_agreement: share of people's marks of criteria that the judge gives too.
        inputs: what the judge was given of the dialogues' clips.
        clips: number of different clips that it was given as sound.
    """

    name: str
    abstained: float
    agreement: float | None
    position_bias: float | None
    first_preferred: float | None
    criteria_agreement: float | None
    inputs: JudgeInputs = "transcripts"
    clips: int = 0


@dataclasses.dataclass(frozen=True)
class HumanReport:
    """What `report_on_people` finds.

    Attributes:
        records: with at least one annotation, skips included.
        skipped: annotations that skip.
        all: of all verdicts.
        criteria_alpha: Krippendorff's, nominal, of the criteria's marks; None without.
        first_preferred: as of `AnnotatorReport`, of all people.
        annotators, by_source, by_reason: the same of each; a verdict with two reasons counts for
            both.
        judge: None where none was asked.
    """

    records: int
    skipped: int
    all: GroupAgreement
    criteria_alpha: float | None
    first_preferred: float | None
    annotators: Mapping[str, AnnotatorReport]
    by_source: Mapping[str, GroupAgreement]
    by_reason: Mapping[str, GroupAgreement]
    judge: JudgeAgainstPeople | None


class _Given(NamedTuple):
    """An annotation, and the index of its record."""

    record: int
    annotation: Annotation


def report_on_people(
    records: Sequence[Record], judge: Judge | None = None, *, name: str = "", levels: int = 7
) -> HumanReport:
    """Compares people's verdicts with each other, and with a judge's.

    Args:
        records: those without annotations are left out.
        judge: is asked about each pair in both orders; None asks none.
        name: of the judge, for the report.
        levels: of the scale of verdicts.

    Raises:
        DataError: no record has annotations; one lacks a reply; or a verdict is outside the scale.
        JudgeError: the judge abstains more often than it may.
    """
    records = [record for record in records if record.annotations]
    if not records:
        raise DataError("no record has 'annotations' with a verdict of a person")
    given = [
        _Given(index, annotation)
        for index, record in enumerate(records)
        for annotation in record.annotations
    ]
    for item in given:
        if abs(item.annotation.verdict or 0) > levels // 2:
            raise DataError(
                f"{records[item.record].origin}: the verdict {item.annotation.verdict} is outside"
                f" a scale of {levels} levels; give --levels as of the people's scale"
            )
    values: dict[int, float] = {}
    against = None
    if judge is not None:
        values, against = _ask(records, given, judge, name)
    decided = [item for item in given if item.annotation.verdict is not None]
    reasons = sorted({reason for item in decided for reason in item.annotation.reasons})
    sources = sorted({record.source for record in records})
    names = sorted({item.annotation.annotator for item in given})
    return HumanReport(
        records=len(records),
        skipped=len(given) - len(decided),
        all=_agreement(decided, values),
        criteria_alpha=_criteria_alpha(decided),
        first_preferred=_first_preferred(decided),
        annotators={
            each: _annotator(records, [item for item in given if item.annotation.annotator == each])
            for each in names
        },
        by_source={
            source: _agreement(
                [item for item in decided if records[item.record].source == source], values
            )
            for source in sources
        },
        by_reason={
            reason: _agreement(
                [item for item in decided if reason in item.annotation.reasons], values
            )
            for reason in reasons
        },
        judge=against,
    )


def _agreement(decided: Sequence[_Given], judged: Mapping[int, float]) -> GroupAgreement:
    units: dict[int, list[float]] = collections.defaultdict(list)
    for item in decided:
        units[item.record].append(_verdict(item))
    mirrored = [[-value for value in unit] for unit in units.values()]
    pairs = [(_verdict(item), judged[item.record]) for item in decided if item.record in judged]
    return GroupAgreement(
        records=len(units),
        verdicts=len(decided),
        alpha=krippendorff_alpha(units.values()),
        alpha_both_orders=krippendorff_alpha([*units.values(), *mirrored]),
        kappa=weighted_kappa(pairs),
        kappa_both_orders=weighted_kappa(
            [*pairs, *((-person, -machine) for person, machine in pairs)]
        ),
    )


def _annotator(records: Sequence[Record], given: Sequence[_Given]) -> AnnotatorReport:
    decided = [item for item in given if item.annotation.verdict is not None]
    gold = [item for item in decided if item.annotation.is_gold]
    right = [
        _verdict(item) == 0 if records[item.record].margin == 0 else _verdict(item) > 0
        for item in gold
    ]
    return AnnotatorReport(
        verdicts=len(decided),
        skipped=len(given) - len(decided),
        first_preferred=_first_preferred(decided),
        gold=len(gold),
        gold_right=sum(right) / len(right) if right else None,
    )


def _first_preferred(decided: Sequence[_Given]) -> float | None:
    return share_of_first(
        [
            (_verdict(item) > 0) == (item.annotation.shown_first == "a")
            for item in decided
            if item.annotation.verdict and item.annotation.shown_first is not None
        ]
    )


def _criteria_alpha(decided: Sequence[_Given]) -> float | None:
    """Returns the agreement about criteria: each reply and criterion of a record is a unit."""
    units: dict[tuple[int, int, str], list[float]] = collections.defaultdict(list)
    for item in decided:
        for number, met in enumerate(item.annotation.criteria):
            units[item.record, number, "a"].append(float(met.a))
            units[item.record, number, "b"].append(float(met.b))
    return krippendorff_alpha(units.values(), "nominal")


def _ask(
    records: Sequence[Record], given: Sequence[_Given], judge: Judge, name: str
) -> tuple[dict[int, float], JudgeAgainstPeople]:
    """Returns {record: the value of its pair}, above 0 where a is better, and the judge's part."""
    judgements = judge.judge([pair_of_record(record) for record in records])
    verdicts = {
        index: judgement.verdicts
        for index, judgement in enumerate(judgements)
        if judgement.verdicts is not None
    }
    values = {index: pair_value(*pair) for index, pair in verdicts.items()}
    agreed: list[float] = []
    marks: list[bool] = []
    for item in given:
        if item.record not in verdicts:
            continue
        if item.annotation.verdict:
            sign = values[item.record] * item.annotation.verdict
            agreed.append(0.5 if sign == 0 else float(sign > 0))
        original, swapped = verdicts[item.record]
        # A judge with an ordinal rubric says nothing of each criterion.
        criteria = item.annotation.criteria if original.first_met else ()
        for number, met in enumerate(criteria):
            marks += [
                met.a == original.first_met[number],
                met.a == swapped.second_met[number],
                met.b == original.second_met[number],
                met.b == swapped.first_met[number],
            ]
    levels = [verdict.level for pair in verdicts.values() for verdict in pair if verdict.level]
    biased = [prefers_position(*pair) for pair in verdicts.values()]
    return values, JudgeAgainstPeople(
        name=name,
        abstained=1 - len(verdicts) / len(records),
        agreement=_mean(agreed),
        position_bias=_mean(biased),
        first_preferred=share_of_first([level > 0 for level in levels]),
        criteria_agreement=_mean(marks),
        inputs=judge.inputs,
        clips=len({clip for judgement in judgements for clip in judgement.given.clips}),
    )


def _verdict(item: _Given) -> float:
    assert item.annotation.verdict is not None
    return float(item.annotation.verdict)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
