"""Exchange of JSON values between the processes of a run."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_BROADCAST_BYTES = 1 << 24  # at a time; every device holds them


def all_gather_json(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in their order, on every process."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(encoded.size))
    padded = np.zeros(_next_power_of_two(int(sizes.max())), np.uint8)
    padded[: encoded.size] = encoded
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def broadcast_json(value: Any) -> Any:
    """Returns the JSON value of the first process on every process; other values are ignored."""
    if jax.process_count() == 1:
        return value
    encoded = np.frombuffer(
        json.dumps(value).encode() if jax.process_index() == 0 else b"", np.uint8
    )
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(encoded.size, np.int32)))
    text = bytearray()
    for start in range(0, size, _BROADCAST_BYTES):
        piece = encoded[start : start + _BROADCAST_BYTES]
        padded = np.zeros(_next_power_of_two(min(_BROADCAST_BYTES, size - start)), np.uint8)
        padded[: piece.size] = piece
        text += multihost_utils.broadcast_one_to_all(padded).tobytes()
    return json.loads(text[:size])


def _next_power_of_two(size: int) -> int:
    """Returns a power of two, so that sizes that change from call to call compile few programs."""
    return 1 << max(size - 1, 0).bit_length()
