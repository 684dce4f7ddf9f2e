"""TPU topologies by name: shapes of slices, and which of their chips are linked."""

import dataclasses
import math
import re

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.parallel import CHIPS, Chip

_KIND_ALIASES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "v5": "v5p",
    "v6lite": "v6e",
    "trillium": "v6e",
    "ironwood": "tpu7x",
    "v7x": "tpu7x",
    "tpu7": "tpu7x",
}
# Names of GPUs and of machines with GPUs, which get an error message of their own.
_GPU = re.compile(
    r"(?<![a-z])(gpu|cuda|nvidia|amd|rocm|dgx|hgx|tesla|geforce|rtx|titan|mi\d{3}|gb\d{2,3}|gh200"
    r"|[abhv]\d{2,3}|[lt]4|l40|p100|a[234](?=-|$))"
)
_CUBE = 4  # chips along each edge of the cubes that v4, v5p and Ironwood are built of
_RING = 16  # chips along an axis of v5e and v6e whose ends are linked
# Number of chips -> shape, of the slices that Google offers.
_SHAPES_BELOW_A_CUBE = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
_FLAT_SHAPES = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod, or several alike.

    Attributes:
        kind: kind of the chips, as "v5p" or "v6e".
        shape: chips along each axis of the torus.
        slices: the number of slices of that shape.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """Returns the capabilities of each device."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """Returns the number of chips of all slices together."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Returns the number of JAX devices of all slices together; a chip is one or two."""
        return self.chips * self.chip.devices

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Returns for each of three axes whether the chips at its two ends are linked.

        An axis that the slice does not have counts as not linked. v4, v5p and Ironwood are built of
        cubes of 4 x 4 x 4 chips, and optical switches link the ends of every axis of a slice of
        whole cubes; a smaller slice has no such links, not even along its axes of 4. v5e and v6e
        link the ends of an axis of 16. Sources: Austin et al., "How to Scale Your Model" (2025),
        chapter "How to Think About TPUs", "TPU Networking"; MaxText's `accelerator_to_spec_map.py`.
        """
        if self.chip.torus_dims == 3:
            wrapped = all(size % _CUBE == 0 for size in self.shape)
            return (wrapped, wrapped, wrapped)
        first, second = self.shape
        return (first == _RING, second == _RING, False)

    @property
    def name(self) -> str:
        """Returns the name, as "v5p:4x4x4", or "2 x v5p:4x4x4" for two slices."""
        single = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return single if self.slices == 1 else f"{self.slices} x {single}"


def parse_topology(name: str, slices: int = 1) -> Topology:
    """Returns the topology with a name: its shape ("v5p:4x4x4") or Google's name ("v5p-128").

    Raises:
        ConfigError: the name is not one of those, or no such slice is offered.
    """
    if slices < 1:
        raise ConfigError(f"slices={slices} must be positive")
    text = name.strip().lower()
    shaped = re.fullmatch(r"(\w+)[:-](\d+(?:x\d+)+)", text)
    counted = re.fullmatch(r"(\w+)-(\d+)", text)
    match = shaped or counted
    kind = _KIND_ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in CHIPS:
        if _GPU.search(re.sub(r"^\d+ *x *", "", text)):
            raise ConfigError(
                f"topology {name!r} is of GPUs: launch.plan plans TPU slices ({', '.join(CHIPS)}), "
                "whose compiler needs no TPU. A job on GPUs is not planned, because XLA compiles "
                "for a GPU only where there is one: run a few steps of launch.train there, which "
                "logs device_memory_peak_bytes and model_flops_utilization"
            )
        raise ConfigError(
            f"topology {name!r}: write KIND:SHAPE, as v5p:4x4x4, or Google's name, as v5p-128; "
            f"the kinds are {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    if shaped:
        shape = tuple(int(size) for size in shaped[2].split("x"))
        if len(shape) != chip.torus_dims or 0 in shape:
            raise ConfigError(
                f"topology {name!r}: a slice of {kind} has {chip.torus_dims} axes, "
                "each of at least one chip"
            )
    else:
        shape = _shape_of_size(name, kind, int(match[2]))
    if math.prod(shape) > chip.max_slice_chips:
        raise ConfigError(
            f"topology {name!r} has {math.prod(shape)} chips, "
            f"and a pod of {kind} has {chip.max_slice_chips}; write a smaller slice, "
            "and --slices for several of them"
        )
    return Topology(kind, shape, slices)


def _shape_of_size(name: str, kind: str, count: int) -> tuple[int, ...]:
    """Returns the shape of a slice that is given by its size: the most cubic one.

    Source: the tables of https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x.

    Args:
        name: the user's name of the topology, for errors.
        kind: kind of the chips.
        count: of cores or chips, as Google counts them for that kind.
    """
    chip = CHIPS[kind]
    chips, rest = divmod(count, 2 if chip.named_by_cores else 1)
    unit = "cores, two a chip" if chip.named_by_cores else "chips"
    if chip.torus_dims == 2:
        if chips not in _FLAT_SHAPES:
            sizes = ", ".join(map(str, _FLAT_SHAPES))
            raise ConfigError(
                f"topology {name!r}: the number counts {unit}, a power of two of them ({sizes}); "
                "or write the shape"
            )
        return _FLAT_SHAPES[chips]
    cubes, remainder = divmod(chips, _CUBE**3)
    if rest or (chips not in _SHAPES_BELOW_A_CUBE and (remainder or not cubes)):
        sizes = ", ".join(str(2 * size) for size in _SHAPES_BELOW_A_CUBE)
        raise ConfigError(
            f"topology {name!r}: the number counts {unit}, "
            f"and is one of {sizes} or a multiple of {2 * _CUBE**3}; or write the shape"
        )
    if not cubes:
        return _SHAPES_BELOW_A_CUBE[chips]
    divisors = [size for size in range(1, cubes + 1) if cubes % size == 0]
    candidates = [
        (low, middle, cubes // (low * middle))
        for low in divisors
        for middle in divisors
        if cubes % (low * middle) == 0 and low <= middle <= cubes // (low * middle)
    ]
    return tuple(_CUBE * size for size in min(candidates, key=sum))
