"""Describes in a few lines what a check of a run's data has found."""

from collections.abc import Iterator

from stepaudio_jax.data.checking import BadRecord, CheckedData, count_reasons
from stepaudio_jax.data.split_source import SplitSource

_SHOWN_RECORDS = 5


def describe_check(checked: CheckedData) -> Iterator[str]:
    """Yields the lines that describe the sources of a stage, or of its evaluation."""
    yield checked.title
    weights = sum(config.weight for config in checked.config.sources)
    pairs = zip(checked.sources, checked.config.sources, checked.result.contents, strict=True)
    for number, (source, config, content) in enumerate(pairs):
        share = f", {100 * config.weight / weights:.0f} % of the mixture"
        yield f"  {source.path} (source {source.name}{share if len(checked.sources) > 1 else ''})"
        yield f"    {content}"
        if isinstance(source, SplitSource) and source.num_split:
            yield f"    {source.describe_parts()}, which count as records (on_too_long='split')"
        bad = [record for record in checked.result.bad if record.source == number]
        skipped = [record for record in bad if record.skipped is not None]
        if skipped:
            yield f"    {_records(len(skipped))} will be skipped ({count_reasons(skipped)}):"
            yield from _messages(skipped)
        fatal = [record for record in bad if record.skipped is None]
        if fatal:
            yield f"    {_records(len(fatal))} cannot be used:"
            yield from _messages(fatal)
        if checked.config.check != "all" and checked.config.check < len(source):
            yield f"    data.check={checked.config.check} of {len(source)} records were checked"


def _messages(bad: list[BadRecord]) -> Iterator[str]:
    for record in bad[:_SHOWN_RECORDS]:
        yield f"      {record.message}"
    if len(bad) > _SHOWN_RECORDS:
        yield "      .."


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
