"""Exports the model of a run's checkpoint: `python -m launch.checkpoint RUN_DIR --output DIR`.

Use it for a run that is in progress, was stopped, or has diverged, and for the best of its steps
(`checkpoint.keep_best`). The output has the format of a finished run's `model/`. Start the same
command on several machines, with --distributed, for a model that is too large for one.
"""

import argparse
import sys
from collections.abc import Sequence

from launch.distributed import DISTRIBUTED_FLAG, initialize_distributed
from launch.errors import exit_on_error
from stepaudio_jax.storage import user_path


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, writes the model and prints its folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=user_path, help="the folder of a run")
    parser.add_argument(
        "--output", type=user_path, required=True, help="the folder to write; must not exist"
    )
    parser.add_argument("--stage", help="default: the last stage with a checkpoint")
    parser.add_argument("--step", type=int, help="a saved step of the stage; default: the last one")
    parser.add_argument(
        DISTRIBUTED_FLAG,
        nargs="?",
        const="",
        metavar="HOST:PORT,COUNT,INDEX",
        help="see launch.train",
    )
    options = parser.parse_args(arguments)
    with exit_on_error("nothing was written; start the same command again"):
        if options.distributed is not None:
            initialize_distributed(
                f"{DISTRIBUTED_FLAG}={options.distributed}"
                if options.distributed
                else DISTRIBUTED_FLAG
            )
        import jax

        from stepaudio_jax.config import MeshConfig
        from stepaudio_jax.parallel import make_mesh, num_slices
        from stepaudio_jax.training import export_checkpoint

        mesh = make_mesh(MeshConfig(slices=num_slices(jax.devices())))
        export_checkpoint(
            options.run_dir, options.output, mesh, stage=options.stage, step=options.step
        )
        print(options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
