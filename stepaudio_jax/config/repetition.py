"""When a reply counts as a loop."""

import dataclasses

from stepaudio_jax.config.resolve import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionDetectionConfig:
    """Ends a reply whose last tokens are one pattern, `min_count` times in a row (the names and the rule are vLLM's).

    Off by default. It is on where `max_pattern_size` and `min_count` are both given.
    """

    max_pattern_size: int = 0  # tokens of a pattern, at most; 0: no detection
    min_pattern_size: int = 1  # tokens of a pattern, at least
    min_count: int = 0  # how often a pattern stands in a row; at least 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"{field.name}={value!r} must be a whole number, 0 or more")
        if not self.is_on:
            if self.max_pattern_size or self.min_count:
                raise ConfigError(
                    f"max_pattern_size={self.max_pattern_size} and min_count={self.min_count} belong together: give both, "
                    "or neither"
                )
            return
        if self.min_count < 2:
            raise ConfigError(
                f"min_count={self.min_count} must be at least 2: what stands once is not repeated"
            )
        if not 1 <= self.min_pattern_size <= self.max_pattern_size:
            raise ConfigError(
                f"min_pattern_size={self.min_pattern_size} must lie between 1 and max_pattern_size={self.max_pattern_size}"
            )

    @property
    def is_on(self) -> bool:
        """Returns whether replies are looked at."""
        return self.max_pattern_size > 0 and self.min_count > 0
