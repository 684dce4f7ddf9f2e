"""A thousand requests of every kind through one engine: each ends in a reply or an error."""

import collections

import numpy as np
import pytest

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Engine, Prompt, Sampling
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters
from tests.models.random_model import FLOAT32

REQUESTS = 1000
LIMIT = CONFIG.decoder.max_positions


def random_prompt(rng):
    """Text mostly short, sometimes empty, sometimes too long; one in eight with a clip or two."""
    length = int(
        rng.choice(
            [0, rng.integers(1, 40), rng.integers(40, 200), rng.integers(LIMIT - 10, LIMIT + 50)],
            p=[0.02, 0.8, 0.15, 0.03],
        )
    )
    tokens = rng.integers(0, 256, size=length).astype(np.int32)
    is_audio, chunks, counts = np.zeros(length, bool), (), ()
    if length > 30 and rng.random() < 0.3:
        frames = [int(size) for size in rng.integers(20, 90, size=rng.integers(1, 3))]
        counts = tuple(-(-(-(-size // 2) // 2) // 2) for size in frames)
        chunks = tuple(rng.normal(size=(128, size)).astype(np.float32) for size in frames)
        is_audio[3 : 3 + sum(counts)] = True
    return Prompt(tokens, is_audio, np.zeros(length, bool), chunks, counts)


def random_sampling(rng):
    return Sampling(
        temperature=float(rng.choice([0, 0.7, 1.3])),
        top_k=int(rng.choice([0, 1, 5, 1000])),
        top_p=float(rng.choice([1.0, 0.9, 0.1])),
        min_p=float(rng.choice([0.0, 0.2])),
        repetition_penalty=float(rng.choice([1.0, 1.2])),
        max_new_tokens=int(rng.integers(1, 40)),
        max_reasoning_tokens=[None, 1, 7][rng.integers(3)],
        stop_tokens=tuple(int(token) for token in rng.integers(0, 256, size=rng.integers(0, 3))),
        stop_strings=(("a", "\n"), ("</think>",), ())[rng.integers(3)],
        seed=int(rng.integers(2**32)),
    )


@pytest.mark.slow
def test_a_thousand_random_requests_each_end_as_asked():
    rng = np.random.default_rng(0)
    engine = Engine(CONFIG, peaked_parameters(), BYTES, compute=FLOAT32, slots=6, steps=8)
    refusals, numbers, ended, samplings = [], [], {}, {}
    text = collections.defaultdict(str)

    def step():
        for output in engine.step():
            text[output.request] += output.text
            if output.completion is not None:
                assert output.request not in ended, "a request ends once"
                ended[output.request] = output.completion

    while len(samplings) + len(refusals) < REQUESTS:
        prompt, requested = (
            random_prompt(rng),
            [random_sampling(rng) for _ in range(rng.choice([1, 1, 1, 3]))],
        )
        try:
            submitted = engine.submit(prompt, requested)
        except GenerationError as error:
            refusals.append(str(error))
            continue
        samplings |= dict(zip(submitted, requested, strict=True))
        numbers += submitted
        if rng.random() < 0.1:
            engine.cancel(int(rng.choice(numbers[-8:])))
        for _ in range(rng.integers(0, 3)):
            step()
    early = set(engine.programs)
    while engine.busy:
        step()
    assert set(ended) == set(samplings)
    assert len(refusals) > 20
    assert all("more than" in refusal or "is empty" in refusal for refusal in refusals)
    reasons = collections.Counter(completion.finish_reason for completion in ended.values())
    assert min(reasons[reason] for reason in ("stop", "length", "cancelled")) > 20
    for number, completion in ended.items():
        sampling = samplings[number]
        assert (
            len(completion.tokens) == len(completion.logprobs) == len(completion.sampling_logprobs)
        )
        assert len(completion.tokens) <= sampling.max_new_tokens
        assert (
            len(completion.tokens) == sampling.max_new_tokens
        ) or completion.finish_reason != "length"
        assert np.isfinite([*completion.logprobs, *completion.sampling_logprobs]).all()
        assert not {BYTES.special.eot, *sampling.stop_tokens} & set(completion.tokens)
        assert not any(stop in text[number] for stop in sampling.stop_strings)
    assert engine.free_slots == 6
    assert len(engine.programs) - len(early) <= 2
    assert len(engine.programs) <= 40, "bounded by the buckets"
