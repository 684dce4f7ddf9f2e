"""Estimates how long a step takes: its matrix products, its attention, and its exposed links.

    seconds = products / (utilization * peak) + attention / (utilization * peak)
              + the time of the links that no computation hides

The utilizations, as (low, expected, high), are what published runs of MaxText reach on each kind of
chip. A run's products include what its rematerialisation computes again, and its attention is what
its kernels compute; the rest of its time, norms and the optimizer included, lowers the utilization
of its products. docs/tpu.md has the runs with their sources.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from stepaudio_jax.errors import PlanError
from stepaudio_jax.parallel import Chip
from stepaudio_jax.planning.collectives import Collective, find_collectives, ring_bytes
from stepaudio_jax.planning.hlo import HloInstruction, HloModule, arrays
from stepaudio_jax.planning.topology import Topology

# Products of [queries, head_dim] x [head_dim, keys], or of that size, in each of the kernels of
# jax.experimental.pallas.ops.tpu.splash_attention. Forward: q k^T and w v. dq: q k^T, do v^T and
# ds k. dkv: q k^T, do v^T, ds^T q and w^T do.
_KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused_bwd": 5}
_KERNEL = re.compile(r"splash_m[hq]a_(fwd|dq|dkv|fused_bwd)")


class UtilizationRange(NamedTuple):
    """The part of a peak that programs reach."""

    low: float
    expected: float
    high: float


MATMUL_UTILIZATION = {
    "v4": UtilizationRange(0.64, 0.70, 0.76),
    "v5e": UtilizationRange(0.74, 0.81, 0.88),
    "v5p": UtilizationRange(0.70, 0.79, 0.86),
    "v6e": UtilizationRange(0.53, 0.61, 0.68),
    "tpu7x": UtilizationRange(0.56, 0.66, 0.73),
}
# Ironwood's is from two runs of one model, 8 192 and 131 072 tokens long; the others are assumed. A
# head_dim of 128 fills half of the matrix units of v6e and Ironwood, and all of the others'.
ATTENTION_UTILIZATION = {
    "v4": UtilizationRange(0.25, 0.35, 0.50),
    "v5e": UtilizationRange(0.25, 0.35, 0.50),
    "v5p": UtilizationRange(0.25, 0.35, 0.50),
    "v6e": UtilizationRange(0.18, 0.25, 0.35),
    "tpu7x": UtilizationRange(0.25, 0.37, 0.45),
}
# "high" is what "How to Scale Your Model" calculates with (9e10 of v5p's 1e11 bytes a second of a
# link); the other two are assumed.
LINK_UTILIZATION = UtilizationRange(0.60, 0.75, 0.90)


@dataclasses.dataclass(frozen=True)
class AttentionKernelCall:
    """A call of a splash attention kernel.

    Attributes:
        heads, queries, keys, head_dim: of its operands, in one device.
        products: the number of matrix products of heads x queries x keys x head_dim.
        causal: whether only the blocks at and below the diagonal are computed.
        rows: of the batch, that one call computes.
        times: how often it runs in one run of the program.
        computation, index: the schedule in which it stands, and its index there.
    """

    heads: int
    queries: int
    keys: int
    head_dim: int
    products: int
    causal: bool
    rows: int
    times: int
    computation: str
    index: int

    @property
    def flops(self) -> float:
        """Returns the operations of one call for one row.

        A causal mask halves them; the blocks on the diagonal, computed in full, are neglected.
        """
        full = 2.0 * self.products * self.heads * self.queries * self.keys * self.head_dim
        return full / 2 if self.causal else full


@dataclasses.dataclass(frozen=True)
class TimedCollective:
    """A collective and how long it takes.

    Attributes:
        seconds: of one run of it, at the peak of the links that it can use.
        times: how often it runs in a step.
        computation, first, last: see `Collective`.
    """

    seconds: float
    times: int
    computation: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class StepWork:
    """What one device does in a step.

    Attributes:
        matmul_flops: of all matrix products, recomputation included; attention kernels are not.
        attention_flops: of the attention kernels, recomputation included.
        compute: for every computation with a schedule, each instruction's (product flops, attention
            flops) in one run.
        exchanges: all collectives.
    """

    matmul_flops: float
    attention_flops: float
    compute: dict[str, list[tuple[float, float]]]
    exchanges: list[TimedCollective]


class StepTime(NamedTuple):
    """Seconds of a step.

    Attributes:
        products, attention: of computation.
        links: of sending, whether or not computation hides it.
        waiting: of sending that no product or attention hides.
    """

    products: float
    attention: float
    links: float
    waiting: float

    @property
    def step(self) -> float:
        """Returns the seconds of the whole step."""
        return self.products + self.attention + self.waiting


def step_time(work: StepWork, kind: str, chip: Chip, quality: str = "expected") -> StepTime:
    """Estimates the time of a step.

    Args:
        work: of the step, see `read_step_work`.
        kind, chip: of the topology.
        quality: which of the utilizations: "low", "expected" or "high".
    """
    product_rate = getattr(MATMUL_UTILIZATION[kind], quality) * chip.flops
    attention_rate = getattr(ATTENTION_UTILIZATION[kind], quality) * chip.flops
    link_utilization = getattr(LINK_UTILIZATION, quality)
    # Seconds of each instruction in which it can still hide a collective, by computation.
    unused = {
        name: [flops / product_rate + attention / attention_rate for flops, attention in schedule]
        for name, schedule in work.compute.items()
    }
    links = waiting = 0.0
    for exchange in sorted(work.exchanges, key=lambda exchange: exchange.first):
        seconds = exchange.seconds / link_utilization
        links += seconds * exchange.times
        if exchange.last > exchange.first:
            schedule = unused[exchange.computation]
            for index in range(exchange.first, exchange.last + 1):
                hidden = min(seconds, schedule[index])
                seconds -= hidden
                schedule[index] -= hidden
        waiting += seconds * exchange.times
    return StepTime(
        work.matmul_flops / product_rate, work.attention_flops / attention_rate, links, waiting
    )


def read_step_work(module: HloModule, topology: Topology, devices: Sequence[Any]) -> StepWork:
    """Reads the work of a step from its program.

    Args:
        module: the compiled step.
        topology: the slice that it is compiled for.
        devices: its mesh's devices, in the mesh's order.

    Raises:
        PlanError: a loop of unknown length holds a product or a collective, or the text has an
            unknown form.
    """
    products = scheduled_matmul_flops(module)
    compute = {name: [(flops, 0.0) for flops in schedule] for name, schedule in products.items()}
    attention = 0.0
    for kernel in attention_kernels(module):
        flops, earlier = compute[kernel.computation][kernel.index]
        compute[kernel.computation][kernel.index] = (flops, earlier + kernel.flops * kernel.rows)
        attention += kernel.flops * kernel.rows * kernel.times
    coordinates = [(getattr(device, "slice_index", 0), tuple(device.coords)) for device in devices]
    exchanges = [
        TimedCollective(
            seconds=_seconds_at_peak(collective, topology, coordinates),
            times=collective.times,
            computation=collective.computation,
            first=collective.first,
            last=collective.last,
        )
        for collective in find_collectives(module)
    ]
    return StepWork(_total_flops(module, products), attention, compute, exchanges)


def _seconds_at_peak(
    collective: Collective, topology: Topology, coordinates: Sequence[tuple[int, tuple[int, ...]]]
) -> float:
    """Returns the seconds of one run of a collective, at the peak of the links that it can use.

    Args:
        collective: of the program.
        topology: the slice.
        coordinates: (slice, coordinates in it) of each device of the program.
    """
    chip = topology.chip
    if collective.members is None or max(collective.members) >= len(coordinates):
        return collective.sent / chip.ici_bandwidth
    members = [coordinates[member] for member in collective.members]
    slices = {slice_index for slice_index, _ in members}
    members_in_slice = [
        coordinate for slice_index, coordinate in members if slice_index == members[0][0]
    ]
    bandwidth = _link_bandwidth(members_in_slice, topology)
    if len(slices) == 1:
        return collective.sent / bandwidth
    # Each slice reduces or gathers its part of the array over its links; the network exchanges the
    # part with those of the other slices.
    within = (
        ring_bytes(collective.kind, collective.size, len(members_in_slice))
        if len(members_in_slice) > 1
        else 0.0
    )
    across = ring_bytes(collective.kind, collective.size / len(members_in_slice), len(slices))
    return within / bandwidth + across / chip.dcn_bandwidth


def _link_bandwidth(coordinates: Sequence[tuple[int, ...]], topology: Topology) -> float:
    """Returns the bytes a second that a chip sends to the others of its group.

    It uses the links along the axes in which the group extends: both directions of a ring, but one
    link of an open line, since the chip at its end has no other.
    """
    chip = topology.chip
    links = 0
    for axis, size in enumerate(topology.shape):
        extent = len({coordinate[axis] for coordinate in coordinates})
        if extent > 1:
            links += 2 if topology.wrap[axis] and extent == size else 1
    return chip.ici_bandwidth * links / (2 * chip.torus_dims) if links else chip.ici_bandwidth


def matmul_flops(module: HloModule) -> float:
    """Returns the operations of one device's matrix products in one run of a program.

    Attention kernels are not counted; see `attention_kernels`.

    Raises:
        PlanError: a loop of unknown length holds a product.
    """
    return _total_flops(module, scheduled_matmul_flops(module))


def _total_flops(module: HloModule, products: dict[str, list[float]]) -> float:
    return sum(
        sum(flops) * module.run_count(name) for name, flops in products.items() if any(flops)
    )


def scheduled_matmul_flops(module: HloModule) -> dict[str, list[float]]:
    """Returns the operations of each instruction of every computation with a schedule.

    Products inside of a fusion count as the fusion's; those of a loop belong to the instructions of
    the loop's own computation.
    """
    return {
        name: [
            _flops(module, name, instruction)
            + sum(
                _flops(module, computation, part)
                for computation, part in module.fused_instructions(instruction)
            )
            for instruction in module.computations[name]
        ]
        for name in module.scheduled
    }


def attention_kernels(module: HloModule) -> list[AttentionKernelCall]:
    """Returns the calls of splash attention kernels in a program.

    Raises:
        PlanError: a loop of unknown length holds one.
    """
    kernels = []
    for computation in module.scheduled:
        for index, instruction in enumerate(module.computations[computation]):
            kernel = (
                _KERNEL.match(instruction.name) if instruction.operation == "custom-call" else None
            )
            if kernel is None:
                continue
            operands = list(arrays(_operand_layouts(instruction.line)))
            # A kernel that skips blocks has a schedule of them, in integers; the other operands of
            # more than two dimensions are query, key, value and their gradients.
            has_schedule = any(
                dtype in ("s8", "s32") and len(shape) > 2 for dtype, shape in operands
            )
            float_shapes = [
                shape for dtype, shape in operands if dtype in ("bf16", "f32") and len(shape) > 2
            ]
            (*rows, heads, queries, head_dim), key_shape = float_shapes[0], float_shapes[1]
            kernels.append(
                AttentionKernelCall(
                    heads=heads,
                    queries=queries,
                    keys=key_shape[-2],
                    head_dim=head_dim,
                    products=_KERNEL_PRODUCTS[kernel[1]],
                    causal=has_schedule,
                    rows=math.prod(rows),
                    times=module.run_count(computation),
                    computation=computation,
                    index=index,
                )
            )
    return kernels


def _operand_layouts(line: str) -> str:
    """Returns the text of the operands' shapes in the line of a kernel's call."""
    layouts = re.search(r"operand_layout_constraints=\{(.*?\})\}", line)
    if layouts is None:
        raise PlanError(f"a kernel's call without its operands' shapes: {line[:200]}")
    return layouts[1]


def _flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
    """Returns the operations of an instruction's own matrix product; 0 where it is none."""
    if instruction.operation == "dot":
        return _dot_flops(module, computation, instruction)
    if instruction.operation == "convolution":
        return _convolution_flops(module, computation, instruction)
    return 0.0


