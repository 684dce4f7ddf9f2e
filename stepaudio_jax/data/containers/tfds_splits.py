"""Parses the names of splits as TFDS writes them: `train`, `train[:10%]`, `train[2shard:]+test`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import did_you_mean, truncate

_PART = re.compile(r"(?P<split>[\w-]+)(\[(?P<slice>[^\[\]]*)\])?")
_BOUND = re.compile(r"(?P<value>-?\d[\d_]*(\.\d+)?)(?P<unit>%|shard)?")
_FORMS = "train, train[:1000], train[10%:90%], train[2shard:3shard], train+test, all"


@dataclasses.dataclass(frozen=True)
class SplitRange:
    """Names the rows `start` to `stop` (excluded) of a split."""

    split: str
    start: int
    stop: int


def parse_split(text: str, shard_lengths: Mapping[str, Sequence[int]]) -> list[SplitRange]:
    """Returns the rows that the name of a split means, in order.

    Percentages are rounded to the nearest row, as TFDS does.

    Args:
        text: parts joined by `+`, each the name of a split and perhaps a slice: rows, percentages
            (`%`) or shards (`shard`), negative ones counted from the end. `all` is every split.
        shard_lengths: how many rows each shard of each split has.

    Raises:
        DataError: a split does not exist, or a slice is malformed or outside of its split.
    """
    if text == "all" and "all" not in shard_lengths:
        return [SplitRange(name, 0, sum(lengths)) for name, lengths in shard_lengths.items()]
    return [_parse_part(part.strip(), shard_lengths) for part in text.split("+")]


def _parse_part(part: str, shard_lengths: Mapping[str, Sequence[int]]) -> SplitRange:
    match = _PART.fullmatch(part)
    if match is None:
        raise DataError(f"{truncate(part)!r} is not a split; the forms are {_FORMS}")
    name = match["split"]
    if name not in shard_lengths:
        names = ", ".join(shard_lengths) or "none"
        raise DataError(
            f"has no split {truncate(name)!r}; it has {names}{did_you_mean(name, shard_lengths)}"
        )
    lengths = shard_lengths[name]
    total = sum(lengths)
    if match["slice"] is None:
        return SplitRange(name, 0, total)
    bounds = [_parse_bound(bound.strip(), part) for bound in match["slice"].split(":")]
    if len(bounds) == 1 and bounds[0] is not None and bounds[0][1] == "shard":
        shard = int(bounds[0][0])
        bounds = [bounds[0], (shard + 1, "shard") if shard != -1 else None]
    if len(bounds) != 2 or bounds == [None, None]:
        raise DataError(f"{truncate(part)!r} is not a slice of a split; the forms are {_FORMS}")
    units = {bound[1] for bound in bounds if bound is not None}
    if len(units) > 1:
        raise DataError(f"{truncate(part)!r} mixes rows, percentages and shards; use one of them")
    start, stop = (
        default if bound is None else _row_of(*bound, lengths, part)
        for bound, default in zip(bounds, (0, total), strict=True)
    )
    if start >= stop:
        raise DataError(f"{truncate(part)!r} has no rows: {name} has {total}")
    return SplitRange(name, start, stop)


def _parse_bound(text: str, part: str) -> tuple[float, str] | None:
    if not text:
        return None
    match = _BOUND.fullmatch(text)
    unit = (match["unit"] or "") if match else ""
    if match is None or ("." in match["value"] and unit != "%"):
        raise DataError(f"{truncate(part)!r} is not a slice of a split; the forms are {_FORMS}")
    return float(match["value"]), unit


def _row_of(value: float, unit: str, lengths: Sequence[int], part: str) -> int:
    """Returns the row at which a bound lies."""
    total = sum(lengths)
    if unit == "shard":
        shard = int(value) + (len(lengths) if value < 0 else 0)
        if not 0 <= shard <= len(lengths):
            raise DataError(f"{truncate(part)!r} is outside of its split of {len(lengths)} shards")
        return sum(lengths[:shard])
    row = round(value * total / 100) if unit == "%" else int(value)
    if abs(row) > total:
        raise DataError(f"{truncate(part)!r} is outside of its split of {total} rows")
    return row + total if row < 0 else row
