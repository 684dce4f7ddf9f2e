"""Keeps a study while people work on it: hands out comparisons, and takes verdicts.

What a client is told to be kept is on the disk: each line is appended and synced before the call
returns. A verdict is kept once, however often it is sent: the client chooses its id, and an
assignment has one verdict. One process at a time has a study open.
"""

import collections
import contextlib
import dataclasses
import datetime
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.data.annotations import Annotation, parse_annotation
from stepaudio_jax.data.clip_files import ClipFolder
from stepaudio_jax.data.clips import load_clip
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import (
    ConfigError,
    ConflictError,
    ConsentError,
    DataError,
    LockHeldError,
    OutputError,
)
from stepaudio_jax.serving.preferences.comparisons import Comparison, Side, parse_comparison
from stepaudio_jax.serving.preferences.journals import (
    Assignment,
    StoredVerdict,
    Study,
    check_id,
    check_name,
    read_study,
)
from stepaudio_jax.serving.preferences.pairs import keep_pairs
from stepaudio_jax.serving.preferences.study import (
    ASSIGNMENTS,
    CONSENTS,
    LOCK,
    VERDICTS,
    StudySettings,
    read_settings,
)
from stepaudio_jax.storage import (
    JsonLinesFile,
    PathLike,
    hash_json,
    sync_path,
    take_lock,
    to_path,
)

MAX_TEXT_CHARACTERS = 20_000
# A pair that was shown and not judged for so long may be shown to somebody else.
_RESERVED_SECONDS = 3600
# Players end a little before a clip does.
_UNHEARD_SECONDS = 0.3


