"""What a stage optimizes: next-token prediction, or rewards of the policy's own replies.

A stage's `objective` is one of these dataclasses; its `name` chooses it on the command line
(`--config.stages.NAME.objective=policy_gradient`) and is the first key of its plain values.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from stepaudio_jax.config.checks import (
    check_floats,
    check_fractions,
    check_not_empty,
    check_not_negative,
    check_positive,
    expand_paths,
)
from stepaudio_jax.config.rewards import JudgeConfig, RewardConfig
from stepaudio_jax.config.simulated_user import SimulatedUserConfig
from stepaudio_jax.config.teacher import TeacherEndpointConfig, TeacherInputs, check_teacher
from stepaudio_jax.errors import ConfigError

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]
AdvantageEstimator = Literal["rloo", "grpo", "dr_grpo", "reinforce", "gae", "dpo"]

# Below this temperature sampling is almost greedy, and logits divided by much less overflow.
MIN_TEMPERATURE = 0.01
MIN_CLIP = 1e-6  # a few rounding errors of a float32 near 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """Losses on heads that exist in training only, for an encoder that is trained from scratch.

    A word-level CTC loss on the adaptor's output, and a classifier on the encoder's mean feature
    for each attribute of a clip. Records give both as `transcript` and `attributes` of an audio
    part. The heads are never exported.
    """

    ctc_weight: float = 0.0  # weight of the CTC loss; 0 switches it off
    ctc_words: tuple[str, ...] = ()  # its vocabulary; any other word of a transcript is an error
    attribute_weight: float = 0.0  # weight of the classifiers' loss; 0 switches it off
    # Name of each attribute -> its values.
    attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_floats(self)
        check_not_negative(self, "ctc_weight", "attribute_weight")
        for name, needed in (("ctc_weight", "ctc_words"), ("attribute_weight", "attributes")):
            if getattr(self, name) > 0 and not getattr(self, needed):
                raise ConfigError(f"{name}={getattr(self, name)} needs {needed}, which is empty")

    @property
    def enabled(self) -> bool:
        """Returns whether any of the losses is on."""
        return self.ctc_weight > 0 or self.attribute_weight > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionDetectionConfig:
    """Ends a reply that repeats itself: `min_count` times one pattern of tokens at its end.

    Names and rule are vLLM's. It is on where `max_pattern_size` and `min_count` are both given.
    """

    max_pattern_size: int = 0  # longest pattern, in tokens; 0: no detection
    min_pattern_size: int = 1  # shortest pattern, in tokens
    min_count: int = 0  # repetitions that end a reply; at least 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"{field.name}={value!r} must be a whole number, 0 or more")
        if not self.is_on:
            if self.max_pattern_size or self.min_count:
                raise ConfigError(
                    f"max_pattern_size={self.max_pattern_size} and min_count={self.min_count} "
                    "belong together: give both, or neither"
                )
            return
        if self.min_count < 2:
            raise ConfigError(
                f"min_count={self.min_count} must be at least 2: one occurrence is no repetition"
            )
        if not 1 <= self.min_pattern_size <= self.max_pattern_size:
            raise ConfigError(
                f"min_pattern_size={self.min_pattern_size} must lie between 1 and "
                f"max_pattern_size={self.max_pattern_size}"
            )

    @property
    def is_on(self) -> bool:
        """Returns whether repetitions are detected."""
        return self.max_pattern_size > 0 and self.min_count > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """The replies that the policy generates in one step."""

    num_prompts: int = 32  # prompts of a step
    # Replies to each prompt; at least 2, unless advantage_estimator is "gae".
    num_generations: int = 16
    # Temperature of sampling, and of the policy in every forward pass: its log-probabilities are
    # those of the tempered distribution.
    temperature: float = 1.0
    max_new_tokens: int = 2048  # most tokens of a reply; a longer one is truncated
    # Replies that repeat themselves end, and count as truncated; off by default.
    repetition_detection: RepetitionDetectionConfig = RepetitionDetectionConfig()
    slots: int = 64  # replies generated at the same time
    # Devices that share one copy of the policy for generation; the others hold further copies.
    tensor: int = 1
    # Dtype of the KV cache; None: that of the computation.
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    # Answers the policy's replies, which it answers in turn: rollouts of several turns.
    simulated_user: SimulatedUserConfig = SimulatedUserConfig()

    def __post_init__(self) -> None:
        check_floats(self)
        check_positive(self, "num_prompts", "num_generations", "max_new_tokens", "slots", "tensor")
        if not self.temperature >= MIN_TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature} must be at least {MIN_TEMPERATURE}: greedy "
                "samples of a prompt are identical, so every advantage would be 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """Next-token prediction on the replies of dialogues: mid-training and SFT (R1.5, eq. (1))."""

    name: ClassVar[str] = "next_token"

    auxiliary: AuxiliaryConfig = AuxiliaryConfig()  # losses on heads that exist in training only

    updates_per_step: ClassVar[int] = 1
    has_value_head: ClassVar[bool] = False
    needs_reference_params: ClassVar[bool] = False
    refreshes_reference: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """Policy optimization on rewards of the policy's own replies (R1.5, eq. (4) and (5)).

    The stage's `data` is of dialogues that end in a user's turn, and a step is one iteration:
    rollouts, rewards, updates.
    """

    name: ClassVar[str] = "policy_gradient"

    rollout: RolloutConfig = RolloutConfig()  # the replies that are generated in a step
    # What replies are worth, by source; at least one, unless there is a teacher.
    rewards: tuple[RewardConfig, ...] = ()
    judge: JudgeConfig = JudgeConfig()  # the judge of rewards with a judge_weight
    # "gae" trains a value head; the others compare the replies to one prompt. "dpo" is online DPO:
    # the best and the worst of them by their rewards are a pair.
    advantage_estimator: AdvantageEstimator = "rloo"
    dpo_beta: float = 0.1  # beta of "dpo"
    gamma: float = 1.0  # discount of "gae"
    gae_lambda: float = 1.0  # lambda of "gae"
    # Whether the value head's loss reaches the policy's decoder.
    value_trunk: Literal["shared", "detached"] = "shared"
    value_coef: float = 0.5  # weight of the value head's loss
    value_clip: float | None = 0.2  # largest change of a value in an update; None: no limit
    # What is clipped is the probability ratio of a token, or of a reply: the geometric mean of its
    # tokens' ratios (GSPO).
    ratio_level: Literal["token", "sequence"] = "token"
    # "clip": PPO's, in which a clipped token has no gradient. "cispo": the ratio is clipped as a
    # weight, and every token keeps its gradient.
    policy_loss: Literal["clip", "cispo"] = "clip"
    clip_low: float = 0.2  # the probability ratio is clipped below at 1 - clip_low
    clip_high: float = 0.2  # and above at 1 + clip_high
    # Bounds the loss of tokens with negative advantages (dual-clip PPO); above 1.
    dual_clip: float | None = None
    entropy_coef: float = 0.0  # weight of the entropy, which is added to what is maximized
    # Leaves truncated replies out of the update; they stay in the baseline of their prompt.
    mask_truncated: bool = False
    # How token losses are averaged: over tokens, over replies, or summed over a reply's tokens.
    aggregation: Aggregation = "token_mean"
    kl_coef: float = 0.01  # beta, weight of the KL to the reference policy; 0: no reference is kept
    kl_placement: Literal["loss", "reward"] = "loss"  # where the KL is added
    # Folder of a model of the same vocabulary that stands for the reference policy.
    teacher: str | None = None
    teacher_endpoint: TeacherEndpointConfig = TeacherEndpointConfig()  # such a model, on a server
    # "audio": the teacher is given the sound that the policy hears. "transcripts": each clip's
    # transcript in its place.
    teacher_inputs: TeacherInputs = "audio"
    kl_target: float | None = None  # adapts beta towards this KL of a reply, in nats
    kl_horizon: int = 10_000  # replies over which beta adapts
    # Steps after which the policy becomes the reference policy, again and again; 0: never.
    reference_refresh_steps: int = 0
    # Upper bound of the importance weights that correct for the engine's arithmetic; None: no
    # correction.
    max_importance_weight: float | None = None
    min_importance_weight: float | None = None  # lower bound of these weights; None: no bound
    # The weight is a token's ratio of probabilities, or the geometric mean of those of its reply.
    importance_level: Literal["token", "sequence"] = "token"
    # Beyond a bound a weight is set to the bound, or the token (the reply) is left out.
    importance_outside: Literal["truncate", "mask"] = "truncate"
    epochs: int = 1  # passes over the rollouts of a step
    minibatches: int = 1  # updates an epoch, each with an equal share of the prompts
    # Of prompts with a verifier, use those with (low, high) correct replies only; None: all.
    num_correct_range: tuple[int, int] | None = None
    # Times that further prompts are drawn in place of those outside num_correct_range, so that
    # updates have as many prompts as asked for; 0: what is left out is not replaced.
    max_refills: int = 0

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
        """Returns whether the policy at the start of the stage is kept."""
        return self.has_reference and not self.has_teacher

    @property
    def has_teacher(self) -> bool:
        """Returns whether another model stands for the reference policy."""
        return self.teacher is not None or self.teacher_endpoint.url is not None

    @property
    def has_reference(self) -> bool:
        """Returns whether the policy is compared with a reference policy, or with a teacher."""
        return self.kl_coef > 0 or self.advantage_estimator == "dpo"

    @property
    def refreshes_reference(self) -> bool:
        """Returns whether the policy becomes the reference policy again and again."""
        return self.reference_refresh_steps > 0

    @property
    def recomputes_old_logprobs(self) -> bool:
        """Returns whether a forward pass over the rollouts precedes the updates.

        The first update computes the log-probabilities by itself; values, a KL in the reward, and
        later updates need them beforehand.
        """
        return (
            self.advantage_estimator in ("gae", "dpo")
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
        """Checks the settings of the loss and of the updates."""
        check_fractions(self, "gamma", "gae_lambda")
        if self.value_clip is not None and not self.value_clip > 0:
            raise ConfigError(f"value_clip={self.value_clip} must be positive, or None")
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= MIN_CLIP:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be at least {MIN_CLIP}: "
                    "the ratio would have to stay 1, and nothing would be trained"
                )
        check_not_negative(self, "kl_coef", "value_coef", "entropy_coef")
        check_not_negative(self, "reference_refresh_steps", "max_refills")
        check_positive(self, "dpo_beta")
        if self.advantage_estimator == "dpo":
            if self.aggregation != "sequence_sum" or self.updates_per_step > 1:
                raise ConfigError(
                    "advantage_estimator='dpo' needs aggregation='sequence_sum', epochs=1 and "
                    "minibatches=1: its loss is of whole pairs of the policy's present replies"
                )
        elif self.dpo_beta != 0.1:
            raise ConfigError(
                f"dpo_beta={self.dpo_beta} is for advantage_estimator='dpo', and it is "
                f"{self.advantage_estimator!r}: leave it out"
            )
        if self.policy_loss == "cispo":
            for name, plain in (("ratio_level", "token"), ("dual_clip", None)):
                if getattr(self, name) != plain:
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} is for policy_loss='clip', and it is "
                        "'cispo': leave it out"
                    )
        check_not_empty(self, "teacher")
        expand_paths(self, "teacher")
        check_teacher(self.teacher, self.teacher_endpoint, self.rollout.temperature, on_policy=True)
        name = "teacher_endpoint.url" if self.teacher is None else f"teacher={self.teacher!r}"
        if self.has_teacher and not self.has_reference:
            raise ConfigError(
                f"{name} needs kl_coef above 0: without it nothing is learnt from the teacher"
            )
        if self.has_teacher and self.reference_refresh_steps:
            raise ConfigError(
                f"reference_refresh_steps={self.reference_refresh_steps} refreshes the reference "
                f"policy, and {name} stands for it: give one of them"
            )
        if self.teacher_inputs != "audio" and not self.has_teacher:
            raise ConfigError(
                f"teacher_inputs={self.teacher_inputs!r} is for a teacher, and there is none: leave"
                " it out"
            )
        if self.reference_refresh_steps and not self.has_reference:
            raise ConfigError(
                f"reference_refresh_steps={self.reference_refresh_steps} needs kl_coef above 0: "
                "without it there is no reference policy"
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"dual_clip={self.dual_clip} must be above 1")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coef > 0):
            raise ConfigError(f"kl_target={self.kl_target} must be positive, and kl_coef with it")
        if self.max_importance_weight is not None and not self.max_importance_weight >= 1:
            raise ConfigError(
                f"max_importance_weight={self.max_importance_weight} must be at least 1"
            )
        low = self.min_importance_weight
        if low is not None and not (0 < low <= 1 and self.max_importance_weight is not None):
            raise ConfigError(
                f"min_importance_weight={low} must lie between 0 and 1, and needs "
                "max_importance_weight"
            )
        for name, plain in (("importance_level", "token"), ("importance_outside", "truncate")):
            if getattr(self, name) != plain and self.max_importance_weight is None:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} needs max_importance_weight, without which "
                    "there are no importance weights"
                )
        check_positive(self, "epochs", "minibatches", "kl_horizon")
        if self.rollout.num_prompts % self.minibatches:
            raise ConfigError(
                f"rollout.num_prompts={self.rollout.num_prompts} must be a multiple of "
                f"minibatches={self.minibatches}"
            )

    def _check_rewards(self) -> None:
        """Checks that rewards, judge and rollouts fit together."""
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
        for index, reward in enumerate(self.rewards):
            if reward.compare_with == "group" and self.rollout.num_generations == 1:
                raise ConfigError(
                    f"rewards.{index}.compare_with='group' compares the rollouts of a prompt, and "
                    "rollout.num_generations=1: set it to 2 or more"
                )
            start = reward.overlong_penalty_start
            if reward.overlong_weight and not 0 <= start < max_new_tokens:
                raise ConfigError(
                    f"overlong_penalty_start={start} must lie between 0 and "
                    f"rollout.max_new_tokens={max_new_tokens}, where the penalty is whole"
                )
        if self.num_correct_range is None:
            if self.max_refills:
                raise ConfigError(
                    f"max_refills={self.max_refills} replaces prompts outside num_correct_range, "
                    "which is None"
                )
            return
        low, high = self.num_correct_range
        if not 0 <= low <= high:
            raise ConfigError(f"num_correct_range={self.num_correct_range} must be (low, high)")
        if self.rewards and not any(reward.verifier_weight for reward in self.rewards):
            raise ConfigError(
                f"num_correct_range={self.num_correct_range} counts correct replies, "
                "and no reward has a verifier"
            )
        if high > self.rollout.num_generations:
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
        if not self.rewards and self.has_teacher:
            return  # the KL to the teacher is all that is learnt from
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
        low, high = self.num_correct_range
        for index, reward in enumerate(self.rewards):
            # Correct replies are equal to a verifier. Wrong ones are too, but for a user's own
            # (module:function), which may give them different scores.
            equal = low == rollout.num_generations or (high == 0 and ":" not in reward.verifier)
            others = reward.format_weight or reward.judge_weight or reward.overlong_weight
            if equal and reward.verifier_weight and not others:
                raise ConfigError(
                    f"num_correct_range={self.num_correct_range} keeps prompts whose "
                    f"{rollout.num_generations} replies rewards.{index} values alike: every "
                    "advantage would be 0; widen it, or give the reward another part"
                )
