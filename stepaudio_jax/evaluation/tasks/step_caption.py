"""Step-Caption: descriptions of speakers, scored by a judge field by field."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import BenchmarkRow
from stepaudio_jax.evaluation.judge_replies import (
    read_object,
    read_share,
    read_truth,
    remove_reasoning,
)
from stepaudio_jax.evaluation.judged_task import JudgedTask, row_id
from stepaudio_jax.evaluation.metrics import Metric, Scoring, groups_of, mean_metric
from stepaudio_jax.evaluation.prompt_files import PromptFile
from stepaudio_jax.evaluation.task import Item, Judged, JudgeUse, ScoredItem
from stepaudio_jax.judge.query import Query
from stepaudio_jax.text import Message, TextPart

FIELDS = (
    *("language", "gender", "age_group", "speech_rate", "rhythm", "pitch", "clarity"),
    *("background_sound", "timbre", "language_style", "paralinguistic_features", "emotion"),
    *("overall_impression", "dialect_or_accent", "formality_level"),
)
SKIPPED_LABELS = ("无法判断", "无法识别")
_AUDIO_FOLDER = "audio"
_TOLERANCE = 0.02  # between the judge's overall score and the mean of its field scores
_MODEL, _SYSTEM, _USER = (
    "model_user_prompt.txt",
    "judge_system_prompt.txt",
    "judge_user_prompt_template.txt",
)
_TRUTH, _COUNT, _OUTPUT, _LABELS = (
    "{ground_truth}",
    "{num_speakers}",
    "{model_output}",
    "{speakers_str}",
)


class StepCaption(JudgedTask):
    """Clips whose speakers are described in a paragraph, judged in speaker count and 15 fields.

    The score of a reply is the judge's `overall_score`, and 0 where the reply is wrong about one or
    several speakers, as the judge is told. How it follows from the field scores is not defined:
    both means are recomputed and stand beside it. A judge's reply that cannot be read leaves the
    denominator and is counted; the figure with such replies as 0 stands beside it too.

    The sound comes before the text. Labels are shown to the judge one in a line, `field: label`,
    below a line for each speaker: their rendering is not defined either.
    """

    name: ClassVar[str] = "step_caption"
    version: ClassVar[str] = "Step-Audio-R1.5/step_caption, 905 clips"
    title: ClassVar[str] = "Step-Caption"
    table_column: ClassVar[str | None] = "Step-Caption"
    judge: ClassVar[JudgeUse] = "required"
    headline: ClassVar[tuple[Scoring, str]] = ("judge", "overall_score")
    notes: ClassVar[Sequence[str]] = (
        "Not published: the judge, the order of sound and text, decoding settings, how labels are"
        " written for the judge, how overall_score follows from the fields, and what becomes of a"
        " judge's reply that cannot be read.",
        "mean_of_speakers: mean over speakers of the means of their fields; mean_of_fields: of all"
        " fields together; differs: share of replies whose overall_score is more than 0.02 from"
        " mean_of_speakers.",
    )

    files: ClassVar[str] = "the folder step_caption with metadata.jsonl"
    ships_prompts: ClassVar[bool] = True
    prompt_files: ClassVar[Sequence[PromptFile]] = (
        PromptFile(_MODEL, "step_caption_model.txt"),
        PromptFile(_SYSTEM, "step_caption_judge_system.txt"),
        PromptFile(_USER, "step_caption_judge_user.txt", (_TRUTH, _COUNT, _OUTPUT, _LABELS)),
    )

    def queries(self, item: Item, reasoning: str, reply: str) -> list[Query]:
        """Asks for the scores of all fields; an empty reply scores 0 unasked."""
        visible = remove_reasoning(reply).strip()
        if not visible:
            return []
        speakers = speakers_of(item.data)
        values = {
            _TRUTH: "多人" if is_several(item.data) else "单人",
            _COUNT: str(len(speakers)),
            _OUTPUT: visible,
            _LABELS: render_labels(speakers),
        }
        return [Query(self._prompts[_USER].fill(values), self._prompts[_SYSTEM].text.strip())]

    def judged(
        self, item: Item, reasoning: str, reply: str, answers: Sequence[str | None]
    ) -> Judged:
        """Reads the overall score, and recomputes it from the fields.

        The details have `decision_correct`, `overall_score` as written, `fields` (for each speaker,
        in the order of the labels, the scores of the fields that count), both recomputed means, and
        `problems` with the judge's form.
        """
        speakers = speakers_of(item.data)
        if not answers:
            return Judged(0.0, {**_nothing_right(speakers), "empty_reply": True})
        value = read_object(answers[0], "overall_score")
        if value is None:
            return Judged(None, reason="the judge's reply has no JSON object with overall_score")
        overall = read_share(value["overall_score"])
        if overall is None:
            shown = format_json(value["overall_score"])
            return Judged(None, reason=f"overall_score must be from 0 to 1, got {shown}")
        decision = read_truth(value.get("multi_speaker_judgment_correct"))
        if decision is None:
            return Judged(None, reason="the judge does not say whether the decision is right")
        problems: list[str] = []
        if not decision:
            if overall > 0:
                problems.append(f"overall_score is {overall:g} although the decision is wrong")
            details = {**_nothing_right(speakers), "overall_score": overall, "problems": problems}
            return Judged(0.0, details)
        fields = list(_field_scores(value.get("speakers"), speakers, problems))
        details = {
            "decision_correct": True,
            "overall_score": overall,
            "fields": fields,
            **recomputed(fields),
        }
        mean = details["mean_of_speakers"]
        if mean is not None and abs(mean - overall) > _TOLERANCE:
            problems.append(f"overall_score is {overall:g}, and the mean of the fields {mean:.3f}")
        return Judged(overall, {**details, "problems": problems})

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns the mean overall score, its recomputed forms, and the sixteen dimensions."""
        metrics = []
        for group, part in groups_of(items):
            metrics += [
                mean_metric("overall_score", "judge", part, group=group, failures="left_out"),
                mean_metric("overall_score_failures_0", "judge", part, group=group),
            ]
        metrics += [
            mean_metric(name, "judge", items, value=_detail(name))
            for name in ("mean_of_speakers", "mean_of_fields")
        ]
        metrics.append(mean_metric("differs", "judge", items, value=_differs))
        metrics.append(
            mean_metric(
                "dimension",
                "judge",
                items,
                value=_detail("decision_correct"),
                group="dimension=speaker_count",
            )
        )
        for field in FIELDS:
            metrics.append(
                mean_metric(
                    "dimension", "judge", items, value=_field(field), group=f"dimension={field}"
                )
            )
        return metrics

    def item_of(self, row: BenchmarkRow) -> Item:
        """Returns the clip of a row, with the whole text of the model's prompt behind it."""
        name, test_id = row.text("audio"), row_id(row, "test_id")
        path = name if "/" in name else f"{_AUDIO_FOLDER}/{name}"
        clip = BenchmarkRow({"audio": path}, row.origin, row.folder).clip("audio")
        parts = (clip, TextPart(self._prompts[_MODEL].line))
        return Item(
            id=test_id,
            record=Record(test_id, (Message("user", parts),), self.name, row.origin),
            data={**row.value, "speakers": speakers_of(row.value)},
            groups={"speakers": "several" if is_several(row.value) else "one"},
        )


