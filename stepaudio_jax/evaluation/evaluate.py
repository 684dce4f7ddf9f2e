"""Evaluates a model on tasks: answers, verdicts, figures, and the folder of results."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stepaudio_jax.config import to_dict
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.evaluation.model_under_test import FolderModel, ModelReply, ModelUnderTest
from stepaudio_jax.evaluation.results import (
    BenchmarkResults,
    FailedItem,
    ModelIdentity,
    Sample,
    TaskResults,
    make_samples,
)
from stepaudio_jax.evaluation.results import Reply as SampleReply
from stepaudio_jax.evaluation.results_files import write_results, write_tensorboard
from stepaudio_jax.evaluation.runner import AnsweredTask, RunSettings, answer_task
from stepaudio_jax.evaluation.scoring import TaskRun, check_judge, judge_queries, score_task
from stepaudio_jax.evaluation.task import Item, Task
from stepaudio_jax.evaluation.tasks import make_task
from stepaudio_jax.generation import folder_decode_mesh, load_model
from stepaudio_jax.judge.backends import EndpointBackend, ModelBackend
from stepaudio_jax.judge.endpoint import check_url
from stepaudio_jax.judge.judge import AnswerSource
from stepaudio_jax.storage import PathLike, hash_json, read_json_lines, to_path, write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The judge of an evaluation: an endpoint of OpenAI's protocol, or a model in this process.

    Attributes:
        folder: of a model in this process.
        url, model: the address of an endpoint, up to and including /v1, and the judge's name there.
        api_key_env: the environment variable with its key; None where it needs none.
        temperature: of its answers; None sends none.
        max_tokens, concurrency, timeout_s, retries: see `JudgeConfig`.
        max_abstention_rate: share of the replies that may stay without a verdict.
        slots: questions that a model in this process answers side by side.
        runs: how often everything is judged: the first run makes the figures, and all of them say
            how far the verdicts vary.
    """

    folder: str | None = None
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int = 2048
    concurrency: int = 8
    timeout_s: float = 60.0
    retries: int = 4
    max_abstention_rate: float = 0.2
    slots: int = 16
    runs: int = 1

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ConfigError(f"--judge-runs={self.runs} must be at least 1")
        if (self.folder is None) == (self.url is None):
            raise ConfigError("a judge is a folder or an endpoint: give one of them")
        if (self.url is None) != (self.model is None):
            raise ConfigError("a judge's url and model belong together: give both")
        if self.url is not None:
            check_url(self.url)


def load_task(name: str) -> Task:
    """Returns a task by its name, or the one that a Python file defines.

    Raises:
        ConfigError: there is no such task or file, or the file defines none, or several.
    """
    if not name.endswith(".py"):
        return make_task(name)
    path = pathlib.Path(name)
    if not path.is_file():
        raise ConfigError(f"--task={name!r}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(classes) != 1:
        raise ConfigError(
            f"--task={name!r}: defines {len(classes)} tasks; a file defines one class that derives"
            " from stepaudio_jax.evaluation.task.Task"
        )
    task: Task = classes[0]()
    return task


def run_tasks(
    model: ModelUnderTest,
    tasks: Mapping[str, PathLike],
    output: PathLike,
    settings: RunSettings,
    *,
    judge: JudgeSettings | None = None,
    prompts: Mapping[str, PathLike] = {},
) -> list[TaskRun]:
    """Evaluates a model on tasks; the same call goes on from an interrupted one.

    All tasks are answered first, then scored, so that a model and a judge in this process need not
    be in memory together. A judge behind an endpoint is asked while the model still answers.

    Args:
        model: what is evaluated.
        tasks: {name of a task, or a Python file that defines one: its folder of data}.
        output: the folder of the results; replies and the judge's answers are kept in it.
        settings: how the tasks are run.
        judge: of tasks that a judge scores.
        prompts: {task as in `tasks`: folder of its official prompts}.

    Returns:
        The outcome of each task, in order.

    Raises:
        ConfigError: a task is unknown, or needs a judge and has none; a setting is out of range.
        DataError: a folder is not the benchmark's; names the file and place.
        OutputError: the folder holds replies of another model or other settings.
        JudgeError, EndpointError: see `score_task` and `answer_task`; what is done is kept.
    """
    for name in prompts:
        if name not in tasks:
            raise ConfigError(f"--prompts={name}=..: there is no --task={name}=..")
    loaded: dict[str, Task] = {}
    for name in tasks:
        loaded[name] = load_task(name)
        loaded[name].use_prompts(prompts.get(name))
        check_judge(loaded[name], has_judge=judge is not None)
    folder = to_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "judge_answers.jsonl"
    with contextlib.ExitStack() as stack:
        source: AnswerSource | None = None
        if judge is not None and judge.url is not None:
            source = stack.enter_context(open_judge(judge, cache))
        answered: list[AnsweredTask] = []
        for name, task in loaded.items():
            log = folder / "replies" / f"{task.name}.jsonl"

            def prefetch(item: Item, replies: Sequence[ModelReply], task: Task = task) -> None:
                if source is not None and task.judge != "none":
                    of_replies = judge_queries(task, item, replies)
                    source.prefetch([query for of_reply in of_replies for query in of_reply])

            answered.append(
                answer_task(task, tasks[name], model, log, settings, on_replies=prefetch)
            )
        if isinstance(model, FolderModel):
            model.close()
        if judge is not None and judge.folder is not None and _needs_judge(loaded.values()):
            source = stack.enter_context(open_judge(judge, cache))
        num_runs = 1 if judge is None else judge.runs
        identity = _judge_identity(judge, source)
        return [score_task(each, source, identity, num_judge_runs=num_runs) for each in answered]


def read_transcripts(path: PathLike) -> dict[str, list[str]]:
    """Reads {id of an item: transcripts of its clips, in order} from a JSONL file.

    Raises:
        DataError: a line is not `{"id": text, "transcripts": [texts]}`; names it.
    """
    transcripts: dict[str, list[str]] = {}
    for line in read_json_lines(path):
        match line.value:
            case {"id": str(item_id), "transcripts": [*texts]} if all(
                isinstance(text, str) for text in texts
            ):
                transcripts[item_id] = list(texts)
            case _:
                raise DataError(
                    f"{os.fspath(path)}:{line.number}: must have `id`, a text, and `transcripts`, a"
                    " list of texts"
                )
    return transcripts


def _judge_identity(
    judge: JudgeSettings | None, source: AnswerSource | None
) -> ModelIdentity | None:
    if judge is None or source is None:
        return None
    name = judge.model or judge.folder or ""
    settings = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}
    return ModelIdentity(name, "endpoint" if judge.url else "folder", source.name, settings)


