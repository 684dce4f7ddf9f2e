"""Makes the judge of the demonstration of RLHF: `python -m launch.tiny_judge` (on two cores; interrupt and go on at will)."""

import argparse
import pathlib

from launch.errors import reported
from stepaudio_jax.config import load_config
from stepaudio_jax.storage import expand_home, user_path


def main() -> None:
    """Parses arguments, makes the judge, prints how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/tiny_judge.py")
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_judge"))
    arguments = parser.parse_args()
    with reported("what is made so far is kept; the same command goes on from there"):
        from stepaudio_jax.quickstart.tiny_judge import make_tiny_judge
        from stepaudio_jax.quickstart.trap import Trap

        print(make_tiny_judge(Trap.of_project(), load_config(arguments.config), arguments.output))


if __name__ == "__main__":
    main()
