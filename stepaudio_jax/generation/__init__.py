"""Generation: prompts, sampling, the batched engine, and scoring of given replies."""

from stepaudio_jax.generation.answer_file import Outcome, answer_file, answered_before
from stepaudio_jax.generation.answering import (
    LoadedModel,
    engine_for,
    load_model,
    mesh_for,
    prompt_of,
    require_room,
    score_file,
    scored_before,
)
from stepaudio_jax.generation.engine import Completion, Engine, Progress
from stepaudio_jax.generation.error import GenerationError
from stepaudio_jax.generation.prompt import Prompt, ReadAudio, hear_prompt, require_fit
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.generation.scoring import Scorer, TurnScore

__all__ = [
    "Completion",
    "Engine",
    "GenerationError",
    "LoadedModel",
    "Outcome",
    "Progress",
    "Prompt",
    "ReadAudio",
    "Sampling",
    "Scorer",
    "TurnScore",
    "answer_file",
    "answered_before",
    "engine_for",
    "hear_prompt",
    "load_model",
    "mesh_for",
    "prompt_of",
    "require_fit",
    "require_room",
    "score_file",
    "scored_before",
]
