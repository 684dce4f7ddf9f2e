"""Converts a source to the project's own form, in shards: resumable, and parallel over processes.

The output folder has the shards, with `clips/` beside them where their sound is not inside; the
list of the rows that could not be read, if there are any; and a hidden journal of the shards that
are finished, from which an interrupted conversion continues.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import tqdm

from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.config import AudioChannel, DataConfig, SourceConfig
from stepaudio_jax.data.containers.places import absolute_path
from stepaudio_jax.data.conversion_shards import (
    OutputContainer,
    Shard,
    ShardedOutput,
    ShardWriter,
    SkippedRow,
    row_bytes,
)
from stepaudio_jax.data.source import Source
from stepaudio_jax.errors import LockHeldError, OutputError
from stepaudio_jax.storage import (
    JsonLinesFile,
    Path,
    PathLike,
    appended_exists,
    check_not_same_file,
    check_output_directory,
    fingerprint_file,
    to_path,
    write_json_lines,
)

SKIPPED_ROWS = "skipped.jsonl"
JOURNAL = ".conversion.jsonl"
DEFAULT_SHARD_MB = 256

_VERSION = 1  # raise it when the same source gives other files
_SAMPLED_ROWS = 64  # from which the size of all is estimated
_MIN_PARALLEL_ROWS = 1000  # a process takes seconds to start
_POLL_S = 0.2
_SHARD_NUMBER = re.compile(r"-(\d+|\*)-of-(\d+|\*)$")
_PROGRESS_BAR_DELAY_S = 1.0


@dataclasses.dataclass(frozen=True)
class ConversionSummary:
    """Holds what a conversion has written.

    Attributes:
        pattern: names all of its files, as a source of a configuration does.
        shards: how many files there are.
        records: in all of them.
        clips: in the dialogues; one that occurs twice in a dialogue counts once.
        seconds: of these clips.
        skipped: the rows that could not be read, in order.
        is_new: whether anything was left to do.
    """

    pattern: str
    shards: int
    records: int
    clips: int
    seconds: float
    skipped: Sequence[SkippedRow]
    is_new: bool

    def __str__(self) -> str:
        sound = f"{self.seconds / 3600:.2f} h" if self.seconds >= 3600 else f"{self.seconds:.1f} s"
        files = "1 file" if self.shards == 1 else f"{self.shards} files"
        return f"{self.records} records, {self.clips} clips ({sound}) in {files}: {self.pattern}"


def convert_source(
    config: SourceConfig,
    output: PathLike,
    *,
    container: OutputContainer = "jsonl",
    shards: int | None = None,
    shard_mb: float | None = None,
    workers: int | None = None,
    channel: AudioChannel = DataConfig.channel,
    allow_urls: bool = DataConfig.allow_urls,
    show_progress: bool = True,
) -> ConversionSummary:
    """Writes all rows of a source in the project's own form.

    The same call continues a conversion that was interrupted, and does nothing where all is done.

    Args:
        config: of the source.
        output: the folder to create.
        container: "jsonl", with the clips as files in `clips/`, or "array_record", with the clips
            inside. Files of sound are copied byte for byte, samples are written without loss. Parts
            of files stay parts of one copied file in "jsonl", and are cut out in "array_record".
        shards: the number of files; None for as many as `shard_mb` asks for.
        shard_mb: about how many megabytes a file has with its clips; None for 256.
        workers: processes that work side by side; None for one for each core,
            or one alone for few rows.
        channel: of clips with several channels, which is heard where a part is cut out.
        allow_urls: whether clips that are URLs are downloaded.
        show_progress: whether a bar is shown.

    Raises:
        DataError: the source cannot be opened. Nothing is written.
        OutputError: the folder holds something else than an earlier part of this conversion, is
            used by another process, or cannot be written.
    """
    source = Source(config)
    folder = to_path(output)
    _check_apart(folder, source)
    job = {
        "program": "data.convert",
        "version": _VERSION,
        "path": absolute_path(config.path),
        "files": _fingerprint(source),
        "source": [source.name, source.settings],
        "container": container,
        "size": {"shards": shards} if shards is not None else {"shard_mb": shard_mb},
        "channel": channel,
        "allow_urls": allow_urls,
    }
    if not appended_exists(folder / JOURNAL):
        check_output_directory(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def choose_shards() -> int:
        if shards is not None:
            return min(shards, len(source))
        return _choose_shards(source, shard_mb or DEFAULT_SHARD_MB, allow_urls)

    with contextlib.closing(_Journal(folder, job, choose_shards)) as journal:
        plan = ShardedOutput(
            source=config,
            folder=os.fspath(folder),
            name=_file_name(source.name),
            container=container,
            shards=journal.shards,
            channel=channel,
            allow_urls=allow_urls,
        )
        left = [
            number
            for number in range(plan.shards)
            if number not in journal.finished or not plan.path(number).exists()
        ]
        bar = tqdm.tqdm(
            total=len(source),
            desc=f"converting {source.name}",
            unit="row",
            delay=_PROGRESS_BAR_DELAY_S,
            disable=not show_progress,
        )
        with bar:
            count = min(workers or _choose_workers(source), len(left))
            write = _write_here if count <= 1 else _write_in_processes
            for shard in write(plan, left, count, source, bar):
                journal.add(shard)
        summary = _summarize(plan, journal, is_new=bool(left))
        _write_skipped(folder / SKIPPED_ROWS, summary.skipped)
    return summary


class _Journal:
    """Keeps the finished shards of a conversion, in a file that is locked until it is closed.

    Args:
        folder: the output.
        job: what determines the output, JSON-ready.
        choose_shards: returns the number of files of a new conversion.

    Attributes:
        shards: the number of files.
        finished: the shards by their numbers.

    Raises:
        OutputError: the journal is that of another conversion, damaged, or held by another process.
    """

    def __init__(self, folder: Path, job: dict[str, Any], choose_shards: Callable[[], int]):
        self._folder = folder
        try:
            self._file = JsonLinesFile(folder / JOURNAL, lock=True)
        except LockHeldError:
            raise OutputError(
                f"{folder}: another process is writing it; wait for it or stop it, or name another"
                " folder"
            ) from None
        self.finished: dict[int, Shard] = {}
        try:
            if not self._file.lines:
                self.shards = choose_shards()
                self._file.append({"job": job, "shards": self.shards})
            else:
                self._read(job)
        except BaseException:
            self._file.close()
            raise

    def add(self, shard: Shard) -> None:
        """Adds a shard whose file is written."""
        self.finished[shard.shard] = shard
        self._file.append(dataclasses.asdict(shard))

    def close(self) -> None:
        """Releases the journal, which stays on disk."""
        self._file.close()

    def _read(self, job: dict[str, Any]) -> None:
        header, *lines = (line.value for line in self._file.lines)
        if not isinstance(header, dict) or not isinstance(header.get("shards"), int):
            raise self._damaged()
        if header.get("job") != job:
            raise OutputError(
                f"{self._folder}: is the output of another conversion (another source, another"
                " setting, or the source has changed); name another folder, or remove it first"
            )
        self.shards = header["shards"]
        try:
            for line in lines:
                skipped = [SkippedRow(*row) for row in line["skipped"]]
                shard = Shard(**{**line, "skipped": skipped})
                self.finished[shard.shard] = shard
        except (TypeError, KeyError):
            raise self._damaged() from None

    def _damaged(self) -> OutputError:
        return OutputError(
            f"{self._folder / JOURNAL}: is damaged; remove the folder, and convert again"
        )


def _write_here(
    plan: ShardedOutput, shards: Sequence[int], count: int, source: Source, bar: tqdm.tqdm
) -> Iterator[Shard]:
    """Yields shards as they are written, by this process."""
    writer = ShardWriter(plan, bar.update, source)
    for number in shards:
        yield writer.write(number)


def _write_in_processes(
    plan: ShardedOutput, shards: Sequence[int], count: int, source: Source, bar: tqdm.tqdm
) -> Iterator[Shard]:
    """Yields shards as they are written, by `count` processes."""
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    rows_done, stop = context.Value("q", 0), context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        count, context, initializer=_start_worker, initargs=(plan, rows_done, stop)
    )
    try:
        pending = {pool.submit(_write_shard, number) for number in shards}
        while pending:
            done, pending = concurrent.futures.wait(
                pending, _POLL_S, concurrent.futures.FIRST_COMPLETED
            )
            if rows_done.value != bar.n:
                bar.update(rows_done.value - bar.n)
            for future in done:
                yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise OutputError(
            f"{plan.folder}: a process ended unexpectedly (perhaps for want of memory); finished"
            " files are kept, and the same command with fewer --workers goes on from there"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_worker: ShardWriter


def _start_worker(plan: ShardedOutput, rows_done: Any, stop: Any) -> None:
    """Opens the source in a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says what is to be done
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def advance() -> None:
        if stop.is_set():
            raise concurrent.futures.CancelledError
        with rows_done.get_lock():
            rows_done.value += 1

    global _worker
    _worker = ShardWriter(plan, advance)


