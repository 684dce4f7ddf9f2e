"""Makes the small base model from nothing: `python -m launch.tiny_base` (on two cores; interrupt and go on at will)."""

import argparse
import pathlib

from launch.errors import exit_on_error
from stepaudio_jax.config import load_config
from stepaudio_jax.storage import expand_home, user_path


def main() -> None:
    """Parses arguments, makes the model, prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/tiny_base.py")
    parser.add_argument("--corpus", type=user_path, default=pathlib.Path("runs/corpus/base"))
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_base"))
    arguments = parser.parse_args()
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        from stepaudio_jax.quickstart import make_tiny_base

        print(make_tiny_base(load_config(arguments.config), arguments.corpus, arguments.output))


if __name__ == "__main__":
    main()
