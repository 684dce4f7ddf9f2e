"""Generation speed on CPU, ours against transformers' `generate`: same weights, fp32, greedy, a 30 M-parameter decoder.

`python -m benchmarks.generate` prints tokens a second at batch 1 and 8; for 64 requests whose replies have 16 to 512 tokens
(continuous batching against batches padded to their longest reply); and what 16 samples of a prompt
with sound cost against reading it once. The sides take turns, each in a process of its own; ours
begins with large memory pages, as our programs do.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from benchmarks.allocator import allocator_environment
from benchmarks.contest import Step, compare_speed
from stepaudio_jax.config import (
    AdaptorConfig,
    ComputeConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
)
from stepaudio_jax.generation import Engine, Prompt, Sampling
from stepaudio_jax.models import init_parameters
from stepaudio_jax.text import Tokenizer
from tests.qwen2 import qwen2_config

OURS, PEER = "stepaudio_jax", "transformers"
MODEL = ModelConfig(
    encoder=EncoderConfig(hidden=384, heads=6, layers=4),
    adaptor=AdaptorConfig(ffn=512),
    decoder=DecoderConfig(
        vocab_size=6144,
        hidden=512,
        ffn=1536,
        layers=8,
        heads=8,
        kv_heads=2,
        head_dim=64,
        max_positions=1024,
    ),
    length_convention="vllm",
)
PROMPT_TOKENS, NEW_TOKENS = 64, 128
REQUESTS, SLOTS = 64, 8
CLIP_FRAMES = 2500  # 25 s


def replies() -> list[int]:
    """The length of each of the 64 requests' replies."""
    return np.random.default_rng(1).integers(16, 513, size=REQUESTS).tolist()


def prompts(count: int) -> np.ndarray:
    """[count, PROMPT_TOKENS] i32, of text."""
    return np.random.default_rng(0).integers(
        300, MODEL.decoder.vocab_size, size=(count, PROMPT_TOKENS), dtype=np.int32
    )


def our_engine(slots: int) -> Engine:
    """Random weights; its end of the turn has the least probable column, so that replies have the length asked for."""
    compute = ComputeConfig(dtype="float32", remat="none")
    tokenizer = Tokenizer.byte_level()
    parameters = init_parameters(MODEL, jax.random.key(0), compute)
    head = parameters["decoder"]["lm_head"]["kernel"]
    parameters["decoder"]["lm_head"]["kernel"] = head.at[:, tokenizer.special.eot].set(0.0)
    return Engine(MODEL, parameters, tokenizer, compute=compute, slots=slots, slot_tokens=640)


def text_prompt(tokens: np.ndarray) -> Prompt:
    """A prompt without sound."""
    nowhere = np.zeros(len(tokens), bool)
    return Prompt(tokens, nowhere, nowhere, (), ())


def our_step(lengths: Sequence[int], slots: int) -> Step:
    """Answers prompts with replies of these lengths."""
    engine = our_engine(slots)
    asked = [text_prompt(tokens) for tokens in prompts(len(lengths))]
    samplings = [Sampling(temperature=0, max_new_tokens=length) for length in lengths]

    def run() -> int:
        written = sum(len(completion.tokens) for _, completion in engine.generate(asked, samplings))
        if written != sum(lengths):
            raise RuntimeError(
                f"{written} tokens were written, not {sum(lengths)}: a reply ended early"
            )
        return written

    return run


def peer_step(lengths: Sequence[int], batch: int) -> Step:
    """The same in batches, each as long as its longest reply."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(qwen2_config(MODEL.decoder)).eval()
    asked = torch.tensor(prompts(len(lengths)), dtype=torch.long)

    def run() -> None:
        for start in range(0, len(lengths), batch):
            model.generate(
                asked[start : start + batch],
                attention_mask=torch.ones_like(asked[start : start + batch]),
                do_sample=False,
                max_new_tokens=max(lengths[start : start + batch]),
                eos_token_id=None,
                pad_token_id=0,
            )

    return run


def sampling_cost() -> float:
    """Seconds of 16 samples of one token of a prompt with 25 s of sound, over those of one."""
    engine = our_engine(16)
    rng = np.random.default_rng(2)
    heard = -(-CLIP_FRAMES // 8)
    is_audio = np.arange(heard + PROMPT_TOKENS) < heard
    tokens = rng.integers(300, MODEL.decoder.vocab_size, size=is_audio.size, dtype=np.int32)
    mel = rng.normal(size=(MODEL.encoder.mel_bins, CLIP_FRAMES)).astype(np.float32)
    prompt = Prompt(tokens, is_audio, np.zeros(is_audio.size, bool), (mel,), (heard,))

    def seconds(samples: int) -> float:
        start = time.perf_counter()
        engine.submit(
            prompt,
            [Sampling(temperature=1, max_new_tokens=1, seed=seed) for seed in range(samples)],
        )
        for _ in engine.run():
            pass
        return time.perf_counter() - start

    times = [(seconds(1), seconds(16)) for _ in range(8)][1:]
    return float(np.median([many for _, many in times]) / np.median([one for one, _ in times]))


def compare(
    name: str, ours: Callable[[], Step], peer: Callable[[], Step], tokens: int, *, rounds: int
) -> None:
    """Prints tokens a second of both, and the ratio."""
    environments = {OURS: allocator_environment(os.environ, keep_freed=False)}
    taken = compare_speed(
        {OURS: ours, PEER: peer}, rounds=rounds, steps=1, environments=environments
    )
    print(
        f"{name:32s} {tokens / taken[OURS]:7.0f} {tokens / taken[PEER]:7.0f} tokens/s   ratio {taken[PEER] / taken[OURS]:.2f}"
    )


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    rounds = parser.parse_args().rounds
    print(f"{'':32s} {'ours':>7s} {'peer':>7s}")
    for batch in (1, 8):
        lengths = [NEW_TOKENS] * batch
        sides = (
            functools.partial(our_step, lengths, batch),
            functools.partial(peer_step, lengths, batch),
        )
        compare(f"batch {batch}, {NEW_TOKENS} new tokens", *sides, sum(lengths), rounds=rounds)
    lengths = replies()
    sides = (
        functools.partial(our_step, lengths, SLOTS),
        functools.partial(peer_step, lengths, SLOTS),
    )
    compare(
        f"{REQUESTS} replies of 16 to 512 tokens", *sides, sum(lengths), rounds=max(1, rounds // 3)
    )
    print(f"16 samples of a prompt with sound cost {sampling_cost():.2f} times one")


if __name__ == "__main__":
    main()
