"""One RL iteration: the time of each phase, and samples a second beside TRL's GRPOTrainer.

`python -m benchmarks.rl_step` first times an iteration on spoken prompts with a judge of our own,
phase by phase, and counts the chunks that the encoder encoded; then the same decoder on text-only
prompts, ours against TRL's, on a CPU in fp32: the same prompts, group size, reply length, KL to a
reference, AdamW. Prompts are short, and then as long as the spoken ones: ours computes once what
the replies to a prompt share. The sides take turns, each in a process of its own; ours begins with
large memory pages, as our programs do. Needs `pip install trl`.

`--shapes=gpu` runs 20 iterations of verifiable rewards alone on a 1.5 B shape in bf16 on one GPU,
ours only, with longer replies.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import soundfile

from benchmarks.allocator import allocator_environment
from benchmarks.compare import Step, compare_speed
from benchmarks.small_model import small_model
from benchmarks.trl_steps import TrainerSteps
from stepaudio_jax.audio import SAMPLE_RATE
from stepaudio_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    DecoderConfig,
    JudgeConfig,
    ModelConfig,
    OptimizerConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.hub import save_checkpoint
from stepaudio_jax.models import init_parameters
from stepaudio_jax.parallel import make_mesh, replicated
from stepaudio_jax.rl.losses import KLController
from stepaudio_jax.rl.trainer import PolicyIteration
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.preemption import PreemptionNotice
from stepaudio_jax.training.stage_context import StageContext
from stepaudio_jax.training.train_state import init_train_state

OURS, PEER = "stepaudio_jax", "TRL"
# Both sides use its tokenizer.
BASE = pathlib.Path(__file__).resolve().parents[1] / "models" / "tiny_base"
PROMPTS, SAMPLES, NEW_TOKENS = 8, 8, 64
GPU_NEW_TOKENS = 256
CLIP_S, CLIPS = 5.0, 2  # of each spoken prompt
AUDIO_TOKENS = 128  # of a spoken prompt
MARKUP_TOKENS = 16  # around the user's turn, at most
SHORT = 48  # letters of a prompt, about a token each
LONG = SHORT + AUDIO_TOKENS  # a text-only prompt as long as a spoken one
# Standard deviations of random logits. The end of the turn, with a logit of 0, must be too
# improbable to be drawn: the smaller the vocabulary, the further it has to lie below the best.
LOGIT_STD, GPU_LOGIT_STD = 20.0, 5.0
BETA = 0.01


def cpu_model() -> ModelConfig:
    """Returns a model whose decoder has 28 M parameters."""
    return small_model(max_positions=1024, vocab_size=1024)


def gpu_model() -> ModelConfig:
    """Returns Qwen2.5-1.5B's decoder (the vocabulary is padded) and Qwen2-Audio's encoder."""
    decoder = DecoderConfig(
        vocab_size=151936,
        hidden=1536,
        ffn=8960,
        layers=28,
        heads=12,
        kv_heads=2,
        head_dim=128,
        max_positions=4096,
    )
    return ModelConfig(decoder=decoder, length_convention="vllm")


def parity(reply: str, answer: str) -> bool:
    """Accepts about half of all replies: `benchmarks.rl_step:parity`."""
    return sum(reply.encode()) % 2 == 0


def questions(letters: int) -> list[str]:
    """Returns PROMPTS random texts."""
    rng = np.random.default_rng(0)
    return ["".join(map(chr, rng.integers(97, 123, letters))) for _ in range(PROMPTS)]


def write_prompts(folder: pathlib.Path, letters: int, *, spoken: bool) -> pathlib.Path:
    """Writes prompts whose clips are noise."""
    rng = np.random.default_rng(1)
    lines = []
    for number, text in enumerate(questions(letters)):
        parts: list[dict[str, str]] = []
        for clip in range(CLIPS if spoken else 0):
            name = f"{number}-{clip}.wav"
            soundfile.write(
                folder / name,
                rng.normal(0, 0.1, int(CLIP_S * SAMPLE_RATE)).astype(np.float32),
                SAMPLE_RATE,
            )
            parts.append({"type": "audio", "audio": name})
        content = [*parts, {"type": "text", "text": text}]
        lines.append(
            {
                "messages": [{"role": "user", "content": content}],
                "answer": "",
                "reference_reply": text,
            }
        )
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


class OurIteration:
    """Runs iterations on random weights whose replies all have the maximal length."""

    def __init__(
        self,
        folder: pathlib.Path,
        model: ModelConfig,
        compute: ComputeConfig,
        *,
        spoken: bool,
        judged: bool,
        letters: int = SHORT,
        new_tokens: int = NEW_TOKENS,
        logit_std: float = LOGIT_STD,
    ):
        self.tokenizer = Tokenizer.from_folder(BASE)
        parameters = init_parameters(model, jax.random.key(0), compute)
        head = parameters["decoder"]["lm_head"]["kernel"]
        parameters["decoder"]["lm_head"]["kernel"] = (
            (logit_std * head).at[:, self.tokenizer.special.eot].set(0.0)
        )
        reward, judge = (
            RewardConfig(verifier="benchmarks.rl_step:parity", verifier_weight=1.0),
            JudgeConfig(),
        )
        if judged:
            save_checkpoint(
                folder / "judge",
                jax.tree.map(np.asarray, parameters),
                model,
                self.tokenizer,
                source="random",
            )
            judge = JudgeConfig(
                folder=str(folder / "judge"),
                slots=PROMPTS * SAMPLES,
                max_tokens=32,
                max_abstention_rate=1.0,
            )
            reward = RewardConfig(judge_weight=1.0)
        prompt = letters + MARKUP_TOKENS + (AUDIO_TOKENS if spoken else 0)
        stage = StageConfig(
            name="speed",
            steps=1000,
            data=DataConfig(
                sources=(SourceConfig(path=str(write_prompts(folder, letters, spoken=spoken))),),
                batch_size=PROMPTS,
                seq_len=prompt + SAMPLES * new_tokens,  # and the replies to it
                audio_chunks_per_seq=CLIPS if spoken else 0,
                mel_frames_per_chunk=int(CLIP_S * 100) + 4,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-6, decay="constant"),
            objective=PolicyGradient(
                rollout=RolloutConfig(
                    num_prompts=PROMPTS,
                    num_generations=SAMPLES,
                    max_new_tokens=new_tokens,
                    slots=PROMPTS * SAMPLES,
                ),
                rewards=(reward,),
                judge=judge,
                advantage_estimator="grpo",
                kl_coef=BETA,
            ),
            trainable=("adaptor", "decoder") if spoken else ("decoder",),
        )
        config = Config(run_dir=str(folder), stages=(stage,), model=model, compute=compute)
        mesh = make_mesh(config.mesh)
        context = StageContext(config, 0, model, self.tokenizer, mesh, PreemptionNotice())
        start = context.abstract_train_state()
        self.state = init_train_state(
            config, 0, model, start, ModelParams(jax.device_put(parameters, replicated(mesh)))
        )
        self.iteration = PolicyIteration(context, start, self.state)
        self.controller, self.step = KLController(BETA, None, 1), 0
        self.step_tokens = PROMPTS * SAMPLES * new_tokens

    def run(self) -> dict[str, float]:
        """Runs one iteration; returns its metrics."""
        self.step += 1
        result = self.iteration(self.state, self.step, self.controller)
        self.state = dataclasses.replace(result.state, step=result.state.step + 1)
        tokens = sum(len(rollout.completion_tokens) for rollout in result.rollouts)
        if tokens != self.step_tokens:
            raise RuntimeError(
                f"{tokens} tokens were generated, not {self.step_tokens}: a reply ended early"
            )
        return result.metrics


def our_step(letters: int) -> Step:
    """Returns our step on text-only prompts."""
    folder = pathlib.Path(tempfile.mkdtemp())
    compute = ComputeConfig(dtype="float32", remat="none", unroll=0)
    return OurIteration(
        folder, cpu_model(), compute, spoken=False, judged=False, letters=letters
    ).run


def trl_step(letters: int) -> Step:
    """Returns the same by TRL."""
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from tests.qwen2 import qwen2_config

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [float(parity(completion, "")) for completion in completions]

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        beta=BETA,
        model_init_kwargs={"dtype": "float32"},
        learning_rate=1e-6,
        max_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1_000_000,
    )
    # From a folder, since the trainer loads its reference from there.
    weights = tempfile.mkdtemp()
    Qwen2ForCausalLM(qwen2_config(cpu_model().decoder)).save_pretrained(weights)

    def make_trainer(callbacks: list[Any]) -> Any:
        return GRPOTrainer(
            model=weights,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in questions(letters)]),
            processing_class=AutoTokenizer.from_pretrained(BASE, padding_side="left"),
            callbacks=callbacks,
        )

    return TrainerSteps(make_trainer)


def phases(steps: Sequence[Mapping[str, float]]) -> str:
    """Returns the median seconds of each phase of an iteration."""
    names = [name for name in steps[0] if name.startswith("seconds/")]
    medians = {
        name.removeprefix("seconds/"): float(np.median([metrics[name] for metrics in steps]))
        for name in names
    }
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items())


def main() -> None:
    """Prints the phases of an iteration, then the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp())
    if options.shapes == "gpu":
        compute = ComputeConfig(
            dtype="bfloat16", residual_dtype="float32", remat="full", loss_chunks=8
        )
        sizes = (folder, gpu_model(), compute)
        ours = OurIteration(
            *sizes, spoken=True, judged=False, new_tokens=GPU_NEW_TOKENS, logit_std=GPU_LOGIT_STD
        )
        steps = [ours.run() for _ in range(20)]
        print(
            f"20 iterations of {PROMPTS} x {SAMPLES} replies of {GPU_NEW_TOKENS} tokens: "
            f"{phases(steps[2:])}"  # the first two compile programs
        )
        mismatches = [metrics["sampler_mismatch"] for metrics in steps]
        print(
            f"mean exp |log p of the engine - of the trainer|: {np.mean(mismatches):.4f}, in one "
            f"iteration {max(mismatches):.4f} at most"
        )
        return
    compute = ComputeConfig(dtype="float32", remat="none", unroll=0)
    ours = OurIteration(folder, cpu_model(), compute, spoken=True, judged=True)
    steps = [ours.run() for _ in range(4)][1:]
    print(
        f"{PROMPTS} prompts of {CLIPS} clips, {SAMPLES} replies of {NEW_TOKENS} tokens to each, "
        f"judged: {phases(steps)}"
    )
    print(f"chunks encoded: {steps[0]['audio_chunks_encoded']:.0f}, for {PROMPTS * CLIPS} clips")
    del ours
    environments = {OURS: allocator_environment(os.environ, keep_freed=True)}
    for letters in (SHORT, LONG):
        sides = {
            OURS: functools.partial(our_step, letters),
            PEER: functools.partial(trl_step, letters),
        }
        times = compare_speed(sides, rounds=options.rounds, steps=1, environments=environments)
        print(f"prompts of {letters} letters, {SAMPLES} replies of {NEW_TOKENS} tokens to each")
        for name, seconds in times.items():
            print(f"  {name:14s} {PROMPTS * SAMPLES / seconds:6.2f} samples/s")
        print(f"  ratio {times[PEER] / times[OURS]:.2f}", flush=True)


if __name__ == "__main__":
    main()
