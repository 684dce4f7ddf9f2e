"""What goes wrong in generation."""


class GenerationError(ValueError):
    """A request that cannot be answered."""