def _exit_with_parent() -> None:
    """Ends this process when the one that started it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _write_shard(number: int) -> Shard:
    return _worker.write(number)


def _summarize(plan: ShardedOutput, journal: _Journal, *, is_new: bool) -> ConversionSummary:
    finished = [journal.finished[number] for number in range(plan.shards)]
    return ConversionSummary(
        pattern=plan.pattern,
        shards=plan.shards,
        records=sum(shard.records for shard in finished),
        clips=sum(shard.clips for shard in finished),
        seconds=sum(shard.samples for shard in finished) / SAMPLE_RATE,
        skipped=[row for shard in finished for row in shard.skipped],
        is_new=is_new,
    )


def _check_apart(folder: Path, source: Source) -> None:
    """Checks that an output is not the source, nor in a folder that it is read from."""
    check_not_same_file(folder, source.path)
    parents = to_path(folder).resolve().parents
    for container in source.containers:
        if to_path(container.path).resolve() in parents:
            raise OutputError(
                f"--output={os.fspath(folder)!r} lies in {container.path}, which is read; name a"
                " folder outside of it"
            )


def _write_skipped(path: Path, skipped: Sequence[SkippedRow]) -> None:
    """Writes the list of the rows that could not be read; none if there are none."""
    if skipped:
        write_json_lines(path, (row._asdict() for row in skipped))
    else:
        path.unlink(missing_ok=True)


def _choose_shards(source: Source, shard_mb: float, allow_urls: bool) -> int:
    """Returns how many files of about `shard_mb` megabytes a source gives."""
    count = min(len(source), _SAMPLED_ROWS)
    indices = [len(source) * number // count for number in range(count)]
    sampled = sum(row_bytes(source, index, allow_urls=allow_urls) for index in indices)
    return max(1, math.ceil(sampled / count * len(source) / (shard_mb * 1e6)))


def _choose_workers(source: Source) -> int:
    return 1 if len(source) < _MIN_PARALLEL_ROWS else os.cpu_count() or 1


def _fingerprint(source: Source) -> str:
    """Returns a hash of the files of rows; of the large ones, of both ends."""
    digest = hashlib.sha256()
    for path in source.files:
        digest.update(json.dumps([path, fingerprint_file(path)]).encode())
    return digest.hexdigest()


def _file_name(name: str) -> str:
    """Returns a source's name as part of a file's: `a/train-00000-of-00008` is `a_train`."""
    name = _SHARD_NUMBER.sub("", name)
    return re.sub(r"[^\w.-]+", "_", name).strip("._-") or "data"
