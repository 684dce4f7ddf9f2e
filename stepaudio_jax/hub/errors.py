"""The error of this room."""


class CheckpointError(ValueError):
    """A folder of weights is incomplete, malformed, or does not fit what was asked of it."""
