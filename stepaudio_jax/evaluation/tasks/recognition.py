"""Speech recognition: word and character error rates on any data that have transcripts."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record, open_source
from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.judge_replies import remove_reasoning
from stepaudio_jax.evaluation.metrics import Metric, Scoring, groups_of, mean_metric, ratio_metric
from stepaudio_jax.evaluation.prompt_files import PromptFile, PromptSet
from stepaudio_jax.evaluation.recognition_errors import ErrorCount, count_errors
from stepaudio_jax.evaluation.task import Item, ReplyScore, ScoredItem, Strict, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.storage import PathLike, format_path, read_json, to_path
from stepaudio_jax.text import AudioPart, Message, TextPart

_MODEL, _SPELLINGS = "model_prompt.txt", "normalizer.json"
_LANGUAGE_KEYS = ("language", "lang", "locale")

logger = logging.getLogger(__name__)


class Recognition(Task):
    """Every clip with a transcript in a source of data, asked for what is said in it.

    All forms of data are read that training reads. Each clip is a question of its own, with this
    project's line of text behind it in place of what the data ask. Errors are counted over the
    corpus: all errors over all words, or over all characters in languages without spaces; see
    `recognition_errors`. A reply that is missing counts as all words deleted.
    """

    name: ClassVar[str] = "recognition"
    version: ClassVar[str] = "jiwer, Whisper's normalizers of transformers"
    title: ClassVar[str] = "Speech recognition"
    sampling: ClassVar[Sampling] = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=2048)
    headline: ClassVar[tuple[Scoring, str]] = ("strict", "error_rate")
    notes: ClassVar[Sequence[str]] = (
        "error_rate counts each clip in words, or in characters where its language writes no"
        " spaces; WER and CER are of the clips of either kind. Less is better.",
        "transformers ships Whisper's English normalizer without its table of British spellings;"
        " give normalizer.json of a Whisper model beside the prompt to use it.",
    )

    def __init__(self) -> None:
        self._prompts = PromptSet([PromptFile(_MODEL, "recognition_model.txt")], self.title)
        self._spellings: Mapping[str, str] = {}

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the clips that have a transcript; see `Task.items`."""
        source = open_source(folder)
        items: list[Item] = []
        num_skipped = 0
        for index in range(len(source)):
            record = source[index]
            clips = [clip for message in record.messages for clip in message.audio]
            said = [clip for clip in clips if clip.transcript and clip.transcript.strip()]
            num_skipped += len(clips) - len(said)
            for number, clip in enumerate(said, 1):
                item_id = record.id if len(clips) == 1 else f"{record.id}/{number}"
                items.append(self._item(record, item_id, clip))
        if not items:
            raise DataError(
                f"{format_path(os.fspath(folder))}: no clip has a transcript; name the column of"
                " what is said 'text', or give the clips a 'transcript'"
            )
        if num_skipped:
            logger.warning("%s: %d clips have no transcript", os.fspath(folder), num_skipped)
        return items

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict:
        """Counts a transcript's errors: correct is one without; the score is 1 less the rate."""
        written = remove_reasoning(output or "").strip()
        if not written:
            return Strict("unparsed", score=0.0)
        count = self._count(data, written)
        rate = count.errors / max(count.length, 1)
        return Strict("wrong" if count.errors else "correct", written, max(0.0, 1 - rate))

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns the error rates, and the share of clips without an error, of all and by group."""
        counted = {item.id: self._counts(item) for item in items}
        metrics = []
        for group, part in groups_of(items):
            metrics.append(
                ratio_metric(
                    "error_rate", "strict", part, lambda item: _parts(counted[item.id]), group=group
                )
            )
            for name, unit in (("WER", "word"), ("CER", "character")):
                of_unit = [item for item in part if counted[item.id][0].unit == unit]
                if of_unit:
                    metrics.append(
                        ratio_metric(
                            name,
                            "strict",
                            of_unit,
                            lambda item: _parts(counted[item.id]),
                            group=group,
                        )
                    )
            metrics.append(mean_metric("exact", "strict", part, value=_exact, group=group))
        return metrics

    def headline_part(
        self, reply: ReplyScore | None, data: Mapping[str, Any]
    ) -> tuple[float, float] | None:
        """Returns a reply's errors, and the length of what was said."""
        count = self._count(data, _written(reply))
        return float(count.errors), float(count.length)

    def use_prompts(self, folder: PathLike | None) -> None:
        """Reads `model_prompt.txt` and `normalizer.json` from a folder that has either or both.

        Raises:
            DataError: the folder has neither, or one cannot be read.
        """
        path = None if folder is None else to_path(folder) / _SPELLINGS
        self._spellings = {}
        if folder is not None and path is not None and path.is_file():
            table = read_json(path, DataError)
            if not all(isinstance(word, str) for word in table.values()):
                raise DataError(f"{format_path(str(path))}: must map spellings to spellings")
            self._spellings = table
            folder = folder if (to_path(folder) / _MODEL).is_file() else None
        self._prompts.use(folder)

    @property
    def prompt_sources(self) -> Mapping[str, str]:
        """Returns the line that the model is asked, and the table of spellings if there is one."""
        if not self._spellings:
            return self._prompts.sources
        table = "\n".join(f"{word} {other}" for word, other in sorted(self._spellings.items()))
        return {**self._prompts.sources, f"{_SPELLINGS} (given by the user)": table}

    def _item(self, record: Record, item_id: str, clip: AudioPart) -> Item:
        line = self._prompts[_MODEL].line
        parts = (clip, TextPart(line)) if line else (clip,)
        language = next(
            (clip.attributes[key] for key in _LANGUAGE_KEYS if key in clip.attributes), ""
        )
        is_part = clip.start_s > 0 or clip.end_s is not None
        return Item(
            id=item_id,
            record=Record(item_id, (Message("user", parts),), self.name, record.origin),
            data={"reference": clip.transcript, **({"language": language} if language else {})},
            groups={"language": language} if language else {},
            cluster=clip.path if is_part else item_id,
        )

    def _count(self, data: Mapping[str, Any], written: str) -> ErrorCount:
        reference = data.get("reference", data.get("answer"))
        if not isinstance(reference, str):
            raise DataError(f"'reference' must be a text, got {format_json(reference)}")
        language = data.get("language")
        return count_errors(
            reference, written, language if isinstance(language, str) else None, self._spellings
        )

    def _counts(self, item: ScoredItem) -> list[ErrorCount]:
        return [self._count(item.data, _written(reply)) for reply in item.replies or (None,)]


def _written(reply: ReplyScore | None) -> str:
    strict = None if reply is None else reply.strict
    return "" if strict is None else strict.answer or ""


def _parts(counts: Sequence[ErrorCount]) -> tuple[float, float]:
    """Returns the mean number of errors over an item's replies, and the length of the reference."""
    return sum(count.errors for count in counts) / len(counts), counts[0].length


def _exact(item: ScoredItem) -> float:
    outcomes = [
        reply.strict is not None and reply.strict.outcome == "correct" for reply in item.replies
    ]
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
