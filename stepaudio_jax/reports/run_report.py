"""Writes the report of a run: one HTML page that needs neither network nor scripts."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.evaluation.grading import Answer, Results
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.reports.axis import format_number
from stepaudio_jax.reports.charts import Chart, draw
from stepaudio_jax.reports.evaluation_report import example_card, results_table, select_examples
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.reports.logged_run import LoggedRun, StageSpan, read_run
from stepaudio_jax.reports.page import facts, is_page, render_page, scrolling
from stepaudio_jax.reports.run_charts import HELD_OUT_METRICS, chart_groups
from stepaudio_jax.storage import (
    Path,
    PathLike,
    appended_exists,
    atomic_text_writer,
    check_output_file,
    read_json_lines,
    to_path,
)
from stepaudio_jax.training.run_folder import CONFIG, METRICS, MODEL
from stepaudio_jax.training.task_metrics import task_metric

SAMPLES = "samples.jsonl"
_MAX_STEPS_SHOWN = 6
_UNKNOWN = "not recorded"


def write_report(
    path: PathLike,
    run_dir: PathLike,
    title: str,
    results: Results | None = None,
    answers: Sequence[Answer] = (),
    *,
    channel: AudioChannel = DataConfig.channel,
) -> Path:
    """Writes the report of a run, finished or not.

    It shows results, curves, replies of a policy, examples and the configuration, where there are.

    Args:
        path: the HTML file. It appears when it is complete.
        run_dir: the run's folder, with config.json and metrics.jsonl.
        title: the page's title.
        results: of an evaluation; None leaves the table out.
        answers: of that evaluation. A few of each task (see `select_examples`) are shown with
            their clips.
        channel: which channel of a multichannel clip the model was given and the page plays.

    Returns:
        `path`.

    Raises:
        DataError: the folder does not hold a run.
        OutputError: the page would replace a file that is no page, or cannot be written.
        AudioError: a clip of an example cannot be read.
    """
    check_output_file(path, _files_of(run_dir), may_replace=is_page)
    run = read_run(run_dir)
    sections = {
        "Results": results_table(results) if results is not None else None,
        "Curves": _curves(run),
        "Replies": replies_table(run.folder),
        "Examples": _examples(select_examples(answers), channel) if answers else None,
        "Configuration": _configuration(run),
    }
    page = render_page(title, str(run.folder), sections)
    final = to_path(path)
    with atomic_text_writer(final) as file:
        file.write(page)
    return final


def _files_of(run_dir: PathLike) -> list[Path]:
    return [to_path(run_dir) / name for name in (CONFIG, METRICS, SAMPLES)]


def _curves(run: LoggedRun) -> Html:
    """Returns the charts by group; flat ones are folded away at the end of theirs."""
    groups = chart_groups(run)
    if not groups:
        return element("p", "Nothing has been logged yet.", class_="muted")
    content: list[Html] = []
    for group in groups:
        content.append(element("h3", group.name, class_="group"))
        content.append(element("div", *map(draw, group.charts), class_="charts"))
        if group.flat:
            summary = "Flat: " + ", ".join(_flat_value(chart) for chart in group.flat)
            charts = element("div", *map(draw, group.flat), class_="charts")
            content.append(element("details", element("summary", summary), charts))
    return joined(*content)


def _flat_value(chart: Chart) -> str:
    """Returns the title of a flat chart and the value of each of its curves."""
    values = dict.fromkeys(format_number(series.segments[-1][-1][1]) for series in chart.series)
    return f"{chart.title} {' and '.join(values)}"


def _examples(examples: Sequence[Answer], channel: AudioChannel) -> Html:
    correct = sum(answer.correct for answer in examples)
    note = (
        f"{len(examples)} questions, {correct} of these answered rightly; the table has the "
        "accuracy over all questions."
    )
    cards = (
        example_card(answer, number, channel=channel) for number, answer in enumerate(examples, 1)
    )
    return joined(element("p", note, class_="muted"), element("div", *cards, class_="examples"))


def _configuration(run: LoggedRun) -> Html:
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return joined(
        run_facts(run),
        stage_table(run),
        element("details", element("summary", "The whole configuration"), element("pre", text)),
    )


def replies_table(folder: Path) -> Html | None:
    """Returns sampled replies of some RL steps, first to last, with their rewards.

    None for a run without RL.
    """
    path = folder / SAMPLES
    if not appended_exists(path):
        return None
    samples = [line.value for line in read_json_lines(path)]
    steps = list(dict.fromkeys((sample["stage"], sample["step"]) for sample in samples))
    if not steps:
        return None
    count = min(_MAX_STEPS_SHOWN, len(steps))
    shown = {steps[round(index * (len(steps) - 1) / max(count - 1, 1))] for index in range(count)}
    rows = [_row(sample) for sample in samples if (sample["stage"], sample["step"]) in shown]
    columns = ("stage", "step", "source", "reasoning", "reply", "reference", "reward", "made of")
    header = element("tr", *(element("th", column, scope="col") for column in columns))
    table = element("table", element("thead", header), element("tbody", *rows), class_="replies")
    note = f"The first replies of {count} of {len(steps)} steps."
    return joined(element("p", note, class_="muted"), scrolling(table, "Replies"))


def _row(sample: Mapping[str, Any]) -> Html:
    reward = sample["reward"]
    cells: Sequence[str] = (
        sample["stage"],
        str(sample["step"]),
        sample["source"],
        sample["reasoning"],
        sample["reply"],
        sample["reference_reply"] or sample["answer"] or "",
        "no verdict" if reward is None else format_number(reward),
        ", ".join(f"{name} {format_number(value)}" for name, value in sample["parts"].items()),
    )
    return element("tr", *(element("td", cell) for cell in cells))


def run_facts(run: LoggedRun) -> Html:
    """Returns the run's initial weights, tokenizer, seed, dtypes and model size."""
    initial = _at(run.config, "initial")
    sources = (
        [f"{part}: {path}" for part, path in initial.items() if path]
        if isinstance(initial, Mapping)
        else [_UNKNOWN]
    )
    compute_dtype = _at(run.config, "compute", "dtype")
    param_dtype = _at(run.config, "compute", "param_dtype")
    values = {
        "Started from": ", ".join(sources) or "random weights",
        "Tokenizer": _at(run.config, "tokenizer") or "that of the weights",
        "Seed": _at(run.config, "seed"),
        "Computed in": f"{compute_dtype}, parameters in {param_dtype}",
        "Parameters": _parameter_counts(run),
    }
    return facts({name: str(value) for name, value in values.items()})


