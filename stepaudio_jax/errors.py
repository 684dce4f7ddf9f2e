"""The errors that a user can cause, each with the key, file or line in its message."""


class StepAudioError(ValueError):
    """A user's mistake: programs print it on one line and end with exit code 2."""
