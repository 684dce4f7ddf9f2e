"""A policy-gradient stage on the shipped small base, whose replies are well-formed."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    InitialWeights,
    OptimizerConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.generation import LoadedModel, load_model
from stepaudio_jax.parallel import make_mesh, replicated
from stepaudio_jax.rl.trainer import PolicyTrainer
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.preemption import PreemptionNotice
from stepaudio_jax.training.stage_context import StageContext
from tests.generation.small_model import write_clip

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"
QUESTIONS = ("Make up a sum.", "What are the words?", "What is 3 plus 4?")
FLOAT32 = ComputeConfig(dtype="float32", remat="none", unroll=0)


def even(reply: str, answer: str) -> bool:
    """A verifier that accepts some of the replies to any prompt: `tests.rl.small_stage:even`."""
    return sum(map(ord, reply)) % 2 == 0


def never(reply: str, answer: str) -> bool:
    """A verifier that accepts no reply: `tests.rl.small_stage:never`."""
    return False


@functools.cache
def base() -> LoadedModel:
    """Loads the model, once."""
    return load_model(BASE, "float32")


def write_prompts(folder: pathlib.Path, count: int = 6) -> pathlib.Path:
    """Writes prompts, every other one with a clip."""
    lines = []
    for number in range(count):
        parts = [{"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}]
        if number % 2:
            write_clip(folder / f"{number}.wav", 0.3 + 0.1 * number, seed=number)
            parts.insert(0, {"type": "audio", "audio": f"{number}.wav"})
        lines.append(
            {"id": f"p{number}", "messages": [{"role": "user", "content": parts}], "answer": ""}
        )
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def stage_config(
    folder: pathlib.Path,
    prompts: pathlib.Path,
    *,
    steps: int,
    data: dict | None = None,
    rollout: dict | None = None,
    policy: dict | None = None,
) -> Config:
    """Makes the configuration of a run of one stage."""
    stage = StageConfig(
        name="rlvr",
        steps=steps,
        data=DataConfig(
            sources=(SourceConfig(path=str(prompts)),),
            **{
                "batch_size": 4,
                "seq_len": 160,
                "audio_chunks_per_seq": 2,
                "mel_frames_per_chunk": 160,
                **(data or {}),
            },
        ),
        # With a large epsilon, Adam's first step is proportional to the gradient: rounding stays
        # small.
        optimizer=OptimizerConfig(learning_rate=0.05, eps=1.0, decay="constant", weight_decay=0.0),
        objective=PolicyGradient(
            rollout=RolloutConfig(
                **{
                    "num_prompts": 4,
                    "num_generations": 4,
                    "max_new_tokens": 24,
                    "slots": 8,
                    **(rollout or {}),
                }
            ),
            rewards=(RewardConfig(verifier="tests.rl.small_stage:even", verifier_weight=1.0),),
            **(policy or {}),
        ),
    )
    run = Config(
        run_dir=str(folder / "run"),
        initial=InitialWeights(model=str(BASE)),
        compute=FLOAT32,
        checkpoint=CheckpointConfig(every_steps=1),
        stages=(stage,),
    )
    (folder / "run").mkdir(parents=True, exist_ok=True)
    return run


def run_stage(config: Config, decoder: dict | None = None) -> tuple[ModelParams, list[dict]]:
    """Trains the stage; returns the parameters after it, and its logged metrics.

    Args:
        config: of the run.
        decoder: to start from; None for that of the small base.
    """
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        start = base().parameters if decoder is None else base().parameters | {"decoder": decoder}
        params = ModelParams(jax.device_put(jax.tree.map(jnp.array, start), replicated(mesh)))
        context = StageContext(config, 0, base().config, base().tokenizer, mesh, PreemptionNotice())
        after = PolicyTrainer(context).run(params)
        after = jax.tree.map(np.asarray, after)
    lines = (
        (pathlib.Path(config.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return after, [json.loads(line) for line in lines]
