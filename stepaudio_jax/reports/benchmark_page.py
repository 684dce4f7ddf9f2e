"""Writes the page of benchmark results: Table 1, every figure with its interval, clips to play.

The page needs no other file and stays small: what is too much is counted, and lies in
`samples.jsonl` beside the results.
"""

import dataclasses
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.comparison import compare_results
from stepaudio_jax.evaluation.metrics import Metric
from stepaudio_jax.evaluation.results import BenchmarkResults, ModelIdentity, Sample
from stepaudio_jax.evaluation.results_files import RESULTS, SAMPLES, read_results, read_samples
from stepaudio_jax.evaluation.results_table import (
    format_interval,
    format_value,
    metric_counts,
    metric_title,
    tabulate_results,
)
from stepaudio_jax.evaluation.table1 import (
    COLUMNS,
    benchmark_row,
    paper_rows,
    tabulate_table1,
)
from stepaudio_jax.reports.clips import ClipPlayer
from stepaudio_jax.reports.hearing import hearing_section
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.reports.interval_picture import interval_picture
from stepaudio_jax.reports.page import (
    MAX_CHARS,
    facts,
    folded,
    is_page,
    muted,
    render_page,
    table,
    written,
)
from stepaudio_jax.reports.sample_card import has_full_score, sample_card
from stepaudio_jax.storage import (
    Path,
    PathLike,
    atomic_text_writer,
    check_output_file,
    is_bucket_path,
    to_path,
    truncate,
)

PAGE = "report.html"
_MAX_CLIP_BYTES = 12 << 20
_MAX_EXAMPLES, _MAX_UNPARSED, _MAX_ERRORS, _MAX_GROUPS = 6, 25, 50, 100  # of a task


def write_benchmark_page(
    results: PathLike,
    output: PathLike | None = None,
    *,
    controls: Sequence[PathLike] = (),
    title: str | None = None,
    channel: AudioChannel = DataConfig.channel,
) -> Path:
    """Writes the page of a folder of results.

    Args:
        results: the folder.
        output: the HTML file; None for `report.html` in the folder. It appears when it is complete.
        controls: results of the same model in silence, or with transcripts in place of the sound.
        title: of the page; None for the model's name.
        channel: which channel of a multichannel clip the model was given and the page plays.

    Returns:
        The page's path.

    Raises:
        DataError: results cannot be read, or a control is no control; names file, line and key.
        OutputError: the page would replace a file that is no page, or cannot be written.
    """
    folder = to_path(results)
    folder = folder.parent if folder.name == RESULTS else folder
    final = folder / PAGE if output is None else to_path(output)
    check_output_file(final, [folder / RESULTS, folder / SAMPLES], may_replace=is_page)
    of_model, samples = read_results(folder), read_samples(folder)
    compared = []
    for control in controls:
        of_control = read_results(control)
        if of_control.mode == "sound":
            raise DataError(
                f"{os.fspath(control)}: its model was given the sound, so it controls nothing; name"
                " results of --silence or --transcripts-only"
            )
        compared.append(
            (
                of_control,
                compare_results(of_control, read_samples(control), of_model, samples),
            )
        )
    by_task: dict[str, list[Sample]] = {task.name: [] for task in of_model.tasks}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    source = _link(folder / SAMPLES, final)
    sections = {
        "Table 1": _table1(of_model),
        "Figures": _figures(of_model),
        "Silence": hearing_section(compared),
        "Breakdown": _breakdown(of_model),
        "Unparsed": _unparsed(by_task, source),
        "Errors": _errors(of_model, source),
        "Examples": _examples(of_model, by_task, channel, source),
        "Settings": _settings(of_model),
    }
    page = render_page(title or of_model.model.name, _subtitle(of_model), sections)
    with atomic_text_writer(final) as file:
        file.write(page)
    return final


def _subtitle(results: BenchmarkResults) -> str:
    tasks = len(results.tasks)
    given = {
        "sound": "the sound",
        "silence": "silence in place of the sound",
        "transcripts": "transcripts in place of the sound",
    }[results.mode]
    return (
        f"{tasks} {'task' if tasks == 1 else 'tasks'}, {results.created}; the model was given"
        f" {given}."
    )


