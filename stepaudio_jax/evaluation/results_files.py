"""The results of benchmarks on disk: `results.json`, and `samples.jsonl` with every reply.

A folder of results holds the model, the settings and every task's figures in the one, and what was
asked, answered and judged in the other. Both appear whole or not at all; `results.json` comes last
and names the content of the other by its hash.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from stepaudio_jax.config.build import build, to_dict
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.evaluation.results import BenchmarkResults, Sample, metric_scalars
from stepaudio_jax.storage import (
    Path,
    PathLike,
    atomic_text_writer,
    format_json_line,
    read_bytes,
    to_path,
    truncate,
    write_text,
)

RESULTS, SAMPLES = "results.json", "samples.jsonl"
KIND = "stepaudio_jax benchmark results"
FORMAT = 1  # of both files; a number that this code does not know is refused

T = TypeVar("T")


def write_results(
    folder: PathLike, results: BenchmarkResults, samples: Iterable[Sample]
) -> BenchmarkResults:
    """Writes `samples.jsonl`, and then `results.json`, into a folder.

    Args:
        folder: local or in a bucket; it is created where it does not exist.
        results: whose `samples_hash` is filled in.
        samples: of its tasks; each is written as it comes.

    Returns:
        The results as written.

    Raises:
        DataError: a score, or a value that a task keeps, is not finite or cannot be JSON.
        OSError: the folder cannot be written.
    """
    target = to_path(folder)
    digest = hashlib.sha256()
    with atomic_text_writer(target / SAMPLES) as file:
        for sample in samples:
            line = _format_line(sample)
            digest.update(line.encode())
            file.write(line)
    results = dataclasses.replace(results, samples_hash=digest.hexdigest())
    values = {"kind": KIND, "format": FORMAT, **to_dict(results)}
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"results of {results.model.name} cannot be written: {error}") from None
    write_text(target / RESULTS, _encodable(text) + "\n")
    return results


def read_results(folder: PathLike) -> BenchmarkResults:
    """Reads `results.json` of a folder, or the file that is named.

    Raises:
        DataError: there is none, it is another program's, of a newer format, or damaged; names the
            file and the key.
    """
    path = _results_path(folder)
    try:
        values = _parse(read_bytes(path), f"{path}")
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; name a folder that launch.evaluate has finished"
        ) from None
    if values.get("kind") != KIND:
        raise DataError(
            f"{path} does not hold results of benchmarks: its 'kind' is not {KIND!r}; name a folder"
            " that launch.evaluate wrote"
        )
    number = values.get("format")
    if number != FORMAT or isinstance(number, bool):
        shown = truncate(json.dumps(number))
        is_newer = type(number) is int and number > FORMAT
        raise DataError(
            f"{path}: format={shown} is not {FORMAT}"
            + (": a newer stepaudio_jax wrote it; update this one" if is_newer else "")
        )
    values = {key: value for key, value in values.items() if key not in ("kind", "format")}
    results = _build(BenchmarkResults, values, "results", f"{path}")
    names = [task.name for task in results.tasks]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: tasks has a task twice ({', '.join(names)})")
    return results


def read_samples(folder: PathLike) -> list[Sample]:
    """Reads `samples.jsonl` of a folder of results.

    Raises:
        DataError: as `read_results`; or the samples are missing, damaged, or not those that
            `results.json` was computed from. Names file, line and key.
    """
    results = read_results(folder)
    path = _results_path(folder).parent / SAMPLES
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist, which holds the replies of {RESULTS} beside it; copy the"
            " complete folder"
        ) from None
    if hashlib.sha256(content).hexdigest() != results.samples_hash:
        raise DataError(
            f"{path} is not the file that {RESULTS} beside it was computed from (its hash differs):"
            " it was changed, cut short, or is of another run; copy the folder again, or run the"
            " evaluation again"
        )
    return [
        _build(Sample, _parse(line, f"{path}:{number}"), "sample", f"{path}:{number}")
        for number, line in enumerate(content.splitlines(), 1)
    ]


def write_tensorboard(folder: PathLike, results: BenchmarkResults, step: int = 0) -> None:
    """Writes the figures as TensorBoard scalars into `FOLDER/tensorboard/evaluation`.

    Args:
        folder: of the results, or of a run; local or in a bucket.
        results: of the model.
        step: of the training that the model stands at.
    """
    from stepaudio_jax.training.tensorboard import TensorBoardWriter

    writer = TensorBoardWriter(to_path(folder), "evaluation", step)
    writer.write(step, metric_scalars(results))
    writer.close()


def _results_path(folder: PathLike) -> Path:
    path = to_path(folder)
    return path if path.name == RESULTS else path / RESULTS


def _format_line(sample: Sample) -> str:
    values = to_dict(sample)
    try:
        line = format_json_line(values)
        if "NaN" in line or "Infinity" in line:  # as values, or within texts
            json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"task {sample.task}, item {truncate(sample.id)!r}: what the task keeps of it cannot be"
            f" written as JSON ({error})"
        ) from None
    return line


def _encodable(text: str) -> str:
    """Returns JSON that UTF-8 can hold: half a surrogate pair is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _parse(line: bytes, origin: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{origin}: must be a JSON object, not {type(value).__name__}")
    return value


def _build(cls: type[T], values: Mapping[str, Any], key: str, origin: str) -> T:
    try:
        return build(cls, values, key)
    except ConfigError as error:
        raise DataError(f"{origin}: {error}") from None
