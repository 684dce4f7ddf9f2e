"""Training speed on CPU: tokens a second of a 30 M-parameter decoder, ours against transformers with torch's AdamW.

`python -m benchmarks.train_step` lets both take turns, each in a process of its own, and prints the ratio of their median step
times. Both see the same shape, the same tokens, fp32, AdamW with clipping; both are warmed up first.
"""

import argparse

import jax
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.contest import Step, contest
from stepaudio_jax.config import ComputeConfig, Config, DataConfig, DecoderConfig, ModelConfig, SourceConfig, StageConfig
from stepaudio_jax.data.batch import Batch
from stepaudio_jax.models import initial_parameters
from stepaudio_jax.parallel import make_mesh
from stepaudio_jax.training.start import describe_stage, start_stage
from stepaudio_jax.training.step import make_train_step

ROWS, TOKENS = 4, 512
DECODER = DecoderConfig(vocab_size=6144, hidden=512, ffn=1536, layers=8, heads=8, kv_heads=2, head_dim=64, max_positions=TOKENS)


def our_step() -> Step:
    """A closure that runs one step and returns its loss."""
    tiny = ModelConfig.presets()["tiny"]
    model = ModelConfig(encoder=tiny.encoder, adaptor=tiny.adaptor, decoder=DECODER)
    stage = StageConfig(name="speed", steps=1000, data=DataConfig(sources=(SourceConfig(path="none"),)), trainable=("decoder",))
    compute = ComputeConfig(dtype="float32", remat="none", unroll=0)
    config = Config(run_dir="none", stages=(stage,), model=model, compute=compute)
    parameters = initial_parameters(model, jax.random.key(0), compute)
    start = describe_stage(config, 0, model, make_mesh(config.mesh))
    state = start_stage(config, 0, model, start, parameters)
    step = jax.jit(make_train_step(start.definition, stage, start.optimizer), donate_argnums=0)
    tokens, targets = random_tokens()
    batch = Batch(
        tokens=tokens,
        targets=targets,
        loss_weights=np.ones((ROWS, TOKENS), np.float32),
        positions=np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (ROWS, TOKENS)),
        segment_ids=np.ones((ROWS, TOKENS), np.int32),
        mel=np.zeros((ROWS, 0, 128, 0), np.float32),
        mel_lengths=np.zeros((ROWS, 0), np.int32),
        audio_slot=np.full((ROWS, TOKENS), -1, np.int32),
    )

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return run


def torch_step() -> Step:
    """The same for transformers' Qwen2 and torch's AdamW."""
    model = Qwen2ForCausalLM(  # attention is torch's scaled_dot_product_attention, transformers' default
        Qwen2Config(
            vocab_size=DECODER.vocab_size,
            hidden_size=DECODER.hidden,
            intermediate_size=DECODER.ffn,
            num_hidden_layers=DECODER.layers,
            num_attention_heads=DECODER.heads,
            num_key_value_heads=DECODER.kv_heads,
            max_position_embeddings=TOKENS,
            tie_word_embeddings=False,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1)
    tokens, targets = (torch.tensor(array, dtype=torch.long) for array in random_tokens())

    def run() -> float:
        logits = model(tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def random_tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the token after each, [ROWS, TOKENS] i32."""
    sequence = np.random.default_rng(0).integers(0, DECODER.vocab_size, size=(ROWS, TOKENS + 1), dtype=np.int32)
    return sequence[:, :-1], sequence[:, 1:]


def main() -> None:
    """Times both and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn")
    options = parser.parse_args()
    taken = contest({"stepaudio_jax": our_step, "transformers + torch": torch_step}, rounds=options.rounds, steps=options.steps)
    for name, seconds in taken.items():
        print(f"{name:22s} {ROWS * TOKENS / seconds:8.0f} tokens/s")
    print(f"ratio {taken['transformers + torch'] / taken['stepaudio_jax']:.2f}")


if __name__ == "__main__":
    main()
