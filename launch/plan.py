"""Says whether a job fits a TPU slice and how fast it can be: `python -m launch.plan --config=FILE --topology=v5p:4x4x4`.

A training step by default; with --program=decode (or prefill), generating with the configuration's
model.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from launch.errors import exit_on_error
from stepaudio_jax.config import Config, PolicyGradient, load_config
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import (
    atomic_text_writer,
    check_output_file,
    expand_home,
    read_bytes,
    user_path,
)

DOES_NOT_FIT = 1


def with_initial_model_config(config: Config) -> Config:
    """The configuration with the shape of the weights that the run begins with, where their folders are here.

    Raises:
        CheckpointError: a folder cannot be read.
    """
    from stepaudio_jax import hub

    initial = config.initial
    named = [folder for folder in (initial.model, initial.encoder, initial.decoder) if folder]
    if away := [folder for folder in named if not pathlib.Path(folder).is_dir()]:
        print(
            f"{', '.join(away)}: not here, so the plan is of the model that the configuration describes",
            file=sys.stderr,
        )
        return config
    if not named:
        return config
    sources = hub.weight_sources(initial.model, encoder=initial.encoder, decoder=initial.decoder)
    return dataclasses.replace(config, model=hub.read_model_config(sources))


def _is_plan(path: pathlib.Path) -> bool:
    """Returns whether a file is an earlier plan, which a new one may replace."""
    try:
        value = json.loads(read_bytes(path))
    except ValueError:
        return False
    return isinstance(value, dict) and "topology" in value


def main(arguments: list[str]) -> int:
    """Compiles the program for the topology, prints the plan; returns 0 if it fits, 1 if not."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Any setting can be changed: --config.key=value, as in launch.train.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=expand_home, required=True)
    parser.add_argument("--topology", required=True, help="v5p:4x4x4 or v5p-128")
    parser.add_argument(
        "--slices",
        type=int,
        help="so many slices of that shape (default: the configuration's mesh.slices)",
    )
    parser.add_argument("--stage", default="0", help="name or number of the stage that is planned")
    parser.add_argument("--program", choices=("train", "prefill", "decode"), default="train")
    effort = "of training: quick (default; made in full where that leaves little room or none), or full, as the job is compiled"
    parser.add_argument("--effort", choices=("quick", "full"), default="quick", help=effort)
    parser.add_argument(
        "--slot-tokens",
        type=int,
        default=16384,
        help="of generating: prompt and reply (default 16384)",
    )
    parser.add_argument(
        "--cache-dtype", choices=("bfloat16", "int8"), default="bfloat16", help="of generating"
    )
    parser.add_argument(
        "--int8-weights", action="store_true", help="of generating: the decoder's matrices in int8"
    )
    parser.add_argument("--json", type=user_path, help="write the plan to this file too")
    settings = tuple(argument for argument in arguments if argument.startswith("--config."))
    options = parser.parse_args([argument for argument in arguments if argument not in settings])
    with exit_on_error("nothing was written; start the same command again"):
        if options.json is not None:
            check_output_file(options.json, [options.config], may_replace=_is_plan, option="--json")
        overrides = []
        for setting in settings:
            key, equals, value = setting.removeprefix("--config.").partition("=")
            if not equals:
                raise ConfigError(f"cannot read {setting!r}: write --config.key=value")
            overrides.append((key, value))
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPUs that are planned for are not here
        from stepaudio_jax.planning import (
            parse_topology,
            plan_rl,
            plan_serving,
            plan_training,
            rl_plan_report,
            serving_plan_report,
            stage_index,
            train_plan_report,
        )

        if options.slices is not None:
            overrides.append(("mesh.slices", str(options.slices)))
        config = load_config(options.config, overrides)
        config = with_initial_model_config(config)
        topology = parse_topology(options.topology, config.mesh.slices)
        plan: Any
        index = stage_index(config, options.stage)
        if options.program == "train" and isinstance(
            config.stages[index].objective, PolicyGradient
        ):
            plan = plan_rl(config, index, topology, options.effort)
            text = rl_plan_report(plan)
        elif options.program == "train":
            plan = plan_training(config, options.stage, topology, options.effort)
            text = train_plan_report(plan)
        else:
            sizes = {
                "slot_tokens": options.slot_tokens,
                "cache_dtype": options.cache_dtype,
                "int8_weights": options.int8_weights,
            }
            plan = plan_serving(
                config.model, config.compute, topology, program=options.program, **sizes
            )
            text = serving_plan_report(plan)
        if options.json is not None:
            with atomic_text_writer(options.json) as file:
                file.write(json.dumps(plan.to_json(), indent=2) + "\n")
        print(text)
    return 0 if plan.fits else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
