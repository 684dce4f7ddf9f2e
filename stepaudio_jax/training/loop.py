"""A run, from top to bottom: weights, then each stage's steps, evaluation and checkpoints."""

import contextlib
import itertools
import pathlib

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ModelConfig, StageConfig
from stepaudio_jax.data import DataError, batches, check_sources, evaluation_batches
from stepaudio_jax.models import Parameters
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import StageCheckpoints, has_checkpoint
from stepaudio_jax.training.initial import initial_model, initial_weights
from stepaudio_jax.training.meter import Meter
from stepaudio_jax.training.metrics import MetricsWriter, bar_figures, progress_bar
from stepaudio_jax.training.run_folder import MODEL, claim_run_folder, require_same_run
from stepaudio_jax.training.start import start_stage
from stepaudio_jax.training.step import HEADS, EvaluationStep, make_evaluation_step, make_train_step


def train(config: Config) -> pathlib.Path:
    """Runs every stage of `config`, continuing from the run folder's newest checkpoint where there is one.

    Writes into `config.run_dir`: config.json (resolved), metrics.jsonl, tensorboard/, checkpoints/, and model/, the finished
    model in this project's checkpoint format.

    Returns:
        The folder of the finished model.

    Raises:
        ConfigError: the run folder holds a run of another configuration, or settings contradict each other.
        DataError: the data cannot be used. What the first look at it shows, and every ConfigError and CheckpointError, comes
            before anything is written.
        CheckpointError: the weights to start from cannot be read.
    """
    require_same_run(config)
    model_dir = pathlib.Path(config.run_dir) / MODEL
    if model_dir.exists():
        return model_dir  # the run is finished
    model, tokenizer = initial_model(config)
    for stage in config.stages:
        check_sources(stage.data, tokenizer, model, auxiliary=stage.auxiliary)
        if stage.evaluation.enabled:
            check_sources(stage.evaluation.data, tokenizer, model)
    parameters = initial_weights(config, model)
    run_dir = claim_run_folder(config)
    for index in range(len(config.stages)):
        if any(has_checkpoint(run_dir, later, config.stages[later].name) for later in range(index + 1, len(config.stages))):
            continue  # a later stage's checkpoint holds everything that this stage left
        parameters = run_stage(config, index, model, tokenizer, parameters, run_dir)
    hub.save_checkpoint(model_dir, parameters, model, tokenizer, source=f"trained in {run_dir}")
    return model_dir


def run_stage(
    config: Config,
    index: int,
    model: ModelConfig,
    tokenizer: Tokenizer,
    parameters: Parameters,
    run_dir: pathlib.Path,
) -> Parameters:
    """Trains stage `index` from `parameters`, or from its newest checkpoint, to its last step; returns its parameters."""
    stage = config.stages[index]
    definition, optimizer, state = start_stage(config, index, model, parameters)
    data = batches(stage.data, tokenizer, model, auxiliary=stage.auxiliary, seed=config.seed + index)
    checkpoints = StageCheckpoints(run_dir, index, stage.name, config.checkpoint.keep)
    with contextlib.closing(data), contextlib.closing(checkpoints):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(state)
            data.set_state(data_state)
        done = int(state.step)
        train_step = jax.jit(make_train_step(definition, stage, optimizer), donate_argnums=0)
        evaluation_step = jax.jit(make_evaluation_step(definition))
        meter = Meter()
        writer = MetricsWriter(run_dir, stage=stage.name, resume_step=done)
        with contextlib.closing(writer), progress_bar(stage.name, stage.steps, done) as bar:
            for step in range(done + 1, stage.steps + 1):
                with meter.waiting_for_data():
                    batch = next(data)
                state, metrics = train_step(state, batch)
                meter.add(metrics)
                bar.update()
                last = step == stage.steps
                figures: dict[str, float] = {}
                if last or step % config.log_every_steps == 0:
                    figures |= meter.figures() | data.counts
                    bar.set_postfix(bar_figures(figures))
                if stage.evaluation.enabled and (last or _is_due(step, stage.evaluation.every_steps)):
                    with meter.paused():
                        trained = {**state.trainable, **state.frozen}
                        figures |= evaluate(evaluation_step, trained, stage, tokenizer, model)
                if figures:
                    writer.write(step, figures)
                if last or _is_due(step, config.checkpoint.every_steps):
                    with meter.paused():
                        checkpoints.save(state, data.get_state())
    return {name: value for name, value in {**state.trainable, **state.frozen}.items() if name != HEADS}


def evaluate(
    evaluation_step: EvaluationStep, parameters: Parameters, stage: StageConfig, tokenizer: Tokenizer, model: ModelConfig
) -> dict[str, float]:
    """Mean loss and token accuracy over the first `evaluation.batches` batches of the stage's held-out data."""
    totals = {"loss_sum": 0.0, "correct_tokens": 0.0, "learnt_tokens": 0.0}
    with contextlib.closing(evaluation_batches(stage.evaluation.data, tokenizer, model)) as data:
        for batch in itertools.islice(data, stage.evaluation.batches):
            for name, value in evaluation_step(parameters, batch).items():
                totals[name] += float(value)
    if totals["learnt_tokens"] == 0:
        paths = ", ".join(source.path for source in stage.evaluation.data.sources)
        raise DataError(f"{paths}: no record of the evaluation data of stage {stage.name!r} can be used; see the warnings")
    return {
        "evaluation/loss": totals["loss_sum"] / totals["learnt_tokens"],
        "evaluation/token_accuracy": totals["correct_tokens"] / totals["learnt_tokens"],
    }


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
