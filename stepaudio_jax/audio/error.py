"""AudioError: what is wrong with a clip."""

_MAX_PATH_CHARACTERS = 500
_END_CHARACTERS = 60


class AudioError(ValueError):
    """A clip cannot be used; the message names the file (`<bytes>` for a clip in memory), the reason, and what to do.

    Attributes:
        source: the file's path, or a name in angle brackets.
        reason: the rest of the message.
    """

    def __init__(self, source: str, reason: str):
        # Both are kept in `args`, so that the error survives pickling on its way out of a worker
        # process.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"audio {self.source}: {self.reason}"


def format_path(path: str) -> str:
    """Returns a path on one line; of a very long one (sound in base64 where a path should be) its beginning and its end."""
    if len(path) > _MAX_PATH_CHARACTERS:
        path = f"{path[: _MAX_PATH_CHARACTERS - _END_CHARACTERS]}..{path[-_END_CHARACTERS:]}"
    return path if path.isprintable() else ascii(path)
