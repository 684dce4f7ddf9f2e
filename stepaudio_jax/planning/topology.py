"""TPU topologies by name."""

import dataclasses
import math
import re

from stepaudio_jax.config import ConfigError
from stepaudio_jax.parallel import CHIPS, Chip

_OTHER_NAMES = {"v5litepod": "v5e", "v5lite": "v5e"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod, or several alike.

    Attributes:
        kind: "v5p", "v6e", ..
        shape: chips along each axis of the torus.
        slices: how many slices of that shape.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What each chip can do."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """In all slices together."""
        return self.slices * math.prod(self.shape)

    @property
    def name(self) -> str:
        """As "v5p:4x4x4"; with the number of slices in front where there are several."""
        single = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return single if self.slices == 1 else f"{self.slices} x {single}"


def parse_topology(name: str, slices: int = 1) -> Topology:
    """A topology from its shape ("v5p:4x4x4") or from Google's name for it ("v5p-128", "v5litepod-256", "v6e-64").

    Raises:
        ConfigError: the name is not one of those.
    """
    if slices < 1:
        raise ConfigError(f"slices={slices} must be positive")
    shaped = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    counted = re.fullmatch(r"(\w+)-(\d+)", name)
    match = shaped or counted
    kind = _OTHER_NAMES.get(match[1], match[1]) if match else ""
    if match is None or kind not in CHIPS:
        raise ConfigError(
            f"topology {name!r}: write KIND:SHAPE, as v5p:4x4x4, or Google's name, as v5p-128; the kinds are {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    if shaped:
        shape = tuple(int(size) for size in shaped[2].split("x"))
        if len(shape) != chip.axes or 0 in shape:
            raise ConfigError(f"topology {name!r}: a slice of {kind} has {chip.axes} axes, each of at least one chip")
        return Topology(kind, shape, slices)
    count = int(match[2])
    chips, rest = divmod(count, 2 if chip.cores_named else 1)
    if rest or chips < 1 or chips & (chips - 1):
        unit = "cores, two a chip" if chip.cores_named else "chips"
        raise ConfigError(f"topology {name!r}: the number counts {unit}, a power of two of them; or write the shape")
    return Topology(kind, _default_shape(chips, chip.axes), slices)


def _default_shape(chips: int, axes: int) -> tuple[int, ...]:
    """The most cubic shape of so many chips, smaller sizes first, as Google lays out a slice that is asked for by its size."""
    if axes == 3 and chips == 4:
        return (2, 2, 1)  # one machine
    exponent = chips.bit_length() - 1
    low, more = divmod(exponent, axes)
    return tuple(2 ** (low + (axis >= axes - more)) for axis in range(axes))
