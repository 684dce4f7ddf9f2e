"""Removes all that a study keeps of one person: their verdicts, comparisons, consent and voice."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from stepaudio_jax.errors import ConfigError, LockHeldError
from stepaudio_jax.serving.preferences.journals import check_name, read_study
from stepaudio_jax.serving.preferences.pairs import without_annotator
from stepaudio_jax.serving.preferences.records import write_records
from stepaudio_jax.serving.preferences.study import (
    ASSIGNMENTS,
    CONSENTS,
    DIALOGUES,
    GOLD,
    LOCK,
    PAIRS,
    RECORDS,
    VERDICTS,
    study_folder,
)
from stepaudio_jax.storage import (
    Path,
    PathLike,
    appended_exists,
    format_json_line,
    is_bucket_path,
    read_json_lines,
    sync_path,
    take_lock,
    to_path,
    write_json_lines,
)
from stepaudio_jax.storage.parts import PartsWriter


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """Counts what was removed of a person."""

    verdicts: int
    assignments: int
    consents: int
    clips: int


def forget_annotator(folder: PathLike, annotator: str) -> Forgotten:
    """Removes somebody's verdicts, comparisons, consents and recordings from a study.

    Interrupted and started again, it goes on. Clips that nothing in the study names are removed
    with them. `records.jsonl` is written anew, where it is there.

    Raises:
        ConfigError: the folder is no study, a server has it open, or nobody of that name is in it.
    """
    path = study_folder(folder)
    name = check_name(annotator)
    try:
        lock = take_lock(path / LOCK)
    except LockHeldError:
        raise ConfigError(f"{path} is in use by a server; stop it, and start this again") from None
    try:
        read_study(path)  # a damaged line is said before anything is removed
        verdicts, assignments, consents = (
            _filter(path / file, lambda value: value.get("annotator") != name)
            for file in (VERDICTS, ASSIGNMENTS, CONSENTS)
        )
        for file in (PAIRS, GOLD):
            without_annotator(path / file, name)
        clips = _remove_unused_clips(path)
        if not (verdicts or assignments or consents or clips):
            raise ConfigError(f"annotator={name!r}: {path} has nothing of that name")
        if (path / RECORDS).exists() or (path / DIALOGUES).exists():
            write_records(path)
        sync_path(path)
        return Forgotten(verdicts, assignments, consents, clips)
    finally:
        lock.close()


def _filter(path: Path, keeps: Callable[[Mapping[str, Any]], bool]) -> int:
    """Rewrites a journal without some of its lines; returns how many."""
    if not appended_exists(path):
        return 0
    values = [line.value for line in read_json_lines(path)]
    kept = [value for value in values if keeps(value)]
    if len(kept) < len(values):
        if is_bucket_path(path):  # there it is a series of objects
            PartsWriter(path).replace("".join(map(format_json_line, kept)).encode())
        else:
            write_json_lines(path, kept)
            sync_path(path)
    return len(values) - len(kept)


def _remove_unused_clips(folder: Path) -> int:
    """Removes the clips that no comparison of the study names; returns how many."""
    study = read_study(folder)
    used = {
        str(to_path(clip.path))
        for assignment in study.assignments.values()
        if assignment.comparison is not None
        for clip in assignment.comparison.clips
    }
    below = folder / "clips"
    if not below.is_dir():
        return 0
    # Hidden files too: a process that was killed may have left half of a clip in one.
    files = [path for path in below.rglob("*") if path.is_file()]
    unused = [path for path in files if str(path) not in used]
    for path in unused:
        path.unlink()
    return len(unused)
