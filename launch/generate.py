"""Answers a file of dialogues.

    python -m launch.generate --model DIR --input dialogues.jsonl --output replies.jsonl

Interrupted (Ctrl-C) and started again, it resumes; finished, it is not done again. An output that
another job or the user made is not replaced. A dialogue that cannot be answered gets a line that
says why, and the exit code is then 2.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch.arguments import add_file_arguments, add_model_arguments, clip_cache_of
from launch.errors import describe_partial_output, exit_on_error
from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.errors import EXIT_USER_ERROR
from stepaudio_jax.storage import check_output_file, has_job_mark

if TYPE_CHECKING:
    from stepaudio_jax.generation import JobSummary, Sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses arguments and answers; returns the exit code."""
    options = make_parser().parse_args(arguments)
    with exit_on_error(lambda: describe_partial_output(options.output)):
        # At once, since what follows takes seconds.
        check_output_file(options.output, [options.input], may_replace=has_job_mark)
        from stepaudio_jax.data import open_source
        from stepaudio_jax.generation import (
            answer_file,
            finished_generation,
            folder_decode_mesh,
            load_model,
        )

        sampling = sampling_of(options)
        open_source(options.input)  # whether it can be read is known before the model is loaded
        clip_cache = clip_cache_of(options)
        settings: Any = {
            "int8_weights": options.int8_weights,
            "history_reasoning": options.history_reasoning,
            "history_eot": not options.no_history_eot,
            "channel": options.channel,
        }
        job: Any = {
            "num_samples": options.num_samples,
            "cache_dtype": options.cache_dtype,
            "on_too_long": options.on_too_long,
        }
        done = finished_generation(
            options.model, options.input, options.output, sampling, options.dtype, **settings, **job
        )
        if done is not None:
            return _print_summary(done, options.output, "already answered")
        mesh = folder_decode_mesh(options.model, options.tensor)
        model = load_model(
            options.model,
            options.dtype,
            mesh=mesh,
            for_generation=True,
            allow_urls=options.allow_urls,
            clip_cache=clip_cache,
            **settings,
        )
        summary = answer_file(
            model, options.input, options.output, sampling, slots=options.slots, **job
        )
        return _print_summary(summary, options.output, "answered")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(
        parser,
        input_help="JSONL of dialogues that end in a user's turn",
        output_help="JSONL of replies, one line for each dialogue",
    )
    add_model_arguments(parser)
    _add_sampling_arguments(parser)
    parser.add_argument(
        "--num-samples", type=int, default=1, help="replies to each dialogue (default 1)"
    )
    parser.add_argument(
        "--slots", type=int, default=16, help="dialogues answered side by side (default 16)"
    )
    parser.add_argument(
        "--on-too-long",
        choices=("error", "split"),
        default="error",
        help="a recording that does not fit the model: an error (default), or split at silences"
        " and answered part by part",
    )
    parser.add_argument(
        "--cache-dtype", choices=("float32", "bfloat16", "int8"), help="default: as --dtype"
    )
    parser.add_argument(
        "--int8-weights", action="store_true", help="the decoder's matrices in int8"
    )
    parser.add_argument(
        "--no-history-eot",
        action="store_true",
        help="past replies without their end, as the released server has them",
    )
    return parser


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    # Defaults are those of `Sampling`, but for top_p; importing it would make --help slow.
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        help="0: always the most probable token (default 0.7)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="so many of the most probable tokens (default 0: all)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.9, help="mass of the nucleus (default 0.9)"
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        help="least share of the best token's probability (default 0)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1 against repetition (default 1)",
    )
    parser.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        help="above 0 against tokens that the reply has (-2 to 2, default 0)",
    )
    parser.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        help="the same, once for each time it has them (-2 to 2, default 0)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=2048,
        help="most tokens of a reply with its reasoning (default 2048)",
    )
    parser.add_argument(
        "--max-reasoning-tokens", type=int, help="the reasoning is ended there (default: nowhere)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        help="a text that ends the reply; may be given several times",
    )
    parser.add_argument(
        "--stop-in-reasoning",
        action="store_true",
        help="--stop ends the reasoning too, and all with it",
    )
    parser.add_argument(
        "--repetition-max-pattern-size",
        type=int,
        default=RepetitionDetectionConfig.max_pattern_size,
        help="end a reply that repeats a pattern of at most so many tokens (default 0: off)",
    )
    parser.add_argument(
        "--repetition-min-pattern-size",
        type=int,
        default=RepetitionDetectionConfig.min_pattern_size,
        help="tokens of a pattern, at least (default 1)",
    )
    parser.add_argument(
        "--repetition-min-count",
        type=int,
        default=RepetitionDetectionConfig.min_count,
        help="how often a pattern makes a loop, at least 2",
    )
    parser.add_argument("--seed", type=int, default=0)


def sampling_of(options: argparse.Namespace) -> "Sampling":
    """Returns the sampling settings that the options give."""
    from stepaudio_jax.generation import Sampling

    return Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        max_new_tokens=options.max_new_tokens,
        max_reasoning_tokens=options.max_reasoning_tokens,
        stop_strings=tuple(options.stop),
        stop_in_reasoning=options.stop_in_reasoning,
        repetition_detection=RepetitionDetectionConfig(
            max_pattern_size=options.repetition_max_pattern_size,
            min_pattern_size=options.repetition_min_pattern_size,
            min_count=options.repetition_min_count,
        ),
        seed=options.seed,
    )


def _print_summary(summary: "JobSummary", output: str, verb: str) -> int:
    """Prints the outcome of a job; returns the exit code."""
    answered = summary.dialogues - summary.failed
    print(f"{answered} of {summary.dialogues} dialogues {verb}: {output}")
    if summary.failed:
        print(
            f"error: {summary.failed} could not be answered; the first: {summary.first_failure}",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
