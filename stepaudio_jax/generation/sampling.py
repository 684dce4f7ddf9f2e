"""How a request is answered, and drawing a token from logits accordingly."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.config import RepetitionDetectionConfig
from stepaudio_jax.errors import GenerationError

MAX_STOP_TOKENS = 8
MAX_PENALTY = 2.0  # of presence and frequency, as in OpenAI's API
_BLOCK = 128  # tokens of the vocabulary whose weights are summed up together
_INT32_LIMIT = 2**31  # of what the device counts in i32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request is answered.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: so many of the most probable tokens are kept; 0 keeps all.
        top_p: mass of the nucleus.
        min_p: tokens less probable than this share of the most probable one's probability are
        dropped.
        repetition_penalty: above 1 makes tokens of the prompt and of the reply so far less
        probable.
        presence_penalty: lowers the logit of every token that the reply has so far; the prompt does
        not count.
        frequency_penalty: lowers it once for each time that the reply has the token.
        max_new_tokens: the reply is cut there, with finish_reason "length".
        max_reasoning_tokens: the reasoning is ended there, by force; None leaves its length to the
        model.
        stop_tokens: end the turn, beside its own end, in the reasoning too; they are not part of
        it.
        stop_strings: end the reply where one of them begins; the reasoning is not searched.
        stop_in_reasoning: `stop_strings` end the reasoning too, and with it the turn: the reply is
        then empty.
        repetition_detection: ends the turn where its last tokens are one pattern over and over,
            with finish_reason "repetition"; off by default.
        seed: of this request; the same seed gives the same tokens whatever shares the batch.
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
        for name in ("top_k", "max_new_tokens", "seed"):
            self._require(name, type(getattr(self, name)) is int, "be a whole number")
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            self._require(name, type(getattr(self, name)) in (int, float), "be a number")
        self._require(
            "max_reasoning_tokens",
            type(self.max_reasoning_tokens) in (int, type(None)),
            "be a whole number, or none",
        )
        self._require("stop_in_reasoning", type(self.stop_in_reasoning) is bool, "be true or false")
        self._require(
            "repetition_detection",
            isinstance(self.repetition_detection, RepetitionDetectionConfig),
            "be an object with max_pattern_size, min_count, and perhaps min_pattern_size",
        )
        for name, kind, what in (
            ("stop_tokens", int, "whole numbers"),
            ("stop_strings", str, "texts"),
        ):
            values = getattr(self, name)
            self._require(
                name,
                type(values) is tuple and all(type(value) is kind for value in values),
                f"be a list of {what}",
            )
        for name, allowed, range_ in (
            ("temperature", 0 <= self.temperature < math.inf, "be 0 or more, and finite"),
            (
                "top_k",
                0 <= self.top_k < _INT32_LIMIT,
                f"lie between 0 (all tokens) and {_INT32_LIMIT - 1}",
            ),
            ("top_p", 0 < self.top_p <= 1, "lie in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "lie in [0, 1]"),
            (
                "repetition_penalty",
                0 < self.repetition_penalty < math.inf,
                "be positive, and finite",
            ),
            *(
                (
                    name,
                    abs(getattr(self, name)) <= MAX_PENALTY,
                    f"lie between -{MAX_PENALTY} and {MAX_PENALTY}",
                )
                for name in ("presence_penalty", "frequency_penalty")
            ),
            (
                "max_new_tokens",
                0 < self.max_new_tokens < _INT32_LIMIT,
                f"lie between 1 and {_INT32_LIMIT - 1}",
            ),
            (
                "max_reasoning_tokens",
                self.max_reasoning_tokens is None or 0 < self.max_reasoning_tokens < _INT32_LIMIT,
                f"lie between 1 and {_INT32_LIMIT - 1}",
            ),
            (
                "stop_tokens",
                all(0 <= token < _INT32_LIMIT for token in self.stop_tokens),
                f"lie between 0 and {_INT32_LIMIT - 1}",
            ),
            (
                "stop_tokens",
                len(self.stop_tokens) < MAX_STOP_TOKENS,
                f"be fewer than {MAX_STOP_TOKENS}",
            ),
            ("stop_strings", all(self.stop_strings), "not be empty strings"),
            ("seed", 0 <= self.seed < 2**32, "lie between 0 and 2**32 - 1"),
        ):
            self._require(name, allowed, range_)

    def _require(self, name: str, allowed: bool, rule: str) -> None:
        if not allowed:
            raise GenerationError(f"{name}={getattr(self, name)!r} must {rule}")


FLOAT_SETTINGS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingArrays:
    """The settings of B rows: each [B], fp32 but for top_k (i32) and seed (u32)."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    presence_penalty: Any
    frequency_penalty: Any
    seed: Any

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> "SamplingArrays":
        """On the host."""

        def column(name: str, dtype: type) -> NDArray[Any]:
            return np.array([getattr(sampling, name) for sampling in samplings], dtype)

        floats = {name: column(name, np.float32) for name in FLOAT_SETTINGS}
        return cls(top_k=column("top_k", np.int32), seed=column("seed", np.uint32), **floats)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """One token a row: token [B] i32; logprob [B] under the model; sampling_logprob [B] under what it was drawn from."""

    token: jax.Array
    logprob: jax.Array
    sampling_logprob: jax.Array


