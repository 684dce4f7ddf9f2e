"""Writes the synthetic spoken corpus: `python -m examples.spoken_corpus --output DIR`."""

import argparse
import sys

from examples.spoken_corpus import DEFAULT_CLIPS, write_corpus
from launch.errors import exit_on_error
from stepaudio_jax.config import check_seed
from stepaudio_jax.storage import expand_home


def main(arguments: list[str]) -> None:
    """Parses the command line, writes a corpus and prints the number of its dialogues and clips."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.spoken_corpus", description="Writes the synthetic spoken corpus."
    )
    parser.add_argument(
        "--output",
        type=expand_home,
        required=True,
        help="a folder that does not exist yet, or is empty",
    )
    defaults = ", ".join(f"{clips} for {recipe}" for recipe, clips in DEFAULT_CLIPS.items())
    parser.add_argument("--recipe", choices=tuple(DEFAULT_CLIPS), default="quickstart")
    parser.add_argument("--clips", type=int, help=f"training clips (default: {defaults})")
    parser.add_argument(
        "--per-task",
        type=int,
        default=200,
        help="minimum number of evaluation questions of each task",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: the number of processors")
    options = parser.parse_args(arguments)
    with exit_on_error("nothing was written; start the same command again"):
        facts = write_corpus(
            options.output,
            options.recipe,
            clips=options.clips,
            per_task=options.per_task,
            seed=check_seed(options.seed),
            threads=options.threads,
        )
        for name, records in facts["records"].items():
            print(f"{options.output}/{name}.jsonl: {records} dialogues")
        training, held_out = facts["train"]["clips"], facts["held_out"]["clips"]
        print(f"{training} training clips, {held_out} held-out clips")


if __name__ == "__main__":
    main(sys.argv[1:])
