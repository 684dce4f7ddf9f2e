"""Whether a reply has fallen into a loop: its last tokens are one pattern, said over and over."""

import numpy as np

from stepaudio_jax.config import RepetitionDetectionConfig


class RepetitionDetector:
    """Follows the tokens of one reply.

    For each size p of a pattern it counts how many tokens in a row equal the one p places before.
    The last k * p tokens are one pattern of p, k times, where that count reaches (k - 1) * p. A
    token costs one comparison for each size, whatever the reply's length.

    Args:
        config: which patterns, and how often; it must be on.
        max_new_tokens: of the reply, for patterns that cannot occur in it often enough are not
            followed.
    """

    def __init__(self, config: RepetitionDetectionConfig, *, max_new_tokens: int):
        largest = min(config.max_pattern_size, max_new_tokens // config.min_count)
        sizes = np.arange(config.min_pattern_size, largest + 1)
        self._needed = (config.min_count - 1) * sizes
        self._matches = np.zeros(len(sizes), np.int64)
        self._smallest = config.min_pattern_size
        self._recent = np.full(max(largest, 0), -1, np.int64)  # the last tokens, the newest first

    def add(self, token: int) -> bool:
        """Adds a token; returns whether the reply now ends in a pattern that is repeated often enough."""
        if not len(self._needed):
            return False
        equal = self._recent[self._smallest - 1 :] == token
        self._matches = np.where(equal, self._matches + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        return bool((self._matches >= self._needed).any())
