"""Scores given replies: `python -m launch.score --model DIR --input dialogues.jsonl --output scores.jsonl`."""

import argparse
from collections.abc import Sequence

from launch.errors import reported


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or a checkpoint of this project")
    parser.add_argument("--input", required=True, help="JSONL of dialogues")
    parser.add_argument("--output", required=True, help="JSONL: the log-probability of every token of every assistant turn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32")
    options = parser.parse_args(arguments)
    with reported():
        from stepaudio_jax.generation import load_model, score_file

        count = score_file(load_model(options.model, options.dtype), options.input, options.output)
        print(f"{count} dialogues scored in {options.output}")


if __name__ == "__main__":
    main()
