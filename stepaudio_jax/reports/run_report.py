"""The report of a run: one HTML page that needs nothing else, neither network nor script."""

import json
import math
import pathlib
import statistics
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.evaluation.grading import Answer, Results
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.reports.charts import charts, draw, format_number
from stepaudio_jax.reports.evaluation_report import example_card, results_table, select_examples
from stepaudio_jax.reports.html import Html, element, escaped, joined
from stepaudio_jax.reports.logged_run import LoggedRun, StageSpan, read_run
from stepaudio_jax.storage import PathLike, atomic_text_writer, check_output_file
from stepaudio_jax.training.run_folder import CONFIG, METRICS, MODEL

# Replies that a policy wrote while it learnt, with what they were worth, to read.

SAMPLES = "samples.jsonl"
_STEPS_SHOWN = 6


def replies_table(folder: pathlib.Path) -> Html | None:
    """The samples of some steps from first to last, or None for a run that did not learn from rewards."""
    path = folder / SAMPLES
    if not path.exists():
        return None
    *whole, _ = path.read_bytes().split(b"\n")  # what follows the last line end is not whole
    samples = [json.loads(line) for line in whole]
    moments = list(dict.fromkeys((sample["stage"], sample["step"]) for sample in samples))
    if not moments:
        return None
    count = min(_STEPS_SHOWN, len(moments))
    shown = {
        moments[round(index * (len(moments) - 1) / max(count - 1, 1))] for index in range(count)
    }
    rows = [_row(sample) for sample in samples if (sample["stage"], sample["step"]) in shown]
    columns = ("stage", "step", "source", "reasoning", "reply", "reference", "reward", "made of")
    header = element("tr", *(element("th", column, scope="col") for column in columns))
    table = element("table", element("thead", header), element("tbody", *rows), class_="replies")
    note = f"The first replies of {count} of {len(moments)} steps."
    scroll = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Replies")
    return joined(element("p", note, class_="muted"), scroll)


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


# A run in a few words: where it started, and what each of its stages did.

_UNKNOWN = "not recorded"


def run_facts(run: LoggedRun) -> Html:
    """What holds for the whole run: its folder, its start, its seed, how it was computed, the size of its model."""
    initial = _at(run.config, "initial")
    sources = (
        [f"{part}: {path}" for part, path in initial.items() if path]
        if isinstance(initial, Mapping)
        else [_UNKNOWN]
    )
    facts = {
        "Started from": ", ".join(sources) or "random weights",
        "Tokenizer": _at(run.config, "tokenizer") or "that of the weights",
        "Seed": _at(run.config, "seed"),
        "Computed in": f"{_at(run.config, 'compute', 'dtype')}, parameters in {_at(run.config, 'compute', 'param_dtype')}",
        "Parameters": _parameter_counts(run),
    }
    items = [
        item
        for name, value in facts.items()
        for item in (element("dt", name), element("dd", str(value)))
    ]
    return element("dl", *items, class_="facts")


def stage_table(run: LoggedRun) -> Html:
    """One column for each stage: what it was asked to do, and what it logged last."""
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
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Stages")


def _stage_facts(
    run: LoggedRun, stage: Mapping[str, Any], span: StageSpan | None, name: str
) -> dict[str, str]:
    trainable, sources = _at(stage, "trainable"), _at(stage, "data", "sources")
    optimizer = str(_at(stage, "optimizer", "name"))
    peak = _number(_at(stage, "optimizer", "learning_rate"))
    if optimizer == "muon":
        peak = f"{_number(_at(stage, 'optimizer', 'muon_learning_rate'))} (matrices), {peak} (the rest)"
    waited = _values(run, name, "data_wait_fraction")
    return {
        "steps": f"{span.end - span.start if span else 0} of {_at(stage, 'steps')}",
        "learns": ", ".join([*map(str, trainable), *_adapted(stage)])
        if isinstance(trainable, list)
        else _UNKNOWN,
        "optimizer": optimizer,
        "peak learning rate": peak,
        "batch": f"{_at(stage, 'data', 'rows')} rows of {_at(stage, 'data', 'seq_len')} tokens",
        "data": "; ".join(_source(source) for source in sources)
        if isinstance(sources, list)
        else _UNKNOWN,
        "records read": _last(run, name, "records"),
        "records skipped": _skipped(run, name),
        "steps skipped": _sum(run, name, "skipped_steps"),
        "steps with nothing to learn": _sum(run, name, "zero_gradient_steps"),
        "last training loss": _last(
            run, name, "loss/next_token" if _values(run, name, "loss/next_token") else "loss"
        ),
        "last held-out loss": _last(run, name, "evaluation/loss"),
        "last reward": _last(run, name, "reward"),
        "median tokens a second": _median(run, name, "tokens_per_second"),
        "median audio seconds a second": _median(run, name, "audio_seconds_per_second"),
        "waited for data": f"{100 * statistics.fmean(waited):.0f} % of the time"
        if waited
        else "not logged",
    }


