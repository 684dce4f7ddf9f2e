"""Spoken-MQA: arithmetic and word problems that are read aloud (arXiv 2505.15000)."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from stepaudio_jax.data import Record
from stepaudio_jax.data.sources.json_values import format_json, parse_literal
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.benchmark_rows import (
    BenchmarkRow,
    check_has_rows,
    check_unique,
    find_tables,
    read_rows,
    split_name,
)
from stepaudio_jax.evaluation.metrics import (
    Metric,
    default_metrics,
    macro_metric,
    scorings_of,
)
from stepaudio_jax.evaluation.task import Item, OfficialOutcome, ScoredItem, Strict, Task
from stepaudio_jax.generation import Sampling
from stepaudio_jax.storage import PathLike, did_you_mean
from stepaudio_jax.text import Message, TextPart
from stepaudio_jax.text.answer_markup import strip_question, strip_reasoning
from stepaudio_jax.text.answers import matches_number

SPLITS = ("short_digit", "long_digit", "single_step_reasoning", "multi_step_reasoning")
_DIGIT_SPLITS = ("short_digit", "long_digit")
# What the benchmark's rows say before each question, for rows that lack it.
INSTRUCTION = "Solve the given math question step by step."

_TRIGGERS = ("The answer is:", "The answer is", "the answer is", "####")
_ANY_TRIGGER = re.compile("|".join(map(re.escape, _TRIGGERS)))
_NUMBER = re.compile(r"-?\d+/?\.?\d*")
_QUOTIENT = re.compile(r"(-?)(0|[1-9][0-9]*)/(0|[1-9][0-9]*|\.[0-9]+)")
_SUBSTRING_REFERENCE = re.compile(r"\([a-f]\)")
_NO_NUMBER = "empty"
_MAX_PREDICTION_CHARACTERS = 100


class SpokenMqa(Task):
    """Spoken-MQA: the rule of AudioBench, and the number that a reply gives, in any notation.

    Its figure is the micro average over the items of all splits, as Table 1 has it; the mean of the
    splits' accuracies stands beside it.
    """

    name: ClassVar[str] = "spoken_mqa"
    version: ClassVar[str] = "amao0o0/spoken-mqa, rule of AudioBench e991641"
    title: ClassVar[str] = "Spoken-MQA"
    table_column: ClassVar[str | None] = "Spoken MQA"
    notes: ClassVar[Sequence[str]] = (
        "The paper's figures fit the micro average over 2,269 items; how they were averaged is not"
        " published.",
    )
    sampling: ClassVar[Sampling] = Sampling(temperature=0.7, top_p=1.0, max_new_tokens=32_000)

    def items(self, folder: PathLike) -> list[Item]:
        """Reads the questions of a folder or file; see `Task.items`.

        A row's split is the name of its Parquet file, or the row's own `split`. Rows have no ids:
        they are counted in each split, from 0.
        """
        counts: collections.Counter[str] = collections.Counter()
        items, origins = [], dict[str, str]()
        for table in find_tables(folder, what="the Parquet files of Spoken-MQA's four splits"):
            for row in read_rows([table]):
                split = _split_of(row, table)
                item_id = row.optional_text("id") or f"{split}_{counts[split]:03d}"
                counts[split] += 1
                check_unique(origins, item_id, row.origin)
                items.append(self._item(row, item_id, split))
        check_has_rows(items, folder)
        return items

    def strict(self, data: Mapping[str, Any], output: str | None) -> Strict | None:
        """Reads the number that a reply gives; it is right if it is any of the references.

        See `text.matches_number`: digits or words, fraction, percent, or a converted unit.
        """
        references = references_of(data)
        if not references:
            return None
        question = data.get("question")
        question = question if isinstance(question, str) else ""
        reply = strip_question(strip_reasoning(output or "") or "", question)
        matches = [
            matches_number(reply, reference.rpartition("####")[2], question=question)
            for reference in references
        ]
        read = matches[0].read
        if read is None:
            return Strict("unparsed")
        is_right = any(match.is_match for match in matches)
        return Strict("correct" if is_right else "wrong", read)

    def official(self, data: Mapping[str, Any], output: str | None) -> OfficialOutcome | None:
        """Scores a reply as AudioBench's scorer does: the number after "The answer is".

        Only the first reference counts. A missing prediction, which the program scores with the
        number of the item before, is wrong.
        """
        references = references_of(data)
        if not references:
            return None
        split = data.get("split")
        if split not in SPLITS:
            raise DataError(f"'split' must be one of {', '.join(SPLITS)}, got {format_json(split)}")
        reference = references[0]
        prediction = extract_number(output or "")
        if split in _DIGIT_SPLITS:
            expected = reference
        else:
            if "####" in reference:
                reference = reference.rpartition("#### ")[2].replace(",", "")
            if _SUBSTRING_REFERENCE.fullmatch(reference):
                return "correct" if reference in (output or "") else "wrong"
            expected = canonical_number(reference)
        return "correct" if prediction.lower() == expected.lower() else "wrong"

    def metrics(self, items: Sequence[ScoredItem]) -> list[Metric]:
        """Returns accuracies, of all items and by split, and the mean of the splits' accuracies."""
        macros = [
            macro_metric("macro accuracy", scoring, items, "split")
            for scoring in scorings_of(items)
        ]
        return [*default_metrics(items), *macros]

    def _item(self, row: BenchmarkRow, item_id: str, split: str) -> Item:
        question = row.text("context_transcript", "question")
        answer = row.value.get("answer")
        data = {
            **row.without_sound("context", "context_transcript", "instruction", "split"),
            "id": item_id,
            "split": split,
            "question": question,
            "answer": answer.get("text") if isinstance(answer, Mapping) else answer,
        }
        with row.error_context():
            data["answer"] = references_of(data)
            if not data["answer"]:
                raise DataError("has no 'answer'")
        instruction = row.value.get("instruction")
        text = instruction.get("text") if isinstance(instruction, Mapping) else instruction
        if not isinstance(text, str) or not text.strip():
            text = INSTRUCTION
        clip = row.clip("context", transcript=question)
        record = Record(
            id=item_id,
            messages=(Message("user", (TextPart(text), clip)),),
            source=self.name,
            origin=row.origin,
        )
        return Item(item_id, record, data, {"split": split})


