"""Compiles programs for TPUs that this machine does not have.

The compiler is the real one (libtpu), and needs no TPU: what it says of a program's memory, and the
text of the program that it makes, are those of the job on the slice.
"""

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
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from stepaudio_jax.config import Config, Distillation, LoRAConfig, Preference
from stepaudio_jax.data import abstract_batch, batch_shape
from stepaudio_jax.data.preference_pairs import PairFormat
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.models import abstract_parameters, supports_shared_prefix
from stepaudio_jax.parallel import batch_sharding, check_batch_divisible, make_mesh, replicated
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.storage import folder_is_here
from stepaudio_jax.tpu_compiler import TPU_ENVIRONMENT
from stepaudio_jax.training import abstract_train_state, make_stage_step
from stepaudio_jax.training.initial_weights import initial_adapter
from stepaudio_jax.training.reference_logprobs import ReferenceLogprobs
from stepaudio_jax.training.teacher import TeacherDef, define_teacher, teacher_shardings

Effort = Literal["quick", "full"]
"""How hard the compiler optimizes: "full" is what a job is compiled with.

"quick" is EFFORT_O1 of ExecutionOptions in XLA's xla.proto. Four plans of training 32 B models took
0.4 to 0.6 of the time with it, with libtpu 0.0.42.1 and 0.0.51. Their peaks were 1 to 6 % lower;
that of RLHF on v5p:4x4x8 was 7 % higher.
"""

_EFFORT_OPTIONS: dict[Effort, dict[str, Any]] = {"quick": {"optimization_level": 19}, "full": {}}

