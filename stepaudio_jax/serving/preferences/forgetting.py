"""Removes all that a study keeps of a person: verdicts, comparisons, consent and voice."""

import dataclasses
from collections.abc import Iterator

from stepaudio_jax.errors import ConfigError, LockHeldError
from stepaudio_jax.serving.preferences.journals import Study, read_study
from stepaudio_jax.serving.preferences.pairs import remove_annotations
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
    normalize_name,
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
    """Counts what was removed of a person.

    Attributes:
        verdicts: of the study.
        annotations: that prepared pairs brought.
        assignments: comparisons that were shown to them.
        consents: texts that they agreed to.
        clips: recordings that nothing in the study names any more.
    """

    verdicts: int
    annotations: int
    assignments: int
    consents: int
    clips: int


def forget_annotator(folder: PathLike, annotator: str) -> Forgotten:
    """Removes somebody's verdicts, annotations, comparisons, consents and recordings from a study.

    Clips that nothing in the study names are removed with them. `records.jsonl` is written anew,
    where it is there. Interrupted and started again, it goes on: what says whose the rest is goes
    last.

    Args:
        folder: of the study.
        annotator: a name as the study or the prepared pairs have it.

    Raises:
        ConfigError: the folder is no study, a server has it open, or nobody of that name is in it.
        DataError: a line of it is damaged; nothing has been removed then.
    """
    path = study_folder(folder)
    name = normalize_name(annotator)
    try:
        lock = take_lock(path / LOCK)
    except LockHeldError:
        raise ConfigError(f"{path} is in use by a server; stop it, and start this again") from None
    try:
        study = read_study(path)  # a damaged line is said before anything is removed
        if not name or not _is_named(path, study, name):
            raise ConfigError(f"annotator={annotator!r}: {path} has nothing of that name")
        verdicts = _filter(path / VERDICTS, name)
        annotations = sum(remove_annotations(path / file, name) for file in (PAIRS, GOLD))
        if any((path / file).exists() for file in (RECORDS, DIALOGUES)):
            write_records(path)
        clips = _remove_unused_clips(path, study, name)
        assignments, consents = (_filter(path / file, name) for file in (ASSIGNMENTS, CONSENTS))
        sync_path(path)
        return Forgotten(verdicts, annotations, assignments, consents, clips)
    finally:
        lock.close()


def _is_named(folder: Path, study: Study, name: str) -> bool:
    """Returns whether anything in a study's folder is somebody's."""
    names = {
        *(item.annotator for item in study.assignments.values()),
        *(item.annotation.annotator for item in study.verdicts.values()),
        *study.consents,
        *(
            item.annotator
            for record in (*study.pairs.values(), *study.gold.values())
            for item in record.annotations
        ),
        # Where it was interrupted, they may be all that is left.
        *_names_in_records(folder / RECORDS),
        *_names_in_records(folder / DIALOGUES),
    }
    return name in map(normalize_name, names)


def _names_in_records(path: Path) -> Iterator[str]:
    if path.exists():
        for line in read_json_lines(path):
            row = line.value if isinstance(line.value, dict) else {}
            for item in row.get("annotations") or ():
                yield str(item.get("annotator"))


def _filter(path: Path, name: str) -> int:
    """Rewrites a journal without somebody's lines; returns how many."""
    if not appended_exists(path):
        return 0
    values = [line.value for line in read_json_lines(path)]
    kept = [value for value in values if normalize_name(str(value.get("annotator"))) != name]
    if len(kept) < len(values):
        if is_bucket_path(path):  # there it is a series of objects
            PartsWriter(path).replace("".join(map(format_json_line, kept)).encode())
        else:
            write_json_lines(path, kept)
            sync_path(path)
    return len(values) - len(kept)


def _remove_unused_clips(folder: Path, study: Study, name: str) -> int:
    """Removes the clips that no comparison of another person names; returns how many."""
    used = {
        str(to_path(clip.path))
        for assignment in study.assignments.values()
        if assignment.comparison is not None and normalize_name(assignment.annotator) != name
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
