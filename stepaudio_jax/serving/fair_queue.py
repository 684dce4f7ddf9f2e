"""A queue in which clients take turns: one that sends many requests delays only itself."""

import collections
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Holds items by client: the clients are served in turn, and the items of each in order."""

    def __init__(self) -> None:
        self._by_client: collections.OrderedDict[str, collections.deque[Item]] = (
            collections.OrderedDict()
        )

    def __len__(self) -> int:
        return sum(len(items) for items in self._by_client.values())

    def put(self, client: str, item: Item) -> None:
        """Adds an item of a client."""
        self._by_client.setdefault(client, collections.deque()).append(item)

    def take(self) -> Item | None:
        """Removes and returns the next item; None if there is none."""
        if not self._by_client:
            return None
        client, items = next(iter(self._by_client.items()))
        item = items.popleft()
        if items:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        return item

    def remove(self, item: Item) -> bool:
        """Removes an item, wherever it stands; returns whether it was there."""
        for client, items in self._by_client.items():
            if item in items:
                items.remove(item)
                if not items:
                    del self._by_client[client]
                return True
        return False
