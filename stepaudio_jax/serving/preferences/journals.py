"""What a study wrote while it ran, read line by line and checked: assignments, verdicts, consents.

The last line of a journal may be torn where the process was killed; nobody was told that it is
kept, and it is not read. A damaged line before the last is an error.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from stepaudio_jax.data import Record
from stepaudio_jax.data.annotations import Annotation, parse_annotation, serialize_annotation
from stepaudio_jax.data.record import Criterion
from stepaudio_jax.data.sources.messages import parse_rubric
from stepaudio_jax.data.sources.serialization import serialize_rubric
from stepaudio_jax.errors import DataError
from stepaudio_jax.serving.preferences.comparisons import (
    Comparison,
    Side,
    comparison_of_record,
    comparison_to_json,
    parse_comparison,
)
from stepaudio_jax.serving.preferences.pairs import read_pairs
from stepaudio_jax.serving.preferences.study import (
    ASSIGNMENTS,
    CONSENTS,
    GOLD,
    PAIRS,
    SETTINGS,
    VERDICTS,
    StudySettings,
    normalize_name,
    read_settings,
)
from stepaudio_jax.storage import JsonLine, Path, appended_exists, read_json_lines

MAX_NAME_CHARACTERS = 64
_NAME = re.compile(r"\w[\w .@+'-]*")
_ID = re.compile(r"[0-9A-Za-z_-]{8,64}")


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Holds what was shown to whom.

    Attributes:
        id: of the assignment.
        annotator: whom it was shown to.
        shown_first: which continuation stood first.
        pair: the id of the prepared pair; None for a comparison of the annotator's.
        comparison: of two continuations that were made for it; None for a prepared pair.
        time: when, in UTC as ISO 8601.
        seconds: of sound to hear before a verdict.
        rubric: the criteria that were asked for of a prepared pair; None for a comparison, which
            has its own, and in folders that were written before assignments kept it.
    """

    id: str
    annotator: str
    shown_first: Side
    pair: str | None
    comparison: Comparison | None
    time: str
    seconds: float = 0.0
    rubric: tuple[Criterion, ...] | None = None

    @property
    def identity(self) -> str:
        """The id of the record that is made from what was shown."""
        return self.pair or f"people-{self.id}"

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Returns the assignment as `assignments.jsonl` in a folder has it."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.comparison is not None:
            value["comparison"] = comparison_to_json(self.comparison, str(folder))
        if self.rubric is not None:
            value["rubric"] = serialize_rubric(self.rubric)
        return value


@dataclasses.dataclass(frozen=True)
class StoredVerdict:
    """Holds a verdict: its id, which the client chose, of which assignment, and what it says."""

    id: str
    assignment: str
    annotation: Annotation

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as `verdicts.jsonl` has it."""
        annotation = serialize_annotation(self.annotation)
        return {"id": self.id, "assignment": self.assignment, **annotation}


@dataclasses.dataclass
class Study:
    """Holds all that the folder of a study has.

    Attributes:
        settings: how it is done.
        pairs, gold: the prepared pairs, by id.
        assignments: by id, in order.
        verdicts: by id, in order.
        consents: {annotator: the hashes of the texts that they agreed to}.
    """

    settings: StudySettings
    pairs: dict[str, Record]
    gold: dict[str, Record]
    assignments: dict[str, Assignment]
    verdicts: dict[str, StoredVerdict]
    consents: dict[str, set[str]]

    def comparison(self, assignment: Assignment) -> Comparison:
        """Returns what an assignment compares, with the rubric that was asked for then."""
        if assignment.comparison is not None:
            return assignment.comparison
        assert assignment.pair is not None
        comparison = self.comparison_of_pair(assignment.pair)
        if assignment.rubric is None:
            return comparison
        return dataclasses.replace(comparison, rubric=assignment.rubric)

    def comparison_of_pair(self, pair: str) -> Comparison:
        """Returns what a prepared pair compares, with the study's rubric where it brings none."""
        comparison = comparison_of_record(self.gold.get(pair) or self.pairs[pair])
        return dataclasses.replace(comparison, rubric=comparison.rubric or self.settings.rubric)