def _link(target: Path, page: Path) -> Html:
    """Returns a link to the samples, relative where the page lies on the same disk."""
    if is_bucket_path(target) or is_bucket_path(page):
        return element("span", str(target))
    href = os.path.relpath(os.path.abspath(target), os.path.abspath(page.parent))
    return element("a", SAMPLES, href=urllib.parse.quote(href.replace(os.sep, "/")))


def _table1(results: BenchmarkResults) -> Html | None:
    """Returns Table 1, and a picture of each of the user's scores among the paper's."""
    row = benchmark_row(results)
    if not row.cells:
        return None
    printed = tabulate_table1([results])
    content = table(printed.header, printed.rows, "Table 1 of the report", class_="table1")
    rows = []
    for column in COLUMNS:
        if column not in row.cells:
            continue
        cell = row.cells[column]
        published = [paper.cells[column].percent for paper in paper_rows()]
        interval = cell.interval
        scaled = interval and dataclasses.replace(
            interval, low=interval.low / 100, high=interval.high / 100
        )
        rows.append(
            (
                column,
                f"{cell.percent:.2f}{cell.marks}",
                "-" if interval is None else f"{interval.low:.1f} to {interval.high:.1f}",
                f"{min(published):.2f} to {max(published):.2f}",
                f"{paper_rows()[-1].cells[column].percent:.2f}",
                interval_picture(
                    cell.percent / 100, scaled, ticks=[score / 100 for score in published]
                ),
            )
        )
    header = ("column", "this model", "95 % interval", "the paper's six", "Step-Audio-R1.5")
    pictures = table((*header, "0 to 100"), rows, "Scores among the paper's")
    note = "The dot is this model, the bar its 95 % interval, each tick one of the paper's models."
    return joined(content, muted(*printed.notes), pictures, muted(note))


def _figures(results: BenchmarkResults) -> Html:
    rows = [
        (task.name, task.version, metric.scoring, *_metric_cells(metric))
        for task in results.tasks
        for metric in task.metrics
        if not metric.group
    ]
    header = ("task", "version", "scoring", *_METRIC_HEADER)
    notes = (
        "Unparsed replies count as wrong. Dropped ones are those that the published rule leaves out"
        " of n. Failed items have no reply, or no verdict of the judge.",
        *tabulate_results(results).notes,
    )
    return joined(table(header, rows, "Figures of all tasks", words=4), muted(*notes))


_METRIC_HEADER = (
    *("metric", "value", "95 % interval", "n", "unparsed", "dropped", "failed", "0 to 100"),
)


def _metric_cells(metric: Metric) -> tuple[str | Html, ...]:
    return (
        metric_title(metric),
        format_value(metric),
        format_interval(metric),
        str(metric.denominator),
        *metric_counts(metric),
        interval_picture(metric.value, metric.interval),
    )


def _breakdown(results: BenchmarkResults) -> Html | None:
    """Returns the figures of each task's groups, folded; those of its headline's name first."""
    parts = []
    for task in results.tasks:
        metrics = [metric for metric in task.metrics if metric.group]
        metrics.sort(key=lambda m: (m.scoring, m.name) != task.headline)
        if not metrics:
            continue
        shown = metrics[:_MAX_GROUPS]
        rows = [(m.group.replace("=", ": ", 1), m.scoring, *_metric_cells(m)) for m in shown]
        content = table(
            ("group", "scoring", *_METRIC_HEADER), rows, f"Groups of {task.name}", words=3
        )
        more = [f"{len(metrics) - len(shown)} more are in {RESULTS}."] * (len(metrics) > len(shown))
        parts.append(
            folded(f"{task.name}: {len(metrics)} figures of groups", content, muted(*more))
        )
    return joined(*parts) if parts else None


def _unparsed(by_task: Mapping[str, Sequence[Sample]], source: Html) -> Html | None:
    """Returns the replies in which no clear answer was found, to be read."""
    parts = []
    for task, samples in by_task.items():
        unparsed = [s for s in samples if s.scores.strict and s.scores.strict.outcome == "unparsed"]
        if not unparsed:
            continue
        shown = _spread_evenly(unparsed, _MAX_UNPARSED)
        rows = [
            (
                sample.id,
                sample.finish_reason or "",
                written(sample.reply, max_chars=MAX_CHARS),
                _official(sample),
            )
            for sample in shown
        ]
        content = table(
            ("item", "ended by", "reply", "official"),
            rows,
            f"Unparsed replies of {task}",
            words=4,
            class_="texts",
        )
        note = _shown_of(len(shown), len(unparsed), source)
        parts.append(folded(f"{task}: {len(unparsed)} of {len(samples)} replies", content, note))
    return joined(*parts) if parts else None


