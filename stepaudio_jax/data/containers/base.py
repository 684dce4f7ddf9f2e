"""The contract of containers: random access to the rows of a file, and to the clips inside it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class EmbeddedClip(str):
    """Names a clip that lies inside a container: `FILE#PLACE`.

    `Container.read_clip(PLACE)` of that file reads it. The place has no `#`.
    """


@dataclasses.dataclass(frozen=True)
class Samples:
    """Holds a clip that a container stores as numbers, and not as the bytes of a sound file.

    Attributes:
        values: [samples] or [samples, channels]; floats of full scale -1 to 1, or integers, whose
            full scale is that of 16 bits (TFDS widens them to int64).
        rate: in Hz.
    """

    values: np.ndarray
    rate: int


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds one row of a container, before anything is known of its form.

    Attributes:
        value: as JSON would hold it (an object is a dict, bytes of text are str), with an
            `EmbeddedClip` in the place of each clip that lies inside the container.
        origin: where it was read, for error messages: `file:line` or `file#place`.
        folder: the base of relative audio paths.
        default_id: the row's id, unless it has one.
    """

    value: Any
    origin: str
    folder: str
    default_id: str


class Block(NamedTuple):
    """Describes rows that are stored together.

    Attributes:
        rows: how many.
        kept_bytes: that reading one of them decodes, and keeps for the others; 0 if it keeps none.
    """

    rows: int
    kept_bytes: int


class Container(Protocol):
    """Gives random access to the rows of a file or folder.

    Opening reads an index of a few bytes a row, and no sound. All methods may be called from any
    thread.

    Attributes:
        path: of the file or folder, as errors name it.
    """

    path: str

    def __len__(self) -> int: ...

    def origin(self, index: int) -> str:
        """Returns where the row at `index` lies: `file:line` or `file#place`."""
        ...

    def row(self, index: int) -> Row:
        """Reads the row at `index` (0 <= index < len), without its clips.

        Raises:
            DataError: it cannot be read; names the origin and the reason.
        """
        ...

    def read_clip(self, place: str) -> bytes | Samples:
        """Reads a clip that `row` has named.

        Returns:
            The content of a sound file, or samples.

        Raises:
            DataError: there is no such clip, or it cannot be read.
        """
        ...

    def blocks(self) -> Sequence[Block] | None:
        """Returns the rows that are stored together, in order, if reading one reads the others.

        None where every row is read alone. A shuffle keeps the rows of a block near each other.
        """
        ...
