"""One stage of a run: its data, its objective, what is trained and how."""

import dataclasses
import re
from typing import Literal

from stepaudio_jax.config.checks import (
    check_floats,
    check_fractions,
    check_not_empty,
    check_not_negative,
    check_positive,
    expand_paths,
)
from stepaudio_jax.config.data import AugmentationConfig, DataConfig
from stepaudio_jax.config.distillation import Distillation
from stepaudio_jax.config.model import FloatDtype
from stepaudio_jax.config.objectives import AuxiliaryConfig, NextToken, PolicyGradient
from stepaudio_jax.config.preference import Preference
from stepaudio_jax.errors import ConfigError

Part = Literal["encoder", "adaptor", "decoder"]
LoRATarget = Literal["query", "key", "value", "output", "gate", "up", "down"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, Adafactor, or Muon for matrices with AdamW for the rest; warm-up, then decay."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"  # the algorithm
    learning_rate: float = 1e-5  # after warm-up; with muon, of what is not a matrix
    warmup_steps: int = 0  # update k of these has k / warmup_steps of the learning rate
    decay: Literal["constant", "linear", "cosine"] = "cosine"  # how the learning rate falls
    # Share of the learning rate that is left at the end of the stage.
    final_learning_rate_fraction: float = 0.1
    b1: float = 0.9  # decay of the first moment of Adam
    b2: float = 0.95  # decay of the second moment of Adam
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # of matrices only, without biases, norms and position embeddings
    clip_norm: float = 1.0  # largest global norm of the gradients; 0: no clipping
    muon_learning_rate: float = 0.02  # learning rate of matrices, where name is "muon"
    muon_momentum: float = 0.95  # momentum of matrices, where name is "muon"
    moment_dtype: FloatDtype = "float32"  # dtype of the first moment; Adafactor has none

    def __post_init__(self) -> None:
        check_floats(self)
        for name in ("learning_rate", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be positive: nothing would learn"
                )
        check_not_negative(self, "warmup_steps", "weight_decay", "clip_norm")
        for name in ("b1", "b2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} must be at least 0 and less than 1"
                )
        check_positive(self, "eps")
        check_fractions(self, "final_learning_rate_fraction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adaptation of the decoder: its matrices are frozen, an adapter beside them trains.

    The finished `model/` keeps the adapter apart too: see docs/lora.md.
    """

    rank: int = 0  # rank of the adapter's matrices; 0: no adapter
    alpha: float = 32.0  # the product of the adapter's matrices is multiplied by alpha / rank
    # Matrices of the decoder that get an adapter.
    targets: tuple[LoRATarget, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    # Folder of a PEFT adapter to continue training; None: a new one.
    adapter: str | None = None

    def __post_init__(self) -> None:
        expand_paths(self, "adapter")
        check_floats(self)
        check_not_negative(self, "rank")
        if self.adapter is not None and not self.rank:
            raise ConfigError(
                f"rank=0 has no adapter, and adapter={self.adapter!r} names one: "
                "set rank and alpha to the adapter's"
            )
        check_positive(self, "alpha")
        if not self.targets:
            raise ConfigError("targets is empty: name the matrices to adapt, or set rank=0")

    @property
    def scale(self) -> float:
        """Returns the factor of the product of the adapter's matrices."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured during training: the loss on held-out `data`, and benchmarks (`tasks`)."""

    data: DataConfig = DataConfig()  # held-out dialogues
    every_steps: int = 0  # between two evaluations; 0: only at the end of the stage
    batches: int = 8  # most batches of an evaluation
    # Benchmarks (see docs/evaluation.md): NAME=FOLDER, or NAME alone for tasks_folder/NAME.
    tasks: tuple[str, ...] = ()
    tasks_folder: str | None = None  # a folder with a folder of each task's name
    task_every_steps: int = 0  # between two evaluations by tasks; 0: only at the end of the stage
    task_limit: int = 100  # items of each task, evenly by category; 0: all
    task_max_new_tokens: int = 1024  # most tokens of a reply with its reasoning
    task_slots: int = 16  # replies written side by side

    def __post_init__(self) -> None:
        check_not_negative(self, "every_steps", "task_every_steps", "task_limit")
        check_positive(self, "batches", "task_max_new_tokens", "task_slots")
        check_not_empty(self, "tasks_folder")
        expand_paths(self, "tasks_folder")
        if self.data.augmentation != AugmentationConfig():
            raise ConfigError(
                "augmentation changes the sound in training only; leave it out of evaluation.data"
            )

    @property
    def enabled(self) -> bool:
        """Returns whether there is a held-out loss."""
        return bool(self.data.sources)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run: its data, its objective, what is trained and how."""

    name: str  # names the stage's checkpoints, and its keys on the command line
    steps: int  # optimizer steps, or iterations of reinforcement learning
    # What is optimized.
    objective: NextToken | PolicyGradient | Preference | Distillation = NextToken()
    data: DataConfig  # what is trained on
    evaluation: EvaluationConfig = EvaluationConfig()  # held-out loss
    optimizer: OptimizerConfig = OptimizerConfig()  # how the trained parameters are updated
    trainable: tuple[Part, ...] = ("adaptor", "decoder")  # parts of the model that are trained
    lora: LoRAConfig = LoRAConfig()  # adapter of the decoder, which `trainable` then leaves out
    gradient_accumulation_steps: int = 1  # micro-batches a step, into which batch_size is split

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ConfigError(
                f"the stage's name={self.name!r} must be of letters, digits, '_' and '-'"
            )
        check_positive(self, "steps")
        if not self.data.sources:
            raise ConfigError("data.sources is empty: nothing to train on")
        microbatches = self.gradient_accumulation_steps
        if microbatches <= 0 or self.data.batch_size % microbatches:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} must be a multiple of "
                f"gradient_accumulation_steps={microbatches}"
            )
        self._check_trainable()
        if self.has_rollouts:
            self._check_policy_gradient(self.policy_gradient)
        if isinstance(self.objective, Preference):
            self._check_preference(self.objective)
        if (
            isinstance(self.objective, Distillation | PolicyGradient)
            and self.objective.teacher_inputs == "transcripts"
            and self.data.augmentation.silence_probability > 0
        ):
            raise ConfigError(
                "data.augmentation.silence_probability silences what the student hears, and with "
                "objective.teacher_inputs='transcripts' the teacher would still read it: leave one "
                "of them out"
            )

    @property
    def num_updates(self) -> int:
        """Returns the number of optimizer updates in the stage."""
        return self.steps * self.objective.updates_per_step

    @property
    def auxiliary(self) -> AuxiliaryConfig:
        """Returns the auxiliary losses of a next-token objective; other objectives have none."""
        if isinstance(self.objective, NextToken):
            return self.objective.auxiliary
        return AuxiliaryConfig()

    @property
    def has_rollouts(self) -> bool:
        """Returns whether the policy generates what it is trained on."""
        if isinstance(self.objective, Distillation):
            return self.objective.on_policy
        return isinstance(self.objective, PolicyGradient)

    @property
    def teacher_reads(self) -> bool:
        """Returns whether a teacher reads the dialogues of the data, and does not hear them."""
        objective = self.objective
        return isinstance(objective, Distillation) and objective.teacher_inputs == "transcripts"

    @property
    def policy_gradient(self) -> PolicyGradient:
        """Returns the objective of a stage whose policy generates what it is trained on.

        Raises:
            TypeError: the stage has another objective.
        """
        if isinstance(self.objective, Distillation) and self.objective.on_policy:
            return self.objective.policy_gradient
        if not isinstance(self.objective, PolicyGradient):
            raise TypeError(f"stage {self.name!r} has the objective {self.objective.name}")
        return self.objective

    @property
    def distillation(self) -> Distillation:
        """Returns the objective of a stage with a teacher.

        Raises:
            TypeError: the stage has another objective.
        """
        if not isinstance(self.objective, Distillation):
            raise TypeError(f"stage {self.name!r} has the objective {self.objective.name}")
        return self.objective

    @property
    def preference(self) -> Preference:
        """Returns the objective of a stage with preferences.

        Raises:
            TypeError: the stage has another objective.
        """
        if not isinstance(self.objective, Preference):
            raise TypeError(f"stage {self.name!r} has the objective {self.objective.name}")
        return self.objective

    def _check_trainable(self) -> None:
        """Checks that something is trained, and that it gets gradients."""
        if self.lora.rank and "decoder" in self.trainable:
            raise ConfigError(
                "lora.rank adapts the decoder, which is in trainable: leave it out there, "
                "or set lora.rank=0"
            )
        trains_decoder = "decoder" in self.trainable or bool(self.lora.rank)
        if not self.trainable and not trains_decoder:
            raise ConfigError("trainable is empty: nothing would learn")
        if not self.data.audio_chunks_per_seq and not trains_decoder:
            raise ConfigError(
                f"trainable={self.trainable} only has parts that process audio, and "
                "data.audio_chunks_per_seq=0 leaves no audio: nothing would be trained; raise it, "
                "or train the decoder"
            )

    def _check_policy_gradient(self, objective: PolicyGradient) -> None:
        """Checks what reinforcement learning needs, and what it does not support."""
        if not objective.rewards and not objective.has_teacher:
            raise ConfigError(
                "objective.rewards is empty: policy_gradient needs at least one reward"
            )
        if "encoder" in self.trainable:
            raise ConfigError(
                "trainable names the encoder, which policy_gradient keeps frozen: its features "
                "are computed once a step"
            )
        user = objective.rollout.simulated_user
        if user.speak and self.data.audio_chunks_per_seq < user.turns - 1:
            raise ConfigError(
                "objective.rollout.simulated_user.speak gives the user a voice for "
                f"{user.turns - 1} turns of a dialogue, which need a chunk each besides the "
                f"record's, and data.audio_chunks_per_seq={self.data.audio_chunks_per_seq}: raise "
                "it, or leave out speak"
            )
        if self.evaluation.enabled or self.gradient_accumulation_steps > 1:
            raise ConfigError(
                "evaluation.data and gradient_accumulation_steps are for objective=next_token; "
                "leave them out with policy_gradient"
            )
        if self.data.on_too_long == "split":
            raise ConfigError(
                "data.on_too_long='split' cuts replies with their recordings, which is for "
                "objective=next_token; say 'error' or 'skip' with policy_gradient, and give a row "
                "for each part of a recording"
            )
        if self.data.workers:
            raise ConfigError(
                f"data.workers={self.data.workers} is for objective=next_token; prompts are read by"
                " data.threads, since reading them takes little of a step of policy_gradient"
            )
        augmentation = dataclasses.replace(self.data.augmentation, silence_probability=0.0)
        if augmentation != AugmentationConfig():
            raise ConfigError(
                "data.augmentation can only have silence_probability with policy_gradient"
            )

    def _check_preference(self, objective: Preference) -> None:
        """Checks what learning from preferences does not support."""
        for key, data in (("data", self.data), ("evaluation.data", self.evaluation.data)):
            if data.on_too_long == "split":
                raise ConfigError(
                    f"{key}.on_too_long='split' cuts replies with their recordings, which is for "
                    "objective=next_token; say 'error' or 'skip' with preference"
                )
        if objective.precompute_reference and self.data.augmentation != AugmentationConfig():
            raise ConfigError(
                "objective.precompute_reference=True computes the reference's log-probabilities of "
                "each clip once, and data.augmentation changes the clips: leave one of them out"
            )
