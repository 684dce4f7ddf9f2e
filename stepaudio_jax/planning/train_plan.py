"""Plans a training stage on a topology: whether it fits, and how fast its steps can be."""

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
    optimized_hlo,
)
from stepaudio_jax.planning.hlo import HloModule
from stepaudio_jax.planning.report import (
    PlanBase,
    common_fields,
    fit_line,
    format_gigabytes,
    heading_lines,
    memory_lines,
)
from stepaudio_jax.planning.step_time import StepWork, read_step_work, step_time
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.training import step_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """How long a step is expected to take; see `step_time`.

    Attributes:
        product_flops_per_chip, attention_flops_per_chip: of a step, recomputation included.
        expected_step_seconds, expected_step_seconds_range: the range is (shortest, longest).
        expected_mfu, expected_mfu_range: the plan's `compute_seconds` over those; the range is
            (lowest, highest).
        expected_parts: seconds of the expected step by part: products, attention, links, and
            waiting, which is the time of the links that no computation hides. A step takes
            products + attention + waiting.
    """

    product_flops_per_chip: float
    attention_flops_per_chip: float
    expected_step_seconds: float
    expected_step_seconds_range: tuple[float, float]
    expected_mfu: float
    expected_mfu_range: tuple[float, float]
    expected_parts: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPlan(PlanBase):
    """The plan of one training stage on one topology.

    Attributes (besides those of `PlanBase`):
        stage: its name.
        compiled: whether there is a program; the compiler refuses one that does not fit.
        argument_bytes_per_chip: the state and the batch. Parts of it are parameter_bytes_per_chip
            and optimizer_bytes_per_chip.
        temporary_bytes_per_chip: activations, gathered parameters, gradients.
        code_bytes_per_chip: the program itself.
        flops_per_step: of the whole job, by formula (see `training.flops`).
        tokens_per_step: of the whole job, padding included.
        collective_bytes_per_chip: kind of collective -> bytes that a chip sends in a step. None, as
            is everything that is read from the program's text, where there is no program or none
            that this version of JAX can read.
        compute_seconds, interconnect_seconds: of a step, each at the chip's peak.
        roofline_step_seconds: the larger of those that are known; no step is faster.
        mfu_bound: compute_seconds / roofline_step_seconds.
        expected: how long a step is expected to take; in JSON its fields stand beside the others.
        unread: why the program's text could not be read, in which case nothing is expected.
        effort: how hard the compiler optimized.
        settings: overrides of the configuration that this plan is for, as `key=value`.
    """

    stage: str
    compiled: bool
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
    effort: Effort
    settings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values; those of a missing estimate are None."""
        names = [field.name for field in dataclasses.fields(StepEstimate)]
        estimate = (
            dict.fromkeys(names) if self.expected is None else dataclasses.asdict(self.expected)
        )
        fields = dataclasses.asdict(self)
        del fields["expected"]
        return fields | estimate


def make_train_plan(
    config: Config,
    index: int,
    topology: Topology,
    settings: tuple[str, ...] = (),
    effort: Effort = "full",
) -> TrainPlan:
    """Compiles the train step of stage `index` for a topology and reads the program.

    Raises:
        ConfigError: the settings contradict the topology, or there is no compiler for it.
    """
    devices = compile_only_devices(topology)
    step = compile_train_step(config, index, devices, effort, topology.kind)
    stage = config.stages[index]
    flops = step_flops(config.model, stage)
    compute = flops / (topology.devices * topology.chip.flops)
    text = None if step.compiled is None else optimized_hlo(step.compiled)
    sent, work, unread = None, None, None
    if text is not None:
        try:
            module = HloModule(text)
            sent, work = collective_bytes(module), read_step_work(module, topology, step.devices)
        except PlanError as error:  # the memory and whether it fits are known all the same
            unread = str(error)
    interconnect = (
        None
        if work is None
        else sum(exchange.seconds * exchange.times for exchange in work.exchanges)
    )
    roofline = max(compute, interconnect or 0.0)
    footprint = step.footprint
    return TrainPlan(
        **common_fields(
            topology,
            config.mesh.sizes(topology.devices),
            peak=footprint.peak,
            is_compiled=step.compiled is not None,
            compile_seconds=step.compile_seconds,
        ),
        stage=stage.name,
        compiled=step.compiled is not None,
        argument_bytes_per_chip=footprint.arguments,
        parameter_bytes_per_chip=step.parameter_bytes,
        optimizer_bytes_per_chip=step.optimizer_bytes,
        temporary_bytes_per_chip=footprint.temporaries,
        code_bytes_per_chip=footprint.code,
        flops_per_step=flops,
        tokens_per_step=stage.data.batch_size * stage.data.seq_len,
        collective_bytes_per_chip=sent,
        compute_seconds=compute,
        interconnect_seconds=interconnect,
        roofline_step_seconds=roofline,
        mfu_bound=compute / roofline,
        expected=None if work is None else _estimate_step(work, topology, compute),
        unread=unread,
        effort=effort,
        settings=settings,
    )


def _estimate_step(work: StepWork, topology: Topology, compute_seconds: float) -> StepEstimate:
    """Estimates the time of a step from its work; `compute_seconds` is the model's at the peak."""
    slow, expected, fast = (
        step_time(work, topology.kind, topology.chip, quality)
        for quality in ("low", "expected", "high")
    )
    return StepEstimate(
        product_flops_per_chip=work.matmul_flops,
        attention_flops_per_chip=work.attention_flops,
        expected_step_seconds=expected.step,
        expected_step_seconds_range=(fast.step, slow.step),
        expected_mfu=compute_seconds / expected.step,
        expected_mfu_range=(compute_seconds / slow.step, compute_seconds / fast.step),
        expected_parts=expected._asdict(),
    )


