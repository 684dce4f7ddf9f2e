"""Trains a model: `python -m launch.train --config=configs/X.py [--config.key=value ...] [--distributed]`.

Start the same command on every host of a pod, with --distributed. Ctrl-C saves and stops; a second
one ends at once. Exit codes: 0 when the run is finished; 75 when it was told to stop (SIGTERM), 130
when Ctrl-C did, and everything is saved, so that the same command goes on; 2 for a mistake of the
user's, 3 for a run that diverged, or whose judge gave too few verdicts.
"""

import sys

from launch.distributed import DISTRIBUTED_FLAG, initialize_distributed
from launch.errors import exit_on_error
from stepaudio_jax.config import Config, load_config
from stepaudio_jax.errors import ConfigError


def parse_arguments(arguments: list[str]) -> Config:
    """The configuration that the command line asks for.

    Raises:
        ConfigError: naming the argument that is wrong.
    """
    path = ""
    overrides = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag == "--config" and equals:
            path = value
        elif flag == DISTRIBUTED_FLAG:
            continue
        elif flag.startswith("--config.") and equals:
            overrides.append((flag.removeprefix("--config."), value))
        else:
            raise ConfigError(
                f"cannot read {argument!r}: write --config=FILE and --config.key=value"
            )
    if not path:
        raise ConfigError("no configuration given: write --config=configs/NAME.py")
    return load_config(path, overrides)


def main(arguments: list[str]) -> None:
    """Trains; prints the folder of the finished model."""
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return
    with exit_on_error("the same command goes on from what is saved"):
        config = parse_arguments(arguments)
        for argument in arguments:
            if argument.partition("=")[0] == DISTRIBUTED_FLAG:
                initialize_distributed(argument)
        from stepaudio_jax.rl import POLICY_STAGE
        from stepaudio_jax.training import train

        print(train(config, {"policy_gradient": POLICY_STAGE}))


if __name__ == "__main__":
    main(sys.argv[1:])
