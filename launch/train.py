"""Trains a model: `python -m launch.train --config=configs/X.py [--config.key=value ...]`."""

import sys

from launch.errors import reported
from stepaudio_jax.config import Config, ConfigError, load_config


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
        elif flag.startswith("--config.") and equals:
            overrides.append((flag.removeprefix("--config."), value))
        else:
            raise ConfigError(f"cannot read {argument!r}: write --config=FILE and --config.key=value")
    if not path:
        raise ConfigError("no configuration given: write --config=configs/NAME.py")
    return load_config(path, overrides)


def main(arguments: list[str]) -> None:
    """Trains; prints the folder of the finished model."""
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return
    with reported():
        config = parse_arguments(arguments)
        from stepaudio_jax.training import train

        print(train(config))


if __name__ == "__main__":
    main(sys.argv[1:])
