"""The objective of a stage that learns from a teacher, another model's distribution of tokens."""

import dataclasses
from typing import ClassVar

from stepaudio_jax.config.checks import (
    check_floats,
    check_fractions,
    check_not_empty,
    check_not_negative,
    check_positive,
    expand_paths,
)
from stepaudio_jax.config.objectives import PolicyGradient, RolloutConfig
from stepaudio_jax.config.teacher import TeacherEndpointConfig, TeacherInputs, check_teacher
from stepaudio_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Learns the distribution of a teacher: on the replies of dialogues, or on the policy's own.

    The teacher is a model with the same vocabulary, larger or not: one that is computed on the same
    mesh and hears the same sound by its own encoder, or one behind a server, which reads.
    """

    name: ClassVar[str] = "distillation"

    # Folder of the teacher: a checkpoint of this project, or a Hugging Face folder; None with
    # teacher_endpoint.
    teacher: str | None = None
    teacher_endpoint: TeacherEndpointConfig = TeacherEndpointConfig()  # a teacher behind a server
    # "audio": the teacher is given the sound that the student hears. "transcripts": each clip's
    # transcript in its place.
    teacher_inputs: TeacherInputs = "audio"
    # Whether the policy's own replies are scored, token by token (reverse KL), instead of the
    # replies of the data, which then ends in a user's turn.
    on_policy: bool = False
    # On data: 0 is the forward KL, 1 the reverse KL, between them the generalized Jensen-Shannon
    # divergence (GKD).
    beta: float = 0.0
    temperature: float = 1.0  # divides the logits of both; on_policy takes rollout.temperature
    next_token_coef: float = 0.0  # weight of the next-token loss on the data's replies besides
    rollout: RolloutConfig = RolloutConfig()  # the replies of a step of on_policy
    epochs: int = 1  # passes over the rollouts of a step of on_policy
    minibatches: int = 1  # updates an epoch of on_policy

    has_value_head: ClassVar[bool] = False
    needs_reference_params: ClassVar[bool] = False
    refreshes_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_floats(self)
        check_not_empty(self, "teacher")
        expand_paths(self, "teacher")
        if self.teacher is None and self.teacher_endpoint.url is None:
            raise ConfigError(
                "there is no teacher: set teacher to its folder, or teacher_endpoint.url and "
                "teacher_endpoint.model"
            )
        check_teacher(
            self.teacher,
            self.teacher_endpoint,
            self.rollout.temperature,
            on_policy=self.on_policy,
        )
        check_fractions(self, "beta")
        check_positive(self, "temperature", "epochs", "minibatches")
        check_not_negative(self, "next_token_coef")
        if self.on_policy:
            for name in ("beta", "temperature", "next_token_coef"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} is for replies of the data, and on_policy is"
                        " true: leave it out"
                    )
        else:
            for name, default in (("rollout", RolloutConfig()), ("epochs", 1), ("minibatches", 1)):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name} is for on_policy=true, and it is false: leave it out"
                    )

    @property
    def updates_per_step(self) -> int:
        """Returns the number of optimizer updates in a step."""
        return self.epochs * self.minibatches if self.on_policy else 1

    @property
    def policy_gradient(self) -> PolicyGradient:
        """Returns the objective of RL that `on_policy` is: a KL to the teacher, and no rewards."""
        return PolicyGradient(
            rollout=self.rollout,
            teacher=self.teacher,
            teacher_endpoint=self.teacher_endpoint,
            teacher_inputs=self.teacher_inputs,
            kl_coef=1.0,
            epochs=self.epochs,
            minibatches=self.minibatches,
        )
