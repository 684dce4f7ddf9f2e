"""A run in a few words: where it started, and what each of its stages did."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import jax

from stepaudio_jax import hub
from stepaudio_jax.evaluation.axis import format_number
from stepaudio_jax.evaluation.logged_run import LoggedRun, StageSpan
from stepaudio_jax.evaluation.markup import Html, element
from stepaudio_jax.models import abstract_parameters
from stepaudio_jax.training.run_folder import MODEL

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
