"""Evaluates a model on audio benchmarks, and scores and compares what came of it.

    python -m launch.evaluate run --model DIR --task mmau_mini=DATA_DIR --output RESULTS
    python -m launch.evaluate run --url URL --model-name NAME --task mmsu=DATA_DIR --output RESULTS
    python -m launch.evaluate score --task mmau --input outputs.jsonl --output verdicts.jsonl
    python -m launch.evaluate compare RESULTS_A RESULTS_B
    python -m launch.evaluate tasks

`run` writes results.json, samples.jsonl, report.html and TensorBoard events into RESULTS.
Interrupted and started again, it goes on. An item that cannot be answered is an error with its id,
and the exit code is then 2.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch.arguments import add_model_arguments, clip_cache_of
from launch.errors import exit_on_error
from stepaudio_jax.config import JudgeConfig
from stepaudio_jax.errors import EXIT_USER_ERROR, ConfigError
from stepaudio_jax.storage import check_output_file, expand_home

if TYPE_CHECKING:
    from stepaudio_jax.evaluation.evaluate import JudgeSettings
    from stepaudio_jax.evaluation.model_under_test import ModelUnderTest
    from stepaudio_jax.evaluation.results import Mode

# Settings of Sampling that the command line replaces; None leaves them to the task.
_SAMPLING_OPTIONS: dict[str, tuple[Any, str]] = {
    "temperature": (float, "0: always the most probable token"),
    "top_k": (int, "so many of the most probable tokens"),
    "top_p": (float, "mass of the nucleus"),
    "min_p": (float, "least share of the best token's probability"),
    "repetition_penalty": (float, "above 1 against repetition"),
    "presence_penalty": (float, "above 0 against tokens that the reply has"),
    "frequency_penalty": (float, "the same, once for each time it has them"),
    "max_new_tokens": (int, "most tokens of a reply with its reasoning"),
    "max_reasoning_tokens": (int, "the reasoning is ended there"),
    "seed": (int, "of sampling"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses arguments and runs a command; returns the exit code."""
    options = make_parser().parse_args(arguments)
    advice = getattr(options, "advice", "nothing was written")
    with exit_on_error(advice):
        code: int = options.run(options)
        return code


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="have a model answer benchmarks, and score it"))
    _add_score(commands.add_parser("score", help="score replies that are there already"))
    compare = commands.add_parser("compare", help="compare two results on the same items")
    compare.add_argument("results_a", type=expand_home)
    compare.add_argument("results_b", type=expand_home)
    compare.add_argument("--output", type=expand_home, help="an HTML page of the comparison")
    compare.add_argument("--json", type=expand_home, help="a JSON file of the comparison")
    compare.set_defaults(run=_compare)
    tasks = commands.add_parser("tasks", help="list the tasks")
    tasks.set_defaults(run=_list_tasks)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=expand_home, help="a Hugging Face folder or one of ours")
    parser.add_argument("--url", help="an endpoint of OpenAI's protocol, up to and including /v1")
    parser.add_argument("--model-name", help="the model's name at --url")
    parser.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="the environment variable with the key of --url; '' if it needs none"
        " (default %(default)s)",
    )
    parser.add_argument(
        "--token-limit-key",
        default="max_tokens",
        help="how --url calls the limit of new tokens (default %(default)s; OpenAI's reasoning"
        " models: max_completion_tokens)",
    )
    parser.add_argument(
        "--omit",
        action="append",
        default=[],
        metavar="SETTING",
        help="a setting that --url refuses, as temperature or seed; may be given several times",
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, help="requests to --url at a time (default 8)"
    )
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="a task (or a Python file that defines one) and its data; may be given several times",
    )
    parser.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a folder with the official prompts of a task that does not ship them",
    )
    parser.add_argument("--output", type=expand_home, required=True, help="folder of the results")
    parser.add_argument("--limit", type=int, help="items of each task, evenly by category")
    parser.add_argument("--samples", type=int, default=1, help="replies to each item (default 1)")
    hearing = parser.add_mutually_exclusive_group()
    hearing.add_argument(
        "--silence", action="store_true", help="replace every clip by silence of its length"
    )
    hearing.add_argument(
        "--transcripts-only", action="store_true", help="replace every clip by its transcript"
    )
    parser.add_argument(
        "--transcripts",
        type=expand_home,
        help="JSONL with `id` and `transcripts` (a list), for tasks without transcripts",
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        type=expand_home,
        metavar="RESULTS",
        help="results of the same model with --silence or --transcripts-only, to show beside these",
    )
    parser.add_argument("--slots", type=int, default=16, help="replies side by side (default 16)")
    parser.add_argument("--cache-dtype", choices=("float32", "bfloat16", "int8"))
    parser.add_argument("--int8-weights", action="store_true")
    add_model_arguments(parser)
    for name, (kind, meaning) in _SAMPLING_OPTIONS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"{meaning} (default: the task's)"
        )
    _add_judge(parser)
    parser.set_defaults(run=_run, advice="the same command goes on from here")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--judge-url", help="the judge: an endpoint of OpenAI's protocol")
    parser.add_argument("--judge-model", help="its name there")
    parser.add_argument("--judge-folder", type=expand_home, help="or a model in this process")
    parser.add_argument(
        "--judge-key-variable",
        default="OPENAI_API_KEY",
        help="the environment variable with its key; '' if it needs none (default %(default)s)",
    )
    parser.add_argument(
        "--judge-temperature",
        default="0",
        help="of the judge's answers (default 0); 'default' sends none, for models that refuse it",
    )
    parser.add_argument("--judge-max-tokens", type=int, default=2048)
    parser.add_argument("--judge-concurrency", type=int, default=JudgeConfig.concurrency)
    parser.add_argument("--judge-timeout-s", type=float, default=JudgeConfig.timeout_s)
    parser.add_argument("--judge-retries", type=int, default=JudgeConfig.retries)
    parser.add_argument(
        "--judge-runs",
        type=int,
        default=1,
        help="ask the judge everything so often, to see how far its verdicts vary (default 1; the"
        " first run makes the figures)",
    )
    parser.add_argument(
        "--max-abstention-rate",
        type=float,
        default=JudgeConfig.max_abstention_rate,
        help="share of the replies that the judge may leave without a verdict (default"
        " %(default)s); above it, the run stops, and keeps what it has",
    )


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, help="a task, or a Python file that defines one")
    parser.add_argument("--prompts", type=expand_home, help="folder of the task's official prompts")
    parser.add_argument(
        "--input", type=expand_home, required=True, help="JSONL with `item` and `output`"
    )
    parser.add_argument("--output", type=expand_home, required=True, help="JSONL of verdicts")
    _add_judge(parser)
    parser.set_defaults(run=_score)


