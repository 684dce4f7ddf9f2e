"""How long a step is expected to take: its matrix products, its attention, and what its links do while nothing is computed.

    seconds = products / (share * peak) + attention / (share * peak) + links that have no products
    beside them

The shares are what published runs of MaxText reach on each kind of chip, as (least, expected,
most). A run's products are what its rematerialisation computes, its attention what its kernels
compute, and the rest of its time, norms and the optimizer included, is in the share of the
products. docs/tpu.md has the runs with their sources.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stepaudio_jax.errors import PlanError
from stepaudio_jax.parallel import Chip
from stepaudio_jax.planning.collectives import Collective, find_collectives, ring_bytes
from stepaudio_jax.planning.hlo import HloInstruction, HloModule, arrays
from stepaudio_jax.planning.topology import Topology

# Floating-point operations of a compiled program's matrix products, as its optimised HLO has them.

# Products of [queries, head] x [head, keys], or of that size, in each of the kernels of
# jax.experimental.pallas.ops.tpu. splash_attention: forward q k and w v; for dq again q k, then do
# v and ds k; for dk and dv those of dq but ds q, and w do.
_KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused_bwd": 5}
_KERNEL = re.compile(r"splash_m[hq]a_(fwd|dq|dkv|fused_bwd)")

_WINDOW = ("stride", "lhs_dilate", "rhs_dilate")


@dataclasses.dataclass(frozen=True)
class AttentionKernelCall:
    """A Pallas kernel of attention, as often as its computation runs.

    Attributes:
        heads, queries, keys, head_dim: of its operands, in one device.
        products: matrix products of heads x queries x keys x head_dim.
        causal: whether only the blocks at and below the diagonal are computed; a kernel that
            computes all blocks has no schedule of them.
        rows: of the batch, that one run of it computes.
        times: how often it runs in one run of the program.
        computation, place: where it stands.
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
    place: int

    @property
    def flops(self) -> float:
        """Returns the operations of one run and one row; a causal mask halves them, but for the blocks on the diagonal."""
        full = 2.0 * self.products * self.heads * self.queries * self.keys * self.head_dim
        return full / 2 if self.causal else full


def scheduled_matmul_flops(module: HloModule) -> dict[str, list[float]]:
    """Returns for every computation that runs by itself the operations of each of its instructions, fused products included.

    Those of a loop are not in the instruction that is the loop, but in the loop's own computation.
    """
    flops = {}
    for name in module.scheduled:
        flops[name] = [
            _flops(module, name, instruction)
            + sum(
                _flops(module, computation, part)
                for computation, part in module.fused_instructions(instruction)
            )
            for instruction in module.computations[name]
        ]
    return flops


def matmul_flops(module: HloModule) -> float:
    """Returns the operations of all matrix products in one run of a program, in one device; attention kernels are none of them.

    Raises:
        PlanError: a loop of which the text does not tell how often it runs holds a product.
    """
    return sum(
        sum(flops) * module.run_count(name)
        for name, flops in scheduled_matmul_flops(module).items()
        if any(flops)
    )


def attention_kernels(module: HloModule) -> list[AttentionKernelCall]:
    """Returns the program's splash attention kernels.

    Raises:
        PlanError: a loop of which the text does not tell how often it runs holds one.
    """
    return list(_kernels(module))


def _kernels(module: HloModule) -> Iterator[AttentionKernelCall]:
    for name in module.scheduled:
        for place, instruction in enumerate(module.computations[name]):
            kernel = (
                _KERNEL.match(instruction.name) if instruction.operation == "custom-call" else None
            )
            if kernel is None:
                continue
            operands = list(arrays(_layouts(instruction.line)))
            schedule = [
                shape for dtype, shape in operands if dtype in ("s8", "s32") and len(shape) > 2
            ]
            floats = [
                shape for dtype, shape in operands if dtype in ("bf16", "f32") and len(shape) > 2
            ]
            (*rows, heads, queries, head_dim), key = floats[0], floats[1]
            yield AttentionKernelCall(
                heads=heads,
                queries=queries,
                keys=key[-2],
                head_dim=head_dim,
                products=_KERNEL_PRODUCTS[kernel[1]],
                causal=bool(schedule),
                rows=math.prod(rows),
                times=module.run_count(name),
                computation=name,
                place=place,
            )