def _parameter_counts(run: LoggedRun) -> str:
    """Of the finished model, by part: the configuration need not know its shape, which may come with the initial weights."""
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
    if _values(
        run, stage, "skipped_records"
    ):  # of a stage that learns from rewards, which counts those of each step
        return _sum(run, stage, "skipped_records")
    skipped = {
        name: _last(run, stage, f"skipped_{name}")
        for name in ("bad_audio", "too_long", "bad_record")
        if _values(run, stage, f"skipped_{name}")
    }
    return (
        ", ".join(f"{count} ({name.replace('_', ' ')})" for name, count in skipped.items()) or "0"
    )


def _sum(run: LoggedRun, stage: str, metric: str) -> str:
    values = _values(run, stage, metric)
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
    """A nested setting. Runs of other versions of this project may lack it: the page then says so."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return _UNKNOWN
        value = value[key]
    return value


_PAGE_PREFIX = b"<!doctype html>"  # of a page


def write_report(
    path: PathLike,
    run_dir: PathLike,
    title: str,
    results: Results | None = None,
    answers: Sequence[Answer] = (),
    *,
    channel: AudioChannel = DataConfig.channel,
) -> pathlib.Path:
    """Writes the report of a run, finished or not: results, curves, replies of a policy, examples, configuration.

    Args:
        path: the HTML file. It appears when it is complete.
        run_dir: the run's folder, with config.json and metrics.jsonl.
        title: of the page.
        results: of an evaluation; None leaves the table out.
        answers: of that evaluation. `select_examples` takes a few of each task, which are shown
            with their clips; without answers there are no examples.
        channel: what the model heard of a clip with several channels, and the examples play.

    Returns:
        `path`.

    Raises:
        DataError: the folder does not hold a run.
        OutputError: the page would replace a file that is no page, or cannot be written.
        AudioError: a clip of an example cannot be read.
    """
    check_output_file(path, _files_of(run_dir), may_replace=_is_page)
    run = read_run(run_dir)
    sections = {
        "Results": results_table(results) if results is not None else None,
        "Curves": _curves(run),
        "Replies": replies_table(run.folder),
        "Examples": _examples(select_examples(answers), channel) if answers else None,
        "Configuration": _configuration(run),
    }
    present = {name: content for name, content in sections.items() if content is not None}
    template = (
        resources.files("stepaudio_jax.reports").joinpath("report.html").read_text(encoding="utf-8")
    )
    page = string.Template(template).substitute(
        title=escaped(title),
        subtitle=escaped(str(run.folder)),
        navigation=joined(*(element("a", name, href=f"#{name.lower()}") for name in present)),
        sections=joined(*(_section(name, content) for name, content in present.items())),
    )
    final = pathlib.Path(path)
    with atomic_text_writer(final) as file:
        file.write(page)
    return final


def _files_of(run_dir: PathLike) -> list[pathlib.Path]:
    return [pathlib.Path(run_dir) / name for name in (CONFIG, METRICS, SAMPLES)]


def _is_page(path: pathlib.Path) -> bool:
    """Returns whether a file is a page that may be replaced by a newer one."""
    with path.open("rb") as file:
        return file.read(len(_PAGE_PREFIX)).lower() == _PAGE_PREFIX


def _section(name: str, content: Html) -> Html:
    heading = f"{name.lower()}-heading"
    return element(
        "section",
        element("h2", name, id=heading),
        content,
        id=name.lower(),
        aria_labelledby=heading,
    )


def _curves(run: LoggedRun) -> Html:
    drawn = [draw(chart) for chart in charts(run)]
    if not drawn:
        return element("p", "Nothing has been logged yet.", class_="muted")
    return element("div", *drawn, class_="charts")


def _examples(examples: Sequence[Answer], channel: AudioChannel) -> Html:
    right = sum(answer.correct for answer in examples)
    note = f"{len(examples)} questions, {right} of these answered rightly; the table has the accuracy over all questions."
    cards = (
        example_card(answer, number, channel=channel) for number, answer in enumerate(examples, 1)
    )
    return joined(element("p", note, class_="muted"), element("div", *cards, class_="examples"))


def _configuration(run: LoggedRun) -> Html:
    whole = json.dumps(run.config, indent=2, ensure_ascii=False)
    return joined(
        run_facts(run),
        stage_table(run),
        element("details", element("summary", "The whole configuration"), element("pre", whole)),
    )
