"""Makes the judge of the demonstration of RLHF: `python -m launch.tiny_judge` (on two cores; interrupt and go on at will)."""

import argparse
import pathlib

from launch.errors import exit_on_error
from stepaudio_jax.config import load_config
from stepaudio_jax.storage import expand_home, user_path


def main() -> None:
    """Parses arguments, makes the judge, prints how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/tiny_judge.py")
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_judge"))
    arguments = parser.parse_args()
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        from stepaudio_jax.quickstart.tiny_judge import make_tiny_judge
        from stepaudio_jax.quickstart.trap import RewardTrap

        print(
            make_tiny_judge(
                RewardTrap.from_configs(), load_config(arguments.config), arguments.output
            )
        )


if __name__ == "__main__":
    main()
