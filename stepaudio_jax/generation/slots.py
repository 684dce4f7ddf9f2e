"""The device's side of the engine: a fixed number of slots, each at most one request, and the programs that act on them.

Every shape is static. A request enters through `prefill` (its prompt, alone, padded to a bucket)
and `insert`; `decode` then adds a token to every occupied slot, several times over. On a mesh the
slots are shared out over the axes of a batch, and the heads of their caches over those of heads; a
prompt is one row, and read by all replicas alike.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.generation.sampling import (
    FLOAT_SETTINGS,
    MAX_STOP_TOKENS,
    Sampled,
    Sampling,
    SamplingArrays,
    sample_tokens,
)
from stepaudio_jax.models import (
    CACHE_AXES,
    CacheDtype,
    LayerCache,
    Parameters,
    abstract_model,
    barrier_dequantization,
    constrain,
    merge_per_layer,
    padded_cache_len,
)

NO_TOKEN = -1
_IDLE_SAMPLING = Sampling(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """What a compiled program depends on beside the shapes of its arguments."""

    config: ModelConfig
    compute: ComputeConfig
    cache_dtype: CacheDtype

    @property
    def graphdef(self) -> Any:
        """The model's, for the layout of `models.unstack_layers`."""
        return abstract_model(self.config, self.compute)[0]

    @property
    def with_replicated_rows(self) -> "EngineSpec":
        """The same with rows left whole, for one row cannot be cut."""
        rules = dataclasses.replace(self.compute.rules, batch=())
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, rules=rules))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """S slots of at most T tokens.

    Attributes:
        caches: of each layer, [S,K,T,D].
        token: [S] i32, drawn and not yet in the cache.
        position: [S] i32, where it will stand.
        drawn: [S] i32, tokens drawn so far.
        limit: [S] i32, tokens that may be drawn: at most T - prompt + 1, for the last one need not
        be written.
        pause: [S] i32, the slot stops when so many are drawn, for the host to look at it; 0: never.
        forced: [S] i32, how many of the engine's forced_suffix tokens are still to be put in,
        whatever is drawn.
        running: [S] bool.
        stops: [S,M] i32, tokens that end the reply; padded with NO_TOKEN.
        settings: how tokens are drawn.
        seen: [S,V] bool, tokens of prompt and reply, for the repetition penalty.
        token_counts: [S,V] i32, how often the reply has each token, for the presence and frequency
            penalties.
    """

    caches: tuple[LayerCache, ...]
    token: jax.Array
    position: jax.Array
    drawn: jax.Array
    limit: jax.Array
    pause: jax.Array
    forced: jax.Array
    running: jax.Array
    stops: jax.Array
    settings: SamplingArrays
    seen: jax.Array
    token_counts: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """A prompt that has been read: caches [1,K,T,D] of its bucket, logits [1,V] after its end, seen [1,V], length [1]."""

    caches: tuple[LayerCache, ...]
    logits: jax.Array
    seen: jax.Array
    length: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RequestParams:
    """What a request brings to its slot: each [1], stops [1,M]; see `Slots`."""

    limit: Any
    pause: Any
    stops: Any
    settings: SamplingArrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one call of `decode` drew: tokens, logprobs, sampling_logprobs [S,N]; count [S], how many of the N are a slot's.

    running [S] says which slots go on. A slot's count is 0 where it did not run.
    """

    tokens: jax.Array
    logprobs: jax.Array
    sampling_logprobs: jax.Array
    count: jax.Array
    running: jax.Array


@functools.partial(jax.jit, static_argnames=("program", "slots", "tokens"))
def empty_slots(program: EngineSpec, slots: int, tokens: int) -> Slots:
    """Slots that nobody occupies."""
    decoder = program.config.decoder
    tokens = padded_cache_len(tokens, program.compute)

    def column(dtype: Any) -> jax.Array:
        return jnp.zeros(slots, dtype)

    caches = tuple(
        LayerCache.zeros(decoder, slots, tokens, program.cache_dtype) for _ in range(decoder.layers)
    )
    floats = {name: column(jnp.float32) for name in FLOAT_SETTINGS}
    empty = Slots(
        caches=caches,
        **{
            name: column(jnp.int32)
            for name in ("token", "position", "drawn", "limit", "pause", "forced")
        },
        running=column(bool),
        stops=jnp.full((slots, MAX_STOP_TOKENS), NO_TOKEN, jnp.int32),
        settings=SamplingArrays(top_k=column(jnp.int32), seed=column(jnp.uint32), **floats),
        seen=jnp.zeros((slots, decoder.vocab_size), bool),
        token_counts=jnp.zeros((slots, decoder.vocab_size), jnp.int32),
    )
    return _constrain_slots(empty, program)


@functools.partial(jax.jit, static_argnames="program")
def encode_audio(
    program: EngineSpec, parameters: Parameters, mel: jax.Array, mel_lengths: jax.Array
) -> jax.Array:
    """Chunks [C,M,F] of mel_lengths [C] -> the adaptor's outputs [C,A,H]."""
    program = program.with_replicated_rows
    model, _ = merge_per_layer(program.graphdef, parameters)
    return constrain(
        model.encode_chunks(mel[None], mel_lengths[None])[1][0], (), program.compute.rules
    )


