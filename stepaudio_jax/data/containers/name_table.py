"""Names of many rows, from number to name and back, in a few bytes more than the names have."""

import array
from collections.abc import Iterable

import numpy as np


class NameTable:
    """Holds names in order, each once, and finds them again.

    A dictionary of the same names takes about 150 bytes more for each.

    Args:
        names: the names, all different.
    """

    def __init__(self, names: Iterable[str]):
        text = bytearray()
        self._ends = array.array("q", [0])
        hashes = array.array("q")
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            self._ends.append(len(text))
            hashes.append(hash(name))
        self._text = bytes(text)
        self._order = np.argsort(np.asarray(hashes, np.int64), kind="stable")
        self._hashes = np.asarray(hashes, np.int64)[self._order]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        content = self._text[self._ends[index] : self._ends[index + 1]]
        return content.decode("utf-8", "surrogateescape")

    def find(self, name: str) -> int | None:
        """Returns the number of a name; None where it is not in the table."""
        value = hash(name)
        place = int(np.searchsorted(self._hashes, value))
        while place < len(self._order) and self._hashes[place] == value:
            index = int(self._order[place])
            if self[index] == name:
                return index
            place += 1
        return None
