"""The plan of a stage on a topology: what fits, and what bounds its speed."""

import dataclasses
import math
from typing import Any

from stepaudio_jax.config import Config
from stepaudio_jax.errors import PlanError
from stepaudio_jax.planning.collectives import collective_bytes
from stepaudio_jax.planning.compile import (
    Effort,
    compile_only_devices,
    compile_train_step,
    compiler_flags,
    compiler_version,
    optimized_hlo,
)
from stepaudio_jax.planning.hlo import HloModule
from stepaudio_jax.planning.report import fit_summary, heading, memory, size
from stepaudio_jax.planning.step_time import StepWork, read_step_work, step_time
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.training import step_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """How long a step is expected to take; see `step_time`.

    Attributes:
        product_flops_per_chip, attention_flops_per_chip: of a step, with what is computed again.
        expected_step_seconds, expected_step_seconds_range: the range is (shortest, longest).
        expected_mfu, expected_mfu_range: `compute_seconds` of the plan over those; the range is
        (lowest, highest).
        expected_parts: seconds of the expected step by part: products, attention, links, and
            waiting, which is what of the links has no products beside it; the step is products,
            attention and waiting.
    """

    product_flops_per_chip: float
    attention_flops_per_chip: float
    expected_step_seconds: float
    expected_step_seconds_range: tuple[float, float]
    expected_mfu: float
    expected_mfu_range: tuple[float, float]
    expected_parts: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """One stage on one topology; bytes and operations are of one chip (of Ironwood, of one device: half a chip).

    Attributes:
        topology, chips: where.
        mesh: devices along each axis.
        stage: its name.
        fits: whether there is a program, and its peak lies within the chip's memory.
        compiled: whether there is a program; the compiler refuses one that does not fit.
        memory_bytes_per_chip: what a program may use of it.
        peak_bytes_per_chip: arguments and temporaries, and outputs that do not take an argument's
        place.
        argument_bytes_per_chip: the state and the batch; of it parameter_bytes_per_chip and
        optimizer_bytes_per_chip.
        temporary_bytes_per_chip: activations, gathered parameters, gradients.
        code_bytes_per_chip: the program.
        flops_per_step: of the whole job, by formula (see `training.flops`).
        tokens_per_step: of the whole job, padding included.
        collective_bytes_per_chip: kind of collective -> bytes sent in a step; None where there is
            no program, or none that this version of JAX can read. So is what follows from the
            program's text.
        compute_seconds, interconnect_seconds: of a step, each at the chip's peak.
        roofline_step_seconds: the larger of those known; no step is faster.
        mfu_bound: compute_seconds / roofline_step_seconds.
        expected: how long a step is expected to take; in JSON, its attributes stand beside the
        others.
        unread: what of the program's text could not be read, so that nothing is expected.
        compile_seconds, compiler_version: of this compilation; another compiler's memory differs.
        compiler_flags: of LIBTPU_INIT_ARGS, and what the kind of chip needs.
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
    expected: StepEstimate | None
    unread: str | None
    compile_seconds: float
    compiler_version: str
    compiler_flags: tuple[str, ...]
    effort: Effort
    settings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; those of an expectation that there is none of are None."""
        names = [field.name for field in dataclasses.fields(StepEstimate)]
        expected = (
            dict.fromkeys(names) if self.expected is None else dataclasses.asdict(self.expected)
        )
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name != "expected"
        } | expected


