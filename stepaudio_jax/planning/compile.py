"""A stage's real train step, compiled for chips that are not here."""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar

import jax

from stepaudio_jax.config import Config, LoRAConfig
from stepaudio_jax.data import abstract_batch, batch_shape
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.parallel import batch_sharding, check_batch_divisible, make_mesh, replicated
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.tpu_compiler import TPU_ENVIRONMENT
from stepaudio_jax.training import abstract_train_state, make_train_step
from stepaudio_jax.training.initial_weights import initial_adapter

# How hard the compiler tries: little, where that shows that the job fits.

Effort = Literal["quick", "full"]

# "full" is what a job is compiled with; "quick" is EFFORT_O1 of ExecutionOptions in XLA's
# xla.proto. Four plans of training 32 B models took 0.4 to 0.6 of the time with it, with libtpu
# 0.0.42.1 and 0.0.51. Their peaks were 1 to 6 % lower; that of RLHF on v5p:4x4x8 was 7 % higher.
COMPILER_OPTIONS: dict[Effort, dict[str, Any] | None] = {
    "quick": {"optimization_level": 19},
    "full": None,
}
_MAX_QUICK_MEMORY_FRACTION = 0.9  # of a chip's memory: a quick plan that takes no more


class AnyPlan(Protocol):
    """What plans have in common here."""

    @property
    def memory_bytes_per_chip(self) -> int: ...

    @property
    def peak_bytes_per_chip(self) -> int: ...


PlanT = TypeVar("PlanT", bound=AnyPlan)


def escalate_if_tight(make: Callable[[Effort], PlanT], effort: Effort) -> PlanT:
    """The plan made with that effort, or with full effort where a quick one leaves little room or none."""
    plan = make(effort)
    if (
        effort == "quick"
        and plan.peak_bytes_per_chip > _MAX_QUICK_MEMORY_FRACTION * plan.memory_bytes_per_chip
    ):
        return make("full")
    return plan