@functools.partial(jax.jit, static_argnames="program")
def prefill(
    program: EngineSpec,
    parameters: Parameters,
    tokens: jax.Array,
    length: jax.Array,
    audio: jax.Array,
    is_audio: jax.Array,
) -> Prefix:
    """Reads one prompt.

    Args:
        program: which model.
        parameters: in decode layout.
        tokens: [T] i32, padded.
        length: i32, tokens that are the prompt's.
        audio: [T,H], at the places where `is_audio` [T] an adaptor's output; [0,H] for a prompt
        without sound.
        is_audio: [T] bool.
    """
    program = program.with_replicated_rows
    model, layers = merge_per_layer(program.graphdef, parameters)
    embeddings = model.decoder.embed(tokens[None])
    if audio.shape[0]:
        embeddings = jnp.where(
            is_audio[None, :, None], audio[None].astype(embeddings.dtype), embeddings
        )
    empty = LayerCache.zeros(program.config.decoder, 1, 1, program.cache_dtype)
    positions = jnp.arange(tokens.shape[0])[None]
    hidden, caches = model.decoder.prefill(layers, embeddings, positions, empty)
    last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
    seen = jnp.zeros((1, program.config.decoder.vocab_size), bool)
    seen = seen.at[0, jnp.where(positions[0] < length, tokens, tokens[0])].set(True)
    caches = tuple(cache.constrain_sharding(program.compute.rules) for cache in caches)
    return Prefix(
        caches, constrain(model.logits(last)[:, 0], (), program.compute.rules), seen, length[None]
    )


def insert(
    program: EngineSpec, slots: Slots, prefix: Prefix, admission: RequestParams, slot: int
) -> tuple[Slots, Sampled]:
    """Puts a request into a free slot and draws its first token, each of the result [1].

    By two programs, for only that of the caches depends on the prompt's bucket, and is compiled in
    no time.
    """
    apart, read = dataclasses.replace(slots, caches=()), dataclasses.replace(prefix, caches=())
    entered, first = admit(program, apart, read, admission, slot)
    return dataclasses.replace(
        entered, caches=write_prefix_cache(program, slots.caches, prefix.caches, slot)
    ), first


@functools.partial(jax.jit, static_argnames="program", donate_argnames="slots")
def admit(
    program: EngineSpec, slots: Slots, prefix: Prefix, admission: RequestParams, slot: jax.Array
) -> tuple[Slots, Sampled]:
    """See `insert`: all but the caches, which neither slots nor prefix have here."""
    no_tokens = jnp.zeros(prefix.seen.shape, jnp.int32)
    first = sample_tokens(
        prefix.logits, jnp.zeros(1, jnp.int32), admission.settings, prefix.seen, no_tokens
    )
    one = jnp.ones(1, jnp.int32)
    new = Slots(
        caches=(),
        token=first.token,
        position=prefix.length,
        drawn=one,
        limit=jnp.asarray(admission.limit),
        pause=jnp.asarray(admission.pause),
        forced=0 * one,
        running=_keeps_running(first.token, one, admission),
        stops=jnp.asarray(admission.stops),
        settings=admission.settings,
        seen=prefix.seen.at[0, first.token[0]].set(True),
        token_counts=no_tokens.at[0, first.token[0]].set(1),
    )

    def put(column: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(column, value.astype(column.dtype), slot, axis=0)

    return _constrain_slots(jax.tree.map(put, slots, new), program), first


@functools.partial(jax.jit, static_argnames="program", donate_argnames="caches")
def write_prefix_cache(
    program: EngineSpec,
    caches: tuple[LayerCache, ...],
    read: tuple[LayerCache, ...],
    slot: jax.Array,
) -> tuple[LayerCache, ...]:
    """See `insert`: the caches of all slots, with those of one prompt in a slot."""
    rules = program.compute.rules
    return tuple(
        cache.insert_row(one, slot).constrain_sharding(rules)
        for cache, one in zip(caches, read, strict=True)
    )


@functools.partial(jax.jit, static_argnames=("program", "steps"), donate_argnames="slots")
def decode(
    program: EngineSpec,
    parameters: Parameters,
    slots: Slots,
    forced_suffix: jax.Array,
    stop_when_slot_frees: jax.Array,
    steps: int,
) -> tuple[Slots, Decoded]:
    """Adds a token to every running slot, `steps` times, or until none runs.

    Args:
        program: which model.
        parameters: in decode layout.
        slots: given up.
        forced_suffix: [E] i32, what ends a reasoning by force.
        stop_when_slot_frees: bool; end early when any slot stops, because others wait for it.
        steps: at most.
    """
    rows = slots.token.shape[0]
    started = slots.running

    def step(carry: tuple[jax.Array, Slots, Decoded]) -> tuple[jax.Array, Slots, Decoded]:
        number, slots, out = carry
        model, layers = merge_per_layer(
            program.graphdef, barrier_dequantization(parameters, number)
        )
        running = slots.running
        embeddings = model.decoder.embed(slots.token[:, None])
        hidden, caches = model.decoder.decode_step(
            layers, embeddings, slots.position, slots.caches, running
        )
        # Of slots that do not run nothing is asked that costs time: a draw, sorting the vocabulary,
        # a penalty.
        nothing_asked = SamplingArrays.of([_IDLE_SAMPLING])
        settings = jax.tree.map(
            lambda asked, nothing: jnp.where(running, asked, nothing), slots.settings, nothing_asked
        )
        logits = constrain(model.logits(hidden)[:, 0], ("batch",), program.compute.rules)
        found = sample_tokens(logits, slots.drawn, settings, slots.seen, slots.token_counts)
        found = jax.lax.cond(
            jnp.any(slots.forced > 0),
            lambda found: _apply_forced_suffix(found, logits, slots.forced, forced_suffix),
            lambda found: found,
            found,
        )
        drawn = slots.drawn + running
        after = dataclasses.replace(
            slots,
            caches=caches,
            token=jnp.where(running, found.token, slots.token),
            position=slots.position + running,
            drawn=drawn,
            forced=jnp.maximum(slots.forced - running, 0),
            running=running & _keeps_running(found.token, drawn, slots),
            seen=slots.seen.at[jnp.arange(rows), found.token].max(running),
            token_counts=slots.token_counts.at[jnp.arange(rows), found.token].add(
                running.astype(jnp.int32)
            ),
        )
        out = Decoded(
            tokens=out.tokens.at[:, number].set(found.token),
            logprobs=out.logprobs.at[:, number].set(found.logprob),
            sampling_logprobs=out.sampling_logprobs.at[:, number].set(found.sampling_logprob),
            count=out.count + running,
            running=after.running,
        )
        return number + 1, after, out

    def goes_on(carry: tuple[jax.Array, Slots, Decoded]) -> jax.Array:
        number, slots, _ = carry
        freed = jnp.any(started & ~slots.running)
        return (number < steps) & jnp.any(slots.running) & ~(stop_when_slot_frees & freed)

    nothing = Decoded(
        tokens=jnp.zeros((rows, steps), jnp.int32),
        logprobs=jnp.zeros((rows, steps), jnp.float32),
        sampling_logprobs=jnp.zeros((rows, steps), jnp.float32),
        count=jnp.zeros(rows, jnp.int32),
        running=started,
    )
    _, slots, out = jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int32), slots, nothing))
    return _constrain_slots(slots, program), jax.tree.map(
        lambda leaf: constrain(leaf, (), program.compute.rules), out
    )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="slots")
