"""Scores given replies: the log-probability of each of their tokens.

    python -m launch.score --model DIR --input dialogues.jsonl --output scores.jsonl

Interrupted (Ctrl-C) and started again, it resumes; finished, it is not done again. An output that
another job or the user made is not replaced.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from launch.arguments import add_file_arguments, add_model_arguments, clip_cache_of
from launch.errors import describe_partial_output, exit_on_error
from stepaudio_jax.storage import check_output_file, has_job_mark


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments and scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_file_arguments(
        parser,
        input_help="JSONL of dialogues",
        output_help="JSONL: the log-probability of every token of every assistant turn",
    )
    add_model_arguments(parser)
    options = parser.parse_args(arguments)
    with exit_on_error(lambda: describe_partial_output(options.output)):
        # At once, since what follows takes seconds.
        check_output_file(options.output, [options.input], may_replace=has_job_mark)
        from stepaudio_jax.data import open_source
        from stepaudio_jax.generation import (
            folder_decode_mesh,
            is_scoring_finished,
            load_model,
            score_file,
        )

        # Whether the input can be read is known before the model is loaded.
        count = len(open_source(options.input))
        clip_cache = clip_cache_of(options)
        settings: Any = {"history_reasoning": options.history_reasoning, "channel": options.channel}
        if is_scoring_finished(
            options.model, options.input, options.output, options.dtype, **settings
        ):
            print(f"{count} dialogues already scored in {options.output}")
            return
        mesh = folder_decode_mesh(options.model, options.tensor)
        model = load_model(
            options.model,
            options.dtype,
            mesh=mesh,
            allow_urls=options.allow_urls,
            clip_cache=clip_cache,
            **settings,
        )
        count = score_file(model, options.input, options.output)
        print(f"{count} dialogues scored in {options.output}")


if __name__ == "__main__":
    main()