def make_train_plan(
    config: Config,
    index: int,
    topology: Topology,
    settings: tuple[str, ...] = (),
    effort: Effort = "full",
) -> TrainPlan:
    """Compiles stage `index` for a topology and reads the program.

    Raises:
        ConfigError, ConfigError: the settings contradict the topology, or there is no compiler
            for it.
    """
    version = compiler_version()
    devices = compile_only_devices(topology)
    step = compile_train_step(config, index, devices, effort, topology.kind)
    used = step.footprint
    available = topology.chip.hbm_bytes
    flops = step_flops(config.model, config.stages[index])
    text = None if step.compiled is None else optimized_hlo(step.compiled)
    compute = flops / (topology.devices * topology.chip.flops)
    sent, parts, unread = None, None, None
    if text is not None:
        try:
            module = HloModule(text)
            sent, parts = collective_bytes(module), read_step_work(module, topology, step.devices)
        except (
            PlanError
        ) as error:  # what the program takes and whether it fits is known all the same
            unread = str(error)
    interconnect = (
        None
        if parts is None
        else sum(exchange.seconds * exchange.times for exchange in parts.exchanges)
    )
    roofline = max(compute, interconnect or 0.0)
    data = config.stages[index].data
    return TrainPlan(
        topology=topology.name,
        chips=topology.chips,
        mesh={str(axis): size for axis, size in config.mesh.sizes(topology.devices).items()},
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
        tokens_per_step=data.batch_size * data.seq_len,
        collective_bytes_per_chip=sent,
        compute_seconds=compute,
        interconnect_seconds=interconnect,
        roofline_step_seconds=roofline,
        mfu_bound=compute / roofline,
        expected=None if parts is None else _estimate_step(parts, topology, compute),
        unread=unread,
        compile_seconds=step.compile_seconds,
        compiler_version=version,
        compiler_flags=compiler_flags(topology.kind),
        effort=effort,
        settings=settings,
    )


def train_plan_report(plan: TrainPlan) -> str:
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
        *heading(
            *(
                what,
                plan.topology,
                plan.chips,
                plan.mesh,
                plan.compiler_version,
                plan.compile_seconds,
                plan.effort,
            ),
            flags=plan.compiler_flags,
        ),
        "memory of a chip",
        *memory(parts),
        "",
        f"a step of {plan.tokens_per_step} tokens",
        f"  {plan.flops_per_step / 1e15:.2f} PFLOP of the model: {plan.compute_seconds:.3f} s at the chips' peak",
        *(
            f"  {kind:20s}{size(sent)} sent by a chip"
            for kind, sent in sorted((plan.collective_bytes_per_chip or {}).items())
        ),
        *_estimate_lines(plan),
        "",
        fit_summary(plan.fits, plan.memory_bytes_per_chip, plan.peak_bytes_per_chip),
    ]
    if not plan.compiled:
        lines.append("the compiler refused the program, and says no more of it than its peak")
    if plan.settings:
        lines.append("with " + " ".join(f"--config.{setting}" for setting in plan.settings))
    return "\n".join(lines)


def _estimate_step(parts: StepWork, topology: Topology, compute_seconds: float) -> StepEstimate:
    slow, expected, fast = (
        step_time(parts, topology.kind, topology.chip, quality)
        for quality in ("low", "expected", "high")
    )
    return StepEstimate(
        product_flops_per_chip=parts.matmul_flops,
        attention_flops_per_chip=parts.attention_flops,
        expected_step_seconds=expected.step,
        expected_step_seconds_range=(fast.step, slow.step),
        expected_mfu=compute_seconds / expected.step,
        expected_mfu_range=(compute_seconds / slow.step, compute_seconds / fast.step),
        expected_parts=expected._asdict(),
    )


def _estimate_lines(plan: TrainPlan) -> list[str]:
    if plan.expected is None:
        why = (
            "this JAX cannot read what this compiler writes"
            if plan.compiled
            else "there is no program"
        )
        if plan.unread is not None:
            why = f"the program's text cannot be read ({plan.unread})"
        return [f"  expected time: not known, for {why}"]
    expected, parts = plan.expected, plan.expected.expected_parts
    products, attention = expected.product_flops_per_chip, expected.attention_flops_per_chip
    again = (products + attention) * math.prod(plan.mesh.values()) / plan.flops_per_step
    shortest, longest = expected.expected_step_seconds_range
    low, high = expected.expected_mfu_range
    return [
        f"  products    {parts['products']:8.3f} s  for {products / 1e12:.0f} TFLOP of a chip",
        f"  attention   {parts['attention']:8.3f} s  for {attention / 1e12:.0f} TFLOP; with the products {again:.2f} times "
        "the model's, for rematerialisation computes again",
        f"  links       {parts['links']:8.3f} s  of which {parts['links'] - parts['waiting']:.3f} s have products beside them",
        f"  expected    {expected.expected_step_seconds:8.3f} s  ({shortest:.3f} to {longest:.3f} s), "
        f"MFU {100 * expected.expected_mfu:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)",
    ]
