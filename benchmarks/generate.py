"""Measures generation on a CPU, ours beside transformers' `generate`: greedy, in fp32.

`python -m benchmarks.generate` prints tokens a second of a 30 M-parameter decoder at batch 1 and 8;
of 64 requests whose replies have 16 to 512 tokens (continuous batching against batches padded to
their longest reply); and the cost of 16 samples of a prompt with sound relative to one. The sides
take turns, each in a process of its own; ours begins with large memory pages, as our programs do.
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
from benchmarks.compare import Step, compare_speed
from benchmarks.small_model import small_model
from stepaudio_jax.config import ComputeConfig
from stepaudio_jax.generation import Engine, Prompt, Sampling
from stepaudio_jax.models import init_parameters
from stepaudio_jax.text import Tokenizer
from tests.qwen2 import qwen2_config

OURS, PEER = "stepaudio_jax", "transformers"
MODEL = small_model(max_positions=1024)
PROMPT_TOKENS, NEW_TOKENS = 64, 128
REQUESTS, SLOTS = 64, 8
CLIP_FRAMES = 2500  # 25 s


def replies() -> list[int]:
    """Returns the length of each of the 64 requests' replies, in tokens."""
    return np.random.default_rng(1).integers(16, 513, size=REQUESTS).tolist()


def prompts(count: int) -> np.ndarray:
    """Returns random text prompts: [count, PROMPT_TOKENS] i32."""
    return np.random.default_rng(0).integers(
        300, MODEL.decoder.vocab_size, size=(count, PROMPT_TOKENS), dtype=np.int32
    )


def our_engine(slots: int) -> Engine:
    """Returns an engine with random weights, whose replies have the length that is asked for.

    The LM head's column of the end-of-turn token is zero, which makes that token improbable.
    """
    compute = ComputeConfig(dtype="float32", remat="none")
    tokenizer = Tokenizer.byte_level()
    parameters = init_parameters(MODEL, jax.random.key(0), compute)
    head = parameters["decoder"]["lm_head"]["kernel"]
    parameters["decoder"]["lm_head"]["kernel"] = head.at[:, tokenizer.special.eot].set(0.0)
    return Engine(MODEL, parameters, tokenizer, compute=compute, slots=slots, slot_tokens=640)


def text_prompt(tokens: np.ndarray) -> Prompt:
    """Returns a prompt without sound."""
    no_positions = np.zeros(len(tokens), bool)
    return Prompt(tokens, no_positions, no_positions, (), ())


def our_step(lengths: Sequence[int], slots: int) -> Step:
    """Returns a step of our engine: replies of these lengths to as many prompts."""
    engine = our_engine(slots)
    requests = [text_prompt(tokens) for tokens in prompts(len(lengths))]
    samplings = [Sampling(temperature=0, max_new_tokens=length) for length in lengths]

    def run() -> int:
        generated = sum(
            len(completion.tokens) for _, completion in engine.generate(requests, samplings)
        )
        if generated != sum(lengths):
            raise RuntimeError(
                f"{generated} tokens were generated, not {sum(lengths)}: a reply ended early"
            )
        return generated

    return run


def peer_step(lengths: Sequence[int], batch: int) -> Step:
    """Returns the same step of transformers: batches, each as long as its longest reply."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(qwen2_config(MODEL.decoder)).eval()
    tokens = torch.tensor(prompts(len(lengths)), dtype=torch.long)

    def run() -> None:
        for start in range(0, len(lengths), batch):
            model.generate(
                tokens[start : start + batch],
                attention_mask=torch.ones_like(tokens[start : start + batch]),
                do_sample=False,
                max_new_tokens=max(lengths[start : start + batch]),
                eos_token_id=None,
                pad_token_id=0,
            )

    return run


def sampling_cost() -> float:
    """Returns the time of 16 one-token samples of a prompt with 25 s of sound, over that of one."""
    engine = our_engine(16)
    rng = np.random.default_rng(2)
    audio_tokens = -(-CLIP_FRAMES // 8)
    is_audio = np.arange(audio_tokens + PROMPT_TOKENS) < audio_tokens
    tokens = rng.integers(300, MODEL.decoder.vocab_size, size=is_audio.size, dtype=np.int32)
    mel = rng.normal(size=(MODEL.encoder.mel_bins, CLIP_FRAMES)).astype(np.float32)
    prompt = Prompt(tokens, is_audio, np.zeros(is_audio.size, bool), (mel,), (audio_tokens,))

    def seconds(samples: int) -> float:
        start = time.perf_counter()
        engine.submit(
            prompt,
            [Sampling(temperature=1, max_new_tokens=1, seed=seed) for seed in range(samples)],
        )
        for _ in engine.run():
            pass
        return time.perf_counter() - start

    for samples in (1, 16):
        seconds(samples)  # compiles the programs
    times = np.array([(seconds(1), seconds(16)) for _ in range(7)])
    single, many = np.median(times, axis=0)
    return float(many / single)


def print_comparison(
    name: str, ours: Callable[[], Step], peer: Callable[[], Step], tokens: int, *, rounds: int
) -> None:
    """Prints the tokens a second of both sides, and their ratio."""
    environments = {OURS: allocator_environment(os.environ, keep_freed=False)}
    seconds = compare_speed(
        {OURS: ours, PEER: peer}, rounds=rounds, steps=1, environments=environments
    )
    print(
        f"{name:32s} {tokens / seconds[OURS]:7.0f} {tokens / seconds[PEER]:7.0f} tokens/s   "
        f"ratio {seconds[PEER] / seconds[OURS]:.2f}"
    )


def main() -> None:
    """Runs all comparisons and prints their results."""
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
        print_comparison(
            f"batch {batch}, {NEW_TOKENS} new tokens", *sides, sum(lengths), rounds=rounds
        )
    lengths = replies()
    sides = (
        functools.partial(our_step, lengths, SLOTS),
        functools.partial(peer_step, lengths, SLOTS),
    )
    print_comparison(
        f"{REQUESTS} replies of 16 to 512 tokens", *sides, sum(lengths), rounds=max(1, rounds // 3)
    )
    print(f"16 samples of a prompt with sound cost {sampling_cost():.2f} times one")


if __name__ == "__main__":
    main()
