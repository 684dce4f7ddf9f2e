"""Prompts in place of those that teach little: nearly all of their replies are right, or wrong.

DAPO (Yu et al. 2025, section 3.2) draws others until the batch is whole.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.rl.audio_features import AudioFeatures
from stepaudio_jax.rl.prompts import PromptExample
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout


@dataclasses.dataclass(frozen=True)
class DrawnRollouts:
    """The prompts of a step, and what was generated for them.

    Attributes:
        examples, features: of each prompt.
        rollouts, rewards: those of a prompt together.
    """

    examples: list[PromptExample]
    features: AudioFeatures
    rollouts: list[Rollout]
    rewards: list[Reward]


def replace_prompts(
    drawn: DrawnRollouts, places: NDArray[np.int64], others: DrawnRollouts
) -> DrawnRollouts:
    """Returns the drawn rollouts with other prompts, and theirs, at some places."""
    examples, prompts = list(drawn.examples), list(drawn.features.prompts)
    by_prompt = list(drawn.features.by_prompt)
    rollouts, rewards = list(drawn.rollouts), list(drawn.rewards)
    size = len(rollouts) // len(examples)
    for source, place in enumerate(places.tolist()):
        examples[place] = others.examples[source]
        prompts[place] = others.features.prompts[source]
        by_prompt[place] = others.features.by_prompt[source]
        here, there = slice(place * size, (place + 1) * size), slice(source * size, None)
        rewards[here] = others.rewards[there][:size]
        rollouts[here] = [
            dataclasses.replace(rollout, group=place) for rollout in others.rollouts[there][:size]
        ]
    return DrawnRollouts(examples, AudioFeatures(by_prompt, prompts), rollouts, rewards)
