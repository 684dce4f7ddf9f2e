"""The models that a server answers with."""

import dataclasses
import functools
from typing import Any

from stepaudio_jax.errors import ApiError
from stepaudio_jax.generation.loaded_model import LoadedModel
from stepaudio_jax.serving.engine_thread import Lane


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model under the name that requests give.

    Attributes:
        name: its name.
        loaded: its weights, tokenizer and prompt format.
        lane: its engine.
        created: when it was loaded, in seconds since 1970.
        num_parameters: of all of it.
        base: the model whose weights it shares, with an adapter; None for none.
    """

    name: str
    loaded: LoadedModel
    lane: Lane
    created: int
    num_parameters: int
    base: str | None = None

    @functools.cached_property
    def max_text_bytes(self) -> int:
        """The longest text that a slot may hold: nothing but the vocabulary's longest token."""
        tokenizer = self.loaded.tokenizer
        tokens = range(tokenizer.vocab_size)
        longest = max(len(tokenizer.token_bytes(token)) for token in tokens)
        return longest * self.lane.engine.slot_tokens

    def card(self) -> dict[str, Any]:
        """Returns what `/v1/models` says of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "stepaudio_jax",
            "parent": self.base,
            "max_model_len": self.lane.engine.slot_tokens,
            "num_parameters": self.num_parameters,
        }


class ModelRegistry:
    """The models by name, in order; the first answers where a request names none.

    Args:
        models: at least one.
    """

    def __init__(self, models: list[ServedModel]):
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def get(self, name: str | None) -> ServedModel:
        """Returns a model.

        Raises:
            ApiError: there is none of that name.
        """
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ApiError(
                404,
                f"there is no model {name[:200]!r} here (there are: {', '.join(self._models)})",
                param="model",
                code="model_not_found",
            )
        return self._models[name]
