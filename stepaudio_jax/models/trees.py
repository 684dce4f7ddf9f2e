"""Entries of nested dicts, such as parameters, by their path."""

from collections.abc import Sequence
from typing import Any


def get_at(tree: Any, path: Sequence[str]) -> Any:
    """Returns the branch or leaf of nested dicts at a path."""
    for name in path:
        tree = tree[name]
    return tree


def put_at(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets the entry of nested dicts at a path, and makes the dicts that lead to it."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
