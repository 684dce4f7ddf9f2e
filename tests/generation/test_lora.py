"""An engine with an adapter beside its kernels generates what the merged model generates."""

import dataclasses

import jax
import numpy as np
import pytest
import qwix

from stepaudio_jax.config import LoRAConfig
from stepaudio_jax.generation import Engine, Sampling, Scorer, build_prompt
from stepaudio_jax.models import (
    abstract_lora,
    attach_lora,
    is_quantized,
    merge_lora,
    quantize_weights,
)
from stepaudio_jax.text import render_prompt
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters, user
from tests.models.random_model import FLOAT32

LORA = LoRAConfig(rank=3, alpha=6.0)


def random_matrices(seed):
    rng = np.random.default_rng(seed)
    shapes = abstract_lora(CONFIG, LORA).shapes
    return jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_the_engine_computes_with_the_adapter_that_it_has_now(int8):
    parameters = peaked_parameters()
    held = quantize_weights(CONFIG, parameters) if int8 else parameters
    dequantize = lambda leaf: qwix.dequantize(leaf) if is_quantized(leaf) else leaf  # noqa: E731
    plain = jax.tree.map(dequantize, held, is_leaf=is_quantized)

    def beside(matrices):
        return {**held, "decoder": attach_lora(held["decoder"], matrices, LORA.scale)}

    prompts = [
        build_prompt(render_prompt([user(f"request {n}")], BYTES), BYTES, CONFIG.length_convention)
        for n in range(2)
    ]
    samplings = [Sampling(temperature=1.0, max_new_tokens=12, seed=n) for n in range(2)]
    first, second = random_matrices(1), random_matrices(2)
    engine = Engine(CONFIG, beside(first), BYTES, compute=FLOAT32, slots=2, slot_tokens=64)
    scorer = Scorer(CONFIG, {}, BYTES, compute=FLOAT32)
    seen = []
    for matrices in (first, second):
        if matrices is second:  # as a training state gives them: kernels are not looked at again
            engine.set_parameters(beside(second), lora_only=True)
        scorer._parameters = {
            **plain,
            "decoder": merge_lora(plain["decoder"], matrices, LORA.scale),
        }
        for index, completion in engine.generate(prompts, samplings):
            prompt, reply = prompts[index], np.asarray(completion.tokens, np.int32)
            nothing = np.zeros(len(reply), bool)
            tokens = np.concatenate([prompt.tokens, reply])
            sides = {
                name: np.concatenate([getattr(prompt, name), nothing])
                for name in ("is_audio", "loss_mask")
            }
            expected = scorer.logprobs(dataclasses.replace(prompt, tokens=tokens, **sides))[
                prompt.length :
            ]
            np.testing.assert_allclose(completion.logprobs, expected, atol=2e-4)
            seen.append(completion.tokens)
    assert seen[:2] != seen[2:]
