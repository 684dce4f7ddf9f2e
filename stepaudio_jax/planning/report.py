"""What all plans have in common: their fields, the choice of compiler effort, and report lines."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from stepaudio_jax.planning.compile import Effort, compiler_flags, compiler_version
from stepaudio_jax.planning.topology import Topology

# A quick plan is kept where its peak takes no more than this part of a chip's memory.
_MAX_QUICK_MEMORY_FRACTION = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanBase:
    """The fields that every plan has.

    Bytes are of one chip; of one device, half a chip, where each chip is two devices (Ironwood).

    Attributes:
        topology: the slice's name, as "v5p:4x4x4".
        chips: number of chips of all slices together.
        mesh: devices along each axis.
        fits: whether the programs compile and their peak lies within the chip's memory.
        memory_bytes_per_chip: what programs may use of it.
        peak_bytes_per_chip: the most that is in use at once.
        compile_seconds: wall-clock time of making the plan.
        compiler_version: of the TPU compiler; another version's memory differs.
        compiler_flags: of LIBTPU_INIT_ARGS, and those that the kind of chip needs.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    fits: bool
    memory_bytes_per_chip: int
    peak_bytes_per_chip: int
    compile_seconds: float
    compiler_version: str
    compiler_flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return dataclasses.asdict(self)


PlanT = TypeVar("PlanT", bound=PlanBase)


def common_fields(
    topology: Topology,
    mesh_sizes: Mapping[Any, int],
    *,
    peak: int,
    is_compiled: bool,
    compile_seconds: float,
) -> dict[str, Any]:
    """Returns the fields of `PlanBase`, as keyword arguments of a plan.

    Args:
        topology: the slice.
        mesh_sizes: devices along each axis.
        peak: the most bytes that are in use at once, of one device.
        is_compiled: whether the compiler accepted every program.
        compile_seconds: wall-clock time of making the plan.
    """
    available = topology.chip.hbm_bytes
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "mesh": {str(axis): size for axis, size in mesh_sizes.items()},
        "fits": is_compiled and peak <= available,
        "memory_bytes_per_chip": available,
        "peak_bytes_per_chip": peak,
        "compile_seconds": compile_seconds,
        "compiler_version": compiler_version(),
        "compiler_flags": compiler_flags(topology.kind),
    }


def escalate_if_tight(plan_with_effort: Callable[[Effort], PlanT], effort: Effort) -> PlanT:
    """Makes a plan; makes it again with full effort where a quick one leaves little or no room."""
    plan = plan_with_effort(effort)
    if (
        effort == "quick"
        and plan.peak_bytes_per_chip > _MAX_QUICK_MEMORY_FRACTION * plan.memory_bytes_per_chip
    ):
        return plan_with_effort("full")
    return plan


def heading_lines(what: str, plan: PlanBase, effort: Effort = "full") -> list[str]:
    """Returns a report's first lines: what is planned, for which slice, and how it was compiled."""
    axes = (
        " x ".join(f"{axis} {devices}" for axis, devices in plan.mesh.items() if devices > 1)
        or "1 chip"
    )
    compiled = f"compiled by {plan.compiler_version} in {plan.compile_seconds:.0f} s"
    if effort == "quick":
        compiled += (
            " with little effort; some percent more or less memory in the job's own program "
            "(--effort=full)"
        )
    lines = [f"{what} on {plan.topology}: {plan.chips} chips, mesh {axes}", compiled]
    if math.prod(plan.mesh.values()) > plan.chips:
        lines.append("each chip is two devices; what follows is of one device, half a chip")
    if plan.compiler_flags:
        flags = " ".join(plan.compiler_flags)
        lines.append(f"with LIBTPU_INIT_ARGS='{flags}', as the job is to have it")
    return [*lines, ""]


def memory_lines(bytes_by_part: Mapping[str, int]) -> list[str]:
    """Returns a report's table of memory: a line for each part."""
    return [f"  {name:20s}{format_gigabytes(count)}" for name, count in bytes_by_part.items()]


def fit_line(plan: PlanBase) -> str:
    """Returns the line that says whether the plan fits, and by how much."""
    difference = abs(plan.memory_bytes_per_chip - plan.peak_bytes_per_chip)
    gigabytes = format_gigabytes(difference).strip()
    return (
        f"it fits, {gigabytes} to spare" if plan.fits else f"it does NOT fit: {gigabytes} too much"
    )


def format_gigabytes(count: float) -> str:
    """Returns a number of bytes as GB (10^9 bytes), padded for a column."""
    return f"{count / 1e9:8.2f} GB"
