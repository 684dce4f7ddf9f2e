"""Searches for settings with which a training stage fits a topology, where its own do not."""

import functools
import math
from collections.abc import Iterator

from stepaudio_jax.config import Config, override
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.planning.compile import Effort
from stepaudio_jax.planning.report import escalate_if_tight
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.planning.train_plan import TrainPlan, make_train_plan

_MAX_CANDIDATES = 3  # plans that are made before the search gives up


def plan_training(
    config: Config, stage: str, topology: Topology, effort: Effort = "full"
) -> TrainPlan:
    """Plans a stage with its own settings, or with the fewest changes that make it fit.

    Changes are tried in this order: a batch size that the mesh divides, more micro-batches,
    optimizer moments in bf16. A slice whose size is no power of two gets a mesh that divides the
    decoder evenly. If nothing fits, the plan with the smallest peak is returned.

    Args:
        config: the run's configuration; its mesh is for the topology.
        stage: a stage's name or number.
        topology: the slice.
        effort: how hard the compiler optimizes; a "quick" plan that leaves little or no room is
            made again with "full" effort.

    Raises:
        ConfigError: see `make_train_plan` and `stage_index`.
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


def stage_index(config: Config, stage: str) -> int:
    """Returns the number of a stage that is given by its name or number.

    Raises:
        ConfigError: there is no such stage.
    """
    names = [candidate.name for candidate in config.stages]
    if stage in names:
        return names.index(stage)
    if stage.isdigit() and int(stage) < len(names):
        return int(stage)
    raise ConfigError(f"stage={stage!r} is none of {', '.join(names)}")


def _evenly_dividing_mesh(config: Config, topology: Topology) -> tuple[str, ...]:
    """Returns overrides for a mesh that divides the decoder's width evenly.

    They are needed where the configuration leaves all devices to `fsdp` and their number does not
    divide the decoder's width. The odd factor of the number goes to `data` then: of 192 chips, each
    64 hold one of three copies of the weights.
    """
    if config.mesh.fsdp != -1 or config.mesh.data != 1:
        return ()
    sizes = config.mesh.sizes(topology.devices)
    odd = sizes["fsdp"] // (sizes["fsdp"] & -sizes["fsdp"])
    if odd == 1 or config.model.decoder.hidden % sizes["fsdp"] == 0:
        return ()
    return (f"mesh.data={odd}",)


def _candidates(config: Config, index: int, topology: Topology) -> Iterator[tuple[str, ...]]:
    """Yields overrides to try, the fewest changes first."""
    stage = config.stages[index]
    key = f"stages.{index}"
    sizes = config.mesh.sizes(topology.devices)
    shards = math.prod(sizes[axis] for axis in config.compute.rules.batch)
    rows = _round_up(stage.data.batch_size, shards)
    divisible: tuple[str, ...] = ()
    if rows != stage.data.batch_size:
        divisible += (f"{key}.data.batch_size={rows}",)
    if stage.evaluation.enabled and stage.evaluation.data.batch_size % shards:
        evaluation_rows = _round_up(stage.evaluation.data.batch_size, shards)
        divisible += (f"{key}.evaluation.data.batch_size={evaluation_rows}",)
    accumulation_steps = stage.gradient_accumulation_steps
    if rows % (shards * accumulation_steps) == 0:
        yield divisible
    else:
        yield (*divisible, f"{key}.gradient_accumulation_steps=1")
    one_row_per_device = (*divisible, f"{key}.gradient_accumulation_steps={rows // shards}")
    if rows // shards > accumulation_steps:
        yield one_row_per_device
    if stage.optimizer.moment_dtype != "bfloat16":
        yield (*one_row_per_device, f"{key}.optimizer.moment_dtype=bfloat16")


def _round_up(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple


def _with_overrides(config: Config, settings: tuple[str, ...]) -> Config:
    for setting in settings:
        key, _, text = setting.partition("=")
        config = override(config, (key, text))
    return config