def sample_tokens(
    logits: jax.Array,
    count: jax.Array,
    settings: SamplingArrays,
    seen: jax.Array,
    token_counts: jax.Array,
) -> Sampled:
    """Draws one token a row.

    A token's log-probability under the model is that of softmax(logits); a row of temperature 0
    takes the best token, of sampling log-probability 0.

    Args:
        logits: [B,V] fp32.
        count: [B] i32, tokens drawn before for the same request: with the seed, it determines the
        draw.
        settings: of the rows.
        seen: [B,V] bool, tokens of the prompt and of the reply so far.
        token_counts: [B,V] i32, how often the reply so far has each token.
    """
    log_total = jax.nn.logsumexp(logits, axis=-1)
    penalised = jax.lax.cond(
        jnp.any(settings.repetition_penalty != 1),
        lambda: apply_repetition_penalty(logits, seen, settings.repetition_penalty),
        lambda: logits,
    )
    penalised = jax.lax.cond(
        jnp.any((settings.presence_penalty != 0) | (settings.frequency_penalty != 0)),
        lambda: apply_presence_frequency_penalties(
            penalised, token_counts, settings.presence_penalty, settings.frequency_penalty
        ),
        lambda: penalised,
    )
    best = jnp.argmax(penalised, axis=-1).astype(jnp.int32)

    def drawn() -> tuple[jax.Array, jax.Array]:
        kept = apply_top_k_top_p_min_p(penalised, settings)
        keys = jax.vmap(lambda seed, count: jax.random.fold_in(jax.random.key(seed), count))(
            settings.seed, count
        )
        token = sample_categorical(kept, jax.vmap(jax.random.uniform)(keys))
        # Rounded sums may lead to a token that may not be drawn, once in millions of draws: the
        # best one stands in for it.
        token = jnp.where(_take_token(kept, token) > -jnp.inf, token, best)
        logprob = _take_token(kept, token) - jax.nn.logsumexp(kept, axis=-1)
        samples = settings.temperature > 0
        return jnp.where(samples, token, best).astype(jnp.int32), jnp.where(samples, logprob, 0.0)

    # A batch that is all greedy, an evaluation's, does not pay for sorting the vocabulary.
    token, sampling_logprob = jax.lax.cond(
        jnp.any(settings.temperature > 0), drawn, lambda: (best, jnp.zeros(best.shape, jnp.float32))
    )
    return Sampled(token, _take_token(logits, token) - log_total, sampling_logprob)


