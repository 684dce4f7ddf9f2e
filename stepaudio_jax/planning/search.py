"""Settings that make a job fit a topology, where its own do not."""

import functools
import math
from collections.abc import Iterator

from stepaudio_jax.config import Config, override
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.planning.compile import Effort
from stepaudio_jax.planning.report import escalate_if_tight
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.planning.train_plan import TrainPlan, make_train_plan

_MAX_CANDIDATES = 3


def plan_training(
    config: Config, stage: str, topology: Topology, effort: Effort = "full"
) -> TrainPlan:
    """The plan of a stage with its own settings, or with the fewest changes that make it fit.

    Tried in this order: rows that the mesh cuts evenly, more micro-batches, moments in bf16. A
    slice whose size is no power of two gets a mesh that cuts the decoder evenly. If none fits, the
    plan of the smallest is returned, and says by how much.

    Args:
        config: of the run; its mesh is for the topology.
        stage: a stage's name or number.
        topology: where.
        effort: the compiler's; where a "quick" plan leaves little room or none, it is made in
            "full".

    Raises:
        ConfigError, ConfigError: as of `make_train_plan`.
    """
    index = stage_index(config, stage)
    best: TrainPlan | None = None
    mesh = _evenly_dividing_mesh(config, topology)
    config = _with_overrides(config, mesh)
    for number, candidate in enumerate(_candidates(config, index, topology)):
        settings = (*mesh, *candidate)
        plan = escalate_if_tight(
            functools.partial(
                make_train_plan, _with_overrides(config, candidate), index, topology, settings
            ),
            effort,
        )
        if best is None or plan.peak_bytes_per_chip < best.peak_bytes_per_chip:
            best = plan
        state_too_large = plan.argument_bytes_per_chip > plan.memory_bytes_per_chip
        if plan.fits or state_too_large or number + 1 == _MAX_CANDIDATES:
            break
    assert best is not None
    return best


def _evenly_dividing_mesh(config: Config, topology: Topology) -> tuple[str, ...]:
    """Overrides for a mesh that the model's dimensions can be cut by, on a slice whose size is no power of two.

    Where the configuration leaves all devices to `fsdp` and those of 192 chips, say, do not divide
    the decoder's width, the odd part of their number goes to `data`: three copies of the weights,
    each cut over 64 chips.
    """
    if config.mesh.fsdp != -1 or config.mesh.data != 1:
        return ()
    sizes = config.mesh.sizes(topology.devices)
    odd = sizes["fsdp"] // (sizes["fsdp"] & -sizes["fsdp"])
    if odd == 1 or config.model.decoder.hidden % sizes["fsdp"] == 0:
        return ()
    return (f"mesh.data={odd}",)


def _candidates(config: Config, index: int, topology: Topology) -> Iterator[tuple[str, ...]]:
    """Overrides to try, the fewest changes first."""
    data, accumulation = config.stages[index].data, config.stages[index].gradient_accumulation_steps
    key = f"stages.{index}"
    sizes = config.mesh.sizes(topology.devices)
    parts = math.prod(sizes[axis] for axis in config.compute.rules.batch)
    rows = math.ceil(data.batch_size / parts) * parts
    whole: tuple[str, ...] = () if rows == data.batch_size else (f"{key}.data.batch_size={rows}",)
    evaluation = config.stages[index].evaluation
    if evaluation.enabled and evaluation.data.batch_size % parts:
        whole += (
            f"{key}.evaluation.data.batch_size={math.ceil(evaluation.data.batch_size / parts) * parts}",
        )
    smallest = (
        *whole,
        f"{key}.gradient_accumulation_steps={rows // parts}",
    )  # one row a chip in each micro-batch
    yield (
        whole
        if rows % (parts * accumulation) == 0
        else (*whole, f"{key}.gradient_accumulation_steps=1")
    )
    if rows // parts > accumulation:
        yield smallest
    if config.stages[index].optimizer.moment_dtype != "bfloat16":
        yield (*smallest, f"{key}.optimizer.moment_dtype=bfloat16")


def _with_overrides(config: Config, settings: tuple[str, ...]) -> Config:
    for setting in settings:
        key, _, text = setting.partition("=")
        config = override(config, (key, text))
    return config


def stage_index(config: Config, stage: str) -> int:
    """The place of a stage given by name or number.

    Raises:
        ConfigError: there is no such stage.
    """
    names = [candidate.name for candidate in config.stages]
    if stage in names:
        return names.index(stage)
    if stage.isdigit() and int(stage) < len(names):
        return int(stage)
    raise ConfigError(f"stage={stage!r} is none of {', '.join(names)}")
