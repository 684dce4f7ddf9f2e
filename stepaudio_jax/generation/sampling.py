"""The settings of a request, and sampling a token from logits by them.

In shapes, B is the rows (requests) and V the vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt
from numpy.typing import NDArray

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.errors import GenerationError

MAX_STOP_TOKENS = 8
MAX_PENALTY = 2.0  # of presence and frequency, as in OpenAI's API
_BLOCK = 128  # tokens of the vocabulary whose probabilities are summed together
_INT32_LIMIT = 2**31  # of what the device counts in i32
_WHOLE_NUMBERS = ("top_k", "max_new_tokens", "seed")
FLOAT_SETTINGS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request is answered.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: samples from so many of the most probable tokens; 0 from all.
        top_p: samples from the smallest set of most probable tokens with this probability mass.
        min_p: drops tokens whose probability is below this share of the most probable one's.
        repetition_penalty: above 1 makes tokens of the prompt and of the reply so far less
            probable.
        presence_penalty: lowers the logit of every token that the reply so far has; the prompt does
            not count.
        frequency_penalty: lowers it once for each time that the reply has the token.
        max_new_tokens: the reply is truncated there, with finish_reason "length".
        max_reasoning_tokens: the reasoning is ended there by force; None leaves its length to the
            model.
        stop_tokens: end the turn, beside its own end, in the reasoning too; they are not part of
            it.
        stop_strings: end the reply where one of them begins; the reasoning is not searched.
        stop_in_reasoning: `stop_strings` end the reasoning too, and with it the turn: the reply is
            then empty.
        repetition_detection: ends a turn whose last tokens repeat one pattern, with finish_reason
            "repetition"; off by default.
        seed: the same seed gives the same tokens, whatever else is in the batch.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_new_tokens: int = 2048
    max_reasoning_tokens: int | None = None
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    stop_in_reasoning: bool = False
    repetition_detection: RepetitionDetectionConfig = RepetitionDetectionConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        self._check_ranges()

    def _check_types(self) -> None:
        for name in _WHOLE_NUMBERS:
            self._check(name, type(getattr(self, name)) is int, "be a whole number")
        for name in FLOAT_SETTINGS:
            self._check(name, type(getattr(self, name)) in (int, float), "be a number")
        self._check(
            "max_reasoning_tokens",
            type(self.max_reasoning_tokens) in (int, type(None)),
            "be a whole number, or none",
        )
        self._check("stop_in_reasoning", type(self.stop_in_reasoning) is bool, "be true or false")
        self._check(
            "repetition_detection",
            isinstance(self.repetition_detection, RepetitionDetectionConfig),
            "be an object with max_pattern_size, min_count, and perhaps min_pattern_size",
        )
        for name, item_type, items in (
            ("stop_tokens", int, "whole numbers"),
            ("stop_strings", str, "texts"),
        ):
            values = getattr(self, name)
            is_tuple_of_items = type(values) is tuple and all(
                type(value) is item_type for value in values
            )
            self._check(name, is_tuple_of_items, f"be a list of {items}")

    def _check_ranges(self) -> None:
        highest = _INT32_LIMIT - 1
        positive = f"lie between 1 and {highest}"
        in_range = 0 <= self.temperature < math.inf
        self._check("temperature", in_range, "be 0 or more, and finite")
        self._check(
            "top_k", 0 <= self.top_k <= highest, f"lie between 0 (all tokens) and {highest}"
        )
        self._check("top_p", 0 < self.top_p <= 1, "lie in (0, 1]")
        self._check("min_p", 0 <= self.min_p <= 1, "lie in [0, 1]")
        in_range = 0 < self.repetition_penalty < math.inf
        self._check("repetition_penalty", in_range, "be positive, and finite")
        for name in ("presence_penalty", "frequency_penalty"):
            in_range = abs(getattr(self, name)) <= MAX_PENALTY
            self._check(name, in_range, f"lie between -{MAX_PENALTY} and {MAX_PENALTY}")
        self._check("max_new_tokens", 0 < self.max_new_tokens <= highest, positive)
        in_range = self.max_reasoning_tokens is None or 0 < self.max_reasoning_tokens <= highest
        self._check("max_reasoning_tokens", in_range, positive)
        in_range = all(0 <= token <= highest for token in self.stop_tokens)
        self._check("stop_tokens", in_range, f"lie between 0 and {highest}")
        in_range = len(self.stop_tokens) < MAX_STOP_TOKENS
        self._check("stop_tokens", in_range, f"be fewer than {MAX_STOP_TOKENS}")
        self._check("stop_strings", all(self.stop_strings), "not be empty strings")
        self._check("seed", 0 <= self.seed < 2**32, "lie between 0 and 2**32 - 1")

    def _check(self, name: str, allowed: bool, rule: str) -> None:
        if not allowed:
            raise GenerationError(f"{name}={getattr(self, name)!r} must {rule}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingArrays:
    """The settings of B requests, on the host or on the device; see `Sampling`."""

    temperature: Float[Array | np.ndarray, " B"]
    top_k: Int[Array | np.ndarray, " B"]
    top_p: Float[Array | np.ndarray, " B"]
    min_p: Float[Array | np.ndarray, " B"]
    repetition_penalty: Float[Array | np.ndarray, " B"]
    presence_penalty: Float[Array | np.ndarray, " B"]
    frequency_penalty: Float[Array | np.ndarray, " B"]
    seed: UInt[Array | np.ndarray, " B"]

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> "SamplingArrays":
        """Returns the settings of some requests as arrays on the host."""

        def column(name: str, dtype: type) -> NDArray[Any]:
            return np.array([getattr(sampling, name) for sampling in samplings], dtype)

        floats = {name: column(name, np.float32) for name in FLOAT_SETTINGS}
        return cls(top_k=column("top_k", np.int32), seed=column("seed", np.uint32), **floats)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """One sampled token a row.

    Attributes:
        token: its id.
        logprob: its log-probability under the model, log softmax(logits).
        sampling_logprob: its log-probability under the distribution that it was drawn from.
    """

    token: Int[Array, " B"]
    logprob: Float[Array, " B"]
    sampling_logprob: Float[Array, " B"]


def sample_tokens(
    logits: Float[Array, "B V"],
    count: Int[Array, " B"],
    settings: SamplingArrays,
    seen: Bool[Array, "B V"],
    token_counts: Int[Array, "B V"],
    allowed: Bool[Array, "B V"] | None = None,
) -> Sampled:
    """Samples one token a row.

    A row of temperature 0 takes the most probable token, of sampling log-probability 0.

    Args:
        logits: fp32.
        count: tokens sampled before for the same request; with the seed, it determines the draw.
        settings: sampling settings of each row.
        seen: tokens of the prompt and of the reply so far.
        token_counts: how often the reply so far has each token.
        allowed: which tokens may be sampled, at least one a row; None for all.
    """
    log_total = jax.nn.logsumexp(logits, axis=-1)
    penalised = jax.lax.cond(
        jnp.any(settings.repetition_penalty != 1),
        lambda: apply_repetition_penalty(logits, seen, jnp.asarray(settings.repetition_penalty)),
        lambda: logits,
    )
    penalised = jax.lax.cond(
        jnp.any((settings.presence_penalty != 0) | (settings.frequency_penalty != 0)),
        lambda: apply_presence_frequency_penalties(
            penalised,
            token_counts,
            jnp.asarray(settings.presence_penalty),
            jnp.asarray(settings.frequency_penalty),
        ),
        lambda: penalised,
    )
    if allowed is not None:
        penalised = jnp.where(allowed, penalised, -jnp.inf)
    best = jnp.argmax(penalised, axis=-1).astype(jnp.int32)

    def draw() -> tuple[Array, Array]:
        kept = apply_top_k_top_p_min_p(penalised, settings)
        keys = jax.vmap(lambda seed, count: jax.random.fold_in(jax.random.key(seed), count))(
            settings.seed, count
        )
        token = sample_categorical(kept, jax.vmap(jax.random.uniform)(keys))
        # Once in millions of draws, rounded sums lead to a token that was dropped: the best one
        # stands in for it.
        token = jnp.where(_take_token(kept, token) > -jnp.inf, token, best)
        logprob = _take_token(kept, token) - jax.nn.logsumexp(kept, axis=-1)
        samples = settings.temperature > 0
        return jnp.where(samples, token, best).astype(jnp.int32), jnp.where(samples, logprob, 0.0)

    # A batch that is all greedy, as an evaluation's is, does not pay for sorting the vocabulary.
    token, sampling_logprob = jax.lax.cond(
        jnp.any(settings.temperature > 0), draw, lambda: (best, jnp.zeros(best.shape, jnp.float32))
    )
    return Sampled(token, _take_token(logits, token) - log_total, sampling_logprob)


def sample_categorical(
    logits: Float[Array, "B V"], uniform: Float[Array, " B"]
) -> Int[Array, " B"]:
    """Samples tokens from softmax(logits) by inversion of the cumulative distribution.

    It takes one random number a row: drawing one for every token of the vocabulary, as
    `jax.random.categorical` does, takes longer than a step of a small model. Probabilities are
    summed within blocks and then over them, since a running sum over the whole vocabulary would
    lose the small ones. Where rounding leads to the edge of a token's share, the result may be its
    neighbour.

    Args:
        logits: -inf for tokens that cannot be drawn.
        uniform: in [0, 1).
    """
    rows, size = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = uniform * sums[:, -1]
    block = jnp.minimum(jnp.sum(sums <= target[:, None], axis=-1), sums.shape[1] - 1)
    sum_before = jnp.where(block > 0, _take_token(sums, jnp.maximum(block - 1, 0)), 0.0)
    block_weights = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    offset = jnp.sum(jnp.cumsum(block_weights, axis=-1) <= (target - sum_before)[:, None], axis=-1)
    return jnp.minimum(block * _BLOCK + offset, size - 1).astype(jnp.int32)


def apply_repetition_penalty(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Applies the repetition penalty (Keskar et al. 2019, section 4.1), as transformers does.

    Logits of seen tokens are divided by the penalty where positive, and multiplied by it where
    negative.
    """
    column = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / column, logits * column), logits)