def sample_categorical(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Tokens [B] i32 of the distributions softmax(logits [B,V]), by inversion of numbers [B] that are uniform in [0, 1).

    One random number a row: to draw one for every token of the vocabulary takes longer than a step
    of a small model. Weights
    are summed up by blocks first, and then within one: a sum over the whole vocabulary in turn
    would lose the small ones. Where rounding leads to the edge of a token's share, its neighbour
    may be found.
    """
    rows, size = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    sums = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    wanted = uniform * sums[:, -1]
    block = jnp.minimum(jnp.sum(sums <= wanted[:, None], axis=-1), sums.shape[1] - 1)
    before = jnp.where(block > 0, _take_token(sums, jnp.maximum(block - 1, 0)), 0.0)
    own = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = jnp.sum(jnp.cumsum(own, axis=-1) <= (wanted - before)[:, None], axis=-1)
    return jnp.minimum(block * _BLOCK + place, size - 1).astype(jnp.int32)


def apply_repetition_penalty(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """The repetition penalty (Keskar et al. 2019, section 4.1), as transformers has it.

    Logits [B,V] of seen tokens are divided by the penalty [B] where positive, and multiplied by it
    where negative.
    """
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_presence_frequency_penalties(
    logits: jax.Array,
    token_counts: jax.Array,
    presence_penalty: jax.Array,
    frequency_penalty: jax.Array,
) -> jax.Array:
    """Returns logits [B,V] less the presence and frequency penalties [B], as OpenAI's API defines them.

    logits[j] - c[j] * frequency_penalty - (c[j] > 0) * presence_penalty, where c[j] is how often
    token j was generated before (API reference, "Frequency and presence penalties").
    """
    frequency = token_counts.astype(logits.dtype) * frequency_penalty[:, None]
    return logits - frequency - jnp.where(token_counts > 0, presence_penalty[:, None], 0.0)


def apply_top_k_top_p_min_p(logits: jax.Array, settings: SamplingArrays) -> jax.Array:
    """Tempered logits [B,V] of the tokens that may be drawn, -inf for the others.

    In this order, each on what the one before has left: temperature, top-k, the nucleus (Holtzman
    et al. 2020, section 3.1: the smallest set of most probable tokens whose mass reaches top_p),
    min-p (Nguyen et al. 2024). Ties with the last token that is needed are kept too; all are where
    top_p is 1, which a rounded sum of masses may exceed.
    """
    temperature = settings.temperature
    # Shifted first: a tiny temperature then sends the others to -inf, and nothing overflows.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    scaled = shifted / jnp.where(temperature > 0, temperature, 1.0)[:, None]
    # The rollouts of reinforcement learning are not restricted, and do not pay for sorting the
    # vocabulary.
    threshold = jax.lax.cond(
        jnp.any((settings.top_k > 0) | (settings.top_p < 1)),
        lambda: _top_k_top_p_threshold(scaled, settings),
        lambda: jnp.full((scaled.shape[0], 1), -jnp.inf, scaled.dtype),
    )
    # The best token is at 0, so that log min_p is where its share begins.
    threshold = jnp.maximum(threshold, jnp.log(settings.min_p)[:, None])
    return jnp.where(scaled >= threshold, scaled, -jnp.inf)


def _top_k_top_p_threshold(scaled: jax.Array, settings: SamplingArrays) -> jax.Array:
    """[B,1]: the least of the tempered logits [B,V] that top-k and the nucleus keep."""
    descending = -jnp.sort(-scaled, axis=-1)
    size = scaled.shape[-1]
    wanted = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, size), size)
    in_top_k = jnp.arange(size) < wanted[:, None]
    probabilities = jax.nn.softmax(jnp.where(in_top_k, descending, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    in_nucleus = (mass_before < settings.top_p[:, None]) | (settings.top_p >= 1)[:, None]
    needed = jnp.maximum(
        jnp.sum(in_top_k & in_nucleus, axis=-1), 1
    )  # a tiny top_p may be 0 in fp32
    return jnp.take_along_axis(descending, needed[:, None] - 1, axis=-1)


def _take_token(rows: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.take_along_axis(rows, token[:, None], axis=-1)[:, 0]
