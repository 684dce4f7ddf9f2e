"""Several files of one kind as one container, in the order of their names."""

import array
import bisect
from collections.abc import Sequence

from stepaudio_jax.data.containers.base import Block, Container, Row
from stepaudio_jax.data.containers.places import no_clip_inside


def join_blocks(containers: Sequence[Container]) -> list[Block] | None:
    """Returns the blocks of containers one after the other; None if none of them has blocks."""
    of_each = [container.blocks() for container in containers]
    if all(blocks is None for blocks in of_each):
        return None
    joined: list[Block] = []
    for container, blocks in zip(containers, of_each, strict=True):
        joined += blocks if blocks is not None else [Block(1, 0)] * len(container)
    return joined


class ShardedRows:
    """Reads the rows of several containers, one after the other.

    Args:
        path: what names them all, a folder or a pattern.
        shards: the containers; rows name the clips in them by their own files.
    """

    def __init__(self, path: str, shards: Sequence[Container]):
        self.path = path
        self.shards = tuple(shards)
        self._starts = array.array("q", [0])
        for shard in self.shards:
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"ShardedRows({self.path!r}, shards={len(self.shards)}, rows={len(self)})"

    def origin(self, index: int) -> str:
        """Returns the place of the row in its own file."""
        shard, row = self._locate(index)
        return shard.origin(row)

    def row(self, index: int) -> Row:
        """Reads the row at `index`; raises as its container does."""
        shard, row = self._locate(index)
        return shard.row(row)

    def read_clip(self, place: str) -> bytes:
        """Raises a DataError: clips lie in the shards, and are named by these."""
        raise no_clip_inside(self.path, place)

    def blocks(self) -> Sequence[Block] | None:
        """Returns the blocks of all shards; None if none of them has blocks."""
        return join_blocks(self.shards)

    def _locate(self, index: int) -> tuple[Container, int]:
        shard = bisect.bisect_right(self._starts, index) - 1
        return self.shards[shard], index - self._starts[shard]