def apply_presence_frequency_penalties(
    logits: Float[Array, "B V"],
    token_counts: Int[Array, "B V"],
    presence_penalty: Float[Array, " B"],
    frequency_penalty: Float[Array, " B"],
) -> Float[Array, "B V"]:
    """Subtracts the presence and frequency penalties, as OpenAI's API defines them.

    logits[j] - c[j] * frequency_penalty - (c[j] > 0) * presence_penalty, where c[j] is how often
    token j was generated before (API reference, "Frequency and presence penalties").
    """
    frequency = token_counts.astype(logits.dtype) * frequency_penalty[:, None]
    return logits - frequency - jnp.where(token_counts > 0, presence_penalty[:, None], 0.0)


def apply_top_k_top_p_min_p(
    logits: Float[Array, "B V"], settings: SamplingArrays
) -> Float[Array, "B V"]:
    """Returns tempered logits of the tokens that may be drawn, and -inf for the others.

    Applied in this order, each to what the one before has left: temperature, top-k, the nucleus
    (Holtzman et al. 2020, section 3.1: the smallest set of most probable tokens whose mass reaches
    top_p), min-p (Nguyen et al. 2024). Ties with the last token that is needed are kept. With top_p
    of 1 all tokens are kept, although a rounded sum of masses may exceed 1.
    """
    temperature = settings.temperature
    # Shifted first: a tiny temperature then sends the others to -inf, and nothing overflows.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = shifted / jnp.where(temperature > 0, temperature, 1.0)[:, None]
    # Rollouts of reinforcement learning use neither top-k nor top-p, and skip sorting the
    # vocabulary.
    threshold = jax.lax.cond(
        jnp.any((settings.top_k > 0) | (settings.top_p < 1)),
        lambda: _top_k_top_p_threshold(scaled, settings),
        lambda: jnp.full((scaled.shape[0], 1), -jnp.inf, scaled.dtype),
    )
    # The best token's logit is 0 here, so log min_p is the threshold of its share.
    threshold = jnp.maximum(threshold, jnp.log(settings.min_p)[:, None])
    return jnp.where(scaled >= threshold, scaled, -jnp.inf)


def _top_k_top_p_threshold(
    scaled: Float[Array, "B V"], settings: SamplingArrays
) -> Float[Array, "B 1"]:
    """Returns the smallest of the tempered logits that top-k and the nucleus keep."""
    descending = -jnp.sort(-scaled, axis=-1)
    size = scaled.shape[-1]
    top_k = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, size), size)
    in_top_k = jnp.arange(size) < top_k[:, None]
    probabilities = jax.nn.softmax(jnp.where(in_top_k, descending, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    top_p = jnp.asarray(settings.top_p)[:, None]
    in_nucleus = (mass_before < top_p) | (top_p >= 1)
    # At least one, since a tiny top_p may be 0 in fp32.
    num_kept = jnp.maximum(jnp.sum(in_top_k & in_nucleus, axis=-1), 1)
    return jnp.take_along_axis(descending, num_kept[:, None] - 1, axis=-1)


def _take_token(rows: Float[Array, "B V"], token: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(rows, token[:, None], axis=-1)[:, 0]
