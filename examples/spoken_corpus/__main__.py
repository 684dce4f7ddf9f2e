"""Writes the synthetic spoken corpus: `python -m examples.spoken_corpus --output DIR [--recipe base|quickstart] [--seed 0]`."""

import argparse
import sys

from examples.spoken_corpus import DEFAULT_CLIPS, write_corpus
from launch.errors import exit_on_error
from stepaudio_jax.config import check_seed
from stepaudio_jax.storage import expand_home


def main(arguments: list[str]) -> None:
    """Writes a corpus; prints what it holds."""
    parser = argparse.ArgumentParser(prog="python -m examples.spoken_corpus", description=__doc__)
    parser.add_argument(
        "--output",
        type=expand_home,
        required=True,
        help="a folder that does not exist yet, or is empty",
    )
    parser.add_argument("--recipe", choices=tuple(DEFAULT_CLIPS), default="quickstart")
    parser.add_argument(
        "--clips",
        type=int,
        help=f"clips of training (default: {', '.join(f'{n} {r}' for r, n in DEFAULT_CLIPS.items())})",
    )
    parser.add_argument(
        "--per-task",
        type=int,
        default=200,
        help="questions of each task of the evaluation, at least",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: as many as there are processors")
    asked = parser.parse_args(arguments)
    with exit_on_error("nothing was written; start the same command again"):
        facts = write_corpus(
            asked.output,
            asked.recipe,
            clips=asked.clips,
            per_task=asked.per_task,
            seed=check_seed(asked.seed),
            threads=asked.threads,
        )
        for name, records in facts["records"].items():
            print(f"{asked.output}/{name}.jsonl: {records} dialogues")
        print(f"{facts['train']['clips']} clips of training, {facts['held_out']['clips']} held out")


if __name__ == "__main__":
    main(sys.argv[1:])
