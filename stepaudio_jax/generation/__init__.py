"""Generation: prompts, sampling, the batched engine, and scoring of given replies."""

from stepaudio_jax.generation.batch_job import JobSummary, answer_file, finished_generation
from stepaudio_jax.generation.chat import ChatModel, Reply
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.loaded_model import (
    LoadedModel,
    build_engine,
    build_record_prompt,
    check_record_fits,
    folder_decode_mesh,
    load_model,
)
from stepaudio_jax.generation.outputs import Completion, RequestOutput
from stepaudio_jax.generation.prompts import AudioReader, Prompt, build_prompt, check_prompt_fits
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.generation.scoring import Scorer, TurnScore, is_scoring_finished, score_file

__all__ = [
    "AudioReader",
    "ChatModel",
    "Completion",
    "Engine",
    "JobSummary",
    "LoadedModel",
    "Prompt",
    "Reply",
    "RequestOutput",
    "Sampling",
    "Scorer",
    "TurnScore",
    "answer_file",
    "build_engine",
    "build_prompt",
    "build_record_prompt",
    "check_prompt_fits",
    "check_record_fits",
    "finished_generation",
    "folder_decode_mesh",
    "is_scoring_finished",
    "load_model",
    "score_file",
]