def stage_table(run: LoggedRun) -> Html:
    """Returns a table with a column for each stage: its settings, and what it logged last."""
    logged = {span.name: span for span in run.spans}
    stages = run.config.get("stages")
    configured = (
        {str(_at(stage, "name")): stage for stage in stages} if isinstance(stages, list) else {}
    )
    names = list(configured | logged)
    columns = [
        _stage_facts(run, configured.get(name, {}), logged.get(name), name) for name in names
    ]
    header = element(
        "tr",
        element("th", "stage", scope="col"),
        *(element("th", name, scope="col") for name in names),
    )
    rows = [
        element(
            "tr",
            element("th", fact, scope="row"),
            *(element("td", column[fact]) for column in columns),
        )
        for fact in (columns[0] if columns else ())
    ]
    table = element("table", element("thead", header), element("tbody", *rows), class_="stages")
    return scrolling(table, "Stages")


def _stage_facts(
    run: LoggedRun, stage: Mapping[str, Any], span: StageSpan | None, name: str
) -> dict[str, str]:
    trainable, sources = _at(stage, "trainable"), _at(stage, "data", "sources")
    optimizer = str(_at(stage, "optimizer", "name"))
    peak = _number(_at(stage, "optimizer", "learning_rate"))
    if optimizer == "muon":
        matrices = _number(_at(stage, "optimizer", "muon_learning_rate"))
        peak = f"{matrices} (matrices), {peak} (the rest)"
    waited = _values(run, name, "data_wait_fraction")
    batch_size, seq_len = (_at(stage, "data", key) for key in ("batch_size", "seq_len"))
    return {
        "steps": f"{span.end - span.start if span else 0} of {_at(stage, 'steps')}",
        "learns": ", ".join([*map(str, trainable), *_adapted(stage)])
        if isinstance(trainable, list)
        else _UNKNOWN,
        "optimizer": optimizer,
        "peak learning rate": peak,
        "batch": f"{batch_size} rows of {seq_len} tokens",
        "data": "; ".join(_source(source) for source in sources)
        if isinstance(sources, list)
        else _UNKNOWN,
        "records read": _last(run, name, "records"),
        "records skipped": _skipped(run, name),
        "steps or updates skipped": _sum(run, name, "skipped_steps", "skipped_updates"),
        "steps or updates with nothing to learn": _sum(
            run, name, "zero_gradient_steps", "zero_gradient_updates"
        ),
        "last training loss": _last(
            run, name, "loss/next_token" if _values(run, name, "loss/next_token") else "loss"
        ),
        "last held-out loss": _last(run, name, "evaluation/loss"),
        "last benchmarks": _benchmarks(run, name),
        "last reward": _last(run, name, "reward"),
        "median tokens a second": _median(run, name, "tokens_per_second"),
        "median audio seconds a second": _median(run, name, "audio_seconds_per_second"),
        "waited for data": f"{100 * statistics.fmean(waited):.0f} % of the time"
        if waited
        else "not logged",
    }