# What the TPU compiler says of a program that does not fit. It calls temporaries what is arguments,
# outputs and temporaries.
_REFUSED = re.compile(r"total memory required for \S+ temporaries \((\d+\.?\d*)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of a chip that a program takes: its arguments, its temporaries, its own code, and at most at once."""

    arguments: int
    temporaries: int
    code: int
    peak: int


def compile_lowered(
    lowered: Any, arguments: Any, effort: Effort = "full", kind: str = ""
) -> tuple[Any | None, Footprint]:
    """Compiles a program; None for one that the compiler refuses because it cannot fit, with what it would take.

    Args:
        lowered: for the chips.
        arguments: its own, as shapes with shardings.
        effort: the compiler's, for the program's speed.
        kind: of the topology's chips.
    """
    options = {**(COMPILER_OPTIONS[effort] or {}), **_needed_options(kind)}
    try:
        compiled = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise
        held, peak = bytes_per_device(arguments), int(float(refused[1]) * _UNITS[refused[2]])
        return None, Footprint(held, max(0, peak - held), 0, peak)
    used = compiled.memory_analysis()
    peak = (
        used.argument_size_in_bytes
        + used.temp_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
    )
    return compiled, Footprint(
        used.argument_size_in_bytes,
        used.temp_size_in_bytes,
        used.generated_code_size_in_bytes,
        peak,
    )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled train step.

    Attributes:
        compiled: JAX's compiled program; None where the compiler refuses it because it cannot fit.
        footprint: what it takes, or would take.
        parameter_bytes, optimizer_bytes: of a chip's part of the arguments.
        compile_seconds: wall-clock time of tracing, lowering and compiling.
        devices: of the mesh, in its order, which is that of the program's collectives.
    """

    compiled: Any | None
    footprint: Footprint
    parameter_bytes: int
    optimizer_bytes: int
    compile_seconds: float
    devices: Sequence[Any]


def compile_only_devices(topology: Topology) -> Sequence[Any]:
    """The chips of a topology as compile-only devices.

    Raises:
        ConfigError: there is no TPU compiler here, or it does not know the topology.
    """
    from jax.experimental import topologies

    name = f"{topology.kind}:{'x'.join(map(str, topology.shape))}"
    options: dict[str, Any] = {"wrap": topology.wrap}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if (
        topology.chip.named_by_cores and topology.chip.devices == 1
    ):  # both cores of a chip as one device, as the runtime has them
        options["chip_config_name"] = "megacore"
    if math.prod(topology.shape) == 1:  # a machine is otherwise taken to have four chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    check_compiler_flags(compiler_flags())
    try:
        with _compiler_settings():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=name, **options
            ).devices
    except (RuntimeError, ValueError, ImportError) as error:
        raise ConfigError(f"topology {topology.name}: {str(error).splitlines()[0]}") from None


# Without it libtpu 0.0.42.1 ends the process (offload_collective_strategies.cc: "Check failed")
# when it compiles an all-reduce for Ironwood, of any size that was tried.
_NEEDED_OPTIONS = {"tpu7x": {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": False}}


def compiler_flags(kind: str = "") -> tuple[str, ...]:
    """Returns the flags that the compiler gets: those of `LIBTPU_INIT_ARGS`, and what a kind of chip needs."""
    needed = (f"--{name}={str(value).lower()}" for name, value in _needed_options(kind).items())
    return (*os.environ.get("LIBTPU_INIT_ARGS", "").split(), *needed)


def _needed_options(kind: str) -> dict[str, bool]:
    """Returns what the compiler is told for a kind of chip, where the user says nothing of it."""
    said = os.environ.get("LIBTPU_INIT_ARGS", "")
    return {
        name: value
        for name, value in _NEEDED_OPTIONS.get(kind, {}).items()
        if f"--{name}" not in said
    }


@functools.cache
def check_compiler_flags(flags: tuple[str, ...]) -> None:
    """Starts the compiler once in another process, for one that does not know a flag ends the process that it is started in.

    Raises:
        ConfigError: it does not know one of the flags.
    """
    if not flags:
        return
    program = (
        "from jax.experimental import topologies; topologies.get_topology_desc('v5e:2x2', 'tpu')"
    )
    with _compiler_settings():
        started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if started.returncode != 0:
        said = [line for line in started.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in said if line.startswith("ERROR")),
            said[-1] if said else "the compiler does not start",
        )
        raise ConfigError(f"LIBTPU_INIT_ARGS={' '.join(flags)!r}: {reason}")


def compiler_version() -> str:
    """The version of the TPU compiler that is installed."""
    import importlib.metadata

    try:
        return f"libtpu {importlib.metadata.version('libtpu')}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            'there is no TPU compiler here; install it with pip install "stepaudio-jax[tpu]"'
        ) from None


def compile_train_step(
    config: Config, index: int, devices: Sequence[Any], effort: Effort = "full", kind: str = ""
) -> CompiledStep:
    """Compiles the train step of stage `index` for those devices, chips of that kind; nothing is allocated.

    Raises:
        ConfigError: the mesh does not fit the devices, or the batch the mesh.
        ConfigError: the rules cannot place a parameter.
    """
    compute = config.compute
    if (
        compute.attention == "auto"
    ):  # what "auto" is on a TPU; here it would be the kernel of this machine
        compute = dataclasses.replace(compute, attention="splash")
    config = dataclasses.replace(config, compute=compute)
    stage = config.stages[index]
    mesh = make_mesh(config.mesh, devices)
    check_batch_divisible(config, mesh)
    started = time.perf_counter()
    with jax.sharding.use_abstract_mesh(
        mesh.abstract_mesh
    ):  # a mesh of chips that are not here holds no array
        start = abstract_train_state(
            config, index, config.model, mesh, find_initial_adapter(config)
        )
        rows = batch_sharding(compute.rules, mesh)
        shape = batch_shape(stage.data, stage.auxiliary, pad_token=0)
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
            abstract_batch(stage.data.batch_size, shape),
        )
        step = jax.jit(
            make_train_step(start.model_def, stage, start.optimizer),
            donate_argnums=0,
            out_shardings=(start.shardings, replicated(mesh)),
        )
        lowered = step.trace(start.abstract, batch).lower(lowering_platforms=("tpu",))
        compiled, footprint = compile_lowered(lowered, (start.abstract, batch), effort, kind)
    return CompiledStep(
        compiled,
        footprint,
        parameter_bytes=bytes_per_device(
            (
                start.abstract.trainable,
                start.abstract.frozen_params,
                start.abstract.frozen_lora_params,
            )
        ),
        optimizer_bytes=bytes_per_device(start.abstract.opt_state),
        compile_seconds=time.perf_counter() - started,
        devices=list(mesh.devices.flat),
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of one device's part of a tree of shapes with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = leaf.dtype.itemsize
        for dimension in leaf.sharding.shard_shape(leaf.shape):
            size *= dimension
        total += size
    return total


def optimized_hlo(compiled: Any) -> str | None:
    """The optimised HLO; None where the compiler is newer than JAX, and has written what JAX cannot read."""
    try:
        text: str = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return None
    return text


def find_initial_adapter(config: Config) -> LoRAConfig | None:
    """Returns the adapter beside the initial decoder; None also where the folders of the initial weights are not here."""
    initial = config.initial
    folders = [folder for folder in (initial.model, initial.encoder, initial.decoder) if folder]
    return initial_adapter(config) if folders and all(map(os.path.isdir, folders)) else None


@contextlib.contextmanager
def _compiler_settings() -> Iterator[None]:
    """Lets the TPU compiler start where there is no TPU: it must not ask the machine which one it has."""
    settings = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in TPU_ENVIRONMENT.items():
        settings[name] = os.environ.get(name, value)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    logging.getLogger("jax").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, previous in before.items():
            if previous is None:
                del os.environ[name]
            else:
                os.environ[name] = previous