class PreferenceStore:
    """The study of one folder, open for writing; safe to be called by several threads.

    Args:
        folder: of the study; it is created where it is not there.
        pairs: a file of prepared pairs, kept in the folder at the first start; None for those that
            the folder has.

    Raises:
        ConfigError: another process has it open, its settings cannot be used, or it has the pairs
            of another file.
        DataError: a line of it, or of the pairs, cannot be read; names file and line.
    """

    def __init__(self, folder: PathLike, pairs: PathLike | None = None):
        self.folder = to_path(folder)
        self._mutex = threading.RLock()
        settings = read_settings(self.folder)
        try:
            self._lock = take_lock(self.folder / LOCK)
        except LockHeldError:
            raise ConfigError(
                f"preferences={os.fspath(folder)!r} is in use by another server; stop it, or use"
                " another folder"
            ) from None
        try:
            gold = None if settings.gold is None else self.folder / settings.gold
            keep_pairs(self.folder, pairs, gold)
            self.study: Study = read_study(self.folder)
            self._assignments, self._verdicts, self._consents = (
                JsonLinesFile(self.folder / name, lock=True)
                for name in (ASSIGNMENTS, VERDICTS, CONSENTS)
            )
        except BaseException:
            self._lock.close()
            raise
        self._clips = ClipFolder(self.folder)
        self._clip_uses: collections.Counter[str] = collections.Counter()  # by `adding_clips`
        self._pair_seconds: dict[str, float] = {}  # of sound to hear, of pairs that were chosen
        self._by_assignment = {item.assignment: item for item in self.study.verdicts.values()}
        self._problem: str | None = None

    @property
    def settings(self) -> StudySettings:
        """How the study is done."""
        return self.study.settings

    @property
    def consent_hash(self) -> str | None:
        """Names the text that people agree to; None where there is none."""
        return None if self.settings.consent is None else hash_json(self.settings.consent)

    def close(self) -> None:
        """Closes the study's files, and lets others open it."""
        with self._mutex:
            for file in (self._assignments, self._verdicts, self._consents):
                file.close()
            self._lock.close()

    def agree(self, annotator: Any, consent: Any) -> None:
        """Keeps that somebody agrees to the text of the study.

        Raises:
            DataError: the text is another one.
        """
        with self._mutex:
            name = check_name(annotator)
            if consent is None or consent != self.consent_hash:
                raise DataError("'consent' is not of this study's text; load the page again")
            if consent in self.study.consents.get(name, ()):
                return
            self._append(self._consents, {"annotator": name, "consent": consent, "time": _now()})
            self.study.consents.setdefault(name, set()).add(consent)

    def check_consent(self, annotator: str) -> None:
        """Checks that somebody has agreed to the text, if there is one.

        Raises:
            ConsentError: they have not.
        """
        wanted = self.consent_hash
        if wanted is not None and wanted not in self.study.consents.get(annotator, ()):
            raise ConsentError(
                f"{annotator} has not agreed to this study's text; read it and agree to it first"
            )

    @contextlib.contextmanager
    def adding_clips(self) -> Iterator[Callable[[bytes, str], str]]:
        """Yields a function that keeps a clip, and returns its path relative to the folder.

        What is done inside names the clips. After an error none of them stays: nobody could tell
        whose voice it is.
        """
        added: set[str] = set()

        def add(content: bytes, name: str) -> str:
            with self._mutex:
                path = self._clips.add(content, name)
                if path not in added:
                    added.add(path)
                    self._clip_uses[path] += 1
                sync_path(self.folder / path)
                sync_path((self.folder / path).parent)
            return path

        failed = True
        try:
            yield add
            failed = False
        finally:
            with self._mutex:
                self._clip_uses -= collections.Counter(added)
                if failed:  # others may be adding the same clips, or have named them
                    for path in added - self._clip_uses.keys() - self._named_clips():
                        (self.folder / path).unlink(missing_ok=True)

    def _named_clips(self) -> set[str]:
        """Returns the paths of the clips that comparisons name, relative to the folder."""
        prefix = os.path.join(self.folder, "")
        return {
            clip.path.removeprefix(prefix)
            for assignment in self.study.assignments.values()
            if assignment.comparison is not None
            for clip in assignment.comparison.clips
        }

    def compare(
        self,
        annotator: Any,
        value: Mapping[str, Any],
        max_seconds: float,
        *,
        shown_first: Any = None,
    ) -> Assignment:
        """Keeps a comparison that somebody made, and draws its sides.

        Args:
            annotator: who made it, and judges it.
            value: as of `comparison_to_json`; clips are named as `adding_clips` returns them.
                Without a `rubric`, it has that of the study.
            max_seconds: most sound that it may have.
            shown_first: "a" or "b" where two dialogues were held side by side before, in an order
                that the client drew; None where nothing was shown yet.

        Raises:
            DataError: a key is not allowed, or a clip cannot be decoded.
            ConsentError: the annotator has not agreed to the text.
        """
        name = check_name(annotator)
        self.check_consent(name)
        comparison = parse_comparison(value, folder=str(self.folder), origin="the comparison")
        if value.get("rubric") is None:
            comparison = dataclasses.replace(comparison, rubric=self.settings.rubric)
        if shown_first not in (None, "a", "b"):
            raise DataError('\'shown_first\' must be "a" or "b"; left out, it is drawn')
        seconds = {clip.name: _seconds(clip) for clip in comparison.clips}
        if sum(seconds.values()) > max_seconds:
            raise DataError(
                f"the comparison has {sum(seconds.values()):.1f} s of sound, more than"
                f" {max_seconds:g}; send less"
            )
        return self._assign(
            name,
            comparison=comparison,
            seconds=sum(seconds[clip.name] for clip in comparison.clips_to_hear),
            shown_first=shown_first,
        )

    def next_pair(self, annotator: Any) -> Assignment | None:
        """Returns the next prepared pair for somebody; None where none is left for them.

        A pair that they were shown and have not judged is shown again, so that nothing is lost by
        a reload, and two tabs show the same one.

        Raises:
            ConsentError: they have not agreed to the text.
            DataError: its sound cannot be read.
        """
        name = check_name(annotator)
        self.check_consent(name)
        while True:
            with self._mutex:
                mine = [
                    item
                    for item in self.study.assignments.values()
                    if item.annotator == name and item.pair is not None
                ]
                for item in mine:
                    if item.id not in self._by_assignment:
                        return item
                pair = self._choose({item.pair for item in mine}, len(mine))
                if pair is None:
                    return None
                if pair in self._pair_seconds:
                    return self._assign(name, pair=pair, seconds=self._pair_seconds[pair])
            # Others need not wait while sound is decoded; it may be another pair's turn after it.
            record = self.study.gold.get(pair) or self.study.pairs[pair]
            heard = {part.name: part for part in record.messages[-1].audio}
            self._pair_seconds[pair] = sum(map(_seconds, heard.values()))

    def progress(self, annotator: str) -> dict[str, int]:
        """Returns how many verdicts somebody gave, and how many prepared pairs are left."""
        with self._mutex:
            judged = self._judged_counts()
            shown = {
                item.pair for item in self.study.assignments.values() if item.annotator == annotator
            }
            given = [
                item
                for item in self.study.verdicts.values()
                if item.annotation.annotator == annotator
            ]
            overlap = self.settings.overlap
            left = [
                pair
                for pair in self.study.pairs
                if pair not in shown and judged.get(pair, 0) < overlap
            ]
            return {
                "verdicts": len(given),
                "pairs": len(self.study.pairs),
                "pairs_left": len(left),
            }

    def verdict_of(self, assignment: Assignment) -> StoredVerdict | None:
        """Returns the verdict on an assignment; None where there is none yet."""
        with self._mutex:
            return self._by_assignment.get(assignment.id)

    def find(self, assignment: Any) -> Assignment:
        """Returns an assignment by its id.

        Raises:
            DataError: there is none.
        """
        with self._mutex:
            item = self.study.assignments.get(check_id(assignment, "assignment"))
            if item is None:
                raise DataError("'assignment' is not of this study")
            return item

    def judge(self, value: Mapping[str, Any]) -> StoredVerdict:
        """Keeps a verdict, once, however often it is sent; returns it when it is on the disk.

        Args:
            value: id, assignment, annotator, verdict (above 0: the first shown is better; null:
                skipped), criteria [{first, second}], reasons, critique, better_reply,
                seconds_listened.

        Raises:
            DataError: a key is not allowed, or the sound was not heard.
            ConflictError: another verdict has this id, or the assignment has one already.
            ConsentError: the annotator has not agreed to the text.
            OutputError: it cannot be written; nothing is taken any more until the server is
                started again.
        """
        with self._mutex:
            identity = check_id(value.get("id"), "id")
            assignment = self.find(value.get("assignment"))
            name = check_name(value.get("annotator"))
            self.check_consent(name)
            if name != assignment.annotator:
                raise DataError("'annotator' is not the one whom this was shown to")
            annotation = self._annotation(assignment, value)
            kept = self.study.verdicts.get(identity)
            if kept is not None:
                if kept.assignment == assignment.id and _same(kept.annotation, annotation):
                    return kept
                raise ConflictError("'id' is that of another verdict; choose a new one")
            if assignment.id in self._by_assignment:
                raise ConflictError(
                    "this was judged already, perhaps in another tab; go on to the next"
                )
            verdict = StoredVerdict(identity, assignment.id, annotation)
            self._append(self._verdicts, verdict.to_json())
            self.study.verdicts[identity] = verdict
            self._by_assignment[assignment.id] = verdict
            return verdict

    def _assign(
        self,
        annotator: str,
        *,
        pair: str | None = None,
        comparison: Comparison | None = None,
        seconds: float,
        shown_first: Side | None = None,
    ) -> Assignment:
        sides: tuple[Side, Side] = ("a", "b")
        assignment = Assignment(
            id=secrets.token_hex(16),
            annotator=annotator,
            shown_first=shown_first or sides[secrets.randbelow(2)],
            pair=pair,
            comparison=comparison,
            time=_now(),
            seconds=seconds,
            rubric=None if pair is None else self.study.comparison_of_pair(pair).rubric,
        )
        with self._mutex:
            self._append(self._assignments, assignment.to_json(self.folder))
            self.study.assignments[assignment.id] = assignment
        return assignment

    def _choose(self, shown: set[str | None], num_shown: int) -> str | None:
        """Returns the pair to show next: a gold one at its turn, else that with fewest verdicts."""
        gold = next((pair for pair in self.study.gold if pair not in shown), None)
        if gold is not None and (num_shown + 1) % self.settings.gold_every == 0:
            return gold
        judged = self._judged_counts()
        for reserved in (self._reserved_counts(), self._reserved_counts(_RESERVED_SECONDS)):
            counts = {
                pair: judged.get(pair, 0) + reserved.get(pair, 0)
                for pair in self.study.pairs
                if pair not in shown
            }
            pair = min(counts, key=counts.__getitem__, default=None)
            if pair is not None and counts[pair] < self.settings.overlap:
                return pair
        return None

    def _judged_counts(self) -> dict[str, int]:
        """Returns how many people judged each pair; those who skipped it do not count."""
        counts: dict[str, int] = {}
        for verdict in self.study.verdicts.values():
            pair = self.study.assignments[verdict.assignment].pair
            if pair is not None and verdict.annotation.verdict is not None:
                counts[pair] = counts.get(pair, 0) + 1
        return counts

    def _reserved_counts(self, max_seconds: float = math.inf) -> dict[str, int]:
        """Returns to how many people each pair is shown who have not judged it.

        Args:
            max_seconds: since it was shown to them; whoever has had it for longer does not count.
        """
        now = datetime.datetime.now(datetime.UTC)
        counts: dict[str, int] = {}
        for item in self.study.assignments.values():
            if item.pair is None or item.id in self._by_assignment:
                continue
            shown = datetime.datetime.fromisoformat(item.time)
            if (now - shown).total_seconds() <= max_seconds:
                counts[item.pair] = counts.get(item.pair, 0) + 1
        return counts

    def _annotation(self, assignment: Assignment, value: Mapping[str, Any]) -> Annotation:
        comparison = self.study.comparison(assignment)
        first: Side = assignment.shown_first
        verdict = value.get("verdict")
        highest = self.settings.levels // 2
        is_level = isinstance(verdict, int) and not isinstance(verdict, bool)
        if verdict is not None and not (is_level and abs(verdict) <= highest):
            raise DataError(
                f"'verdict' must be a whole number from -{highest} to {highest}, or null, got"
                f" {format_json(verdict)}"
            )
        if verdict and comparison.is_same:
            raise DataError("both replies are the same: they can be called equal, or be skipped")
        criteria = value.get("criteria") or []
        if verdict is not None and comparison.rubric and not criteria:
            raise DataError("'criteria' must say of each criterion whether each reply meets it")
        annotation = parse_annotation(
            {
                "annotator": assignment.annotator,
                "verdict": verdict,
                "shown_first": "a",
                "criteria": _criteria(criteria),
                "reasons": self._reasons(value.get("reasons") or []),
                "critique": _text(value, "critique"),
                "better_reply": _text(value, "better_reply"),
                "seconds_listened": value.get("seconds_listened", 0.0),
                "time": _now(),
                "is_gold": assignment.pair in self.study.gold,
            },
            num_criteria=len(comparison.rubric),
            where="the verdict",
        )
        needed = assignment.seconds * self.settings.listening - _UNHEARD_SECONDS
        heard = annotation.seconds_listened or 0.0
        if verdict is not None and heard < needed:
            raise DataError(
                f"'seconds_listened' is {heard:.1f}: listen to the {assignment.seconds:.1f} s of"
                " sound first"
            )
        return annotation if first == "a" else annotation.swapped

    def _reasons(self, value: Any) -> Sequence[str]:
        allowed = self.settings.reasons
        if not isinstance(value, list) or any(item not in allowed for item in value):
            raise DataError(
                f"'reasons' must be some of {', '.join(allowed)}, got {format_json(value)}"
            )
        return [reason for reason in allowed if reason in value]

    def _append(self, file: JsonLinesFile, value: Mapping[str, Any]) -> None:
        if self._problem is not None:
            raise OutputError(f"nothing more is kept: {self._problem}; start the server again")
        try:
            file.append(value)
            file.sync()
        except OSError as error:
            # Part of the line may be in the file: what follows it would be damaged.
            self._problem = f"{self.folder} cannot be written ({error})"
            raise OutputError(self._problem) from None


def _seconds(clip: Any) -> float:
    """Returns how long a clip is, which is decoded to see that it can be."""
    return len(load_clip(clip)) / SAMPLE_RATE


def _criteria(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [
        {"a": item["first"], "b": item["second"]}
        if isinstance(item, Mapping) and set(item) == {"first", "second"}
        else item
        for item in value
    ]


def _text(value: Mapping[str, Any], key: str) -> str | None:
    text = value.get(key)
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > MAX_TEXT_CHARACTERS:
        raise DataError(f"{key!r} must be a text of at most {MAX_TEXT_CHARACTERS} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{key!r} holds half a character; write it again") from None
    return text.strip() or None


def _same(kept: Annotation, sent: Annotation) -> bool:
    """Returns whether two annotations say the same, whenever they were sent."""
    return dataclasses.replace(kept, time=None) == dataclasses.replace(sent, time=None)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
