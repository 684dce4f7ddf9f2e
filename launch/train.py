"""Trains a model: `python -m launch.train --config=FILE [--config.key=value ...] [--distributed]`.

    --config=configs/sft.py              the configuration
    --config.stages.sft.steps=100        one of its values; --help lists every key
    --flagfile=FILE                      more flags, one a line
    --distributed                        on every host of a pod; where no cluster says who they are,
                                         --distributed=HOST:PORT,COUNT,INDEX
    --help                               the keys, with the values of --config if it is given

Ctrl-C saves and stops; a second one ends at once. Exit codes: 0 for a finished run; 75 (SIGTERM)
and 130 (Ctrl-C) for one that stopped with everything saved, so that the same command continues it;
2 for a user's mistake; 3 for a run that diverged, or whose judge gave too few verdicts.
"""

import sys

import stepaudio_jax
from launch.distributed import DISTRIBUTED_FLAG, initialize_distributed
from launch.errors import exit_on_error
from stepaudio_jax.config import Config, load_config, split_flags
from stepaudio_jax.errors import ConfigError


def parse_arguments(arguments: list[str]) -> tuple[Config, list[str]]:
    """Returns the configuration of a command line, and the flags that join the other processes.

    Raises:
        ConfigError: naming the argument that is wrong.
    """
    path, settings, others = split_flags(arguments)
    for argument in others:
        if argument.partition("=")[0] != DISTRIBUTED_FLAG:
            raise ConfigError(
                f"cannot read {argument!r}: write --config=FILE and --config.key=value"
            )
    if path is None:
        raise ConfigError("no configuration given: write --config=configs/NAME.py")
    return load_config(path, settings), others


def main(arguments: list[str]) -> None:
    """Trains, and prints the folder of the finished model."""
    with exit_on_error("the same command continues from what is saved"):
        if not {"--help", "-h"}.isdisjoint(arguments):
            path, settings, _ = split_flags(arguments)
            config = None if path is None else load_config(path, settings)
            from stepaudio_jax.config.help import config_help

            print(f"{__doc__}{config_help(config)}")
            return
        config, distributed = parse_arguments(arguments)
        for argument in distributed:
            initialize_distributed(argument)
        print(stepaudio_jax.train(config))


if __name__ == "__main__":
    main(sys.argv[1:])