def _layouts(line: str) -> str:
    """Returns the operands' shapes as a kernel's call states them."""
    stated = re.search(r"operand_layout_constraints=\{(.*?\})\}", line)
    if stated is None:
        raise PlanError(f"a kernel's call without its operands' shapes: {line[:200]}")
    return stated[1]


def _flops(module: HloModule, computation: str, instruction: HloInstruction) -> float:
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
    """Returns its operations; the TPU compiler writes products as convolutions, some with a window that hangs over the edge.

    Counted as XLA's `HloCostAnalysis::HandleConvolution` does: a product with padding is none.
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
        places, taps = result[labels[3].index(str(axis))], right[labels[2].index(str(axis))]
        stride, low, base, kernel = (
            window[name][axis] if axis < len(window[name]) else default
            for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        span = (size - 1) * base + 1
        valid *= sum(
            1
            for place in range(places)
            for tap in range(taps)
            if 0 <= (at := place * stride + tap * kernel - low) < span and at % base == 0
        )
    features, outputs = right[labels[2].index("i")], right[labels[2].index("o")]
    batch = result[labels[3].index("b")]
    groups = int(instruction.attribute("batch_group_count") or 1)
    return 2.0 * valid * batch * features * outputs / groups


def _window(line: str) -> dict[str, list[int]]:
    """Returns the sizes of a window by name and axis; of the padding, what is in front."""
    text = re.search(r"window=\{([^}]*)\}", line)
    stated = dict(re.findall(r"(\w+)=([\d_x\-]+)", text[1])) if text else {}
    window = {
        name: [int(size) for size in stated[name].split("x")] if name in stated else []
        for name in _WINDOW
    }
    return {
        **window,
        "pad": [int(pad.split("_")[0]) for pad in stated["pad"].split("x")]
        if "pad" in stated
        else [],
    }


class UtilizationRange(NamedTuple):
    """Of a peak, that programs reach."""

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
# Of Ironwood's from two runs of one model, 8 192 and 131 072 tokens long. A head of 128 fills half
# of the matrix units of v6e and of Ironwood, and all of those of the others: assumed accordingly.
ATTENTION_UTILIZATION = {
    "v4": UtilizationRange(0.25, 0.35, 0.50),
    "v5e": UtilizationRange(0.25, 0.35, 0.50),
    "v5p": UtilizationRange(0.25, 0.35, 0.50),
    "v6e": UtilizationRange(0.18, 0.25, 0.35),
    "tpu7x": UtilizationRange(0.25, 0.37, 0.45),
}
# The most is what "How to Scale Your Model" calculates with (9e10 bytes a second of v5p's 1e11 a
# link); the others are assumed.
LINK_UTILIZATION = UtilizationRange(0.60, 0.75, 0.90)


@dataclasses.dataclass(frozen=True)
class TimedCollective:
    """A collective and how long it takes.

    Attributes:
        seconds: at the peak of the links that it can use, one run of it.
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
        matmul_flops: of all matrix products, with what is computed again; attention is none of
        them.
        attention_flops: of attention's kernels, with what is computed again.
        compute: for every computation that runs by itself, each instruction's (product flops,
        attention flops), one run.
        exchanges: all collectives.
    """

    matmul_flops: float
    attention_flops: float
    compute: dict[str, list[tuple[float, float]]]
    exchanges: list[TimedCollective]


class StepTime(NamedTuple):
    """Seconds of a step.

    Attributes:
        products, attention: computing.
        links: sending, whether or not something is computed meanwhile.
        waiting: of them, those in which no product or attention is computed.
    """

    products: float
    attention: float
    links: float
    waiting: float

    @property
    def step(self) -> float:
        """Returns the whole step."""
        return self.products + self.attention + self.waiting


def read_step_work(module: HloModule, topology: Topology, devices: Sequence[Any]) -> StepWork:
    """Reads the parts of a step from its program.

    Args:
        module: the compiled step.
        topology: where it runs.
        devices: of its mesh, in the mesh's order.

    Raises:
        PlanError: a loop of unknown length holds a product or a collective, or the text is not what
            the reader knows.
    """
    products = scheduled_matmul_flops(module)
    compute = {name: [(flops, 0.0) for flops in listed] for name, listed in products.items()}
    attention = 0.0
    for kernel in attention_kernels(module):
        flops, before = compute[kernel.computation][kernel.place]
        compute[kernel.computation][kernel.place] = (flops, before + kernel.flops * kernel.rows)
        attention += kernel.flops * kernel.rows * kernel.times
    total = sum(
        sum(listed) * module.run_count(name) for name, listed in products.items() if any(listed)
    )
    places = [(getattr(device, "slice_index", 0), tuple(device.coords)) for device in devices]
    exchanges = [
        TimedCollective(
            _seconds(collective, topology, places),
            collective.times,
            collective.computation,
            collective.first,
            collective.last,
        )
        for collective in find_collectives(module)
    ]
    return StepWork(total, attention, compute, exchanges)


def step_time(parts: StepWork, kind: str, chip: Chip, quality: str = "expected") -> StepTime:
    """Returns how long a step takes.

    Args:
        parts: see `read_step_work`.
        kind, chip: of the topology.
        quality: which of the shares: "low", "expected" or "high".
    """
    products = getattr(MATMUL_UTILIZATION[kind], quality) * chip.flops
    attention = getattr(ATTENTION_UTILIZATION[kind], quality) * chip.flops
    share = getattr(LINK_UTILIZATION, quality)
    # Seconds of computing that can still hide an exchange, by computation and instruction.
    free = {
        name: [flops / products + kernels / attention for flops, kernels in listed]
        for name, listed in parts.compute.items()
    }
    links = waiting = 0.0
    for exchange in sorted(parts.exchanges, key=lambda exchange: exchange.first):
        seconds = exchange.seconds / share
        links += seconds * exchange.times
        if exchange.last > exchange.first:
            beside = free[exchange.computation]
            for place in range(exchange.first, exchange.last + 1):
                hidden = min(seconds, beside[place])
                seconds -= hidden
                beside[place] -= hidden
        waiting += seconds * exchange.times
    return StepTime(
        parts.matmul_flops / products, parts.attention_flops / attention, links, waiting
    )


def _seconds(
    collective: Collective, topology: Topology, places: Sequence[tuple[int, tuple[int, ...]]]
) -> float:
    """Returns how long one run of a collective takes, at the peak of the links that it can use."""
    chip = topology.chip
    if collective.members is None or max(collective.members) >= len(places):
        return collective.sent / chip.ici_bandwidth
    members = [places[member] for member in collective.members]
    slices = {index for index, _ in members}
    coordinates = [coordinate for index, coordinate in members if index == members[0][0]]
    bandwidth = _link_bandwidth(coordinates, topology)
    if len(slices) == 1:
        return collective.sent / bandwidth
    # In each slice a part of the array, exchanged with the same part in the other slices over the
    # network.
    within = (
        ring_bytes(collective.kind, collective.size, len(coordinates))
        if len(coordinates) > 1
        else 0.0
    )
    across = ring_bytes(collective.kind, collective.size / len(coordinates), len(slices))
    return within / bandwidth + across / chip.dcn_bandwidth


def _link_bandwidth(coordinates: Sequence[tuple[int, ...]], topology: Topology) -> float:
    """Bytes a second that a chip sends to the others of its group, over the axes along which the group lies.

    In a ring it sends both ways; along an open line the chip at its end has one link.
    """
    chip = topology.chip
    links = 0
    for axis, size in enumerate(topology.shape):
        extent = len({coordinate[axis] for coordinate in coordinates})
        if extent > 1:
            links += 2 if topology.wrap[axis] and extent == size else 1
    return chip.ici_bandwidth * links / (2 * chip.torus_dims) if links else chip.ici_bandwidth
