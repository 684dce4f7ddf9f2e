"""Reinforcement learning: how replies are drawn, what rewards them, and what is made of the rewards."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from stepaudio_jax.config.build import check_floats, check_not_empty, expand_paths
from stepaudio_jax.errors import ConfigError

# When a reply counts as a loop.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionDetectionConfig:
    """Ends a reply whose last tokens are one pattern, `min_count` times in a row (the names and the rule are vLLM's).

    Off by default. It is on where `max_pattern_size` and `min_count` are both given.
    """

    max_pattern_size: int = 0  # tokens of a pattern, at most; 0: no detection
    min_pattern_size: int = 1  # tokens of a pattern, at least
    min_count: int = 0  # how often a pattern stands in a row; at least 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"{field.name}={value!r} must be a whole number, 0 or more")
        if not self.is_on:
            if self.max_pattern_size or self.min_count:
                raise ConfigError(
                    f"max_pattern_size={self.max_pattern_size} and min_count={self.min_count} belong together: give both, "
                    "or neither"
                )
            return
        if self.min_count < 2:
            raise ConfigError(
                f"min_count={self.min_count} must be at least 2: what stands once is not repeated"
            )
        if not 1 <= self.min_pattern_size <= self.max_pattern_size:
            raise ConfigError(
                f"min_pattern_size={self.min_pattern_size} must lie between 1 and max_pattern_size={self.max_pattern_size}"
            )

    @property
    def is_on(self) -> bool:
        """Returns whether replies are looked at."""
        return self.max_pattern_size > 0 and self.min_count > 0


Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]
AdvantageEstimator = Literal["rloo", "grpo", "dr_grpo", "reinforce", "gae"]

MIN_TEMPERATURE = (
    0.01  # below it drawing is all but greedy, and logits divided by much less overflow
)
MIN_CLIP = 1e-6  # a few roundings of a float32 near 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """What the policy writes in one step of a stage.

    `repetition_detection` ends replies that have fallen into a loop, which count as truncated ones:
    as if they had gone on to `max_new_tokens`.
    """

    num_prompts: int = 32
    num_generations: int = (
        16  # replies to each prompt; at least 2, which a baseline other than "gae" compares
    )
    # of the policy, in every pass: its log-probabilities are those of the tempered distribution
    temperature: float = 1.0
    max_new_tokens: int = 2048
    repetition_detection: RepetitionDetectionConfig = (
        RepetitionDetectionConfig()
    )  # off unless it is given
    slots: int = 64  # replies written side by side
    # devices that share one copy of the policy while it writes, its heads cut; the others hold
    # further copies
    tensor: int = 1
    # of the KV cache; None: that of the computation
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None

    def __post_init__(self) -> None:
        check_floats(self)
        for name in ("num_prompts", "num_generations", "max_new_tokens", "slots", "tensor"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if not self.temperature >= MIN_TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature} must be at least {MIN_TEMPERATURE}: replies to a prompt that are all the same "
                "cannot be learnt from"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a reply is worth: a sum of parts, each with its weight; 0 leaves a part out."""

    sources: tuple[str, ...] = ()  # whose records it is for; empty: all that no other reward names
    verifier: str = (
        "exact_text"  # of the record's `answer`: one of rl.verifiers, or module:function
    )
    verifier_weight: float = 0.0
    format_weight: float = 0.0  # the reply is well-formed, with a reasoning
    judge_weight: float = (
        0.0  # preference against the reference reply, or the rubric where the record has one
    )
    overlong_weight: float = 0.0
    overlong_penalty_start: int = 0  # tokens without a penalty, which is whole at max_new_tokens

    def __post_init__(self) -> None:
        check_floats(self)
        for name in ("verifier_weight", "format_weight", "judge_weight", "overlong_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if not self.verifier_weight + self.format_weight + self.judge_weight > 0:
            raise ConfigError(
                "no part of the reward has a weight: set verifier_weight, format_weight or judge_weight"
            )


def check_reward_map(
    levels: int, table: tuple[float, ...], temperature: float | None, *, temperature_key: str
) -> None:
    """Checks what maps a judge's levels to rewards (see `judge.verdict.RewardMap`).

    Args:
        levels: of the judge's scale, odd.
        table: of the levels above 0; empty for none.
        temperature: of the tanh behind it; None for none.
        temperature_key: what the caller's field of that temperature is called.

    Raises:
        ConfigError: the levels have no middle; the table has another length, does not rise, or is 0
            everywhere; or the temperature is not a positive number.
    """
    if levels < 3 or levels % 2 == 0:
        raise ConfigError(f"preference_levels={levels} must be odd, and at least 3")
    highest = levels // 2
    if table and len(table) != highest:
        raise ConfigError(
            f"reward_map={table} must have {highest} values, one for each level above 0"
        )
    if table and not all(
        0 <= low <= high <= 1 for low, high in zip((0, *table), table, strict=False)
    ):
        raise ConfigError(f"reward_map={table} must rise from 0 to 1 at most")
    if table and not table[-1] > 0:
        raise ConfigError(
            f"reward_map={table} makes every reward 0: nothing could be learnt from them"
        )
    if temperature is not None and not 0 < temperature < math.inf:
        raise ConfigError(
            f"{temperature_key}={temperature} must be positive and finite; None for no temperature"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The generative judge (see `rl.judge`): behind an endpoint of OpenAI's kind, or one of our own models."""

    folder: str | None = None  # of the model that judges in this process
    slots: int = 16  # its questions answered side by side
    url: str | None = None  # of an endpoint, up to and with /v1
    model: str | None = None  # its name there
    # the environment variable that holds the endpoint's key; None: it wants no key
    api_key_env: str | None = "OPENAI_API_KEY"
    prompt: str | None = None  # a template of your own, a text file
    preference_levels: Literal[3, 5, 7] = 7
    reward_map: tuple[float, ...] = ()  # phi, level by level (see judge.verdict.RewardMap)
    reward_map_temperature: float | None = None  # phi's temperature
    max_tokens: int = 1024
    timeout_s: float = 60.0  # without a word from the server
    retries: int = 4
    concurrency: int = 8
    max_abstention_rate: float = (
        0.2  # share of a step's pairs; more end the run, with everything saved
    )

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
        if not 0 <= self.max_abstention_rate <= 1:
            raise ConfigError(
                f"max_abstention_rate={self.max_abstention_rate} must be between 0 and 1"
            )
        for name in ("max_tokens", "concurrency", "slots", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.retries < 0:
            raise ConfigError(f"retries={self.retries} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """Losses on heads that exist in training only, for an encoder that starts from nothing.

    A word-level CTC loss on the adaptor's output, and a classifier on the encoder's mean feature
    for each attribute of a clip. Records give them as `transcript` and `attributes` of an audio
    part. The heads are never exported.
    """

    ctc_weight: float = 0.0
    ctc_words: tuple[
        str, ...
    ] = ()  # the closed vocabulary; other words of a transcript are an error
    attribute_weight: float = 0.0
    attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict
    )  # name -> its values

    def __post_init__(self) -> None:
        check_floats(self)
        for name, needed in (("ctc_weight", "ctc_words"), ("attribute_weight", "attributes")):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
            if getattr(self, name) > 0 and not getattr(self, needed):
                raise ConfigError(f"{name}={getattr(self, name)} needs {needed}, which is empty")

    @property
    def enabled(self) -> bool:
        return self.ctc_weight > 0 or self.attribute_weight > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """Next-token prediction on the replies of dialogues: mid-training and SFT (R1.5, eq. (1))."""

    name: ClassVar[str] = "next_token"

    auxiliary: AuxiliaryConfig = AuxiliaryConfig()

    updates_per_step: ClassVar[int] = 1
    has_value_head: ClassVar[bool] = False
    needs_reference_params: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Policy optimization on rewards of the policy's own replies (R1.5, eq. (4) and (5)).

    The stage's `data` is of dialogues that end in a user's turn, and a step is one iteration:
    rollouts, rewards, updates.
    """

    name: ClassVar[str] = "policy_gradient"

    rollout: RolloutConfig = RolloutConfig()
    rewards: tuple[RewardConfig, ...] = ()  # at least one
    judge: JudgeConfig = JudgeConfig()
    # "gae" trains a value head; the others compare the replies to one prompt, and need none
    advantage_estimator: AdvantageEstimator = "rloo"
    gamma: float = 1.0  # discount of "gae"
    gae_lambda: float = 1.0  # of "gae"
    # whether the value head's loss reaches the policy's decoder
    value_trunk: Literal["shared", "detached"] = "shared"
    value_coef: float = 0.5  # weight of the value head's loss
    value_clip: float | None = 0.2  # clips new values to within this of the old ones
    clip_low: float = 0.2  # the probability ratio is clipped to 1 - clip_low,
    clip_high: float = 0.2  # and to 1 + clip_high
    dual_clip: float | None = None  # bounds the loss of negative advantages; above 1
    aggregation: Aggregation = "token_mean"  # of token losses
    kl_coef: float = 0.01  # beta, weight of the KL to the reference policy; 0: none is kept
    kl_placement: Literal["loss", "reward"] = "loss"
    kl_target: float | None = None  # adapts beta towards this KL of a reply, in nats
    kl_horizon: int = 10_000  # replies over which beta adapts
    # truncates the importance weights that correct for the engine's arithmetic; None: no correction
    max_importance_weight: float | None = None
    epochs: int = 1  # passes over the rollouts of a step
    minibatches: int = 1  # updates an epoch, each from an equal share of the prompts
    # of prompts with a verifier, use only those with so many correct replies: (least, most)
    num_correct_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_floats(self)
        self._check_policy()
        self._check_rewards()
        self._check_advantages()

    @property
    def updates_per_step(self) -> int:
        """Returns the number of optimizer updates in a step."""
        return self.epochs * self.minibatches

    @property
    def has_value_head(self) -> bool:
        """Returns whether a value head is trained."""
        return self.advantage_estimator == "gae"

    @property
    def needs_reference_params(self) -> bool:
        """Returns whether the policy at the start of the stage is kept, for the KL to it."""
        return self.kl_coef > 0

    @property
    def recomputes_old_logprobs(self) -> bool:
        """Returns whether a forward pass over the rollouts precedes the updates.

        The first update computes the log-probabilities by itself; values, a KL in the reward, and
        later updates need them beforehand.
        """
        return (
            self.advantage_estimator == "gae"
            or self.kl_placement == "reward"
            or self.updates_per_step > 1
        )

    def reward_for_source(self, source: str) -> RewardConfig:
        """Returns the reward of a source's records: one that names it, else the one for all others.

        Raises:
            ConfigError: no reward is for it.
        """
        for reward in sorted(self.rewards, key=lambda reward: not reward.sources):
            if source in reward.sources or not reward.sources:
                return reward
        raise ConfigError(
            f"no reward is for the source {source!r}; name it in objective.rewards, "
            "or give a reward without sources"
        )

    def _check_policy(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.value_clip is not None and not self.value_clip > 0:
            raise ConfigError(f"value_clip={self.value_clip} must be positive, or None")
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= MIN_CLIP:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be at least {MIN_CLIP}: "
                    "a ratio that must stay 1 lets nothing be learnt"
                )
        for name in ("kl_coef", "value_coef"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"dual_clip={self.dual_clip} must be above 1")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coef > 0):
            raise ConfigError(f"kl_target={self.kl_target} must be positive, and kl_coef with it")
        if self.max_importance_weight is not None and not self.max_importance_weight >= 1:
            raise ConfigError(
                f"max_importance_weight={self.max_importance_weight} must be at least 1"
            )
        for name in ("epochs", "minibatches", "kl_horizon"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.rollout.num_prompts % self.minibatches:
            raise ConfigError(
                f"rollout.num_prompts={self.rollout.num_prompts} must be a multiple of "
                f"minibatches={self.minibatches}"
            )

    def _check_rewards(self) -> None:
        named = [source for reward in self.rewards for source in reward.sources]
        twice = sorted({source for source in named if named.count(source) > 1})
        if twice or sum(not reward.sources for reward in self.rewards) > 1:
            raise ConfigError(
                f"rewards: {', '.join(twice) or 'all sources'} have more than one; "
                "name each source once"
            )
        judged = any(reward.judge_weight for reward in self.rewards)
        if judged and not (self.judge.url or self.judge.folder):
            raise ConfigError(
                "a reward has judge_weight, and there is no judge: "
                "set judge.folder, or judge.url and judge.model"
            )
        max_new_tokens = self.rollout.max_new_tokens
        for reward in self.rewards:
            start = reward.overlong_penalty_start
            if reward.overlong_weight and not 0 <= start < max_new_tokens:
                raise ConfigError(
                    f"overlong_penalty_start={start} must lie between 0 and "
                    f"rollout.max_new_tokens={max_new_tokens}, where the penalty is whole"
                )
        if self.num_correct_range is None:
            return
        least, most = self.num_correct_range
        if not 0 <= least <= most:
            raise ConfigError(f"num_correct_range={self.num_correct_range} must be (least, most)")
        if self.rewards and not any(reward.verifier_weight for reward in self.rewards):
            raise ConfigError(
                f"num_correct_range={self.num_correct_range} counts correct replies, "
                "and no reward has a verifier"
            )
        if most > self.rollout.num_generations:
            raise ConfigError(
                f"num_correct_range={self.num_correct_range} exceeds "
                f"rollout.num_generations={self.rollout.num_generations}"
            )

    def _check_advantages(self) -> None:
        """Checks that some advantage can differ from 0, whatever the policy generates.

        Raises:
            ConfigError: all advantages are 0, or all those of one reward.
        """
        rollout = self.rollout
        if self.advantage_estimator == "gae":
            if rollout.num_prompts * rollout.num_generations * rollout.max_new_tokens == 1:
                raise ConfigError(
                    "rollout.num_prompts=1, num_generations=1 and max_new_tokens=1 are one token "
                    "a step, whose advantage is always 0 once whitened; raise one of them"
                )
            return
        if rollout.num_generations == 1:
            raise ConfigError(
                "rollout.num_generations=1 gives "
                f"advantage_estimator={self.advantage_estimator!r} nothing to compare a reply "
                "with: every advantage would be 0; set rollout.num_generations to 2 or more, "
                "or advantage_estimator to 'gae'"
            )
        if self.num_correct_range is None or (self.kl_placement == "reward" and self.kl_coef):
            return
        least, most = self.num_correct_range
        for index, reward in enumerate(self.rewards):
            # Correct replies are equal to a verifier. Wrong ones are too, but for a user's own
            # (module:function), which may give them different scores.
            equal = least == rollout.num_generations or (most == 0 and ":" not in reward.verifier)
            others = reward.format_weight or reward.judge_weight or reward.overlong_weight
            if equal and reward.verifier_weight and not others:
                raise ConfigError(
                    f"num_correct_range={self.num_correct_range} keeps prompts whose "
                    f"{rollout.num_generations} replies rewards.{index} values alike: every "
                    "advantage would be 0; widen it, or give the reward another part"
                )


Objective = NextToken | PolicyGradient
