"""A small model learns to answer spoken questions: `python -m launch.quickstart` (minutes on two cores)."""

import argparse
import pathlib

from launch.errors import exit_on_error
from stepaudio_jax.config import load_config
from stepaudio_jax.storage import expand_home, user_path


def main() -> None:
    """Parses arguments, runs the quickstart, prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/quickstart.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/quickstart"))
    parser.add_argument("--output", type=user_path, default=pathlib.Path("runs/quickstart"))
    arguments = parser.parse_args()
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        from stepaudio_jax.quickstart import run_quickstart

        print(run_quickstart(load_config(arguments.config), arguments.corpus, arguments.output))
        print(f"report: {arguments.output / 'report.html'}")


if __name__ == "__main__":
    main()