def _dot_flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
    result = _result_shape(instruction)
    left = module.shape(computation, instruction.operands[0])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)
    axes = [int(axis) for axis in filter(None, contracted[1].split(","))] if contracted else []
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in axes)


def _result_shape(instruction: HloInstruction) -> list[int]:
    for _, shape in arrays(instruction.result):
        return shape
    raise PlanError(f"a product without a result: {instruction.line[:200]}")


def _convolution_flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
    """Returns the operations of a convolution.

    The TPU compiler writes matrix products as convolutions, some with a window that extends over
    the edge. They are counted as by XLA's `HloCostAnalysis::HandleConvolution`: products with
    padding are left out.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line)
    if labels is None:
        raise PlanError(f"a convolution without its dimensions: {instruction.line[:200]}")
    left, right = (module.shape(computation, name) for name in instruction.operands[:2])
    result = _result_shape(instruction)
    window = _window(instruction.line)
    valid = 1
    for axis in range(len(labels[1]) - 2):
        size = left[labels[1].index(str(axis))]
        outputs_along, taps = result[labels[3].index(str(axis))], right[labels[2].index(str(axis))]
        stride, low, base, kernel = (
            window[name][axis] if axis < len(window[name]) else default
            for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        span = (size - 1) * base + 1
        valid *= sum(
            1
            for output in range(outputs_along)
            for tap in range(taps)
            if 0 <= (at := output * stride + tap * kernel - low) < span and at % base == 0
        )
    features, outputs = right[labels[2].index("i")], right[labels[2].index("o")]
    batch = result[labels[3].index("b")]
    groups = int(instruction.attribute("batch_group_count") or 1)
    return 2.0 * valid * batch * features * outputs / groups


def _window(line: str) -> dict[str, list[int]]:
    """Returns a convolution's window: sizes by name and axis; of the padding, the low side."""
    text = re.search(r"window=\{([^}]*)\}", line)
    stated = dict(re.findall(r"(\w+)=([\d_x\-]+)", text[1])) if text else {}
    window = {
        name: [int(size) for size in stated[name].split("x")] if name in stated else []
        for name in ("stride", "lhs_dilate", "rhs_dilate")
    }
    return {
        **window,
        "pad": [int(pad.split("_")[0]) for pad in stated["pad"].split("x")]
        if "pad" in stated
        else [],
    }