# Compiler options that a kind of chip needs. Without this one, libtpu 0.0.42.1 ends the process
# (offload_collective_strategies.cc: "Check failed") when it compiles an all-reduce for Ironwood, of
# any size that was tried.
_REQUIRED_OPTIONS = {"tpu7x": {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": False}}

# The TPU compiler's message about a program that does not fit. What it calls temporaries are
# arguments, outputs and temporaries together.
_OUT_OF_MEMORY = re.compile(r"total memory required for \S+ temporaries \((\d+\.?\d*)([KMGT])\)")
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of a chip's memory that a program takes.

    Attributes:
        arguments: its arguments.
        temporaries: what it allocates while it runs.
        code: the program itself.
        peak: arguments and temporaries, and outputs that do not take an argument's place.
    """

    arguments: int
    temporaries: int
    code: int
    peak: int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled train step.

    Attributes:
        compiled: JAX's compiled program; None where the compiler refuses it because it cannot fit.
        footprint: the memory that it takes, or would take.
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


def compile_train_step(
    config: Config, index: int, devices: Sequence[Any], effort: Effort = "full", kind: str = ""
) -> CompiledStep:
    """Compiles the train step of a stage without allocating any array.

    Args:
        config: the run's configuration.
        index: the stage's number.
        devices: compile-only devices, see `compile_only_devices`.
        effort: how hard the compiler optimizes.
        kind: kind of the chips, as in `Topology.kind`.

    Raises:
        ConfigError: the mesh does not fit the devices, the batch does not fit the mesh, or the
            sharding rules cannot place a parameter.
    """
    stage = config.stages[index]
    mesh = make_mesh(config.mesh, devices)
    check_batch_divisible(config, mesh)
    started = time.perf_counter()
    # Compile-only devices hold no arrays, so the mesh is abstract. It has the platform of the
    # devices, by which attention="auto" chooses the kernel for TPUs.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        start = abstract_train_state(
            config, index, config.model, mesh, find_initial_adapter(config)
        )
        state = start.abstract
        pair_format = None
        if isinstance(stage.objective, Preference):
            stored: ReferenceLogprobs | None = [] if stage.objective.precompute_reference else None
            shares_prompt = supports_shared_prefix(
                config.compute, stage.objective.replies_per_record
            )
            pair_format = PairFormat(stage.objective, shares_prompt, stored)
        shape = batch_shape(
            stage.data,
            stage.auxiliary,
            pad_token=0,
            pair_format=pair_format,
            teacher_reads=stage.teacher_reads,
        )
        rows = batch_sharding(config.compute.rules, mesh)
        batch = jax.tree.map(
            lambda leaf: abstract_array(leaf, rows), abstract_batch(stage.data.batch_size, shape)
        )
        teacher_def = None
        arguments: tuple[Any, ...] = (state, batch)
        if isinstance(stage.objective, Distillation):
            assert stage.objective.teacher is not None  # a server's scores rollouts
            teacher_def = define_teacher(
                config,
                stage.objective.teacher,
                config.model,
                inputs=stage.objective.teacher_inputs,
            )
            arguments += (abstract_teacher(config, teacher_def, mesh),)
        step = jax.jit(
            make_stage_step(start.model_def, stage, start.optimizer, teacher_def),
            donate_argnums=0,
            out_shardings=(start.shardings, replicated(mesh)),
        )
        lowered = step.trace(*arguments).lower(lowering_platforms=("tpu",))
        compiled, footprint = compile_lowered(lowered, arguments, effort, kind)
    return CompiledStep(
        compiled,
        footprint,
        parameter_bytes=bytes_per_device(
            (
                *arguments[2:],
                *(state.trainable, state.frozen_params, state.frozen_lora_params),
                *(state.reference_params, state.reference_lora_params),
            )
        ),
        optimizer_bytes=bytes_per_device(state.opt_state),
        compile_seconds=time.perf_counter() - started,
        devices=list(mesh.devices.flat),
    )


def abstract_teacher(config: Config, teacher: TeacherDef, mesh: Mesh) -> Any:
    """Returns a teacher's parameters as shapes with shardings."""
    return jax.tree.map(
        lambda leaf, sharding: abstract_array(leaf, sharding, jnp.dtype(config.compute.dtype)),
        abstract_parameters(teacher.config),
        teacher_shardings(config, teacher, mesh),
    )


def compile_only_devices(topology: Topology) -> Sequence[Any]:
    """Returns the devices of a topology, for which programs can be compiled but not run.

    Raises:
        ConfigError: there is no TPU compiler on this machine, or it does not know the topology.
    """
    from jax.experimental import topologies

    compiler_version()  # raises where there is no compiler
    name = f"{topology.kind}:{'x'.join(map(str, topology.shape))}"
    options: dict[str, Any] = {"wrap": topology.wrap}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.chip.named_by_cores and topology.chip.devices == 1:
        options["chip_config_name"] = "megacore"  # both cores as one device, as at run time
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # the default is four chips a host
    check_compiler_flags(compiler_flags())
    try:
        with _compiler_environment():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=name, **options
            ).devices
    except (RuntimeError, ValueError, ImportError) as error:
        raise ConfigError(f"topology {topology.name}: {str(error).splitlines()[0]}") from None


def compile_lowered(
    lowered: Any, arguments: Any, effort: Effort = "full", kind: str = ""
) -> tuple[Any | None, Footprint]:
    """Compiles a lowered program.

    Args:
        lowered: the program, lowered for TPUs.
        arguments: its arguments, as shapes with shardings.
        effort: how hard the compiler optimizes.
        kind: kind of the chips, as in `Topology.kind`.

    Returns:
        The compiled program and the memory that it takes. The program is None where the compiler
        refuses it because it cannot fit; the footprint is what it would take.
    """
    options = {**_EFFORT_OPTIONS[effort], **_required_options(kind)}
    try:
        compiled = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = _OUT_OF_MEMORY.search(str(error))
        if out_of_memory is None:
            raise
        argument_bytes = bytes_per_device(arguments)
        peak = int(float(out_of_memory[1]) * _BINARY_UNITS[out_of_memory[2]])
        return None, Footprint(argument_bytes, max(0, peak - argument_bytes), 0, peak)
    memory = compiled.memory_analysis()
    return compiled, Footprint(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    )


def optimized_hlo(compiled: Any) -> str | None:
    """Returns the optimised HLO of a compiled program.

    None where the compiler is newer than JAX and writes a format that this JAX cannot read.
    """
    try:
        text: str = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return None
    return text


def abstract_array(leaf: Any, sharding: NamedSharding, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """Returns the shape of `leaf` with a sharding, and its dtype unless another is given."""
    return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)


def replicated_array(mesh: Mesh, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array that every device of the mesh holds in full."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of one device's part of a tree of shapes with shardings."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def find_initial_adapter(config: Config) -> LoRAConfig | None:
    """Returns the LoRA adapter that lies beside the initial decoder; None where there is none.

    None too where the folders of the initial weights are not on this machine.
    """
    initial = config.initial
    folders = [folder for folder in (initial.model, initial.encoder, initial.decoder) if folder]
    return initial_adapter(config) if folders and all(map(folder_is_here, folders)) else None


def compiler_version() -> str:
    """Returns the name and version of the installed TPU compiler.

    Raises:
        ConfigError: there is none.
    """
    import importlib.metadata

    try:
        return f"libtpu {importlib.metadata.version('libtpu')}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            'there is no TPU compiler here; install it with pip install "stepaudio-jax[tpu]"'
        ) from None


def compiler_flags(kind: str = "") -> tuple[str, ...]:
    """Returns the compiler's flags: those of `LIBTPU_INIT_ARGS`, and those that the chips need."""
    required = (f"--{name}={str(value).lower()}" for name, value in _required_options(kind).items())
    return (*os.environ.get("LIBTPU_INIT_ARGS", "").split(), *required)


def _required_options(kind: str) -> dict[str, bool]:
    """Returns the options that a kind of chip needs, without those that the user has set."""
    user_flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    return {
        name: value
        for name, value in _REQUIRED_OPTIONS.get(kind, {}).items()
        if f"--{name}" not in user_flags
    }


@functools.cache
def check_compiler_flags(flags: tuple[str, ...]) -> None:
    """Checks that the compiler knows the flags, by starting it once in another process.

    A flag that it does not know ends the process in which it is started.

    Raises:
        ConfigError: it does not know one of the flags.
    """
    if not flags:
        return
    program = (
        "from jax.experimental import topologies; topologies.get_topology_desc('v5e:2x2', 'tpu')"
    )
    with _compiler_environment():
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if ended.returncode != 0:
        messages = [line for line in ended.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in messages if line.startswith("ERROR")),
            messages[-1] if messages else "the compiler does not start",
        )
        raise ConfigError(f"LIBTPU_INIT_ARGS={' '.join(flags)!r}: {reason}")


@contextlib.contextmanager
def _compiler_environment() -> Iterator[None]:
    """Sets what lets the TPU compiler start on a machine without TPUs, which it must not query."""
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
