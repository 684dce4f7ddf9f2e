"""The plan of a stage on a topology: what fits, and what bounds its speed."""

import dataclasses
from typing import Any

from stepaudio_jax.config import Config
from stepaudio_jax.planning.collectives import collective_bytes
from stepaudio_jax.planning.effort import Effort
from stepaudio_jax.planning.page import heading, memory, size, verdict
from stepaudio_jax.planning.program import compile_step, compiler_version, program_text, topology_devices
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.training import step_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One stage on one topology; bytes are of one chip, unless they say otherwise.

    Attributes:
        topology, chips: where.
        mesh: devices along each axis.
        stage: its name.
        fits: whether there is a program, and its peak lies within the chip's memory.
        compiled: whether there is a program; the compiler refuses one that does not fit.
        memory_bytes_per_chip: what a program may use of it.
        peak_bytes_per_chip: arguments and temporaries, and outputs that do not take an argument's place.
        argument_bytes_per_chip: the state and the batch; of it parameter_bytes_per_chip and optimizer_bytes_per_chip.
        temporary_bytes_per_chip: activations, gathered parameters, gradients.
        code_bytes_per_chip: the program.
        flops_per_step: of the whole job, by formula (see `training.flops`).
        tokens_per_step: of the whole job, padding included.
        collective_bytes_per_chip: kind of collective -> bytes sent in a step; None where there is no program, or none that this
            version of JAX can read.
        compute_seconds, interconnect_seconds: of a step, each at the chip's peak; the latter None where the bytes are.
        roofline_step_seconds: the larger of those known; no step is faster.
        mfu_bound: compute_seconds / roofline_step_seconds.
        compile_seconds, compiler_version: of this compilation; another compiler's memory differs.
        effort: the compiler's; "full" is what the job is compiled with.
        settings: overrides of the configuration that this plan is for, as `key=value`.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    stage: str
    fits: bool
    compiled: bool
    memory_bytes_per_chip: int
    peak_bytes_per_chip: int
    argument_bytes_per_chip: int
    parameter_bytes_per_chip: int
    optimizer_bytes_per_chip: int
    temporary_bytes_per_chip: int
    code_bytes_per_chip: int
    flops_per_step: float
    tokens_per_step: int
    collective_bytes_per_chip: dict[str, float] | None
    compute_seconds: float
    interconnect_seconds: float | None
    roofline_step_seconds: float
    mfu_bound: float
    compile_seconds: float
    compiler_version: str
    effort: Effort
    settings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def make_plan(config: Config, index: int, topology: Topology, settings: tuple[str, ...] = (), effort: Effort = "full") -> Plan:
    """Compiles stage `index` for a topology and reads the program.

    Raises:
        ConfigError, ShardingError: the settings contradict the topology, or there is no compiler for it.
    """
    version = compiler_version()
    devices = topology_devices(topology)
    step = compile_step(config, index, devices, effort)
    used = step.footprint
    available = topology.chip.memory_bytes
    flops = step_flops(config.model, config.stages[index])
    text = None if step.compiled is None else program_text(step.compiled)
    sent = None if text is None else collective_bytes(text)
    compute = flops / (topology.chips * topology.chip.flops)
    interconnect = None if sent is None else sum(sent.values()) / topology.chip.interconnect_bandwidth
    roofline = max(compute, interconnect or 0.0)
    data = config.stages[index].data
    return Plan(
        topology=topology.name,
        chips=topology.chips,
        mesh={str(axis): size for axis, size in config.mesh.sizes(topology.chips).items()},
        stage=config.stages[index].name,
        fits=step.compiled is not None and used.peak <= available,
        compiled=step.compiled is not None,
        memory_bytes_per_chip=available,
        peak_bytes_per_chip=used.peak,
        argument_bytes_per_chip=used.arguments,
        parameter_bytes_per_chip=step.parameter_bytes,
        optimizer_bytes_per_chip=step.optimizer_bytes,
        temporary_bytes_per_chip=used.temporaries,
        code_bytes_per_chip=used.code,
        flops_per_step=flops,
        tokens_per_step=data.rows * data.tokens_per_row,
        collective_bytes_per_chip=sent,
        compute_seconds=compute,
        interconnect_seconds=interconnect,
        roofline_step_seconds=roofline,
        mfu_bound=compute / roofline,
        compile_seconds=step.compile_seconds,
        compiler_version=version,
        effort=effort,
        settings=settings,
    )


def as_text(plan: Plan) -> str:
    """The plan as a page of text; bytes in 10^9."""
    parts = {
        "parameters": plan.parameter_bytes_per_chip,
        "optimizer": plan.optimizer_bytes_per_chip,
        "all arguments": plan.argument_bytes_per_chip,
        "temporaries": plan.temporary_bytes_per_chip,
        "peak": plan.peak_bytes_per_chip,
        "available": plan.memory_bytes_per_chip,
        "program": plan.code_bytes_per_chip,
    }
    what = f"stage {plan.stage}"
    lines = [
        *heading(what, plan.topology, plan.chips, plan.mesh, plan.compiler_version, plan.compile_seconds, plan.effort),
        "memory of a chip",
        *memory(parts),
        "",
        f"a step of {plan.tokens_per_step} tokens",
        f"  {plan.flops_per_step / 1e15:.2f} PFLOP: {plan.compute_seconds:.3f} s at the chips' peak",
        *(f"  {kind:20s}{size(sent)} sent by a chip" for kind, sent in sorted((plan.collective_bytes_per_chip or {}).items())),
        f"  interconnect: {_interconnect(plan)}",
        f"  no faster than {plan.roofline_step_seconds:.3f} s, MFU at most {100 * plan.mfu_bound:.0f} %",
        "",
        verdict(plan.fits, plan.memory_bytes_per_chip, plan.peak_bytes_per_chip),
    ]
    if not plan.compiled:
        lines.append("the compiler refused the program, and says no more of it than its peak")
    if plan.settings:
        lines.append("with " + " ".join(f"--config.{setting}" for setting in plan.settings))
    return "\n".join(lines)


def _interconnect(plan: Plan) -> str:
    if plan.interconnect_seconds is not None:
        return f"{plan.interconnect_seconds:.3f} s at its peak"
    return "not known, for this JAX cannot read what this compiler writes" if plan.compiled else "not known"
