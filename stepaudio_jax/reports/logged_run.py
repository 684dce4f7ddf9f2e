"""Reads what a run left in its folder: the configuration and the metrics over time."""

import dataclasses
import functools
import json
import numbers
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import Path, PathLike, read_appended, to_path
from stepaudio_jax.training.run_folder import CONFIG, METRICS

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class LoggedLine:
    """The metrics that a step of a stage logged."""

    stage: str
    step: int
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class StageSpan:
    """The steps of a stage, counted over the whole run: `start` + 1 to `end`."""

    name: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run, finished or not.

    Attributes:
        folder: the run folder.
        config: the resolved configuration, as plain values.
        lines: those of metrics.jsonl, in order.
    """

    folder: Path
    config: Mapping[str, Any]
    lines: tuple[LoggedLine, ...]

    @functools.cached_property
    def spans(self) -> tuple[StageSpan, ...]:
        """Returns the stages that logged something, in order, each up to its last logged step."""
        last: dict[str, int] = {}
        for line in self.lines:
            last[line.stage] = max(line.step, last.get(line.stage, 0))
        spans: list[StageSpan] = []
        for name, steps in last.items():
            start = spans[-1].end if spans else 0
            spans.append(StageSpan(name, start, start + steps))
        return tuple(spans)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Returns the names of all logged metrics, in the order of their first line."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.metrics))

    def points(self, metric: str) -> dict[str, list[Point]]:
        """Returns a metric over time: stage -> [(step of the whole run, value)]."""
        starts = {span.name: span.start for span in self.spans}
        by_stage: dict[str, list[Point]] = {}
        for line in self.lines:
            if metric in line.metrics:
                by_stage.setdefault(line.stage, []).append(
                    (starts[line.stage] + line.step, line.metrics[metric])
                )
        return by_stage


def read_run(folder: PathLike) -> LoggedRun:
    """Reads config.json and metrics.jsonl of a run folder.

    A last line of metrics.jsonl without its line end, which the run is writing or was killed in,
    is left out.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    path = to_path(folder)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; name the run_dir of a run")
    config = _json(_text(path / CONFIG), f"{path / CONFIG}")
    if not isinstance(config, dict):
        raise DataError(f"{path / CONFIG} must hold a JSON object; is {path} the run_dir of a run?")
    *complete, _ = _text(path / METRICS).split("\n")
    lines = tuple(
        _line(text, f"{path / METRICS}:{number}") for number, text in enumerate(complete, 1)
    )
    return LoggedRun(path, config, lines)


def _line(text: str, origin: str) -> LoggedLine:
    value = _json(text, origin)
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("stage"), str)
        or type(value.get("step")) is not int
    ):
        raise DataError(
            f"{origin} must be an object with 'stage', a string, and 'step', a whole number"
        )
    metrics = {name: metric for name, metric in value.items() if name not in ("stage", "step")}
    for name, metric in metrics.items():
        if not isinstance(metric, numbers.Real):
            raise DataError(f"{origin}: {name!r} must be a number, got {metric!r}")
    return LoggedLine(
        value["stage"], value["step"], {name: float(metric) for name, metric in metrics.items()}
    )


def _text(path: Path) -> str:
    try:
        return read_appended(path).decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; is {path.parent} the run_dir of a run?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _json(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{origin} is not JSON: {error}") from None
