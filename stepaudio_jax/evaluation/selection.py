"""Chooses the items of a task that are asked: all, or an even part of every category."""

import collections
import hashlib
from collections.abc import Mapping, Sequence

from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.task import Item


def choose_items(items: Sequence[Item], limit: int | None) -> list[int]:
    """Returns the indices of so many items, in order, with each category's share kept.

    A category is a value of an item's first group. Within one, items are chosen by the hash of
    their id: the same ones in every run, and those of a smaller limit are among those of a larger
    one as far as the shares allow.
    """
    if limit is None or limit >= len(items):
        return list(range(len(items)))
    by_category: dict[str, list[int]] = collections.defaultdict(list)
    for index, item in enumerate(items):
        by_category[next(iter(item.groups.values()), "")].append(index)
    shares = _largest_remainder({name: len(of) for name, of in by_category.items()}, limit)
    chosen: list[int] = []
    for name, indices in by_category.items():
        ordered = sorted(indices, key=lambda index: _hash(items[index].id))
        chosen += ordered[: shares[name]]
    return sorted(chosen)


def check_unique_ids(items: Sequence[Item]) -> None:
    """Checks that no two items have the same id.

    Raises:
        DataError: two do; names both places.
    """
    origins: dict[str, str] = {}
    for item in items:
        if item.id in origins:
            raise DataError(
                f"{item.record.origin}: the id {item.id!r} is that of {origins[item.id]} too;"
                " remove one of them"
            )
        origins[item.id] = item.record.origin


def _largest_remainder(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Divides `total` in proportion to sizes (Hamilton's method); shares are whole numbers."""
    whole = sum(sizes.values())
    exact = {name: size * total / whole for name, size in sizes.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _hash(item_id: str) -> str:
    return hashlib.sha256(item_id.encode(errors="surrogatepass")).hexdigest()
