"""Answers dialogues: `python -m launch.generate --model DIR --input dialogues.jsonl --output replies.jsonl`."""

import argparse
from collections.abc import Sequence

from launch.errors import reported


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments and answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or a checkpoint of this project")
    parser.add_argument("--input", required=True, help="JSONL of dialogues that end in a user's turn")
    parser.add_argument("--output", required=True, help="JSONL of replies, one line for each dialogue")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the most probable token (default 0.7)")
    parser.add_argument("--top-p", type=float, default=0.9, help="mass of the nucleus (default 0.9)")
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="of a reply with its reasoning (default 2048)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16, help="dialogues answered side by side (default 16)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, on a CPU float32")
    options = parser.parse_args(arguments)
    with reported():
        from stepaudio_jax.generation import Sampling, answer_file, load_model

        sampling = Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
        )
        model = load_model(options.model, options.dtype)
        count = answer_file(model, options.input, options.output, sampling, rows=options.batch_size)
        print(f"{count} replies written to {options.output}")


if __name__ == "__main__":
    main()
