"""Says whether a job fits a TPU slice, and how fast it can be; needs no TPU.

python -m launch.plan --config=FILE --topology=v5p:4x4x4

plans the steps of a stage; with --program=decode (or prefill), generating with the configuration's
model.
"""

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from launch.errors import exit_on_error
from stepaudio_jax.config import Config, load_config, split_flags
from stepaudio_jax.storage import (
    Path,
    atomic_text_writer,
    check_output_file,
    expand_home,
    folder_is_here,
    read_bytes,
    user_path,
)

DOES_NOT_FIT = 1


def with_initial_model_config(config: Config) -> Config:
    """Returns the configuration with the model's shape read from the folders of `initial`.

    Where one of them is not on this machine, the configuration's own shape stays, and a line on
    standard error says so.

    Raises:
        CheckpointError: a folder cannot be read.
    """
    from stepaudio_jax import hub

    initial = config.initial
    named = [folder for folder in (initial.model, initial.encoder, initial.decoder) if folder]
    if away := [folder for folder in named if not folder_is_here(folder)]:
        print(
            f"{', '.join(away)}: not here, "
            "so the plan is of the model that the configuration describes",
            file=sys.stderr,
        )
        return config
    if not named:
        return config
    sources = hub.weight_sources(initial.model, encoder=initial.encoder, decoder=initial.decoder)
    return dataclasses.replace(config, model=hub.read_model_config(sources))


def _is_plan(path: Path) -> bool:
    """Returns whether a file is an earlier plan, which a new one may replace."""
    try:
        value = json.loads(read_bytes(path))
    except ValueError:
        return False
    return isinstance(value, dict) and "topology" in value


def main(arguments: list[str]) -> int:
    """Compiles the program for the topology and prints the plan; returns 0 if it fits, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="--config.key=value changes any value of the configuration; "
        "`python -m launch.train --config=FILE --help` lists the keys.",
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
    parser.add_argument(
        "--effort",
        choices=("quick", "full"),
        default="quick",
        help="effort of a training plan: full, as the job is compiled, or quick (the default), "
        "which becomes full where it leaves little memory or none",
    )
    parser.add_argument(
        "--slot-tokens",
        type=int,
        default=16384,
        help="tokens of a dialogue in generation: prompt and reply (default 16384)",
    )
    parser.add_argument(
        "--cache-dtype",
        choices=("bfloat16", "int8"),
        default="bfloat16",
        help="KV cache of generation",
    )
    parser.add_argument(
        "--int8-weights", action="store_true", help="generate with the decoder's matrices in int8"
    )
    parser.add_argument("--json", type=user_path, help="write the plan to this file too")
    with exit_on_error("nothing was written; start the same command again"):
        path, settings, others = split_flags(arguments)
        options = parser.parse_args([*others, *([] if path is None else [f"--config={path}"])])
        if options.json is not None:
            check_output_file(options.json, [options.config], may_replace=_is_plan, option="--json")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the planned TPUs are not on this machine
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
            settings.append(("mesh.slices", str(options.slices)))
        config = load_config(options.config, settings)
        config = with_initial_model_config(config)
        topology = parse_topology(options.topology, config.mesh.slices)
        plan: Any
        index = stage_index(config, options.stage)
        if options.program == "train" and config.stages[index].has_rollouts:
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
