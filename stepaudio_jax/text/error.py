"""What can be wrong with text: a tokenizer's files, a dialogue, a string."""


class TextError(ValueError):
    """Text that cannot be used; the message says why and what to do."""


class TokenizerError(TextError):
    """A tokenizer's files are missing, malformed or of another kind; the message names the file."""


class DialogueError(TextError):
    """A dialogue cannot be rendered; the message names the message by its number, from 1."""
