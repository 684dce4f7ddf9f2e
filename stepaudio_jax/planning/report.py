"""What the pages of all plans have in common."""

import math
from collections.abc import Mapping, Sequence

from stepaudio_jax.planning.compile import Effort


def size(count: float) -> str:
    """Bytes in 10^9, in a column."""
    return f"{count / 1e9:8.2f} GB"


def heading(
    what: str,
    topology: str,
    chips: int,
    mesh: Mapping[str, int],
    compiler_version: str,
    seconds: float,
    effort: Effort = "full",
    flags: Sequence[str] = (),
) -> list[str]:
    """The first lines: what was planned, where, by which compiler, how hard it tried, and with which of the user's flags."""
    axes = (
        " x ".join(f"{axis} {devices}" for axis, devices in mesh.items() if devices > 1) or "1 chip"
    )
    compiled = f"compiled by {compiler_version} in {seconds:.0f} s"
    if effort == "quick":
        compiled += " with little effort; some percent more or less memory in the job's own program (--effort=full)"
    lines = [f"{what} on {topology}: {chips} chips, mesh {axes}", compiled]
    if math.prod(mesh.values()) > chips:
        lines.append("each chip is two devices; what follows is of one device, half a chip")
    if flags:
        lines.append(f"with LIBTPU_INIT_ARGS='{' '.join(flags)}', as the job is to have it")
    return [*lines, ""]


def memory(parts: Mapping[str, int]) -> list[str]:
    """A line for each part of a chip's memory."""
    return [f"  {name:20s}{size(taken)}" for name, taken in parts.items()]


def fit_summary(fits: bool, available: int, peak: int) -> str:
    """Whether it fits, and by how much."""
    spare = size(abs(available - peak)).strip()
    return f"it fits, {spare} to spare" if fits else f"it does NOT fit: {spare} too much"