def _parameter_counts(run: LoggedRun) -> str:
    """Returns the number of parameters of the finished model, by part.

    The configuration may lack its shape, which can come with the initial weights.
    """
    folder = run.folder / MODEL
    if not folder.is_dir():
        return "known when the run is finished"
    tree = abstract_parameters(hub.read_model_config(folder))
    counts = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(branch))
        for part, branch in tree.items()
    }
    by_part = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    return f"{sum(counts.values()):,} ({by_part})"


def _source(source: Any) -> str:
    return f"{_at(source, 'name') or _at(source, 'path')} (weight {_number(_at(source, 'weight'))})"


def _adapted(stage: Mapping[str, Any]) -> list[str]:
    rank = _at(stage, "lora", "rank")
    return [f"decoder by LoRA of rank {rank}"] if isinstance(rank, int) and rank else []


def _skipped(run: LoggedRun, stage: str) -> str:
    if _values(run, stage, "skipped_records"):  # RL stages count those of each step
        return _sum(run, stage, "skipped_records")
    skipped = {
        name: _last(run, stage, f"skipped_{name}")
        for name in ("bad_audio", "too_long", "bad_record")
        if _values(run, stage, f"skipped_{name}")
    }
    return (
        ", ".join(f"{count} ({name.replace('_', ' ')})" for name, count in skipped.items()) or "0"
    )


def _benchmarks(run: LoggedRun, stage: str) -> str:
    """Returns the last figure of each benchmark that a stage was evaluated on."""
    prefix = task_metric("")
    figures = {
        name.removeprefix(prefix): _values(run, stage, name)
        for name in run.metric_names
        if name.startswith(prefix) and name not in HELD_OUT_METRICS
    }
    shown = [f"{name} {100 * values[-1]:.1f} %" for name, values in figures.items() if values]
    return ", ".join(shown) or "not logged"


def _sum(run: LoggedRun, stage: str, *metrics: str) -> str:
    """Returns the sum of what a stage logged under any of these names."""
    values = [value for metric in metrics for value in _values(run, stage, metric)]
    return format_number(sum(values)) if values else "not logged"


def _values(run: LoggedRun, stage: str, metric: str) -> list[float]:
    return [value for _, value in run.points(metric).get(stage, [])]


def _last(run: LoggedRun, stage: str, metric: str) -> str:
    values = _values(run, stage, metric)
    return format_number(values[-1]) if values else "not logged"


def _median(run: LoggedRun, stage: str, metric: str) -> str:
    values = _values(run, stage, metric)
    return format_number(statistics.median(values)) if values else "not logged"


def _number(value: Any) -> str:
    return format_number(value) if isinstance(value, int | float) else str(value)


def _at(value: Any, *keys: str) -> Any:
    """Returns a nested setting; "not recorded" where a run of another version lacks it."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return _UNKNOWN
        value = value[key]
    return value
