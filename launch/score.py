"""Scores given replies: `python -m launch.score --model DIR --input dialogues.jsonl --output scores.jsonl`.

Interrupted (Ctrl-C) and started again, it goes on where it was; finished, it is not done again.
Nothing that another job or the user made is replaced.
"""

import argparse
from collections.abc import Sequence
from typing import Any, get_args

from launch.errors import exit_on_error, kept_lines
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.storage import check_output_file, expand_home, has_job_mark


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments and scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=expand_home,
        required=True,
        help="a Hugging Face folder or a checkpoint of this project",
    )
    parser.add_argument("--input", type=expand_home, required=True, help="JSONL of dialogues")
    parser.add_argument(
        "--output",
        type=expand_home,
        required=True,
        help="JSONL: the log-probability of every token of every assistant turn",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32"
    )
    parser.add_argument(
        "--tensor",
        type=int,
        default=0,
        help="devices over which a layer is cut (default: as many as divide its heads)",
    )
    parser.add_argument(
        "--history-reasoning",
        action="store_true",
        help="past turns keep their reasoning, for a model trained so",
    )
    parser.add_argument(
        "--channel",
        choices=get_args(AudioChannel),
        default=DataConfig.channel,
        help=f"what is heard of a clip with several channels: the first, or their mean (default {DataConfig.channel})",
    )
    options = parser.parse_args(arguments)
    with exit_on_error(lambda: kept_lines(options.output)):
        check_output_file(
            options.output, [options.input], may_replace=has_job_mark
        )  # at once: what follows takes seconds
        from stepaudio_jax.data import JsonlFile
        from stepaudio_jax.generation import (
            folder_decode_mesh,
            is_scoring_finished,
            load_model,
            score_file,
        )

        count = len(
            JsonlFile(options.input)
        )  # whether it can be read is known before the model is loaded
        settings: Any = {"history_reasoning": options.history_reasoning, "channel": options.channel}
        if is_scoring_finished(
            options.model, options.input, options.output, options.dtype, **settings
        ):
            print(f"{count} dialogues already scored in {options.output}")
            return
        mesh = folder_decode_mesh(options.model, options.tensor)
        model = load_model(options.model, options.dtype, mesh=mesh, **settings)
        count = score_file(model, options.input, options.output)
        print(f"{count} dialogues scored in {options.output}")


if __name__ == "__main__":
    main()