def is_several(data: Mapping[str, Any]) -> bool:
    """Returns whether several people speak in a clip.

    Raises:
        DataError: the row does not say it.
    """
    value = data.get("is_multi_speakers")
    if not isinstance(value, bool):
        raise DataError(f"'is_multi_speakers' must be true or false, got {format_json(value)}")
    return value


def speakers_of(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the labels of each speaker, {field: label}.

    Raises:
        DataError: there are no speakers, or a label is no text.
    """
    speakers = data.get("speakers")
    if not isinstance(speakers, list) or not speakers:
        raise DataError(f"'speakers' must be a list of objects, got {format_json(speakers)}")
    for speaker in speakers:
        if not isinstance(speaker, Mapping) or not all(
            isinstance(speaker.get(field, ""), str) for field in FIELDS
        ):
            raise DataError(f"'speakers' must hold labels as texts, got {format_json(speaker)}")
    return [
        {field: speaker[field] for field in FIELDS if speaker.get(field)} for speaker in speakers
    ]


def render_labels(speakers: Sequence[Mapping[str, str]]) -> str:
    """Returns the labels as the judge reads them."""
    lines = []
    for number, speaker in enumerate(speakers, 1):
        lines.append(f"说话人 {number}（speaker_index: {number}）")
        lines += [f"- {field}: {label}" for field, label in speaker.items()]
    return "\n".join(lines)


def recomputed(fields: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Returns the mean over speakers of their fields' means, and the mean of all fields."""
    means = [sum(scores.values()) / len(scores) for scores in fields if scores]
    everything = [score for scores in fields for score in scores.values()]
    return {
        "mean_of_speakers": sum(means) / len(means) if means else None,
        "mean_of_fields": sum(everything) / len(everything) if everything else None,
    }


def counted_fields(speaker: Mapping[str, str]) -> list[str]:
    """Returns the fields of a speaker that are scored: those whose label says something."""
    return [field for field, label in speaker.items() if label.strip() not in SKIPPED_LABELS]


def _nothing_right(speakers: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Returns the details of a reply that is wrong about one or several speakers."""
    fields = [dict.fromkeys(counted_fields(speaker), 0.0) for speaker in speakers]
    return {"decision_correct": False, "overall_score": 0.0, "fields": fields, **recomputed(fields)}


def _field_scores(
    judged: Any, speakers: Sequence[Mapping[str, str]], problems: list[str]
) -> Iterator[dict[str, float]]:
    """Yields the scores of each speaker's fields that count; appends what is wrong with them."""
    by_index: dict[int, Any] = {}
    listed = judged if isinstance(judged, list) else []
    for position, each in enumerate(listed, 1):
        if isinstance(each, Mapping):
            index = each.get("speaker_index")
            is_whole = isinstance(index, int | float) and index == position
            number = position if is_whole or index is None else _as_index(index)
            by_index.setdefault(number, each.get("field_scores"))
    if len(listed) != len(speakers):
        problems.append(f"scores of {len(listed)} speakers, and there are {len(speakers)}")
    for number, speaker in enumerate(speakers, 1):
        given = by_index.get(number)
        given = given if isinstance(given, Mapping) else {}
        counted = counted_fields(speaker)
        scores = {}
        for field in counted:
            entry = given.get(field)
            score = read_share(entry.get("score") if isinstance(entry, Mapping) else entry)
            if score is not None:
                scores[field] = score
        if len(scores) < len(counted):
            lacking = [field for field in counted if field not in scores]
            problems.append(f"speaker {number} has no score from 0 to 1 of {', '.join(lacking)}")
        yield scores


def _as_index(value: Any) -> int:
    """Returns a speaker's number; -1 where a judge wrote none that can be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1000:
        return -1
    return int(value) if value == int(value) else -1


def _details(item: ScoredItem) -> Iterator[Mapping[str, Any]]:
    for reply in item.replies:
        if reply.judged is not None and reply.judged.score is not None:
            yield reply.judged.details


def _detail(key: str) -> Any:
    """Returns what computes an item's mean of a detail; None where no reply has it."""

    def value(item: ScoredItem) -> float | None:
        values = [float(each[key]) for each in _details(item) if each.get(key) is not None]
        return sum(values) / len(values) if values else None

    return value


def _field(field: str) -> Any:
    """Returns what computes an item's mean score of a field over its speakers and replies."""

    def value(item: ScoredItem) -> float | None:
        scores = [
            speaker[field]
            for details in _details(item)
            for speaker in details["fields"]
            if field in speaker
        ]
        return sum(scores) / len(scores) if scores else None

    return value


def _differs(item: ScoredItem) -> float | None:
    differences = [
        float(abs(each["overall_score"] - each["mean_of_speakers"]) > _TOLERANCE)
        for each in _details(item)
        if each.get("mean_of_speakers") is not None
    ]
    return sum(differences) / len(differences) if differences else None
