"""What a stage of a run is given, and how the stages of an objective are checked and run."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from stepaudio_jax.config import Config, LoRAConfig, ModelConfig, StageConfig
from stepaudio_jax.models import Parameters
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import StageCheckpoints
from stepaudio_jax.training.data_check import DataChecker
from stepaudio_jax.training.start import AbstractTrainState, abstract_train_state
from stepaudio_jax.training.step import TrainState, num_optimizer_updates
from stepaudio_jax.training.stopping import PreemptionNotice

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StageContext:
    """A stage of a run on its machine.

    Attributes:
        config: of the run.
        index: of the stage.
        model, tokenizer: that it trains.
        mesh: of the devices.
        stop: tells when the run is to stop.
        adapter: of the adapter that the run's initial weights have beside the decoder, if any.
    """

    config: Config
    index: int
    model: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    stop: PreemptionNotice
    adapter: LoRAConfig | None = None

    @property
    def stage(self) -> StageConfig:
        """Its configuration."""
        return self.config.stages[self.index]

    @property
    def folder(self) -> pathlib.Path:
        """The run's."""
        return pathlib.Path(self.config.run_dir)

    def describe(self) -> AbstractTrainState:
        """See `abstract_train_state`."""
        return abstract_train_state(self.config, self.index, self.model, self.mesh, self.adapter)

    def checkpoints(self) -> StageCheckpoints:
        """The stage's."""
        return StageCheckpoints(self.folder, self.index, self.stage.name, self.config.checkpoint)

    def warn_if_unchanged(self, state: TrainState) -> None:
        """Logs a warning where no step of the stage changed a parameter.

        Args:
            state: after its last step.
        """
        if num_optimizer_updates(state) == 0 and jax.process_index() == 0:
            logger.warning(
                "stage %r has learnt nothing: none of its %d steps changed a parameter; zero_gradient_steps and skipped_steps in "
                "metrics.jsonl count why",
                self.stage.name,
                int(state.step),
            )


@dataclasses.dataclass(frozen=True)
class StageKind:
    """How the stages of an objective are checked and run.

    Attributes:
        check: a look at what a stage will read, before anything is written.
        run: trains a stage from its newest checkpoint, or from the given parameters, to its last
            step; returns its parameters.
    """

    check: Callable[[StageConfig, Tokenizer, ModelConfig, DataChecker], None]
    run: Callable[[StageContext, Parameters], Parameters]
