"""A run, from top to bottom: weights, then each stage's steps, evaluation and checkpoints."""

import contextlib
import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
from jax.sharding import Mesh

from stepaudio_jax.config import (
    AuxiliaryConfig,
    Config,
    LoRAConfig,
    ModelConfig,
    StageConfig,
    to_dict,
)
from stepaudio_jax.data import Preprocessor, batches, evaluation_batches, merge_states, open_sources
from stepaudio_jax.data.checking import DataChecker
from stepaudio_jax.errors import DataError, DivergedError
from stepaudio_jax.parallel import (
    BatchPlacement,
    all_gather_json,
    check_batch_divisible,
    make_mesh,
    num_batch_shards,
    peak_flops,
    replicated,
)
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import (
    HELD_OUT_LOSS,
    StageCheckpoints,
    export_model,
    saved_steps,
)
from stepaudio_jax.training.flops import step_flops
from stepaudio_jax.training.initial_weights import (
    ModelParams,
    adapters_before_stage,
    check_stage_adapter,
    initial_adapter,
    initial_model,
    initial_weights,
)
from stepaudio_jax.training.monitoring import (
    MetricsWriter,
    StepProfile,
    ThroughputMeter,
    progress_bar,
    progress_bar_metrics,
    write_diagnosis,
)
from stepaudio_jax.training.preemption import PreemptionNotice, data_error
from stepaudio_jax.training.run_folder import (
    MODEL,
    RunLock,
    check_same_run,
    prepare_run_folder,
    read_initial_adapter,
)
from stepaudio_jax.training.train_state import (
    AbstractTrainState,
    ModelDef,
    TrainState,
    abstract_train_state,
    init_train_state,
)
from stepaudio_jax.training.train_step import (
    make_eval_step,
    make_train_step,
    num_optimizer_updates,
)

# What a stage of a run is given, and how the stages of an objective are checked and run.

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
    run: Callable[[StageContext, ModelParams], ModelParams]


# How well a stage's model does on data that it does not learn from.


