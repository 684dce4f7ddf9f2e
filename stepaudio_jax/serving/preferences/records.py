"""Records of what people preferred: what a judge is trained on, and what stages of RL read.

Each prepared pair, and each comparison that somebody made, becomes one record. The reply that its
people prefer on average is `chosen`, `margin` says by how many levels, and `annotations` keeps what
each of them said. Where they call the replies equal on average, `margin` is 0.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from stepaudio_jax.data.annotations import Annotation, serialize_annotation
from stepaudio_jax.data.record import Criterion, Record
from stepaudio_jax.data.sources.messages import parse_record
from stepaudio_jax.data.sources.serialization import part_times, serialize_record, serialize_rubric
from stepaudio_jax.serving.preferences.comparisons import (
    Comparison,
    Continuation,
    turns_to_json,
)
from stepaudio_jax.serving.preferences.journals import Study, read_study
from stepaudio_jax.serving.preferences.study import DIALOGUES, RECORDS, study_folder
from stepaudio_jax.storage import (
    Path,
    PathLike,
    check_output_file,
    parse_json,
    read_bytes,
    to_path,
    write_json_lines,
)


@dataclasses.dataclass(frozen=True)
class WrittenRecords:
    """Counts what was written.

    Attributes:
        replies: records of two replies.
        dialogues: records of two dialogues, which are in a file of their own.
        verdicts: that they hold, without skips.
        skipped: comparisons that everybody skipped, or nobody judged; they are left out.
    """

    replies: int
    dialogues: int
    verdicts: int
    skipped: int


def write_records(folder: PathLike, output: PathLike | None = None) -> WrittenRecords:
    """Writes the records of a study; a server may be writing to it meanwhile.

    Args:
        folder: of the study.
        output: the file of the records; None for `records.jsonl` in the folder. Those of two
            dialogues are in `dialogues.jsonl` beside it, if there are any.

    Raises:
        ConfigError: the folder is no study.
        DataError: a line of it is damaged.
        OutputError: the output exists, and is no file of such records.
    """
    path = study_folder(folder)
    study = read_study(path)
    target = path / RECORDS if output is None else to_path(output)
    # Clips are named relative to the records where both are in the study's folder.
    base = str(path) if target.parent == path else None
    dialogues_target = target.with_name(DIALOGUES)
    check_output_file(target, [], may_replace=_is_records)
    replies, dialogues = study_rows(study, base)
    write_json_lines(target, replies)
    if dialogues or dialogues_target.exists():
        check_output_file(dialogues_target, [], may_replace=_is_records)
        write_json_lines(dialogues_target, dialogues)
    rows = [*replies, *dialogues]
    given = [item for row in rows for item in row["annotations"] if item["verdict"] is not None]
    return WrittenRecords(
        replies=len(replies),
        dialogues=len(dialogues),
        verdicts=len(given),
        skipped=len(_items(study)) - len(rows),
    )


def study_rows(study: Study, folder: str | None) -> tuple[list[Any], list[Any]]:
    """Returns the rows of records of two replies, and those of two dialogues.

    Args:
        study: with its verdicts.
        folder: clips below it are named relative to it; None names all as they are.
    """
    replies, dialogues = [], []
    for identity, (comparison, annotations, earlier) in _items(study).items():
        if all(item.verdict is None for item in annotations):
            continue
        annotations = [*earlier, *annotations]
        if identity in study.gold:
            row = _gold_row(study.gold[identity], comparison, annotations)
        else:
            row = _row(identity, comparison, annotations, folder)
            # What a verifier compares with is true of the dialogue, whoever is preferred.
            if identity in study.pairs and study.pairs[identity].answer is not None:
                row["answer"] = study.pairs[identity].answer
        if comparison.is_of_dialogues:
            dialogues.append(row)
        else:
            # What is written is what the readers take: an error here is a mistake of ours.
            parse_record(row, origin=identity, folder="", source="", default_id="")
            replies.append(row)
    return replies, dialogues


def _items(
    study: Study,
) -> dict[str, tuple[Comparison, list[Annotation], tuple[Annotation, ...]]]:
    """Returns {id: (comparison, annotations, those that its pair brought)}, in order."""
    rubrics = _rubrics(study)
    items: dict[str, tuple[Comparison, list[Annotation], tuple[Annotation, ...]]] = {}
    for assignment in study.assignments.values():
        identity = assignment.identity
        pair = study.gold.get(identity) or study.pairs.get(identity)
        earlier = pair.annotations if pair is not None and assignment.pair else ()
        comparison = study.comparison(assignment)
        if identity in rubrics:
            comparison = dataclasses.replace(comparison, rubric=rubrics[identity])
        items.setdefault(identity, (comparison, [], earlier))
    for verdict in study.verdicts.values():
        assignment = study.assignments[verdict.assignment]
        annotation = verdict.annotation
        if study.comparison(assignment).rubric != rubrics[assignment.identity]:
            # It answers other criteria than those of the record.
            annotation = dataclasses.replace(annotation, criteria=())
        items[assignment.identity][1].append(annotation)
    return items


def _rubrics(study: Study) -> dict[str, tuple[Criterion, ...]]:
    """Returns {id: the rubric that the last verdict with criteria answers}.

    The people who judge a pair may have been asked for different criteria: the study's rubric can
    change while it runs.
    """
    rubrics: dict[str, tuple[Criterion, ...]] = {}
    for verdict in study.verdicts.values():
        assignment = study.assignments[verdict.assignment]
        rubric = study.comparison(assignment).rubric
        if verdict.annotation.criteria:
            rubrics[assignment.identity] = rubric
        else:
            rubrics.setdefault(assignment.identity, rubric)
    return rubrics


def _row(
    identity: str, comparison: Comparison, annotations: Sequence[Annotation], folder: str | None
) -> dict[str, Any]:
    levels = [item.verdict for item in annotations if item.verdict is not None]
    mean = sum(levels) / len(levels)
    chosen, rejected = comparison.a, comparison.b
    if mean < 0:
        chosen, rejected = rejected, chosen
        annotations = [item.swapped for item in annotations]
    row: dict[str, Any] = {
        "id": identity,
        "source": comparison.source,
        "messages": turns_to_json(comparison.messages, folder),
        "chosen": turns_to_json(chosen.turns, folder),
        "rejected": turns_to_json(rejected.turns, folder),
        # Halves are rounded towards 0, but what is preferred on average is so by 1 at least.
        "margin": math.ceil(abs(mean) - 0.5) or int(mean != 0),
    }
    if comparison.rubric:
        row["rubric"] = serialize_rubric(comparison.rubric)
        marked = [item.criteria for item in annotations if item.criteria]
        if marked:
            row["reference_meets"] = [
                _majority([each[index].a for each in marked]) for index in range(len(marked[0]))
            ]
            row["rejected_meets"] = [
                _majority([each[index].b for each in marked]) for index in range(len(marked[0]))
            ]
    row["annotations"] = [serialize_annotation(item) for item in annotations]
    models = {"chosen": _origin(chosen), "rejected": _origin(rejected)}
    if any(models.values()):
        row["models"] = models
    return row


def _gold_row(
    record: Record, comparison: Comparison, annotations: Sequence[Annotation]
) -> dict[str, Any]:
    """Returns the row of a pair whose better reply is known, whatever people say."""
    annotated = dataclasses.replace(
        record, rubric=comparison.rubric, annotations=tuple(annotations)
    )
    return serialize_record(annotated, lambda part: {"audio": part.path, **part_times(part)})


def _origin(side: Continuation) -> dict[str, Any]:
    """Returns what wrote a continuation, as far as it is known."""
    origin = {"model": side.model, "sampling": dict(side.sampling)}
    return {key: value for key, value in origin.items() if value}


def _majority(votes: Sequence[bool]) -> bool:
    """Returns whether more than half say that a criterion is met."""
    return 2 * sum(votes) > len(votes)


def _is_records(path: Path) -> bool:
    """Returns whether a file is one of records with annotations, which may be written anew."""
    lines = read_bytes(path).splitlines()
    value = parse_json(lines[0]) if lines else {"annotations": []}
    return isinstance(value, dict) and "annotations" in value
