"""What a reply is worth in reinforcement learning, and the judge that compares replies."""

import dataclasses
import math
from typing import Literal

from stepaudio_jax.config.checks import (
    check_floats,
    check_fractions,
    check_not_empty,
    check_not_negative,
    check_positive,
    expand_paths,
)
from stepaudio_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward of a reply: a weighted sum of parts; a weight of 0 leaves a part out."""

    # Whose records it is for, by the name of the source; empty: all that no other reward names.
    sources: tuple[str, ...] = ()
    # Checks a reply against the record's `answer`: one of rl.verifiers, or module:function, which
    # may be async: then the replies of a step are scored concurrently.
    verifier: str = "exact_text"
    verifier_weight: float = 0.0  # weight of the verifier's score
    format_weight: float = 0.0  # weight of a well-formed reply with reasoning
    # Weight of the judge's preference over the reference reply, or of the record's rubric if it has
    # one.
    judge_weight: float = 0.0
    # What the judge compares a rollout with: the record's reference, or the other rollouts of its
    # prompt, with a mean over them.
    compare_with: Literal["reference", "group"] = "reference"
    # Of "group": how many other rollouts, the next ones in a ring; None: all others.
    group_opponents: int | None = None
    overlong_weight: float = 0.0  # weight of the length penalty (DAPO: Yu et al. 2025, eq. 13)
    # Reply length in tokens from which the penalty grows, up to 1 at rollout.max_new_tokens.
    overlong_penalty_start: int = 0
    # Multiplies the sum of the parts, to weigh the rewards of these sources against others'.
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_floats(self)
        check_not_negative(self, "verifier_weight", "format_weight", "judge_weight")
        check_not_negative(self, "overlong_weight")
        check_positive(self, "scale")
        self._check_comparison()
        if not self.verifier_weight + self.format_weight + self.judge_weight > 0:
            raise ConfigError(
                "no part of the reward has a weight: set verifier_weight, format_weight or "
                "judge_weight"
            )

    def _check_comparison(self) -> None:
        """Checks that what says how the judge compares is for a judge."""
        if self.compare_with == "group" and not self.judge_weight:
            raise ConfigError(
                "compare_with='group' is for the judge, and judge_weight=0: give it a weight"
            )
        if self.group_opponents is None:
            return
        if self.compare_with != "group":
            raise ConfigError(
                f"group_opponents={self.group_opponents} is for compare_with='group', and it is "
                f"{self.compare_with!r}: leave it out"
            )
        check_positive(self, "group_opponents")


RubricUse = Literal["criteria", "ordinal", "both"]
JudgeInputs = Literal["transcripts", "audio", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The generative judge: an endpoint of OpenAI's protocol, or a model in this process."""

    folder: str | None = None  # folder of a model that judges in this process
    slots: int = 16  # questions that this model answers at the same time
    url: str | None = None  # address of an endpoint, up to and including /v1
    model: str | None = None  # the judge's name at the endpoint
    # The environment variable that holds the endpoint's key; None if it needs no key.
    api_key_env: str | None = "OPENAI_API_KEY"
    prompt: str | None = None  # a text file with a template of your own; None: the built-in one
    # What the judge is given of a dialogue's clips: their "transcripts", their sound ("audio", as
    # `input_audio` of an endpoint), or "both".
    inputs: JudgeInputs = "transcripts"
    preference_levels: Literal[3, 5, 7] = 7  # levels of the ordinal scale of a comparison
    # What the judge says with a rubric, and what the reward is: "criteria", of each whether a reply
    # meets it, and the difference of the weighted shares; "ordinal", one comparison in the light of
    # the rubric (R1.5, eq. 2), and its level; "both", and the mean of the two.
    rubric: RubricUse = "criteria"
    # phi of the levels above 0, in order (R1.5, eq. 3); empty: linear. See judge.verdict.RewardMap.
    reward_map: tuple[float, ...] = ()
    reward_map_temperature: float | None = None  # of the tanh behind phi; None: no tanh
    max_tokens: int = 1024  # most tokens of an answer
    timeout_s: float = 60.0  # longest silence of the endpoint, in seconds
    retries: int = 4  # after a failed request to the endpoint
    concurrency: int = 8  # requests to the endpoint at the same time
    # Largest share of a step's comparisons without a verdict; above it the run saves and ends.
    max_abstention_rate: float = 0.2

    def __post_init__(self) -> None:
        check_floats(self)
        check_reward_map(
            self.preference_levels,
            self.reward_map,
            self.reward_map_temperature,
            temperature_key="reward_map_temperature",
        )
        check_not_empty(self, "folder", "url", "model", "api_key_env", "prompt")
        expand_paths(self, "folder", "prompt")
        if (self.url is None) != (self.model is None):
            raise ConfigError(
                f"url={self.url!r} and model={self.model!r} belong together: give both, or neither"
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url={self.url!r} must begin with http:// or https://")
        if self.folder and self.url:
            raise ConfigError(
                f"folder={self.folder!r} and url={self.url!r} are two judges: give one"
            )
        check_fractions(self, "max_abstention_rate")
        check_positive(self, "max_tokens", "concurrency", "slots", "timeout_s")
        check_not_negative(self, "retries")


def check_reward_map(
    levels: int, reward_map: tuple[float, ...], temperature: float | None, *, temperature_key: str
) -> None:
    """Checks what maps a judge's levels to rewards (see `judge.verdict.RewardMap`).

    Args:
        levels: levels of the judge's scale, odd.
        reward_map: phi of the levels above 0; empty for a linear map.
        temperature: of the tanh behind it; None for none.
        temperature_key: the name of the caller's field for that temperature.

    Raises:
        ConfigError: the number of levels is even; the map has another length, does not rise, or is
            0 everywhere; or the temperature is not a positive number.
    """
    if levels < 3 or levels % 2 == 0:
        raise ConfigError(f"preference_levels={levels} must be odd, and at least 3")
    highest = levels // 2
    if reward_map and len(reward_map) != highest:
        raise ConfigError(
            f"reward_map={reward_map} must have {highest} values, one for each level above 0"
        )
    steps = zip((0, *reward_map), reward_map, strict=False)
    if not all(0 <= low <= high <= 1 for low, high in steps):
        raise ConfigError(f"reward_map={reward_map} must rise from 0 to 1 at most")
    if reward_map and not reward_map[-1] > 0:
        raise ConfigError(f"reward_map={reward_map} makes every reward 0: nothing would be trained")
    if temperature is not None and not 0 < temperature < math.inf:
        raise ConfigError(
            f"{temperature_key}={temperature} must be positive and finite; None for no temperature"
        )
