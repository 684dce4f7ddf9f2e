"""Measures training, ours beside transformers with torch's AdamW: tokens a second and their ratio.

`python -m benchmarks.train_step` runs on a CPU: a 30 M-parameter decoder in fp32, on text alone and
on packed dialogues with sound. torch's side pads as its users do: texts to the longest, clips to
the 30 s of Qwen2-Audio's encoder. `--shapes=gpu` runs a 3 B decoder in bf16 on one GPU of 141 GB.

Each side has a process of its own. On a CPU they take turns. On a GPU the second begins when the
first has freed its memory: ours cuts the batch in two and keeps of a layer the results of products
and of attention, torch's cuts it in four and keeps all. Both train on the same dialogues with fp32
parameters and moments, AdamW and clipping; padding is not counted as tokens. On a CPU our process
begins with large memory pages, as our programs do; torch was found to be no faster with them.
"""

import argparse
import dataclasses
import functools
import os

import jax
import torch

from benchmarks.allocator import allocator_environment
from benchmarks.compare import Step, compare_speed
from benchmarks.small_model import small_model
from benchmarks.torch_training import torch_step
from benchmarks.training_job import Job, draw_rows
from stepaudio_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    Part,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.data.batch import batch_shape, collate
from stepaudio_jax.models import init_parameters
from stepaudio_jax.parallel import make_mesh, peak_flops
from stepaudio_jax.training.flops import part_flops
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.train_state import abstract_train_state, init_train_state
from stepaudio_jax.training.train_step import make_train_step

SOURCES = (SourceConfig(path="drawn"),)
OURS, PEER, PRODUCT = "stepaudio_jax", "transformers + torch", "matrix product"
PRODUCT_SIZE = 2048


def cpu_jobs() -> list[Job]:
    """Returns jobs of the small model, 4 x 512 tokens: text alone, and clips of up to 12 s."""
    model = small_model(max_positions=512)
    compute = ComputeConfig(dtype="float32", remat="none", unroll=0)
    text = DataConfig(sources=SOURCES, batch_size=4, seq_len=512, audio_chunks_per_seq=0)
    sound = dataclasses.replace(text, audio_chunks_per_seq=3, mel_frames_per_chunk=1200)
    return [
        Job(name=name, model=model, data=data, compute=compute)
        for name, data in (("text", text), ("sound", sound))
    ]


def gpu_jobs() -> list[Job]:
    """Returns the jobs of Qwen2.5-3B's shape: 32 768 tokens in rows of 4 096 and of 8 192.

    Layers are unrolled: a loop over them writes the activations that are kept into arrays of all
    layers, which are filled with zeros first, and 7 % of a step's time went there.
    """
    decoder = DecoderConfig(
        vocab_size=151936,
        hidden=2048,
        ffn=11008,
        layers=36,
        heads=16,
        kv_heads=2,
        head_dim=128,
        max_positions=8192,
    )
    compute = ComputeConfig(
        dtype="bfloat16",
        remat="save",
        remat_names=("query", "key", "value", "attn_out", "attn_proj", "gate", "up"),
        unroll=0,
    )
    return [
        Job(
            name=f"{tokens} tokens",
            model=ModelConfig(encoder=EncoderConfig(hidden=64, heads=4, layers=1), decoder=decoder),
            data=DataConfig(
                sources=SOURCES, batch_size=32768 // tokens, seq_len=tokens, audio_chunks_per_seq=0
            ),
            compute=compute,
            compiled=True,
            micro_batches=2,
            torch_micro_batches=4,
        )
        for tokens in (4096, 8192)
    ]


def our_step(job: Job) -> Step:
    """A closure that runs one training step and returns its loss."""
    trainable: tuple[Part, ...] = (
        ("adaptor", "decoder") if job.data.audio_chunks_per_seq else ("decoder",)
    )
    stage = StageConfig(
        name="speed",
        steps=1000,
        data=job.data,
        trainable=trainable,
        gradient_accumulation_steps=job.micro_batches,
    )
    config = Config(run_dir="none", stages=(stage,), model=job.model, compute=job.compute)
    start = abstract_train_state(config, 0, job.model, make_mesh(config.mesh))
    params = ModelParams(init_parameters(job.model, jax.random.key(0), job.compute))
    state = init_train_state(config, 0, job.model, start, params)
    step = jax.jit(make_train_step(start.model_def, stage, start.optimizer), donate_argnums=0)
    batch = collate(draw_rows(job), batch_shape(job.data, None, pad_token=0))

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return run


