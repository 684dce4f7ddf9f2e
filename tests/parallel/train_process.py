"""One process of a run: `python -m tests.parallel.train_process DEVICES ARGUMENTS_OF_TRAIN`."""

import sys

import jax


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    from launch.train import main as train

    train(sys.argv[2:])


if __name__ == "__main__":
    main()