def train_plan_report(plan: TrainPlan) -> str:
    """Returns the plan as a page of text; a GB is 10^9 bytes."""
    bytes_by_part = {
        "parameters": plan.parameter_bytes_per_chip,
        "optimizer": plan.optimizer_bytes_per_chip,
        "all arguments": plan.argument_bytes_per_chip,
        "temporaries": plan.temporary_bytes_per_chip,
        "peak": plan.peak_bytes_per_chip,
        "available": plan.memory_bytes_per_chip,
        "program": plan.code_bytes_per_chip,
    }
    lines = [
        *heading_lines(f"stage {plan.stage}", plan, plan.effort),
        "memory of a chip",
        *memory_lines(bytes_by_part),
        "",
        f"a step of {plan.tokens_per_step} tokens",
        f"  {plan.flops_per_step / 1e15:.2f} PFLOP of the model: "
        f"{plan.compute_seconds:.3f} s at the chips' peak",
        *(
            f"  {kind:20s}{format_gigabytes(sent)} sent by a chip"
            for kind, sent in sorted((plan.collective_bytes_per_chip or {}).items())
        ),
        *_estimate_lines(plan),
        "",
        fit_line(plan),
    ]
    if not plan.compiled:
        lines.append("the compiler refused the program, and says no more of it than its peak")
    if plan.settings:
        lines.append("with " + " ".join(f"--config.{setting}" for setting in plan.settings))
    return "\n".join(lines)


def _estimate_lines(plan: TrainPlan) -> list[str]:
    """Returns the report's lines about the expected time of a step."""
    if plan.expected is None:
        return [f"  expected time: not known, for {_reason_without_estimate(plan)}"]
    estimate, parts = plan.expected, plan.expected.expected_parts
    products, attention = estimate.product_flops_per_chip, estimate.attention_flops_per_chip
    computed = (products + attention) * math.prod(plan.mesh.values()) / plan.flops_per_step
    hidden = parts["links"] - parts["waiting"]
    shortest, longest = estimate.expected_step_seconds_range
    low, high = estimate.expected_mfu_range
    return [
        f"  products    {parts['products']:8.3f} s  for {products / 1e12:.0f} TFLOP of a chip",
        f"  attention   {parts['attention']:8.3f} s  for {attention / 1e12:.0f} TFLOP; "
        f"with the products {computed:.2f} times the model's, "
        "for rematerialisation computes again",
        f"  links       {parts['links']:8.3f} s  of which {hidden:.3f} s have products beside them",
        f"  expected    {estimate.expected_step_seconds:8.3f} s  "
        f"({shortest:.3f} to {longest:.3f} s), "
        f"MFU {100 * estimate.expected_mfu:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)",
    ]


def _reason_without_estimate(plan: TrainPlan) -> str:
    """Returns why a plan expects no time of a step."""
    if plan.unread is not None:
        return f"the program's text cannot be read ({plan.unread})"
    if plan.compiled:
        return "this JAX cannot read what this compiler writes"
    return "there is no program"