def product_step(job: Job) -> Step:
    """Returns one large product of two matrices by torch, which measures a CPU's peak."""
    left, right = torch.rand(2, PRODUCT_SIZE, PRODUCT_SIZE)

    def run() -> float:
        return float((left @ right)[0, 0])

    return run


def main() -> None:
    """Times both sides on every job and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--jobs", nargs="*", help="names of the jobs to run (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn")
    options = parser.parse_args()
    on_gpu = options.shapes == "gpu"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--shapes=gpu needs a GPU that torch and JAX can use")
    jobs = {job.name: job for job in (gpu_jobs() if on_gpu else cpu_jobs())}
    if unknown := set(options.jobs or ()) - set(jobs):
        parser.error(f"--jobs: {', '.join(sorted(unknown))}: there are only {', '.join(jobs)}")
    for job in (jobs[name] for name in options.jobs or jobs):
        (on_one_gpu if on_gpu else on_a_cpu)(job, options.rounds, options.steps)


def on_a_cpu(job: Job, rounds: int, steps: int) -> None:
    """Runs both sides in turns with a product of two matrices, which measures the peak."""
    sides = {
        OURS: functools.partial(our_step, job),
        PEER: functools.partial(torch_step, job),
        PRODUCT: functools.partial(product_step, job),
    }
    as_launched = {OURS: allocator_environment(os.environ, keep_freed=True)}
    seconds = compare_speed(sides, rounds=rounds, steps=steps, environments=as_launched)
    peak = 2 * PRODUCT_SIZE**3 / seconds[PRODUCT]
    print(f"{job.name}: {token_count(job)} tokens a step")
    for name in (OURS, PEER):
        print_speed(job, name, seconds[name], peak)
    print(
        f"  peak: {peak / 1e9:.0f} GFLOP/s, "
        f"of a product of two {PRODUCT_SIZE} x {PRODUCT_SIZE} matrices by torch"
    )
    print(f"  ratio {seconds[PEER] / seconds[OURS]:.2f}", flush=True)


def on_one_gpu(job: Job, rounds: int, steps: int) -> None:
    """Runs one side after the other, each with all of the memory; prints each when it is done."""
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    kind = torch.cuda.get_device_name()
    print(f"{job.name}: {token_count(job)} tokens a step on {kind}", flush=True)
    seconds: dict[str, float] = {}
    for name, prepare in {OURS: our_step, PEER: torch_step}.items():
        seconds |= compare_speed(
            {name: functools.partial(prepare, job)}, rounds=1, steps=rounds * steps
        )
        print_speed(job, name, seconds[name], peak_flops(kind))
    print(f"  ratio {seconds[PEER] / seconds[OURS]:.2f}", flush=True)


def print_speed(job: Job, name: str, seconds: float, peak: float | None) -> None:
    """Prints the speed of one side.

    Args:
        job: that was timed.
        name: of the side.
        seconds: of a step.
        peak: of the machine, in operations a second; None where it is not known.
    """
    utilization = ""
    if peak and not job.data.audio_chunks_per_seq:  # without padding, all work is useful
        utilization = f"{decoder_flops(job) / seconds / peak:7.1%} of the peak"
    print(
        f"  {name:22s} {token_count(job) / seconds:8.0f} tokens/s {utilization}".rstrip(),
        flush=True,
    )


def token_count(job: Job) -> int:
    """Returns the tokens of a step, padding left out."""
    return sum(example.tokens.size for row in draw_rows(job) for example in row)


def decoder_flops(job: Job) -> float:
    """Returns the operations of the decoder in one training step, by formula."""
    return part_flops(job.model, job.data, ("decoder",))["decoder"]


if __name__ == "__main__":
    main()
