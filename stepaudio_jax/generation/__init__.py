"""Generation: prompts, sampling, the batched engine, and scoring of given replies."""

from stepaudio_jax.generation.answering import LoadedModel, answer_file, load_model, prompt_of, require_room, score_file
from stepaudio_jax.generation.engine import Completion, Engine, Sampling
from stepaudio_jax.generation.prompt import GenerationError, Prompt, ReadAudio, hear_prompt
from stepaudio_jax.generation.scoring import Scorer, TurnScore

__all__ = [
    "Completion",
    "Engine",
    "GenerationError",
    "LoadedModel",
    "Prompt",
    "ReadAudio",
    "Sampling",
    "Scorer",
    "TurnScore",
    "answer_file",
    "hear_prompt",
    "load_model",
    "prompt_of",
    "require_room",
    "score_file",
]
