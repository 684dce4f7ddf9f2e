"""Prompts prefilled in chunks: the same replies, beginnings that are kept, masks, alternatives."""

import numpy as np
import pytest
from jax import monitoring

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Engine, Sampling, build_prompt
from stepaudio_jax.generation.bounded_cache import BoundedCache
from stepaudio_jax.generation.chunked_prefill import ChunkedPrefillOptions
from stepaudio_jax.generation.prefix_blocks import block_keys
from stepaudio_jax.text import render_prompt
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters, user, write_clip
from tests.models.random_model import FLOAT32

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
CHUNK = 32


def make_engine(parameters, *, cache_dtype=None, cache_bytes=1 << 26, **options):
    return Engine(
        CONFIG,
        parameters,
        BYTES,
        compute=FLOAT32,
        slots=3,
        steps=4,
        cache_dtype=cache_dtype,
        chunked_prefill=ChunkedPrefillOptions(CHUNK, cache_bytes, cache_bytes),
        max_top_logprobs=4,
        has_masks=True,
        **options,
    )


@pytest.fixture(scope="module")
def parameters():
    return peaked_parameters()


@pytest.fixture(scope="module")
def engine(parameters):
    return make_engine(parameters)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Prompts shorter than a chunk, as long as some, and with sound that lies across chunks."""
    folder = tmp_path_factory.mktemp("clips")
    long, short = write_clip(folder / "a.wav", 4.0), write_clip(folder / "b.wav", 1.0, 1)
    turns = (("hello",), ("x" * 40, long, "what?"), (long, "and", short, "y" * 70), ("q" * 200,))
    convention = CONFIG.length_convention
    built = [build_prompt(render_prompt([user(*turn)], BYTES), BYTES, convention) for turn in turns]
    exact = built[0].length % CHUNK
    padded = ("w" * (5 + CHUNK - exact),)
    return [*built, build_prompt(render_prompt([user(*padded)], BYTES), BYTES, convention)]


def answer(engine, prompts, sampling=GREEDY):
    completions = dict(engine.generate(prompts, [sampling] * len(prompts)))
    return [completions[index] for index in range(len(prompts))]


def test_replies_are_those_of_prompts_prefilled_at_once(parameters, engine, prompts):
    assert prompts[-1].length == 2 * CHUNK
    at_once = Engine(CONFIG, parameters, BYTES, compute=FLOAT32, slots=3)
    expected = answer(at_once, prompts)
    for reply, prompt in zip(expected, prompts, strict=True):
        engine.chunked_prefill.forget()
        (chunked,), (repeated,) = answer(engine, [prompt]), answer(engine, [prompt])
        assert chunked.tokens == reply.tokens
        np.testing.assert_allclose(chunked.logprobs, reply.logprobs, atol=1e-4)
        assert chunked.cached_tokens == 0
        # What is kept is bit for bit what computing it again would give.
        assert (repeated.tokens, repeated.logprobs) == (chunked.tokens, chunked.logprobs)
        assert repeated.cached_tokens == (prompt.length - 1) // CHUNK * CHUNK


@pytest.mark.slow
def test_int8_caches_are_prefilled_in_chunks_too(parameters, prompts):
    engine = make_engine(parameters, cache_dtype="int8")
    once = answer(engine, prompts[:3])
    assert [reply.tokens for reply in answer(engine, prompts[:3])] == [r.tokens for r in once]


def test_keys_of_blocks_depend_on_all_before_and_nothing_behind(prompts):
    prompt, other = prompts[1], prompts[2]
    keys = block_keys(prompt, CHUNK)
    assert len(keys) == (prompt.length - 1) // CHUNK
    assert len(set(keys)) == len(keys)
    assert not set(keys) & set(block_keys(other, CHUNK))
    changed = prompt.tokens.copy()
    changed[-1] += 1
    assert block_keys(_with(prompt, tokens=changed), CHUNK) == keys
    changed[0] += 1
    assert not set(block_keys(_with(prompt, tokens=changed), CHUNK)) & set(keys)
    louder = block_keys(_with(prompt, chunks=(prompt.chunks[0] + 1,)), CHUNK)
    before_sound = int(np.flatnonzero(prompt.is_audio)[0]) // CHUNK
    assert louder[:before_sound] == keys[:before_sound]
    assert not set(louder[before_sound:]) & set(keys)


def test_running_requests_go_on_while_a_long_prompt_is_prefilled(engine, prompts):
    """Each step computes one chunk at most, and a token at least for the request that runs."""
    engine.chunked_prefill.forget()
    (running,) = engine.submit(prompts[0], [Sampling(temperature=0.0, max_new_tokens=100)])
    engine.step()
    engine.submit(prompts[3], [GREEDY])
    steps = 0
    while engine.num_waiting:
        assert any(output.request == running and output.tokens for output in engine.step())
        steps += 1
    assert steps >= prompts[3].length // CHUNK
    for _ in engine.run():
        pass


def test_a_prompt_given_up_while_it_is_prefilled_leaves_no_trace(engine, prompts):
    engine.chunked_prefill.forget()
    expected = answer(engine, [prompts[1]])
    engine.chunked_prefill.forget()
    (request,) = engine.submit(prompts[3], [GREEDY])
    engine.step()
    assert engine.chunked_prefill.busy
    engine.cancel(request)
    assert [reply.tokens for reply in answer(engine, [prompts[1]])] == [expected[0].tokens]
    assert engine.free_slots == 3


def test_nothing_is_compiled_after_warming_up(parameters, prompts):
    engine = make_engine(parameters)
    names = list(engine.warm_up())
    assert len(names) == len(set(names))
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    answer(engine, prompts)
    answer(engine, prompts, Sampling(seed=1, max_new_tokens=9, max_reasoning_tokens=4))
    requests = engine.submit(
        prompts[0], [GREEDY] * 5, num_top_logprobs=2, constraints=[Only(b"abc")] + [None] * 4
    )
    engine.cancel(requests[3])
    for _ in engine.run():
        pass
    assert not compiled


class Only:
    """Allows one text, and then the end of the turn."""

    def __init__(self, text):
        self.tokens = [*text, BYTES.special.eot]

    def write_allowed(self, words):
        words[self.tokens[0] // 32] |= np.uint32(1) << np.uint32(self.tokens[0] % 32)

    def accept(self, token):
        assert token == self.tokens.pop(0)


def test_a_constraint_decides_and_leaves_others_alone(engine, prompts):
    (expected,) = answer(engine, [prompts[0]])
    hot = Sampling(temperature=2.0, seed=3, max_new_tokens=20)
    constrained, free = engine.submit(
        prompts[0], [hot, GREEDY], constraints=[Only("ja 你".encode()), None]
    )
    ended = {o.request: o.completion for o in engine.run() if o.completion is not None}
    assert BYTES.decode(ended[constrained].tokens) == "ja 你"
    assert ended[constrained].finish_reason == "stop"
    assert ended[free].tokens == expected.tokens


def test_alternatives_are_the_most_probable_tokens(engine, prompts):
    plain, wanting = engine.submit(prompts[0], [GREEDY])[0], None
    (wanting,) = engine.submit(prompts[0], [GREEDY], num_top_logprobs=3)
    tokens = {plain: [], wanting: []}
    for output in engine.run():
        tokens[output.request] += output.tokens
    assert [token.token for token in tokens[plain]] == [token.token for token in tokens[wanting]]
    assert all(token.top == () for token in tokens[plain])
    for token in tokens[wanting]:
        assert len(token.top) == 3
        assert token.top[0] == (token.token, pytest.approx(token.logprob, abs=1e-5))


def test_what_the_engine_was_not_made_for_is_refused(parameters, engine, prompts):
    with pytest.raises(GenerationError, match="num_top_logprobs=5"):
        engine.submit(prompts[0], [GREEDY], num_top_logprobs=5)
    plain = Engine(CONFIG, parameters, BYTES, compute=FLOAT32, slots=1)
    with pytest.raises(GenerationError, match="has_masks"):
        plain.submit(prompts[0], [GREEDY], constraints=[None])
    with pytest.raises(GenerationError, match="chunked_prefill"):
        next(plain.warm_up())
    for size in (16, 48):
        with pytest.raises(GenerationError, match=f"chunk_tokens={size}"):
            ChunkedPrefillOptions(size)


def test_a_bounded_cache_drops_what_was_not_used_for_longest():
    cache = BoundedCache(10)
    for name, size in ((b"a", 4), (b"b", 4), (b"a", 5)):
        cache.put(name, name, size)
    assert cache.num_bytes == 9
    assert cache.get(b"a") == b"a"
    cache.put(b"c", b"c", 5)
    assert cache.get(b"b") is None
    cache.put(b"d", b"d", 11)
    assert cache.get(b"d") is None
    assert (len(cache), cache.num_bytes, cache.hits, cache.misses) == (2, 10, 1, 2)


def _with(prompt, **changes):
    """A copy of a prompt, without what was computed of the original."""
    names = ("tokens", "is_audio", "loss_mask", "chunks", "chunk_tokens")
    return type(prompt)(**{name: getattr(prompt, name) for name in names} | changes)
