"""CorpusError: why a corpus cannot be made."""


class CorpusError(ValueError):
    """A corpus cannot be made as asked; the message names the argument or the missing library, and what to do."""
