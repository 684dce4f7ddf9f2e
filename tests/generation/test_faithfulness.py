"""Log-probabilities while generating equal those of one forward pass, with the shipped model."""

import dataclasses
import pathlib

import numpy as np
import pytest

from stepaudio_jax.generation import Engine, Sampling, Scorer, build_prompt, load_model
from stepaudio_jax.text import render_prompt
from tests.generation.small_model import user, write_clip

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"
QUESTIONS = (
    "What do you hear?",
    "What are the words?",
    "Make up a sum.",
    "Is the speaker female or male?",
)
REPLIES = 24
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """Prompts, half of them with a clip."""
    folder, tokenizer = tmp_path_factory.mktemp("clips"), load_model(BASE).tokenizer
    prompts = []
    for number in range(REPLIES):
        parts = [QUESTIONS[number % 4]]
        if number % 2:
            parts = [write_clip(folder / f"{number}.wav", 0.5 + 0.05 * number, seed=number), *parts]
        prompts.append(build_prompt(render_prompt([user(*parts)], tokenizer), tokenizer, "hf"))
    return prompts


def differences(dialogues, dtype, **settings):
    """Returns |log p while generating - log p in one forward pass| of every sampled token."""
    model = load_model(BASE, dtype)
    engine = Engine(
        model.config,
        model.parameters,
        model.tokenizer,
        compute=model.compute,
        slots=8,
        slot_tokens=160,
        **settings,
    )
    samplings = [
        Sampling(temperature=1.0, top_p=1.0, max_new_tokens=NEW_TOKENS, seed=seed)
        for seed in range(REPLIES)
    ]
    scorer = Scorer(model.config, model.parameters, model.tokenizer, compute=model.compute)
    found = []
    for index, completion in engine.generate(dialogues, samplings):
        prompt, reply = dialogues[index], np.asarray(completion.tokens, np.int32)
        silent = np.zeros(len(reply), bool)
        whole = dataclasses.replace(
            prompt,
            tokens=np.concatenate([prompt.tokens, reply]),
            is_audio=np.concatenate([prompt.is_audio, silent]),
            loss_mask=np.concatenate([prompt.loss_mask, ~silent]),
        )
        found.append(
            np.abs(np.asarray(completion.logprobs) - scorer.logprobs(whole)[prompt.length :])
        )
    found = np.concatenate(found)
    assert len(found) > 150
    return found


@pytest.mark.slow
def test_engine_and_trainer_logprobs_agree_in_fp32(dialogues):
    assert differences(dialogues, "float32").max() <= 1e-4


@pytest.mark.slow
def test_engine_and_trainer_ratio_is_below_1_02_in_bf16(dialogues):
    off = differences(dialogues, "bfloat16")
    assert np.exp(off).mean() < 1.02


@pytest.mark.slow
def test_engine_and_trainer_ratio_is_below_1_05_with_an_int8_cache(dialogues):
    off = differences(dialogues, "bfloat16", cache_dtype="int8")
    assert np.exp(off).mean() < 1.05