def read_study(folder: Path) -> Study:
    """Reads the folder of a study; a server may be writing to it meanwhile.

    Raises:
        ConfigError: its settings cannot be used.
        DataError: a line is damaged, or names what is not there; names file and line.
    """
    study = Study(
        settings=read_settings(folder),
        pairs=read_pairs(folder / PAIRS),
        gold=read_pairs(folder / GOLD),
        assignments={},
        verdicts={},
        consents={},
    )
    # Verdicts first: each of them has an assignment that was written before it.
    verdicts = list(_lines(folder / VERDICTS))
    for line, origin in _lines(folder / ASSIGNMENTS):
        assignment = _parse_assignment(line.value, origin, str(folder))
        pair = assignment.pair
        if pair is not None and pair not in study.pairs and pair not in study.gold:
            raise DataError(f"{origin}: there is no pair {pair!r} in {PAIRS} or {GOLD}")
        study.assignments.setdefault(assignment.id, assignment)
    for line, origin in verdicts:
        value = line.value
        if value.get("assignment") not in study.assignments:
            raise DataError(f"{origin}: its assignment is not in {ASSIGNMENTS}")
        assignment = study.assignments[value["assignment"]]
        num_criteria = len(study.comparison(assignment).rubric)
        _check_kept_rubric(value, assignment, num_criteria, origin, folder)
        verdict = _parse_verdict(value, origin, num_criteria)
        study.verdicts.setdefault(verdict.id, verdict)
    for line, _ in _lines(folder / CONSENTS):
        name, text = line.value.get("annotator"), line.value.get("consent")
        study.consents.setdefault(str(name), set()).add(str(text))
    return study


def check_name(value: Any) -> str:
    """Returns an annotator's name in one spelling.

    Raises:
        DataError: it is no name.
    """
    name = normalize_name(value) if isinstance(value, str) else ""
    if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
        raise DataError(
            "'annotator' must be a name or a pseudonym of at most"
            f" {MAX_NAME_CHARACTERS} letters, digits, blanks and . @ + - '"
        )
    return name


def check_id(value: Any, key: str) -> str:
    """Returns an id that a client chose, or was told.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DataError(f"{key!r} must be 8 to 64 letters, digits, - or _")
    return value


def _lines(path: Path) -> Iterator[tuple[JsonLine, str]]:
    if not appended_exists(path):
        return
    for line in read_json_lines(path):
        origin = f"{path}:{line.number}"
        if not isinstance(line.value, Mapping):
            raise DataError(
                f"{origin}: the line is damaged; correct it, or remove it, and with it what it says"
            )
        yield line, origin


def _check_kept_rubric(
    value: Mapping[str, Any],
    assignment: Assignment,
    num_criteria: int,
    origin: str,
    folder: Path,
) -> None:
    """Checks that a verdict whose assignment keeps no rubric can be of the study's rubric.

    Raises:
        DataError: it has another number of criteria.
    """
    criteria = value.get("criteria")
    is_kept = assignment.comparison is not None or assignment.rubric is not None
    if not is_kept and isinstance(criteria, list) and len(criteria) not in (0, num_criteria):
        raise DataError(
            f"{origin}: the verdict has {len(criteria)} criteria and the rubric of"
            f" {folder / SETTINGS} has {num_criteria}; its assignment was written before"
            " assignments kept their rubric: put back the rubric that people were asked for"
        )


def _parse_assignment(value: Mapping[str, Any], origin: str, folder: str) -> Assignment:
    comparison = value.get("comparison")
    if value.get("shown_first") not in ("a", "b") or not isinstance(value.get("id"), str):
        raise DataError(f"{origin}: is no assignment; correct the line, or remove it")
    if comparison is not None:
        comparison = parse_comparison(comparison, folder=folder, origin=origin)
    return Assignment(
        id=value["id"],
        annotator=str(value.get("annotator")),
        shown_first=value["shown_first"],
        pair=value.get("pair"),
        comparison=comparison,
        time=str(value.get("time")),
        seconds=float(value.get("seconds", 0.0)),
        rubric=None if value.get("rubric") is None else parse_rubric(value["rubric"], origin),
    )


def _parse_verdict(value: Mapping[str, Any], origin: str, num_criteria: int) -> StoredVerdict:
    rest = {key: item for key, item in value.items() if key not in ("id", "assignment")}
    annotation = parse_annotation(rest, num_criteria=num_criteria, where=origin)
    return StoredVerdict(str(value.get("id")), str(value["assignment"]), annotation)
