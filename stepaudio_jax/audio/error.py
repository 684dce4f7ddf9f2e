"""AudioError: what is wrong with a clip."""


class AudioError(ValueError):
    """A clip cannot be used; the message names the file (`<bytes>` for a clip in memory), the reason, and what to do.

    Attributes:
        source: the file's path, or a name in angle brackets.
        reason: the rest of the message.
    """

    def __init__(self, source: str, reason: str):
        # Both are kept in `args`, so that the error survives pickling on its way out of a worker process.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"audio {self.source}: {self.reason}"
