"""Log-probabilities of rollouts: shared prompts give what separate ones do, also with audio."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from stepaudio_jax.config import DataConfig
from stepaudio_jax.data import Record
from stepaudio_jax.models import abstract_model
from stepaudio_jax.rl.packing import PackedRollouts
from stepaudio_jax.rl.policy_update import token_logprobs
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout
from stepaudio_jax.text import ParsedReply
from tests.rl.small_stage import FLOAT32, base

DATA = DataConfig(batch_size=2, seq_len=120, audio_chunks_per_seq=2, mel_frames_per_chunk=80)
OUTPUTS = 10  # of a chunk of 80 frames


def rollouts() -> list[Rollout]:
    """Makes two random prompts, one with two audio chunks, and three replies to each."""
    rng = np.random.default_rng(0)
    made = []
    for group, (prompt, chunk_tokens) in enumerate([(30, (10, 7)), (21, ())]):
        prompt_tokens = rng.integers(0, 256, prompt).astype(np.int32)
        for reply in rng.integers(1, 20, 3):
            turn = PolicyTurn(
                prompt_tokens=prompt_tokens,
                is_audio=(np.arange(prompt) >= 2) & (np.arange(prompt) < 2 + sum(chunk_tokens)),
                chunk_tokens=chunk_tokens,
                completion_tokens=rng.integers(0, 256, reply).astype(np.int32),
                sampler_logprobs=np.zeros(reply, np.float32),
                parsed=ParsedReply("", ""),
                truncated=False,
            )
            record = Record(f"r{group}", (), "s", f"file:{group}")
            made.append(Rollout(group, record, (turn,)))
    return made


def test_shared_prompts_give_what_separate_ones_do():
    items, model = rollouts(), base()
    features = (
        np.random.default_rng(1)
        .normal(size=(2, 2 * OUTPUTS, model.config.encoder.hidden))
        .astype(np.float32)
    )
    module = nnx.merge(abstract_model(model.config, FLOAT32)[0], model.parameters)
    results = {}
    for shared in (True, False):
        packed = PackedRollouts(items, DATA, shared=shared)
        batch = packed.batch([features, np.zeros((0, 0, 0), np.float32)], pad_token=0)
        logprobs, entropy, _ = jax.jit(lambda batch: token_logprobs(module, batch, 0.7))(batch)
        results[shared] = [
            np.concatenate(packed.gather(np.asarray(values))) for values in (logprobs, entropy)
        ]
    for ours, theirs in zip(results[True], results[False], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    # Log-probabilities depend on the audio of the prompt.
    packed = PackedRollouts(items, DATA, shared=True)
    batch = packed.batch([-features, np.zeros((0, 0, 0), np.float32)], pad_token=0)
    logprobs, _, _ = jax.jit(lambda batch: token_logprobs(module, batch, 0.7))(batch)
    assert (
        np.abs(np.concatenate(packed.gather(np.asarray(logprobs))) - results[True][0]).max() > 0.1
    )


def test_replies_do_not_see_each_other():
    items, model = rollouts(), base()
    module = nnx.merge(abstract_model(model.config, FLOAT32)[0], model.parameters)
    features = [
        np.zeros((2, 2 * OUTPUTS, model.config.encoder.hidden), np.float32),
        np.zeros((0, 0, 0), np.float32),
    ]

    def logprobs_of(rollouts: list[Rollout]) -> list[np.ndarray]:
        packed = PackedRollouts(rollouts, DATA, shared=True)
        logprobs, _, _ = jax.jit(lambda batch: token_logprobs(module, batch, 1.0))(
            packed.batch(features, pad_token=0)
        )
        return packed.gather(np.asarray(logprobs))

    turn = items[0].turns[0]
    reversed_reply = dataclasses.replace(turn, completion_tokens=turn.completion_tokens[::-1] + 1)
    other = dataclasses.replace(items[0], turns=(reversed_reply,))
    before, after = logprobs_of(items), logprobs_of([other, *items[1:]])
    assert np.abs(before[0] - after[0]).max() > 0.1
    for ours, theirs in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