def _run(options: argparse.Namespace) -> int:
    from stepaudio_jax._front_door import evaluate
    from stepaudio_jax.evaluation.evaluate import read_transcripts
    from stepaudio_jax.evaluation.runner import RunSettings

    tasks = dict(_split_pair(pair, "--task") for pair in options.task)
    if len(tasks) < len(options.task):
        raise ConfigError("--task: a task is given twice; give each once")
    mode: Mode = "sound"
    if options.silence or options.transcripts_only:
        mode = "silence" if options.silence else "transcripts"
    sampling = {
        name: value for name in _SAMPLING_OPTIONS if (value := getattr(options, name)) is not None
    }
    evaluation = evaluate(
        _model(options),
        tasks,
        options.output,
        settings=RunSettings(
            sampling=sampling,
            num_samples=options.samples,
            limit=options.limit,
            mode=mode,
            transcripts=read_transcripts(options.transcripts) if options.transcripts else {},
        ),
        judge=_judge_settings(options),
        prompts=dict(_split_pair(pair, "--prompts") for pair in options.prompts),
        controls=options.control,
    )
    print(evaluation, end="")
    print(f"results: {evaluation.folder}")
    errors = evaluation.errors
    if errors:
        item, reason = next(iter(errors.items()))
        asked = sum(task.items for task in evaluation.results.tasks)
        print(
            f"error: {len(errors)} of {asked} items have no reply; the first: {item}: {reason}",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    return 0


def _model(options: argparse.Namespace) -> "ModelUnderTest":
    """Returns the model that the options name."""
    if (options.model is None) == (options.url is None):
        raise ConfigError("give --model, or --url with --model-name")
    if options.url is None:
        from stepaudio_jax.evaluation.model_under_test import FolderModel

        return FolderModel(
            options.model,
            dtype=options.dtype,
            int8_weights=options.int8_weights,
            tensor=options.tensor,
            slots=options.slots,
            cache_dtype=options.cache_dtype,
            history_reasoning=options.history_reasoning,
            channel=options.channel,
            allow_urls=options.allow_urls,
            clip_cache=clip_cache_of(options),
        )
    from stepaudio_jax.evaluation.model_under_test import EndpointModel
    from stepaudio_jax.judge.endpoint import ChatEndpoint

    if not options.model_name:
        raise ConfigError("--url needs --model-name, the model's name there")
    endpoint = ChatEndpoint(
        url=options.url.rstrip("/"),
        model=options.model_name,
        api_key_env=options.key_variable or None,
        timeout_s=600.0,
    )
    return EndpointModel(
        endpoint,
        concurrency=options.concurrency,
        channel=options.channel,
        allow_urls=options.allow_urls,
        token_limit_key=options.token_limit_key,
        omit=options.omit,
    )


def _judge_settings(options: argparse.Namespace) -> "JudgeSettings | None":
    """Returns the judge that the options name; None if they name none."""
    from stepaudio_jax.evaluation.evaluate import JudgeSettings

    if options.judge_folder is None and options.judge_url is None:
        return None
    temperature = options.judge_temperature
    try:
        value = None if temperature == "default" else float(temperature)
    except ValueError:
        raise ConfigError(
            f"--judge-temperature={temperature!r} must be a number, or 'default'"
        ) from None
    return JudgeSettings(
        folder=options.judge_folder,
        url=options.judge_url,
        model=options.judge_model,
        api_key_env=options.judge_key_variable or None,
        temperature=value,
        max_tokens=options.judge_max_tokens,
        concurrency=options.judge_concurrency,
        timeout_s=options.judge_timeout_s,
        retries=options.judge_retries,
        max_abstention_rate=options.max_abstention_rate,
        runs=options.judge_runs,
    )


def _score(options: argparse.Namespace) -> int:
    check_output_file(options.output, [options.input])
    from stepaudio_jax.evaluation.evaluate import load_task, open_judge
    from stepaudio_jax.evaluation.outputs import score_outputs

    task = load_task(options.task)
    task.use_prompts(options.prompts)
    judge = _judge_settings(options)
    if judge is None:
        print(score_outputs(task, options.input, options.output))
        return 0
    if task.judge == "none":
        raise ConfigError(f"the task {task.name} is scored by rule: leave out the judge")
    if judge.runs > 1:
        raise ConfigError("--judge-runs: `score` asks the judge once; use it with `run`")
    with open_judge(judge, f"{options.output}.judge_answers.jsonl") as source:
        print(score_outputs(task, options.input, options.output, source))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from stepaudio_jax.evaluation.comparison import tabulate_comparison
    from stepaudio_jax.evaluation.grading import as_text
    from stepaudio_jax.reports.comparison_page import write_comparison

    compared = write_comparison(
        options.results_a, options.results_b, page=options.output, json_file=options.json
    )
    print(as_text(tabulate_comparison(compared)), end="")
    return 0


def _list_tasks(options: argparse.Namespace) -> int:
    del options
    from stepaudio_jax.evaluation.tasks import TASK_NAMES, make_task

    for name in TASK_NAMES:
        task = make_task(name)
        judge = {"none": "", "optional": ", judge optional", "required": ", needs a judge"}
        print(f"{name:18} {task.title}, version {task.version}{judge[task.judge]}")
    return 0


def _split_pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, folder = pair.partition("=")
    if not (name and equals and folder):
        raise ConfigError(f"{option}={pair!r} must be NAME=DIR, as in mmau_mini=data/mmau")
    return name, expand_home(folder)


if __name__ == "__main__":
    sys.exit(main())
