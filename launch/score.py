"""Scores given replies: `python -m launch.score --model DIR --input dialogues.jsonl --output scores.jsonl`."""

import argparse
from collections.abc import Sequence
from typing import get_args

from launch.errors import reported
from stepaudio_jax.config import AudioChannel, DataConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or a checkpoint of this project")
    parser.add_argument("--input", required=True, help="JSONL of dialogues")
    parser.add_argument("--output", required=True, help="JSONL: the log-probability of every token of every assistant turn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32")
    parser.add_argument(
        "--tensor", type=int, default=0, help="devices over which a layer is cut (default: as many as divide its heads)"
    )
    parser.add_argument(
        "--history-reasoning", action="store_true", help="past turns keep their reasoning, for a model trained so"
    )
    parser.add_argument(
        "--channel",
        choices=get_args(AudioChannel),
        default=DataConfig.channel,
        help=f"what is heard of a clip with several channels: the first, or their mean (default {DataConfig.channel})",
    )
    options = parser.parse_args(arguments)
    with reported():
        from stepaudio_jax.generation import load_model, mesh_for, score_file

        mesh = mesh_for(options.model, options.tensor)
        model = load_model(
            options.model,
            options.dtype,
            mesh=mesh,
            history_reasoning=options.history_reasoning,
            channel=options.channel,
        )
        count = score_file(model, options.input, options.output)
        print(f"{count} dialogues scored in {options.output}")


if __name__ == "__main__":
    main()