def _official(sample: Sample) -> str:
    return sample.scores.official or "-"


def _errors(results: BenchmarkResults, source: Html) -> Html | None:
    parts = []
    for task in results.tasks:
        if not task.errors:
            continue
        shown = task.errors[:_MAX_ERRORS]
        rows = [(truncate(e.id), written(e.message, max_chars=MAX_CHARS)) for e in shown]
        content = table(
            ("item", "why it has no reply"), rows, f"Errors of {task.name}", words=2, class_="texts"
        )
        note = _shown_of(len(shown), len(task.errors), source)
        summary = f"{task.name}: {len(task.errors)} of {task.items} items without a reply"
        parts.append(folded(summary, content, note))
    return joined(*parts) if parts else None


def _shown_of(shown: int, total: int, source: Html) -> Html | None:
    if shown == total:
        return None
    return element("p", f"{shown} of {total} are shown; all are in ", source, ".", class_="muted")


def _examples(
    results: BenchmarkResults,
    by_task: Mapping[str, Sequence[Sample]],
    channel: AudioChannel,
    source: Html,
) -> Html | None:
    parts: list[Html] = []
    number = num_skipped = 0
    for task in results.tasks:
        answered = [s for s in by_task.get(task.name, ()) if not s.is_failed]
        if not answered:
            continue
        budget = _MAX_CLIP_BYTES // len(results.tasks)
        player = ClipPlayer(channel, max_bytes=budget, excerpts=True)
        cards = []
        for sample in _select(answered):
            number += 1
            cards.append(sample_card(sample, number, player, silenced=results.mode == "silence"))
        num_skipped += player.num_skipped
        content = element("div", *cards, class_="examples")
        parts.append(folded(f"{task.name}: {task.title}", content))
    if not parts:
        return None
    note: list[str | Html] = [
        "A few replies of each task, those that lose points first; all are in "
    ]
    skipped = f" {player.num_skipped} clips are named only, to keep this page small."
    return joined(
        element("p", *note, source, ".", skipped if player.num_skipped else None, class_="muted"),
        *parts,
    )


def _select(samples: Sequence[Sample]) -> list[Sample]:
    """Returns a few replies that lose points, then some that do not, each spread over the task."""
    lost = [sample for sample in samples if not has_full_score(sample)]
    full = [sample for sample in samples if has_full_score(sample)]
    num_lost = min(len(lost), max(_MAX_EXAMPLES // 2, _MAX_EXAMPLES - len(full)))
    return [
        *_spread_evenly(lost, num_lost),
        *_spread_evenly(full, _MAX_EXAMPLES - num_lost),
    ]


def _spread_evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _settings(results: BenchmarkResults) -> Html:
    """Returns what the figures depend on: identities, versions, hashes, decoding."""
    model = results.model
    content = [
        facts(
            {
                "Model": _identity(model),
                "Written by": results.program,
                "Created": results.created,
                "Samples": results.samples_hash,
            }
        )
    ]
    for task in results.tasks:
        values: dict[str, str | Html] = {
            "Version": task.version,
            "Data": f"{task.data_folder}, {task.data_hash}",
            "Items": f"{task.items} of {task.items_total}, {task.samples} samples of each"
            if task.samples != 1
            else f"{task.items} of {task.items_total}",
            "Decoding": _json(task.sampling),
            "Headline": " ".join(task.headline or ("none, the answers are withheld",)),
            "Judge": "none" if task.judge is None else _identity(task.judge),
        }
        values |= {f"Prompt {name}": digest for name, digest in task.prompt_hashes.items()}
        content.append(folded(f"{task.name}: {task.title}", facts(values)))
    return joined(*content)


def _identity(model: ModelIdentity) -> str:
    settings = f", {_json(model.settings)}" if model.settings else ""
    return f"{model.name} ({model.kind}, {model.identity}{settings})"


def _json(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())