def release(program: EngineSpec, slots: Slots, slot: jax.Array) -> Slots:
    """Stops a slot, whose request has been given up or has ended."""
    return _constrain_slots(
        dataclasses.replace(slots, running=slots.running.at[slot].set(False)), program
    )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="slots")
def resume(program: EngineSpec, slots: Slots, slot: jax.Array, forced: jax.Array) -> Slots:
    """Lets a slot that paused go on, its next `forced` tokens the engine's forced_suffix ones; it pauses no more."""
    resumed = dataclasses.replace(
        slots,
        running=slots.running.at[slot].set(True),
        pause=slots.pause.at[slot].set(0),
        forced=slots.forced.at[slot].set(forced),
    )
    return _constrain_slots(resumed, program)


def slot_logical_axes(slots: Slots) -> Slots:
    """Returns the logical axes of every array: slots are cut everywhere, heads in the caches."""
    axes: Slots = jax.tree.map(lambda _: ("batch",), slots)
    caches = tuple(
        jax.tree.map(lambda leaf: CACHE_AXES[: leaf.ndim], cache) for cache in slots.caches
    )
    return dataclasses.replace(axes, caches=caches)


def _constrain_slots(slots: Slots, program: EngineSpec) -> Slots:
    """The slots laid out by the rules: one layout always, so that no call compiles anew for another one."""
    rules = program.compute.rules
    placed: Slots = jax.tree.map(
        lambda leaf, axes: constrain(leaf, axes, rules), slots, slot_logical_axes(slots)
    )
    return placed


def _keeps_running(token: jax.Array, drawn: jax.Array, settings: Any) -> jax.Array:
    """[S] bool: no stop token, not at its limit, not where it is to pause."""
    stopped = jnp.any(token[:, None] == settings.stops, axis=-1)
    return ~stopped & (drawn < settings.limit) & (drawn != settings.pause)


def _apply_forced_suffix(
    found: Sampled, logits: jax.Array, forced: jax.Array, forced_suffix: jax.Array
) -> Sampled:
    """The forced_suffix token that is due where one is; it was not drawn, so its sampling log-probability is 0."""
    due = forced_suffix[jnp.clip(forced_suffix.shape[0] - forced, 0, forced_suffix.shape[0] - 1)]
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), due[:, None], axis=-1)[:, 0]
    is_due = forced > 0
    return Sampled(
        token=jnp.where(is_due, due, found.token),
        logprob=jnp.where(is_due, logprob, found.logprob),
        sampling_logprob=jnp.where(is_due, 0.0, found.sampling_logprob),
    )
