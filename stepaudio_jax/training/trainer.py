"""A run: its stages in order, each from its newest checkpoint or what the stage before left."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

from stepaudio_jax.config import (
    AuxiliaryConfig,
    Config,
    DataConfig,
    MeshConfig,
    Preference,
    to_dict,
)
from stepaudio_jax.data import (
    Preprocessor,
    batches,
    evaluation_batches,
    merge_states,
    open_stage_sources,
)
from stepaudio_jax.data.checking import CheckedData, DataChecker
from stepaudio_jax.data.preference_pairs import PairFormat
from stepaudio_jax.data.split_source import AnySource
from stepaudio_jax.errors import DataError, DivergedError
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import (
    BatchPlacement,
    all_gather_json,
    check_batch_divisible,
    make_mesh,
    num_batch_shards,
    peak_flops,
    replicated,
)
from stepaudio_jax.storage import Path, is_finished_folder, to_path
from stepaudio_jax.training.checkpoints import StageCheckpoints, export_model, saved_steps
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
    EVALUATION_LOSS,
    DataWaitWarning,
    MetricsWriter,
    ThroughputMeter,
    progress_bar,
    progress_bar_metrics,
    write_diagnosis,
)
from stepaudio_jax.training.preemption import PreemptionNotice, data_error
from stepaudio_jax.training.reference_logprobs import (
    ReferenceLogprobs,
    compute_reference_logprobs,
    stored_reference_logprobs,
)
from stepaudio_jax.training.run_folder import (
    MODEL,
    RunLock,
    check_same_run,
    prepare_run_folder,
    read_initial_adapter,
)
from stepaudio_jax.training.stage_context import StageContext, is_due
from stepaudio_jax.training.stage_step import (
    evaluation_means,
    make_stage_eval_step,
    make_stage_step,
)
from stepaudio_jax.training.task_metrics import TaskEvaluator
from stepaudio_jax.training.teacher import TeacherDef, read_teacher
from stepaudio_jax.training.train_state import (
    ModelDef,
    TrainState,
    init_train_state,
)

logger = logging.getLogger(__name__)

# The mixtures of a stage, as keys of its configuration.
_DATA, _EVALUATION_DATA = "data", "evaluation.data"


class StageTrainer(Protocol):
    """What trains one stage; made from a `StageContext` without allocating device memory."""

    def check_data(self, checker: DataChecker) -> None:
        """Checks what the stage will read, before the run writes anything.

        Raises:
            ConfigError, DataError, CheckpointError: it cannot be used.
        """

    def run(self, params: ModelParams) -> ModelParams:
        """Trains to the stage's last step, and returns the parameters then.

        Args:
            params: to start from, cleared once a train state holds them; not read if the stage has
                a checkpoint, from which it resumes.
        """


def run(
    config: Config,
    make_trainer: Callable[[StageContext], StageTrainer],
    make_task_evaluator: Callable[[StageContext], TaskEvaluator],
) -> Path:
    """Runs every stage of `config`, resuming from the newest checkpoint in the run folder, if any.

    Writes into `config.run_dir`: config.json (resolved), metrics.jsonl, tensorboard/, checkpoints/,
    and model/, the finished model in this project's checkpoint format, with trained adapters (LoRA)
    in model/adapter/ beside the decoder.

    Args:
        config: the run's configuration.
        make_trainer: returns the trainer of a stage.
        make_task_evaluator: returns what evaluates a stage's model on benchmarks.

    Returns:
        The folder of the finished model.

    Raises:
        ConfigError: the run folder holds a run of another configuration or is in use by another
            job, or settings contradict each other.
        DataError: the data cannot be used. What the first check shows, and every ConfigError and
            CheckpointError, comes before anything is written.
        CheckpointError: the weights to start from, or every checkpoint, cannot be read.
        InterruptedRunError: SIGTERM or Ctrl-C came; everything is saved.
        DivergedError: too many steps in a row were not finite; the diagnosis is saved.
    """
    run_dir = to_path(config.run_dir)
    with contextlib.closing(RunLock(config.run_dir)) as lock:
        check_same_run(config)
        if is_finished_folder(run_dir / MODEL):
            return run_dir / MODEL
        lock.acquire_if_exists()
        check_same_run(config)  # again: another job may have written since
        if is_finished_folder(run_dir / MODEL):
            return run_dir / MODEL

        model, tokenizer = initial_model(config)
        has_checkpoint = [
            bool(saved_steps(run_dir, index, stage.name))
            for index, stage in enumerate(config.stages)
        ]
        resumes = any(has_checkpoint)
        # A run that resumes keeps the adapter it began with, whatever is in that folder by now.
        adapter = read_initial_adapter(run_dir) if resumes else initial_adapter(config)
        mesh = make_mesh(config.mesh)
        check_batch_divisible(config, mesh)
        notice = PreemptionNotice()
        # Stages before the last one with a checkpoint are finished: it has all that they left.
        first = max((index for index, saved in enumerate(has_checkpoint) if saved), default=0)
        trainers = []
        for index in range(first, len(config.stages)):
            context = StageContext(config, index, model, tokenizer, mesh, notice, adapter)
            if context.stage.evaluation.tasks:
                evaluator = make_task_evaluator(context)
                evaluator.check()
                context = dataclasses.replace(context, task_evaluator=evaluator)
            trainers.append(make_trainer(context))
        checker = DataChecker(run_dir, model, tokenizer)
        for index, trainer in enumerate(trainers, start=first):
            trainer.check_data(checker)
            if config.stages[index].lora.adapter is not None and not has_checkpoint[index]:
                check_stage_adapter(config, index, model)

        with jax.set_mesh(mesh), notice.handle_signals():
            params = ModelParams() if resumes else initial_weights(config, model, mesh)
            lock.acquire()
            prepare_run_folder(config, model, tokenizer, begins=not resumes, adapter=adapter)
            checker.write()
            for trainer in trainers:
                params = trainer.run(params)
            adapters = adapters_before_stage(config, len(config.stages), adapter)
            source = f"trained in {run_dir}"
            export_model(run_dir / MODEL, params, adapters, config, model, tokenizer, source=source)
    return run_dir / MODEL


def check_data(
    config: Config, make_trainer: Callable[[StageContext], StageTrainer]
) -> Iterator[CheckedData]:
    """Checks what every stage of `config` would read, as `run` does, and writes nothing.

    The mesh is that of this machine's devices: which the run will have decides nothing here.

    Args:
        config: of the run.
        make_trainer: returns the trainer of a stage.

    Yields:
        What was found in each stage's data, and in that of its evaluation; what shows an error too,
        before it is raised.

    Raises:
        ConfigError, DataError, CheckpointError: the run could not begin.
    """
    model, tokenizer = initial_model(config)
    adapter, mesh, notice = initial_adapter(config), make_mesh(MeshConfig()), PreemptionNotice()
    checker = DataChecker(None, model, tokenizer)
    for index in range(len(config.stages)):
        context = StageContext(config, index, model, tokenizer, mesh, notice, adapter)
        before, error = len(checker.checked), None
        try:
            make_trainer(context).check_data(checker)
        except DataError as raised:
            error = raised
        yield from checker.checked[before:]
        if error is not None:
            raise error


class SupervisedTrainer:
    """Trains a stage by next-token prediction, or by preferences between given replies.

    Args:
        context: the stage, and what the run gives it.
    """

    def __init__(self, context: StageContext):
        self._context = context

    def check_data(self, checker: DataChecker) -> None:
        """Checks the data that the stage is trained and evaluated on; see `StageTrainer`."""
        context, stage = self._context, self._context.stage
        checks = [(f"stage {stage.name!r}", stage.data, stage.auxiliary)]
        if stage.evaluation.enabled:
            title = f"evaluation of stage {stage.name!r}"
            checks.append((title, stage.evaluation.data, AuxiliaryConfig()))
        context.define_teacher()  # raises where it cannot be learnt from
        pair_format = context.pair_format()
        for title, data, auxiliary in checks:
            sources = open_stage_sources(data, context.tokenizer, context.model)
            preprocessor = Preprocessor(
                data,
                context.tokenizer,
                context.model,
                auxiliary,
                sources,
                seed=0,
                pair_format=pair_format,
                teacher_reads=stage.teacher_reads,
            )
            settings: dict[str, Any] = {"auxiliary": to_dict(auxiliary)}
            if stage.teacher_reads:
                settings["teacher_reads"] = True
            if pair_format is not None:
                settings |= {
                    "objective": to_dict(pair_format.objective),
                    "shares_prompt": pair_format.shares_prompt,
                }
            checker(title, sources, data, preprocessor.check, settings)

    def run(self, params: ModelParams) -> ModelParams:
        """Trains to the stage's last step, and returns the parameters then; see `StageTrainer`.

        Raises:
            InterruptedRunError: SIGTERM or Ctrl-C came; everything is saved.
            DivergedError: too many steps in a row were not finite; the diagnosis is saved.
            DataError: the data cannot be read; in a run of one process the state is saved.
        """
        context = self._context
        config, stage, mesh = context.config, context.stage, context.mesh
        start = context.abstract_train_state()
        place_batch = BatchPlacement(stage.data, config.compute.rules, mesh)
        checkpoints = context.open_checkpoints()
        # Asked before the first step too, so that a notice until then counts for that step.
        context.should_stop(checkpoints.latest_step or 0)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(checkpoints))
            restored_data_state = None
            if checkpoints.latest_step is not None:
                state, restored_data_state = checkpoints.restore(start.abstract)
            else:
                state = init_train_state(config, context.index, context.model, start, params)
            teacher_def = context.define_teacher()
            # Of a stage with a teacher, the last argument of its steps.
            teacher = () if teacher_def is None else (read_teacher(config, teacher_def, mesh),)
            reference = self._reference_logprobs(
                start.model_def, state, is_resumed=restored_data_state is not None
            )
            evaluator = Evaluator(
                context,
                start.model_def,
                context.pair_format(reference.get(_EVALUATION_DATA)),
                teacher_def,
            )
            data = batches(
                stage.data,
                context.tokenizer,
                context.model,
                auxiliary=stage.auxiliary,
                seed=config.seed + context.index,
                rows=place_batch.local_rows,
                pair_format=context.pair_format(reference.get(_DATA)),
                teacher_reads=stage.teacher_reads,
            )
            stack.enter_context(contextlib.closing(data))
            if restored_data_state is not None:
                data.set_state(restored_data_state)
            params.clear()  # the state holds what it needs of them; the rest is freed
            steps_done = int(state.step)
            context.should_stop(steps_done)

            train_step = jax.jit(
                make_stage_step(start.model_def, stage, start.optimizer, teacher_def),
                donate_argnums=0,
                out_shardings=(start.shardings, replicated(mesh)),
            )
            peak = peak_flops(jax.devices()[0].device_kind)
            meter = ThroughputMeter(step_flops(context.model, stage), peak)
            data_wait = DataWaitWarning(stage.name, stage.data)
            profile = stack.enter_context(contextlib.closing(context.open_profile()))
            writer = MetricsWriter(context.run_dir, stage=stage.name, resume_step=steps_done)
            stack.enter_context(contextlib.closing(writer))
            bar = stack.enter_context(progress_bar(stage.name, stage.steps, steps_done))

            resumed_before_evaluation = steps_done > 0 and any(
                writer.is_missing(steps_done, metric) for metric in evaluator.metrics(steps_done)
            )
            if resumed_before_evaluation:
                with meter.paused():
                    writer.add_to_step(steps_done, evaluator.evaluate(state, steps_done, *teacher))

            for step in range(steps_done + 1, stage.steps + 1):
                try:
                    with meter.waiting_for_data():
                        batch = place_batch(next(data))
                except (DataError, OSError) as error:
                    saved_step = self._save_if_alone(checkpoints, state, data.get_state())
                    raise data_error(error, stage.name, saved_step, stage.data) from error

                run_step = context.steps_before_stage + step
                profile.before(run_step)
                is_first = step == steps_done + 1
                with meter.compiling() if is_first else contextlib.nullcontext():
                    state, metrics = train_step(state, batch, *teacher)
                meter.add(metrics)
                profile.after(run_step, metrics)
                bar.update()

                stopping = context.should_stop(step)
                is_last = stopping or step == stage.steps
                logs = is_last or context.is_log_due(step)
                saves = is_last or context.is_checkpoint_due(step)
                data_state = (
                    merge_states(all_gather_json(data.get_state())) if logs or saves else {}
                )
                logged: dict[str, float] = {}
                if logs:
                    logged |= meter.summary() | data_state["counts"]
                    data_wait.update(meter)
                    bar.set_postfix(progress_bar_metrics(logged))
                    skips = int(state.consecutive_skips)
                    if skips > config.max_consecutive_skips:
                        writer.write(step, logged)
                        folder = write_diagnosis(
                            context.run_dir, stage.name, step, meter.history, batch, data_state
                        )
                        raise DivergedError(
                            f"stage {stage.name!r}, step {step}: loss or gradient were not finite "
                            f"for the last {skips} steps; see {folder}"
                        )
                # A preempted run skips the evaluation, which may take longer than the grace period;
                # it is made up for when the run resumes.
                preempted = stopping and step < stage.steps
                if evaluator.metrics(step) and not preempted:
                    try:
                        with meter.paused():
                            logged |= evaluator.evaluate(state, step, *teacher)
                    except (DataError, OSError) as error:
                        if logged:
                            writer.write(step, logged)
                        saved_step = self._save_if_alone(
                            checkpoints, state, data_state or data.get_state()
                        )
                        raise data_error(
                            error, stage.name, saved_step, stage.evaluation.data, "evaluation.data"
                        ) from error
                if logged:
                    writer.write(step, logged)
                if saves:
                    with meter.saving():
                        checkpoints.save(state, data_state, logged)
                if preempted:
                    raise context.notice.interrupted_error(stage.name, step)
        context.warn_if_unchanged(state)
        return start.model_def.params_after_stage(state, stage.name)

    def _reference_logprobs(
        self, model_def: ModelDef, state: TrainState, *, is_resumed: bool
    ) -> dict[str, ReferenceLogprobs]:
        """Returns the reference policy's log-probabilities of training and held-out data.

        They are computed before the first step, and read from the run folder afterwards. Without
        `objective.precompute_reference` there are none.

        Raises:
            CheckpointError: the stage has made steps, and they are not in the run folder.
        """
        context, stage = self._context, self._context.stage
        if not isinstance(stage.objective, Preference) or not stage.objective.precompute_reference:
            return {}
        mixtures = {_DATA: stage.data}
        if stage.evaluation.enabled:
            mixtures[_EVALUATION_DATA] = stage.evaluation.data
        path = context.run_dir / f"reference_logprobs_{context.index}_{stage.name}.json"

        def compute(data: DataConfig) -> ReferenceLogprobs:
            return compute_reference_logprobs(
                model_def,
                state,
                data,
                tokenizer=context.tokenizer,
                model=context.model,
                pair_format=context.pair_format(),
                place_batch=BatchPlacement(data, context.config.compute.rules, context.mesh),
                mesh=context.mesh,
            )

        return stored_reference_logprobs(path, mixtures, compute, is_resumed=is_resumed)

    @staticmethod
    def _save_if_alone(
        checkpoints: StageCheckpoints, state: TrainState, data_state: dict[str, Any]
    ) -> int | None:
        """Saves before an error ends a run of one process; returns the newest saved step.

        All processes of a run save together, and the error may be in one of them only.
        """
        if jax.process_count() > 1:
            return checkpoints.latest_step
        checkpoints.save(state, data_state, {})
        return int(state.step)


class Evaluator:
    """Evaluates a stage's model on its held-out data and on benchmarks, where it has some.

    Args:
        context: the stage, and what the run gives it.
        model_def: the static side of the model.
        pair_format: how records of preferences become examples; None for dialogues.
        teacher: of the stage; None without one.
    """

    def __init__(
        self,
        context: StageContext,
        model_def: ModelDef,
        pair_format: PairFormat | None = None,
        teacher: TeacherDef | None = None,
    ):
        self._context, self._model_def, self._pair_format = context, model_def, pair_format
        self._teacher = teacher

    def metrics(self, step: int) -> list[str]:
        """Returns the metrics that are measured after this step of the stage; none on most."""
        metrics = [EVALUATION_LOSS] if self._is_loss_due(step) else []
        return metrics + self._context.task_metrics(step)

    def evaluate(self, state: TrainState, step: int, *teacher: Parameters) -> dict[str, float]:
        """Computes what is due after this step: held-out loss and accuracy, figures of benchmarks.

        Args:
            state: of the step.
            step: of the stage.
            teacher: its parameters, where the stage has a teacher.

        Raises:
            DataError: no record can be used, or a clip is damaged.
        """
        metrics = self._evaluate_loss(state, *teacher) if self._is_loss_due(step) else {}
        return metrics | self._context.evaluate_tasks(state, self._model_def, step)

    def _is_loss_due(self, step: int) -> bool:
        evaluation, last_step = self._context.stage.evaluation, self._context.stage.steps
        return evaluation.enabled and (step == last_step or is_due(step, evaluation.every_steps))

    def _evaluate_loss(self, state: TrainState, *teacher: Parameters) -> dict[str, float]:
        """Computes the loss and other metrics over the first `evaluation.batches` batches."""
        context, evaluation = self._context, self._context.stage.evaluation
        place_batch, eval_step = self._place_batch, self._eval_step
        totals = collections.defaultdict[str, float](float)
        data = evaluation_batches(
            evaluation.data,
            context.tokenizer,
            context.model,
            rows=place_batch.local_rows,
            count=evaluation.batches if place_batch.spans_processes else None,
            sources=self._sources,
            pair_format=self._pair_format,
            teacher_reads=context.stage.teacher_reads,
        )
        with contextlib.closing(data):
            for batch in itertools.islice(data, evaluation.batches):
                for name, value in eval_step(state, place_batch(batch), *teacher).items():
                    totals[name] += float(value)
        means = evaluation_means(totals, context.stage) if totals else None
        if means is None:
            paths = ", ".join(source.path for source in evaluation.data.sources)
            raise DataError(
                f"{paths}: no record of the evaluation data of stage {context.stage.name!r} can be "
                "used; see the warnings"
            )
        return {f"evaluation/{name}": mean for name, mean in means.items()}

    # Cached, not made by the constructor: without held-out data its settings need not fit the mesh.

    @functools.cached_property
    def _place_batch(self) -> BatchPlacement:
        data, rules = self._context.stage.evaluation.data, self._context.config.compute.rules
        return BatchPlacement(data, rules, self._context.mesh)

    @functools.cached_property
    def _sources(self) -> Sequence[AnySource]:
        """Returns the held-out data, opened once."""
        context, data = self._context, self._context.stage.evaluation.data
        return open_stage_sources(data, context.tokenizer, context.model)

    @functools.cached_property
    def _eval_step(self) -> Any:
        """Returns the compiled step; its micro-batches are training's, or fewer if rows are few."""
        stage, rules = self._context.stage, self._context.config.compute.rules
        shards = num_batch_shards(rules, self._context.mesh)
        rows_per_shard = stage.evaluation.data.batch_size // shards
        num_microbatches = next(
            number
            for number in range(stage.gradient_accumulation_steps, 0, -1)
            if rows_per_shard % number == 0
        )
        return jax.jit(
            make_stage_eval_step(self._model_def, stage, num_microbatches, self._teacher)
        )
