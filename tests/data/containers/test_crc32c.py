"""CRC-32C, by Google's package and without it: the published check values, and the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data.containers.crc32c import (
    _folded_crc32c,
    crc32c,
    mask,
    masked_crc32c,
    masked_crc32c_of_columns,
)


def by_definition(content: bytes) -> int:
    register = 0xFFFF_FFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("content", "crc"),
    [  # RFC 3720, B.4, and the catalogue's check value
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_published_values(content, crc):
    assert crc32c(content) == _folded_crc32c(content) == by_definition(content) == crc


@settings(deadline=None)
@given(st.integers(0, 700), st.integers(0, 2**32))
def test_any_length(length, seed):
    content = np.random.default_rng(seed).bytes(length)
    for compute in (crc32c, _folded_crc32c):
        assert compute(content) == compute(memoryview(content)) == by_definition(content)


def test_leading_zeros_count():
    for compute in (crc32c, _folded_crc32c):
        assert len({compute(bytes(length) + b"x" * 100) for length in range(40)}) == 40


def test_mask_of_tensorflow():
    # The length and CRC at the start of a record of 10 bytes that TensorFlow wrote.
    assert masked_crc32c(b"\x0a" + bytes(7)) == mask(by_definition(b"\x0a" + bytes(7)))
    assert mask(0) == 0xA282EAD8


def test_many_short_messages_at_once():
    messages = np.random.default_rng(0).integers(0, 256, (50, 8)).astype(np.uint8)
    expected = [mask(by_definition(message.tobytes())) for message in messages]
    assert masked_crc32c_of_columns(messages).tolist() == expected
