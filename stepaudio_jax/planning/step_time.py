"""How long a step is expected to take: its matrix products, its attention, and what its links do while nothing is computed.

    seconds = products / (share * peak) + attention / (share * peak) + links that have no products
    beside them

The shares are what published runs of MaxText reach on each kind of chip, as (least, expected,
most). A run's products are what its rematerialisation computes, its attention what its kernels
compute, and the rest of its time, norms and the optimizer included, is in the share of the
products. docs/tpu.md has the runs with their sources.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from stepaudio_jax.parallel import Chip
from stepaudio_jax.planning.collectives import Collective, find_collectives, ring_bytes
from stepaudio_jax.planning.hlo import HloModule
from stepaudio_jax.planning.products import attention_kernels, scheduled_matmul_flops
from stepaudio_jax.planning.topology import Topology


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
        HloError: a loop of unknown length holds a product or a collective, or the text is not what
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