def extract_number(prediction: str) -> str:
    """Returns what AudioBench's scorer reads as the answer of a reply; "empty" for nothing."""
    text = prediction.strip("\n")
    if any(text.count(trigger) > 1 for trigger in _TRIGGERS):
        text = text.split("\n\n")[0]
    parts = _ANY_TRIGGER.split(text)
    text = parts[-1].strip("\n").rstrip(".").rstrip("/").strip(" ").replace(",", "")
    matches = _NUMBER.finditer(text)
    if len(parts) > 1:
        match = next(matches, None)
    else:
        match = next(iter(collections.deque(matches, maxlen=1)), None)
    number = canonical_number(match[0]) if match else _NO_NUMBER
    return number.rstrip(".").rstrip("/")[:_MAX_PREDICTION_CHARACTERS]


def canonical_number(text: str) -> str:
    """Returns a number as AudioBench's scorer writes it: 2.50 is 2.5, 3/4 is 0.75, 7.0 is 7.

    What is neither a decimal number nor a quotient stays as it is.
    """
    try:
        value = float(text)
    except ValueError:
        quotient = _quotient(text)
        if quotient is None:
            return text
        value = quotient
    return repr(value).removesuffix(".0")


def references_of(data: Mapping[str, Any]) -> list[str]:
    """Returns the reference answers of a row, a text or a list of them; none where it has none.

    Raises:
        DataError: they are neither.
    """
    value = parse_literal(data.get("answer"))
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise DataError(f"'answer' must be a text or a list of texts, got {format_json(value)}")
    return [item for item in value if item.strip()]


def _quotient(text: str) -> float | None:
    match = _QUOTIENT.fullmatch(text)
    if match is None:
        return None
    sign, dividend, divisor = match.groups()
    try:
        value = int(dividend) / (float(divisor) if divisor.startswith(".") else int(divisor))
    except (ZeroDivisionError, OverflowError, ValueError):  # of 4300 digits and more
        return None
    return -value if sign else value


def _split_of(row: BenchmarkRow, table: str) -> str:
    """Returns the split that a row names, or else its table."""
    split = row.optional_text("split") or split_name(table)
    if split not in SPLITS:
        raise row.error(
            f"is of no known split: neither its 'split' nor the file's name says which"
            f" ({split!r}{did_you_mean(split, SPLITS)}); splits are {', '.join(SPLITS)}"
        )
    return split
