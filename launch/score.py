"""Scores given replies: `python -m launch.score --model DIR --input dialogues.jsonl --output scores.jsonl`."""

import argparse

from launch.errors import reported


def main() -> None:
    """Parses arguments and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or a checkpoint of this project")
    parser.add_argument("--input", required=True, help="JSONL of dialogues")
    parser.add_argument("--output", required=True, help="JSONL: the log-probability of every token of every assistant turn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32")
    arguments = parser.parse_args()
    with reported():
        from stepaudio_jax.generation import load_model, score_file

        count = score_file(load_model(arguments.model, arguments.dtype), arguments.input, arguments.output)
        print(f"{count} dialogues scored in {arguments.output}")


if __name__ == "__main__":
    main()
