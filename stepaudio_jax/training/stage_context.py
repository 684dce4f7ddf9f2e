"""What a run gives each of its stages: configuration, devices, checkpoints, and when to stop."""

import dataclasses
import logging

import jax
from jax.sharding import Mesh

from stepaudio_jax.config import (
    Config,
    Distillation,
    LoRAConfig,
    ModelConfig,
    PolicyGradient,
    Preference,
    StageConfig,
)
from stepaudio_jax.data.preference_pairs import PairFormat
from stepaudio_jax.models import supports_shared_prefix
from stepaudio_jax.storage import Path, to_path
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import StageCheckpoints
from stepaudio_jax.training.monitoring import StepProfile
from stepaudio_jax.training.preemption import PreemptionNotice
from stepaudio_jax.training.reference_logprobs import ReferenceLogprobs
from stepaudio_jax.training.task_metrics import TaskEvaluator, task_metric, task_name
from stepaudio_jax.training.teacher import TeacherDef, define_teacher
from stepaudio_jax.training.train_state import (
    AbstractTrainState,
    ModelDef,
    TrainState,
    abstract_train_state,
    num_optimizer_updates,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StageContext:
    """One stage of a run, and what the run gives it.

    Attributes:
        config: the run's configuration.
        index: the stage's number in the run, from 0.
        model, tokenizer: the run's model and tokenizer.
        mesh: the mesh of the devices.
        notice: says when the run must stop.
        adapter: settings of the adapter beside the run's initial weights, if any.
        task_evaluator: evaluates the stage's model on benchmarks; None where it names none.
    """

    config: Config
    index: int
    model: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    notice: PreemptionNotice
    adapter: LoRAConfig | None = None
    task_evaluator: TaskEvaluator | None = None

    @property
    def stage(self) -> StageConfig:
        """Returns the stage's configuration."""
        return self.config.stages[self.index]

    @property
    def run_dir(self) -> Path:
        """Returns the folder of the run."""
        return to_path(self.config.run_dir)

    @property
    def steps_before_stage(self) -> int:
        """Returns the number of steps of all stages before this one."""
        return sum(stage.steps for stage in self.config.stages[: self.index])

    def abstract_train_state(self) -> AbstractTrainState:
        """Builds the stage's abstract train state; see `train_state.abstract_train_state`."""
        return abstract_train_state(self.config, self.index, self.model, self.mesh, self.adapter)

    def open_checkpoints(self) -> StageCheckpoints:
        """Opens the stage's checkpoints."""
        return StageCheckpoints(self.run_dir, self.index, self.stage.name, self.config.checkpoint)

    def define_teacher(self) -> TeacherDef | None:
        """Returns the static side of the stage's teacher; None where it has none.

        Raises:
            ConfigError, CheckpointError: see `teacher.define_teacher`.
        """
        objective = self.stage.objective
        if not isinstance(objective, Distillation | PolicyGradient) or objective.teacher is None:
            return None
        return define_teacher(
            self.config,
            objective.teacher,
            self.model,
            self.tokenizer,
            inputs=objective.teacher_inputs,
        )

    def pair_format(self, reference_logprobs: ReferenceLogprobs | None = None) -> PairFormat | None:
        """Returns how the stage's records of preferences become examples; None for dialogues.

        Args:
            reference_logprobs: of the records, if they are known beforehand.
        """
        if not isinstance(self.stage.objective, Preference):
            return None
        objective = self.stage.objective
        shares_prompt = supports_shared_prefix(self.config.compute, objective.replies_per_record)
        return PairFormat(objective, shares_prompt, reference_logprobs)

    def should_stop(self, step: int, *, within_step: bool = False) -> bool:
        """Returns whether the run must stop at this step of the stage; see `PreemptionNotice`."""
        return self.notice.should_stop(self.steps_before_stage + step, within_step=within_step)

    def is_log_due(self, step: int) -> bool:
        """Returns whether `log_every_steps` asks for a line of metrics after this step."""
        return is_due(step, self.config.steps_per_log_line(self.stage))

    def is_checkpoint_due(self, step: int) -> bool:
        """Returns whether `checkpoint.every_steps` asks to save the state after this step."""
        return is_due(step, self.config.checkpoint.every_steps)

    def task_metrics(self, step: int) -> list[str]:
        """Returns metrics that benchmarks have after this step of the stage; none on most."""
        evaluation = self.stage.evaluation
        if step != self.stage.steps and not is_due(step, evaluation.task_every_steps):
            return []
        return [task_metric(task_name(entry), "failed") for entry in evaluation.tasks]

    def evaluate_tasks(self, state: TrainState, model_def: ModelDef, step: int) -> dict[str, float]:
        """Evaluates the model on benchmarks, if they are due after this step of the stage.

        Raises:
            DataError: a benchmark's files cannot be read any more.
        """
        if self.task_evaluator is None or not self.task_metrics(step):
            return {}
        return self.task_evaluator.evaluate(state, model_def)

    def open_profile(self) -> StepProfile:
        """Returns the profile that `profile_steps` asks for; its steps count over all stages."""
        return StepProfile(self.run_dir, self.config.profiled_steps())

    def warn_if_unchanged(self, state: TrainState) -> None:
        """Logs a warning if no step of the stage changed a parameter.

        Args:
            state: after the stage's last step.
        """
        if num_optimizer_updates(state) == 0 and jax.process_index() == 0:
            logger.warning(
                "stage %r trained nothing: none of its %d steps changed a parameter; "
                "skipped_* and zero_gradient_* in metrics.jsonl count why",
                self.stage.name,
                int(state.step),
            )


def is_due(step: int, every: int) -> bool:
    """Returns whether something that is done every so many steps is done now; 0: never."""
    return every > 0 and step % every == 0