class Evaluator:
    """The evaluation of a stage, where it has one.

    Args:
        run: the stage's.
        definition: the static side of the model.
    """

    def __init__(self, run: StageContext, definition: ModelDef):
        self._run, self._stage, self._evaluation = run, run.stage, run.stage.evaluation
        if self._evaluation.enabled:  # else its settings are nobody's, and may not fit the mesh
            rules = run.config.compute.rules
            self._place = BatchPlacement(self._evaluation.data, rules, run.mesh)
            # As many micro-batches as training has, or as the rows allow.
            most, rows = (
                self._stage.gradient_accumulation_steps,
                self._evaluation.data.batch_size // num_batch_shards(rules, run.mesh),
            )
            micro_batches = next(parts for parts in range(most, 0, -1) if rows % parts == 0)
            self._step = jax.jit(make_eval_step(definition, micro_batches))

    def is_due(self, step: int) -> bool:
        """Whether the model is evaluated after a step of the stage."""
        every = self._evaluation.every_steps
        return self._evaluation.enabled and (
            step == self._stage.steps or (every > 0 and step % every == 0)
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Mean loss and token accuracy over the first `evaluation.batches` batches of the held-out data.

        Raises:
            DataError: no record can be used, or a clip is damaged.
        """
        place, count = self._place, self._evaluation.batches
        totals = {"loss_sum": 0.0, "correct_tokens": 0.0, "loss_tokens": 0.0}
        held_out = evaluation_batches(
            self._evaluation.data,
            self._run.tokenizer,
            self._run.model,
            rows=place.local_rows,
            count=count if place.spans_processes else None,
        )
        with contextlib.closing(held_out) as data:
            for batch in itertools.islice(data, count):
                for name, value in self._step(state, place(batch)).items():
                    totals[name] += float(value)
        if totals["loss_tokens"] == 0:
            paths = ", ".join(source.path for source in self._evaluation.data.sources)
            raise DataError(
                f"{paths}: no record of the evaluation data of stage {self._stage.name!r} can be used; see the warnings"
            )
        return {
            HELD_OUT_LOSS: totals["loss_sum"] / totals["loss_tokens"],
            "evaluation/token_accuracy": totals["correct_tokens"] / totals["loss_tokens"],
        }


def train(config: Config, kinds: Mapping[str, StageKind] = MappingProxyType({})) -> pathlib.Path:
    """Runs every stage of `config`, continuing from the run folder's newest checkpoint where there is one.

    Writes into `config.run_dir`: config.json (resolved), metrics.jsonl, tensorboard/, checkpoints/,
    and model/, the finished model in this project's checkpoint format; what LoRA has learnt is in
    model/adapter/, beside the decoder without it.

    Args:
        config: of the run.
        kinds: how the stages of other objectives than "next_token" are run, by objective.

    Returns:
        The folder of the finished model.

    Raises:
        ConfigError: the run folder holds a run of another configuration or is in use by another
            job, or settings contradict each other.
        DataError: the data cannot be used. What the first look at it shows, and every ConfigError
            and CheckpointError, comes before anything is written.
        CheckpointError: the weights to start from, or every checkpoint, cannot be read.
        InterruptedRunError, DivergedError: see `run_stage`.
    """
    model_dir = pathlib.Path(config.run_dir) / MODEL
    with contextlib.closing(RunLock(config.run_dir)) as lock:
        check_same_run(config)
        if not model_dir.exists():  # else the run is finished
            lock.acquire_if_exists()
            check_same_run(config)  # of what another job may have left since
            if not model_dir.exists():
                _run_stages(
                    config, {"next_token": StageKind(_check_stage, run_stage), **kinds}, lock
                )
    return model_dir


def _run_stages(config: Config, kinds: Mapping[str, StageKind], lock: RunLock) -> None:
    """Runs the stages that are not finished, and writes the finished model."""
    model, tokenizer = initial_model(config)
    run_dir = pathlib.Path(config.run_dir)
    data_check = DataChecker(run_dir, model, tokenizer)
    saved = [
        bool(saved_steps(run_dir, index, stage.name)) for index, stage in enumerate(config.stages)
    ]
    # What the initial weights hold now is no matter to a run that has begun: its checkpoints are of
    # what they held then.
    adapter = read_initial_adapter(run_dir) if any(saved) else initial_adapter(config)
    for index, stage in enumerate(config.stages):
        if not any(saved[index + 1 :]):  # else it is finished
            kinds[stage.objective.name].check(stage, tokenizer, model, data_check)
            if stage.lora.adapter is not None and not saved[index]:
                check_stage_adapter(config, index, model)
    mesh = make_mesh(config.mesh)
    check_batch_divisible(config, mesh)
    stop = PreemptionNotice()
    with jax.set_mesh(mesh), stop.handle_signals():
        parameters = ModelParams() if any(saved) else initial_weights(config, model, mesh)
        lock.acquire()
        prepare_run_folder(config, model, tokenizer, begins=not any(saved), adapter=adapter)
        data_check.write()
        for index in range(len(config.stages)):
            if any(saved[index + 1 :]):
                continue  # a later stage's checkpoint holds everything that this stage left
            run = StageContext(config, index, model, tokenizer, mesh, stop, adapter)
            parameters = kinds[run.stage.objective.name].run(run, parameters)
        adapters = adapters_before_stage(config, len(config.stages), adapter)
        source = f"trained in {run_dir}"
        export_model(run_dir / MODEL, parameters, adapters, config, model, tokenizer, source=source)


def run_stage(run: StageContext, parameters: ModelParams) -> ModelParams:
    """Trains a stage from its newest checkpoint, or from `parameters`, to its last step; returns its parameters.

    Raises:
        InterruptedRunError: SIGTERM or Ctrl-C came; everything is saved.
        DivergedError: too many steps in a row were not finite; the diagnosis is saved.
    """
    config, index, model, tokenizer, mesh, stop = (
        run.config,
        run.index,
        run.model,
        run.tokenizer,
        run.mesh,
        run.stop,
    )
    stage, run_dir, start = run.stage, run.folder, run.describe()
    place = BatchPlacement(stage.data, config.compute.rules, mesh)
    held_out = Evaluator(run, start.model_def)
    data = batches(
        stage.data,
        tokenizer,
        model,
        auxiliary=stage.auxiliary,
        seed=config.seed + index,
        rows=place.local_rows,
    )
    checkpoints = run.checkpoints()
    earlier = sum(stage.steps for stage in config.stages[:index])
    stop.should_stop(
        earlier + (checkpoints.latest_step or 0)
    )  # a notice before the first step is for the step after it
    with contextlib.closing(data), contextlib.closing(checkpoints):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(start.abstract)
            data.set_state(data_state)
        else:
            state = init_train_state(config, index, model, start, parameters)
        parameters.clear()  # the state holds them now; what of them it does not need is freed
        done = int(state.step)
        stop.should_stop(earlier + done)
        train_step = jax.jit(
            make_train_step(start.model_def, stage, start.optimizer),
            donate_argnums=0,
            out_shardings=(start.shardings, replicated(mesh)),
        )
        meter = ThroughputMeter(step_flops(model, stage), peak_flops(jax.devices()[0].device_kind))
        profile = StepProfile(run_dir, config.profiled_steps())
        writer = MetricsWriter(run_dir, stage=stage.name, resume_step=done)
        with (
            contextlib.closing(writer),
            contextlib.closing(profile),
            progress_bar(stage.name, stage.steps, done) as bar,
        ):
            if done and held_out.is_due(done) and writer.is_missing(done, HELD_OUT_LOSS):
                with meter.paused():
                    writer.add_to_step(done, held_out.evaluate(state))
            for step in range(done + 1, stage.steps + 1):
                try:
                    with meter.waiting_for_data():
                        batch = place(next(data))
                except (DataError, OSError) as error:
                    saved_step = checkpoints.latest_step
                    if (
                        jax.process_count() == 1
                    ):  # of several, it may be one alone that cannot read its file
                        checkpoints.save(state, data.get_state(), {})
                        saved_step = int(state.step)
                    raise data_error(error, stage.name, saved_step, stage.data) from error
                profile.before(earlier + step)
                with meter.compiling() if step == done + 1 else contextlib.nullcontext():
                    state, metrics = train_step(state, batch)
                meter.add(metrics)
                profile.after(earlier + step, metrics)
                bar.update()
                stopping = stop.should_stop(earlier + step)
                last = stopping or step == stage.steps
                logs, saves = (
                    last or _is_due(step, every)
                    for every in (config.log_every_steps, config.checkpoint.every_steps)
                )
                position = merge_states(all_gather_json(data.get_state())) if logs or saves else {}
                figures: dict[str, float] = {}
                if logs:
                    figures |= meter.summary() | position["counts"]
                    bar.set_postfix(progress_bar_metrics(figures))
                    if int(state.consecutive_skips) > config.max_consecutive_skips:
                        writer.write(step, figures)
                        found = write_diagnosis(
                            run_dir, stage.name, step, meter.history, batch, position
                        )
                        raise DivergedError(
                            f"stage {stage.name!r}, step {step}: loss or gradient were not finite for the last "
                            f"{int(state.consecutive_skips)} steps; see {found}"
                        )
                # One may take longer than a machine that is to stop is left: the run that goes on
                # makes up for it.
                if held_out.is_due(step) and not (stopping and step < stage.steps):
                    try:
                        with meter.paused():
                            figures |= held_out.evaluate(state)
                    except (DataError, OSError) as error:
                        if figures:
                            writer.write(step, figures)
                        saved_step = checkpoints.latest_step
                        if jax.process_count() == 1:
                            checkpoints.save(state, position or data.get_state(), {})
                            saved_step = int(state.step)
                        raise data_error(
                            error, stage.name, saved_step, stage.evaluation.data, "evaluation.data"
                        ) from error
                if figures:
                    writer.write(step, figures)
                if saves:
                    with meter.saving():
                        checkpoints.save(state, position, figures)
                if stopping and step < stage.steps:
                    raise stop.interrupted_error(stage.name, step)
    run.warn_if_unchanged(state)
    return start.model_def.params_after_stage(state, stage.name)


def _check_stage(
    stage: StageConfig, tokenizer: Tokenizer, model: ModelConfig, data_check: DataChecker
) -> None:
    """Checks the data that a stage learns from, and that it is evaluated on."""
    read = [(f"stage {stage.name!r}", stage.data, stage.auxiliary)]
    if stage.evaluation.enabled:
        read.append(
            (f"evaluation of stage {stage.name!r}", stage.evaluation.data, AuxiliaryConfig())
        )
    for title, data, auxiliary in read:
        sources = open_sources(data.sources)
        preparation = Preprocessor(data, tokenizer, model, auxiliary, sources, seed=0)
        data_check(title, sources, data, preparation.check, {"auxiliary": to_dict(auxiliary)})


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
