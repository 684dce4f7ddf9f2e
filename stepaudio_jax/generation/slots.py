"""The device side of the engine: a fixed number of slots, each for one request, and its programs.

All shapes are static. `insert` copies a prefilled prompt (`prefill_programs`) into a free slot and
samples the first token; `decode` adds a token to every active slot, several times over. On a mesh
the slots are sharded over the batch axes and the heads of their caches over the axes of heads.

In shapes, V is the vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from stepaudio_jax.generation.prefill_programs import EngineSpec, Prefix
from stepaudio_jax.generation.sampling import (
    FLOAT_SETTINGS,
    MAX_STOP_TOKENS,
    Sampled,
    Sampling,
    SamplingArrays,
    sample_tokens,
)
from stepaudio_jax.kernels.partitioning import LogicalAxes
from stepaudio_jax.models import (
    CACHE_AXES,
    LayerCache,
    Parameters,
    barrier_dequantization,
    constrain,
    merge_per_layer,
    padded_cache_len,
)

NO_TOKEN = -1
_IDLE_SAMPLING = Sampling(temperature=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The state of all slots.

    Attributes:
        caches: keys and values of each layer, [slots, K, cache_len, D].
        token: sampled last, and not in the cache yet.
        position: where `token` will stand in the cache.
        num_sampled: tokens sampled so far.
        max_tokens: tokens that may be sampled; at most cache_len - prompt + 1, since the last one
            need not be cached.
        pause_at: the slot becomes inactive when it has sampled so many, for the host to look at it;
            0 never.
        forced_remaining: how many tokens of the engine's forced suffix replace the next samples.
        active: whether the slot decodes.
        stop_tokens: tokens that end the reply, padded with NO_TOKEN.
        settings: how tokens are sampled.
        seen: tokens of prompt and reply, for the repetition penalty.
        token_counts: how often the reply has each token, for presence and frequency penalties.
        num_top_logprobs: alternatives of each token that the request wants to know.
        is_masked: whether `allowed` says which tokens may come next.
        allowed: a bit for each token, the lowest first.
    """

    caches: tuple[LayerCache, ...]
    token: Int[Array, " slots"]
    position: Int[Array, " slots"]
    num_sampled: Int[Array, " slots"]
    max_tokens: Int[Array, " slots"]
    pause_at: Int[Array, " slots"]
    forced_remaining: Int[Array, " slots"]
    active: Bool[Array, " slots"]
    stop_tokens: Int[Array, "slots stops"]
    settings: SamplingArrays
    seen: Bool[Array, "slots V"]
    token_counts: Int[Array, "slots V"]
    num_top_logprobs: Int[Array, " slots"]
    is_masked: Bool[Array, " slots"]
    allowed: UInt[Array, "slots words"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RequestParams:
    """What a request brings to its slot, from the host; see `Slots`."""

    max_tokens: Int[Array | np.ndarray, "1"]
    pause_at: Int[Array | np.ndarray, "1"]
    stop_tokens: Int[Array | np.ndarray, "1 stops"]
    settings: SamplingArrays
    num_top_logprobs: Int[Array | np.ndarray, "1"]
    is_masked: Bool[Array | np.ndarray, "1"]
    allowed: UInt[Array | np.ndarray, "1 words"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopLogprobs:
    """The most probable tokens at some places, most probable first, as many as the spec allows.

    Attributes:
        tokens: their ids.
        logprobs: their log-probabilities under the model's own distribution.
    """

    tokens: Int[Array, "*places top"]
    logprobs: Float[Array, "*places top"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one call of `decode` sampled.

    Attributes:
        tokens, logprobs, sampling_logprobs: as in `Sampled`, one column a step.
        count: how many leading columns belong to each slot; 0 for an inactive one.
        active: which slots go on.
        top: the alternatives at each step, zeros where no slot wants them.
    """

    tokens: Int[Array, "slots steps"]
    logprobs: Float[Array, "slots steps"]
    sampling_logprobs: Float[Array, "slots steps"]
    top: TopLogprobs
    count: Int[Array, " slots"]
    active: Bool[Array, " slots"]


@functools.partial(jax.jit, static_argnames=("spec", "slots", "tokens"))
def empty_slots(spec: EngineSpec, slots: int, tokens: int) -> Slots:
    """Returns `slots` inactive slots of at least `tokens` tokens each."""
    decoder = spec.config.decoder
    tokens = padded_cache_len(tokens, spec.compute)

    def zeros(dtype: Any) -> Array:
        return jnp.zeros(slots, dtype)

    caches = tuple(
        LayerCache.zeros(decoder, slots, tokens, spec.cache_dtype) for _ in range(decoder.layers)
    )
    floats = {name: zeros(jnp.float32) for name in FLOAT_SETTINGS}
    empty = Slots(
        caches=caches,
        token=zeros(jnp.int32),
        position=zeros(jnp.int32),
        num_sampled=zeros(jnp.int32),
        max_tokens=zeros(jnp.int32),
        pause_at=zeros(jnp.int32),
        forced_remaining=zeros(jnp.int32),
        active=zeros(bool),
        stop_tokens=jnp.full((slots, MAX_STOP_TOKENS), NO_TOKEN, jnp.int32),
        settings=SamplingArrays(top_k=zeros(jnp.int32), seed=zeros(jnp.uint32), **floats),
        seen=jnp.zeros((slots, decoder.vocab_size), bool),
        token_counts=jnp.zeros((slots, decoder.vocab_size), jnp.int32),
        num_top_logprobs=zeros(jnp.int32),
        is_masked=zeros(bool),
        allowed=jnp.zeros((slots, spec.mask_words), jnp.uint32),
    )
    return _constrain_slots(empty, spec)


def insert(
    spec: EngineSpec,
    slots: Slots,
    prefix: Prefix,
    params: RequestParams,
    slot: int,
    *,
    block_tokens: int | None = None,
) -> tuple[Slots, Sampled, TopLogprobs]:
    """Puts a request into a free slot and samples its first token.

    These are two programs: only the one that copies the caches depends on the prompt's bucket, and
    that one compiles quickly.

    Args:
        spec: which model.
        slots: donated.
        prefix: the prefilled prompt.
        params: what the request asks for.
        slot: a free one.
        block_tokens: copy only the blocks of so many positions that hold the prompt; None to copy
            the whole of the prefix's caches.

    Returns:
        The slots, and the first token with its alternatives, one row.
    """
    slots_without_caches = dataclasses.replace(slots, caches=())
    prefix_without_caches = dataclasses.replace(prefix, caches=())
    admitted, first, top = admit(spec, slots_without_caches, prefix_without_caches, params, slot)
    caches = write_prefix_cache(
        spec, slots.caches, prefix.caches, slot, prefix.length, block_tokens=block_tokens
    )
    return dataclasses.replace(admitted, caches=caches), first, top


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="slots")
def admit(
    spec: EngineSpec,
    slots: Slots,
    prefix: Prefix,
    params: RequestParams,
    slot: Int[Array, ""],
) -> tuple[Slots, Sampled, TopLogprobs]:
    """Sets everything of a slot but its caches, which neither `slots` nor `prefix` have here."""
    no_tokens = jnp.zeros(prefix.seen.shape, jnp.int32)
    first = sample_tokens(
        prefix.logits,
        jnp.zeros(1, jnp.int32),
        params.settings,
        jnp.asarray(prefix.seen),
        no_tokens,
        _allowed_tokens(spec, jnp.asarray(params.is_masked), jnp.asarray(params.allowed)),
    )
    num_sampled = jnp.ones(1, jnp.int32)
    new = Slots(
        caches=(),
        token=first.token,
        position=jnp.asarray(prefix.length),
        num_sampled=num_sampled,
        max_tokens=jnp.asarray(params.max_tokens),
        pause_at=jnp.asarray(params.pause_at),
        forced_remaining=0 * num_sampled,
        active=_stays_active(first.token, num_sampled, params),
        stop_tokens=jnp.asarray(params.stop_tokens),
        settings=params.settings,
        seen=jnp.asarray(prefix.seen).at[0, first.token[0]].set(True),
        token_counts=no_tokens.at[0, first.token[0]].set(1),
        num_top_logprobs=jnp.asarray(params.num_top_logprobs),
        is_masked=jnp.asarray(params.is_masked),
        allowed=jnp.asarray(params.allowed),
    )
    top = _top_logprobs(spec, prefix.logits, new.num_top_logprobs)

    def write_row(column: Array, row: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(column, row.astype(column.dtype), slot, axis=0)

    return _constrain_slots(jax.tree.map(write_row, slots, new), spec), first, top


@functools.partial(jax.jit, static_argnames=("spec", "block_tokens"), donate_argnames="caches")
def write_prefix_cache(
    spec: EngineSpec,
    caches: tuple[LayerCache, ...],
    prefix_caches: tuple[LayerCache, ...],
    slot: Int[Array, ""],
    length: Int[Array | np.ndarray, "1"],
    *,
    block_tokens: int | None = None,
) -> tuple[LayerCache, ...]:
    """Returns the caches of all slots with those of one prompt, of `length`, in a slot."""

    def write(start: Array | int, caches: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
        return tuple(
            cache.insert_row(prefix_cache, slot, start, block_tokens).constrain_sharding(
                spec.compute.rules
            )
            for cache, prefix_cache in zip(caches, prefix_caches, strict=True)
        )

    if block_tokens is None:
        return write(0, caches)
    num_blocks = -(-jnp.asarray(length)[0] // block_tokens)
    return jax.lax.fori_loop(
        0, num_blocks, lambda block, caches: write(block * block_tokens, caches), caches
    )


@functools.partial(jax.jit, static_argnames=("spec", "steps", "rows"), donate_argnames="slots")
def decode(
    spec: EngineSpec,
    parameters: Parameters,
    slots: Slots,
    forced_suffix: Int[Array, " suffix"],
    stop_when_slot_frees: Bool[Array, ""],
    steps: int,
    max_steps: Int[Array, ""] | None = None,
    rows: int | None = None,
) -> tuple[Slots, Decoded]:
    """Adds a token to every active slot, `steps` times, or until none is active.

    Args:
        spec: which model.
        parameters: in decode layout.
        slots: donated.
        forced_suffix: tokens that end a reasoning which has had its length.
        stop_when_slot_frees: end early when any slot becomes inactive, since requests wait for it.
        steps: at most.
        max_steps: fewer than `steps`, without another program; None for `steps`.
        rows: how many slots are computed, the first ones; no slot after them is active. None for
            all; on a mesh, all.

    Returns:
        All slots, and what the first `rows` of them sampled.
    """
    all_slots = slots
    if rows is not None:
        slots = jax.tree.map(lambda x: x[:rows], dataclasses.replace(slots, caches=()))
        slots = dataclasses.replace(slots, caches=all_slots.caches)
    last_step = steps if max_steps is None else jnp.minimum(steps, max_steps)
    num_slots = slots.token.shape[0]
    active_at_start = slots.active

    def step(carry: tuple[Array, Slots, Decoded]) -> tuple[Array, Slots, Decoded]:
        number, slots, out = carry
        model, layers = merge_per_layer(spec.graphdef, barrier_dequantization(parameters, number))
        active = slots.active
        embeddings = model.decoder.embed(slots.token[:, None])
        hidden, caches = model.decoder.decode_step(
            layers, embeddings, slots.position, slots.caches, active
        )
        # Idle slots use greedy settings, so that sampling, sorting and penalties are skipped where
        # no active slot needs them.
        settings = jax.tree.map(
            lambda requested, idle: jnp.where(active, requested, idle),
            slots.settings,
            SamplingArrays.of([_IDLE_SAMPLING]),
        )
        logits = constrain(model.logits(hidden)[:, 0], ("batch",), spec.compute.rules)
        sampled = sample_tokens(
            logits,
            slots.num_sampled,
            settings,
            slots.seen,
            slots.token_counts,
            _allowed_tokens(spec, slots.is_masked & active, slots.allowed),
        )
        top = _top_logprobs(spec, logits, jnp.where(active, slots.num_top_logprobs, 0))
        sampled = jax.lax.cond(
            jnp.any(slots.forced_remaining > 0),
            lambda sampled: _apply_forced_suffix(
                sampled, logits, slots.forced_remaining, forced_suffix
            ),
            lambda sampled: sampled,
            sampled,
        )
        num_sampled = slots.num_sampled + active
        after = dataclasses.replace(
            slots,
            caches=caches,
            token=jnp.where(active, sampled.token, slots.token),
            position=slots.position + active,
            num_sampled=num_sampled,
            forced_remaining=jnp.maximum(slots.forced_remaining - active, 0),
            active=active & _stays_active(sampled.token, num_sampled, slots),
            seen=slots.seen.at[jnp.arange(num_slots), sampled.token].max(active),
            token_counts=slots.token_counts.at[jnp.arange(num_slots), sampled.token].add(
                active.astype(jnp.int32)
            ),
        )
        out = Decoded(
            tokens=out.tokens.at[:, number].set(sampled.token),
            logprobs=out.logprobs.at[:, number].set(sampled.logprob),
            sampling_logprobs=out.sampling_logprobs.at[:, number].set(sampled.sampling_logprob),
            top=jax.tree.map(lambda rows, row: rows.at[:, number].set(row), out.top, top),
            count=out.count + active,
            active=after.active,
        )
        return number + 1, after, out

    def goes_on(carry: tuple[Array, Slots, Decoded]) -> Array:
        number, slots, _ = carry
        freed = jnp.any(active_at_start & ~slots.active)
        return (number < last_step) & jnp.any(slots.active) & ~(stop_when_slot_frees & freed)

    nothing = Decoded(
        tokens=jnp.zeros((num_slots, steps), jnp.int32),
        logprobs=jnp.zeros((num_slots, steps), jnp.float32),
        sampling_logprobs=jnp.zeros((num_slots, steps), jnp.float32),
        top=TopLogprobs(
            jnp.zeros((num_slots, steps, spec.max_top_logprobs), jnp.int32),
            jnp.zeros((num_slots, steps, spec.max_top_logprobs), jnp.float32),
        ),
        count=jnp.zeros(num_slots, jnp.int32),
        active=active_at_start,
    )
    _, slots, out = jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), slots, nothing))
    if rows is not None:
        caches = slots.caches
        slots = jax.tree.map(
            lambda x, computed: x.at[:rows].set(computed),
            dataclasses.replace(all_slots, caches=()),
            dataclasses.replace(slots, caches=()),
        )
        slots = dataclasses.replace(slots, caches=caches)
    return _constrain_slots(slots, spec), jax.tree.map(
        lambda leaf: constrain(leaf, (), spec.compute.rules), out
    )


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="slots")
def release(spec: EngineSpec, slots: Slots, slot: Int[Array, ""]) -> Slots:
    """Frees a slot whose request has ended or was cancelled."""
    return _constrain_slots(
        dataclasses.replace(slots, active=slots.active.at[slot].set(False)), spec
    )


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="slots")
def set_allowed(spec: EngineSpec, slots: Slots, allowed: UInt[Array, "slots words"]) -> Slots:
    """Replaces what `allowed` says of every slot; it counts where a slot `is_masked`."""
    return _constrain_slots(dataclasses.replace(slots, allowed=jnp.asarray(allowed)), spec)


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="slots")
def resume(
    spec: EngineSpec, slots: Slots, slot: Int[Array, ""], num_forced: Int[Array, ""]
) -> Slots:
    """Reactivates a paused slot, whose last `num_forced` tokens of the forced suffix come next."""
    resumed = dataclasses.replace(
        slots,
        active=slots.active.at[slot].set(True),
        pause_at=slots.pause_at.at[slot].set(0),
        forced_remaining=slots.forced_remaining.at[slot].set(num_forced),
    )
    return _constrain_slots(resumed, spec)


def slot_logical_axes(slots: Slots) -> Slots:
    """Returns the logical axes of every array: slots are sharded, and heads in the caches."""

    def axes(path: tuple[Any, ...], leaf: Array) -> LogicalAxes:
        return CACHE_AXES[: leaf.ndim] if path[0].name == "caches" else ("batch",)

    of_slots: Slots = jax.tree_util.tree_map_with_path(axes, slots)
    return of_slots


def _constrain_slots(slots: Slots, spec: EngineSpec) -> Slots:
    """Shards the slots by the rules, always in the same way, so that no call compiles anew."""
    rules = spec.compute.rules
    sharded: Slots = jax.tree.map(
        lambda leaf, axes: constrain(leaf, axes, rules), slots, slot_logical_axes(slots)
    )
    return sharded


def _allowed_tokens(
    spec: EngineSpec, is_masked: Bool[Array, " B"], allowed: UInt[Array, "B words"]
) -> Bool[Array, "B V"] | None:
    """Returns which tokens may come next; None where the spec has no masks."""
    if not spec.has_masks:
        return None
    vocab_size = spec.config.decoder.vocab_size

    def unpack() -> Array:
        bits = (jnp.asarray(allowed)[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        tokens = bits.reshape(bits.shape[0], -1)[:, :vocab_size].astype(bool)
        return tokens | ~jnp.asarray(is_masked)[:, None]

    return jax.lax.cond(
        jnp.any(is_masked), unpack, lambda: jnp.ones((is_masked.shape[0], vocab_size), bool)
    )


def _top_logprobs(
    spec: EngineSpec, logits: Float[Array, "B V"], num_top: Int[Array, " B"]
) -> TopLogprobs:
    """Returns the most probable tokens of each row; zeros where no row wants them."""
    size = spec.max_top_logprobs
    shape = (logits.shape[0], size)

    def sort() -> tuple[Array, Array]:
        values, tokens = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), size)
        return tokens.astype(jnp.int32), values

    def skip() -> tuple[Array, Array]:
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    if not size:
        return TopLogprobs(*skip())
    return TopLogprobs(*jax.lax.cond(jnp.any(num_top > 0), sort, skip))


def _stays_active(
    token: Int[Array, " slots"],
    num_sampled: Int[Array, " slots"],
    limits: Slots | RequestParams,
) -> Bool[Array, " slots"]:
    """Tells which slots go on: no stop token, not at the limit, not where they are to pause."""
    stopped = jnp.any(token[:, None] == limits.stop_tokens, axis=-1)
    return ~stopped & (num_sampled < limits.max_tokens) & (num_sampled != limits.pause_at)


def _apply_forced_suffix(
    sampled: Sampled,
    logits: Float[Array, "slots V"],
    forced_remaining: Int[Array, " slots"],
    forced_suffix: Int[Array, " suffix"],
) -> Sampled:
    """Replaces samples by the forced token that is due, of sampling log-probability 0."""
    size = forced_suffix.shape[0]
    due = forced_suffix[jnp.clip(size - forced_remaining, 0, size - 1)]
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), due[:, None], axis=-1)[:, 0]
    is_due = forced_remaining > 0
    return Sampled(
        token=jnp.where(is_due, due, sampled.token),
        logprob=jnp.where(is_due, logprob, sampled.logprob),
        sampling_logprob=jnp.where(is_due, 0.0, sampled.sampling_logprob),
    )
