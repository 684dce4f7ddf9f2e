"""The folder of a study: its settings, its prepared pairs, and what was written while it ran.

settings.json      how the study is done; written with the defaults at the first start
pairs.jsonl        the prepared pairs, as records; gold.jsonl: those whose better reply is known
consents.jsonl     who has agreed to which text
assignments.jsonl  what was shown to whom, and which side stood first
verdicts.jsonl     what people said
clips/             sound that people recorded or uploaded
records.jsonl      written by `launch.data preferences`: what stages and judges learn from;
                   dialogues.jsonl: those of two dialogues
in_use.lock        held by the process that has the study open
"""

import dataclasses
import os
import unicodedata
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.config import JudgeConfig
from stepaudio_jax.data.record import Criterion
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.data.sources.messages import parse_rubric
from stepaudio_jax.data.sources.serialization import serialize_rubric
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.judge.verdict import LEVELS
from stepaudio_jax.storage import (
    Path,
    PathLike,
    did_you_mean,
    parse_json,
    read_bytes,
    to_path,
    write_json,
)

SETTINGS, CONSENTS, ASSIGNMENTS, VERDICTS = (
    *("settings.json", "consents.jsonl"),
    *("assignments.jsonl", "verdicts.jsonl"),
)
PAIRS, GOLD, RECORDS, DIALOGUES, LOCK = (
    *("pairs.jsonl", "gold.jsonl", "records.jsonl", "dialogues.jsonl"),
    "in_use.lock",
)
REASONS = ("did_not_hear", "wrong", "tone", "length")
MAX_CRITERIA = 20
MAX_CRITERION_CHARACTERS = 500


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Says how a study is done; `settings.json` of its folder has the same keys.

    Attributes:
        levels: of the scale of verdicts: 3, 5 or 7, as the judge's.
        reasons: what may be ticked as a reason.
        rubric: criteria that are asked for of every pair or comparison that brings none.
        consent: a text that people agree to before anything is kept; None for none.
        listening: the share of the turn's sound that must be heard before a verdict; 0 for none.
        overlap: how many people judge each prepared pair.
        gold: a file of pairs whose better reply is known, relative to the folder; None for none.
        gold_every: every gold_every-th prepared pair shown to a person is a gold one.
    """

    levels: int = JudgeConfig.preference_levels
    reasons: tuple[str, ...] = REASONS
    rubric: tuple[Criterion, ...] = ()
    consent: str | None = None
    listening: float = 1.0
    overlap: int = 1
    gold: str | None = None
    gold_every: int = 10

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as `settings.json` has them."""
        return {
            **dataclasses.asdict(self),
            "reasons": list(self.reasons),
            "rubric": serialize_rubric(self.rubric),
        }


def read_settings(folder: PathLike) -> StudySettings:
    """Reads the settings of a study, or writes the defaults where the folder has none.

    Raises:
        ConfigError: the folder is none, or a key or a value is not allowed; names the file.
    """
    path = to_path(folder) / SETTINGS
    try:
        if not path.exists():
            to_path(folder).mkdir(parents=True, exist_ok=True)
            write_json(path, StudySettings().to_json())
            return StudySettings()
        value = parse_json(read_bytes(path))
    except OSError as error:
        raise ConfigError(f"preferences={os.fspath(folder)!r} cannot be used ({error})") from None
    if value is None:
        raise ConfigError(f"{path}: is not JSON; correct it, or remove it for the defaults")
    return parse_settings(value, str(path))


def parse_settings(value: Any, where: str) -> StudySettings:
    """Returns the settings that a JSON object gives; a key that it lacks has its default.

    Raises:
        ConfigError: names the place, the key, the value and what is allowed.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a JSON object, got {format_json(value)}")
    names = [field.name for field in dataclasses.fields(StudySettings)]
    for key in value:
        if key not in names:
            raise ConfigError(
                f"{where}: unknown key {format_json(key)}{did_you_mean(key, names)} (allowed:"
                f" {', '.join(names)})"
            )
    settings = dict(value)

    def check(key: str, rule: str, is_right: bool) -> None:
        if not is_right:
            raise ConfigError(f"{where}: {key!r} must be {rule}, got {format_json(value[key])}")

    for key in ("overlap", "gold_every"):
        if key in value:
            check(key, "a whole number, 1 or more", _is_count(value[key]))
    if "levels" in value:
        is_level = _is_count(value["levels"]) and value["levels"] in LEVELS
        check("levels", f"one of {', '.join(map(str, LEVELS))}", is_level)
    for key in ("consent", "gold"):
        if value.get(key) is not None:
            check(key, "a text, or null", isinstance(value[key], str) and bool(value[key].strip()))
    if "listening" in value:
        share = value["listening"]
        is_number = isinstance(share, int | float) and not isinstance(share, bool)
        check("listening", "a share from 0 to 1", is_number and 0 <= share <= 1)
    if "reasons" in value:
        reasons = value["reasons"]
        is_right = isinstance(reasons, list) and all(
            isinstance(item, str) and 0 < len(item) <= 60 for item in reasons
        )
        check("reasons", "a list of short texts", is_right and len({*reasons}) == len(reasons))
        settings["reasons"] = tuple(reasons)
    if "rubric" in value:
        try:
            settings["rubric"] = parse_short_rubric(value["rubric"], where)
        except DataError as error:
            raise ConfigError(str(error)) from None
    return StudySettings(**settings)


def parse_short_rubric(value: Any, origin: str) -> tuple[Criterion, ...]:
    """Returns the criteria of a rubric that is shown to people, as `parse_rubric` reads them.

    Raises:
        DataError: it is no rubric, or too long; names the origin.
    """
    criteria = parse_rubric(value, origin)
    if len(criteria) > MAX_CRITERIA:
        raise DataError(
            f"{origin}: 'rubric' has {len(criteria)} criteria; give at most {MAX_CRITERIA}"
        )
    for number, criterion in enumerate(criteria, 1):
        if not 0 < len(criterion.text.strip()) <= MAX_CRITERION_CHARACTERS:
            raise DataError(
                f"{origin}: 'rubric': criterion {number} must be a text of at most"
                f" {MAX_CRITERION_CHARACTERS} characters, got {format_json(criterion.text)}"
            )
    return tuple(Criterion(item.text.strip(), item.weight) for item in criteria)


def normalize_name(name: str) -> str:
    """Returns a name in the spelling in which names are compared."""
    return unicodedata.normalize("NFC", name).strip()


def study_folder(path: PathLike) -> Path:
    """Returns the folder of a study.

    Raises:
        ConfigError: it is not one.
    """
    folder = to_path(path)
    if not (folder / SETTINGS).is_file():
        raise ConfigError(
            f"{os.fspath(path)}: is not a folder of preferences (it has no {SETTINGS}); name the"
            " one that launch.serve was given as --preferences"
        )
    return folder


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