def _needs_judge(tasks: Iterable[Task]) -> bool:
    return any(task.judge != "none" for task in tasks)


def open_judge(
    judge: JudgeSettings, cache: PathLike | None
) -> contextlib.AbstractContextManager[AnswerSource]:
    """Returns the judge that settings name, which is closed at the end of a `with` block.

    Args:
        judge: which judge; a model in this process is loaded.
        cache: the file that keeps its answers; None keeps them in memory.
    """
    return contextlib.closing(
        _endpoint_judge(judge, cache) if judge.url is not None else _model_judge(judge, cache)
    )


def _endpoint_judge(judge: JudgeSettings, cache: PathLike | None) -> AnswerSource:
    assert judge.url is not None
    assert judge.model is not None
    backend = EndpointBackend(
        url=judge.url.rstrip("/"),
        model=judge.model,
        api_key_env=judge.api_key_env,
        temperature=judge.temperature,
        max_tokens=judge.max_tokens,
        timeout_s=judge.timeout_s,
        retries=judge.retries,
    )
    return AnswerSource(
        backend,
        cache=cache,
        concurrency=judge.concurrency,
        max_abstention_rate=judge.max_abstention_rate,
    )


def _model_judge(judge: JudgeSettings, cache: PathLike | None) -> AnswerSource:
    assert judge.folder is not None
    model = load_model(judge.folder, mesh=folder_decode_mesh(judge.folder), for_generation=True)
    backend = ModelBackend(model, slots=judge.slots, max_tokens=judge.max_tokens)
    return AnswerSource(backend, cache=cache, max_abstention_rate=judge.max_abstention_rate)


def save_results(
    folder: PathLike, model: ModelIdentity, runs: Sequence[TaskRun], folders: Sequence[PathLike]
) -> BenchmarkResults:
    """Writes what came of an evaluation into a folder: results, samples and TensorBoard events.

    Args:
        folder: of the results.
        model: which model it was.
        runs: the outcome of each task, all in one mode.
        folders: the data of each.
    """
    results = BenchmarkResults(
        model=model,
        mode=runs[0].settings.mode,
        tasks=tuple(_task_results(run, data) for run, data in zip(runs, folders, strict=True)),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        program=f"stepaudio_jax {importlib.metadata.version('stepaudio-jax')}",
    )
    for run in runs:
        first_replies = [
            (answered.item, answered.replies[0].reply if answered.replies else None)
            for answered in run.items
        ]
        if (submission := run.task.submission(first_replies)) is not None:
            text = json.dumps(list(submission.rows), indent=2, ensure_ascii=False)
            write_text(to_path(folder) / submission.name, text + "\n")
    results = write_results(folder, results, _samples(runs))
    write_tensorboard(folder, results)
    return results


def _task_results(run: TaskRun, data: PathLike) -> TaskResults:
    task = run.task
    return TaskResults(
        name=task.name,
        version=task.version,
        title=task.title,
        table_column=task.table_column,
        headline=task.headline,
        sampling=to_dict(run.sampling),
        data_folder=os.fspath(data),
        data_hash=run.data_hash,
        prompt_hashes={
            "model": run.prompt_hash,
            **{name: hash_json(text) for name, text in task.prompt_sources.items()},
        },
        items=len(run.items),
        items_total=run.total_items,
        limit=run.settings.limit,
        samples=run.settings.num_samples,
        errors=tuple(FailedItem(item_id, reason) for item_id, reason in run.errors.items()),
        metrics=run.metrics,
        judge=run.judge,
        judge_runs=run.judge_runs,
    )


def _samples(runs: Sequence[TaskRun]) -> Iterator[Sample]:
    for run in runs:
        for answered in run.items:
            item = dataclasses.replace(answered.item, record=answered.record)
            replies = [
                SampleReply(
                    reply=reply.reply,
                    reasoning=reply.reasoning,
                    finish_reason=reply.finish_reason,
                    judge=exchanges,
                )
                for reply, exchanges in zip(answered.replies, answered.exchanges, strict=True)
            ]
            yield from make_samples(run.task, item, answered.scored, replies)
