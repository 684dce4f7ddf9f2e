"""Checkpoints of a run (Orbax): train state and data position together; export of their model."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.config import CheckpointConfig, Config, LoRAConfig, ModelConfig, build
from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.storage import (
    BucketPath,
    Path,
    check_output_directory,
    client_errors,
    read_bytes,
    remove_folder,
    rename,
)
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.initial_weights import (
    INITIAL_ADAPTER,
    ModelParams,
    adapters_before_stage,
)
from stepaudio_jax.training.monitoring import EVALUATION_LOSS
from stepaudio_jax.training.run_folder import (
    CHECKPOINTS,
    MODEL,
    check_orbax_can_keep,
    read_initial_adapter,
    read_model_spec,
    read_run_config,
)
from stepaudio_jax.training.task_metrics import task_metric
from stepaudio_jax.training.train_state import TrainState, abstract_train_state

# Items of a checkpoint: fields of the train state, and the state of the data iterator.
STATE, DATA = "state", "data"
# Fields of the train state that no step changes: written once for a stage, not in each checkpoint.
_FROZEN_FIELDS = ["frozen_params", "frozen_lora_params"]
_REFERENCE_FIELDS = ["reference_params", "reference_lora_params"]  # unless steps refresh them
# What Orbax and TensorStore raise for a checkpoint that is damaged or missing.
_READ_ERRORS = (ValueError, OSError, KeyError)
_MAX_REASON_CHARS = 400
_COMMITTED = "commit_success.txt"  # Orbax's name of the last file of a checkpoint in a bucket

logger = logging.getLogger(__name__)


class StageCheckpoints:
    """The checkpoints of one stage, under `<run_dir>/checkpoints/<index>_<stage>/<step>`.

    A checkpoint becomes visible when it is complete; one that was being written when the process
    died is removed. What no step changes is written once, before the first of them, to
    `<index>_<stage>.frozen` beside them.

    Args:
        run_dir: the run's folder.
        index, stage: number and name of the stage.
        config: which checkpoints are kept.
    """

    def __init__(self, run_dir: Path, index: int, stage: str, config: CheckpointConfig):
        self._folder = _stage_folder(run_dir, index, stage).absolute()
        self._frozen_folder = _frozen_folder(self._folder)
        self._policy = _preservation_policy(config)
        self._best_by = _best_by(config)
        self._checkpointer = self._open()
        # Frozen fields without a checkpoint are of a run that was killed before its first
        # checkpoint was complete: they are written again.
        self._has_frozen = self.latest_step is not None

    @property
    def latest_step(self) -> int | None:
        """Returns the steps done at the newest complete checkpoint; None: there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(
        self, state: TrainState, data_state: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        """Starts to save the train state and the data iterator's state under the state's step.

        Returns when the arrays are copied. The next save, or `close`, waits for what is still being
        written, and raises what went wrong with it.

        Args:
            state: of the step.
            data_state: of the iterator, JSON-ready.
            metrics: of the step; one of them decides which checkpoints are best (`best_metric`).

        Raises:
            CheckpointError: this checkpoint, or the one before it, could not be written.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        best_by = self._best_by
        value = metrics.get(best_by, math.nan)
        # Left out if it is NaN, among which Orbax cannot find the best.
        checkpoint_metrics = {best_by: value} if math.isfinite(value) else None
        with self._write_errors():
            frozen = _frozen_fields(state)
            if frozen and not self._has_frozen:
                ocp.save(self._frozen_folder, frozen, overwrite=True)
                self._has_frozen = True
            self._checkpointer.save_checkpointables_async(
                step,
                {STATE: _changing_fields(state), DATA: data_state},
                metrics=checkpoint_metrics,
            )

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads the newest checkpoint that can be read.

        Damaged ones are set aside, with a warning, once an older one has been read. If none can be
        read, the cause may be another (a disk that is not mounted, another version): all stay.

        Args:
            abstract_state: the shape, dtype and sharding of every array.

        Returns:
            The train state and the data iterator's state.

        Raises:
            CheckpointError: no checkpoint can be read, or the frozen parameters cannot.
        """
        frozen = _load_frozen(self._folder, _frozen_fields(abstract_state))
        problems: dict[int, str] = {}
        steps = sorted((saved.step for saved in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            try:
                changing, data_state = self._load(step, abstract_state)
            except _READ_ERRORS as error:
                problems[step] = f"{self._folder / str(step)}: {_reason(error)}"
                continue
            if problems:
                for problem in problems.values():
                    logger.warning("damaged checkpoint set aside: %s", problem)
                self._set_aside(list(problems))
            return dataclasses.replace(abstract_state, **changing, **frozen), data_state
        raise CheckpointError(
            f"no checkpoint can be read: {'; '.join(problems.values())}; "
            f"remove {self._folder} to begin the stage anew"
        )

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        with self._write_errors():
            self._checkpointer.close()

    def _open(self) -> Any:
        if jax.process_index() == 0:
            self._drop_unreadable_metrics()
            unfinished = f"{self._frozen_folder.name}.orbax-checkpoint-tmp*"
            for folder in self._folder.parent.glob(unfinished):
                remove_folder(folder)
        multihost_utils.sync_global_devices("checkpoints cleaned")
        checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
        )
        # Whatever its policy, Orbax asks JAX whether to stop, with the stage's step
        # (https://github.com/google/orbax/issues/3406). JAX answers for the number after the
        # largest it was asked about: a notice that comes during a save would count from there, and
        # `PreemptionNotice`, whose numbers count over all stages, would miss it. No public setting
        # turns the question off.
        checkpointer._manager.reached_preemption = lambda step: False
        return checkpointer

    def _drop_unreadable_metrics(self) -> None:
        """Removes half-written metrics of checkpoints, with which Orbax cannot open the folder."""
        for file in self._folder.glob("[0-9]*/metrics/metrics"):
            try:
                json.loads(read_bytes(file))
            except ValueError:
                logger.warning(
                    "%s cannot be read: the checkpoint is kept, its metrics are not", file
                )
                file.unlink()

    def _load(self, step: int, abstract_state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads the changing fields, and the data iterator's state, of a checkpoint."""
        abstract = {STATE: _changing_fields(abstract_state), DATA: None}
        loaded = self._checkpointer.load_checkpointables(step, abstract_checkpointables=abstract)
        fields = loaded[STATE]
        # On disk the optimizer's state is of plain containers, with the leaves of optax's tuples.
        opt_state = jax.tree.unflatten(
            jax.tree.structure(abstract_state.opt_state), jax.tree.leaves(fields["opt_state"])
        )
        return {**fields, "opt_state": opt_state}, loaded[DATA]

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Moves checkpoints into `<index>_<stage>.damaged`."""
        self._checkpointer.close()
        if jax.process_index() == 0:
            folder = self._folder.with_name(f"{self._folder.name}.damaged")
            folder.mkdir(exist_ok=True)
            for step in steps:
                names = itertools.chain(
                    [str(step)], (f"{step}.{number}" for number in itertools.count(2))
                )
                free = next(name for name in names if not (folder / name).exists())
                rename(self._folder / str(step), folder / free)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._checkpointer = self._open()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Raises a CheckpointError for what the system refuses inside (for example a full disk).

        A thread of Orbax reports that as a ValueError of TensorStore, which has an os_error_code.
        """
        errors: tuple[type[Exception], ...] = (ValueError, OSError, *client_errors(self._folder))
        try:
            yield
        except errors as error:
            is_local = not isinstance(self._folder, BucketPath)
            if is_local and isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            raise CheckpointError(
                f"{self._folder}: a checkpoint could not be written, those before it are whole: "
                f"{_reason(error)}"
            ) from None


def saved_steps(run_dir: Path, index: int, stage: str) -> list[int]:
    """Returns the saved steps of a stage in order, without opening or creating anything."""
    folder = _stage_folder(run_dir, index, stage)
    if not folder.is_dir():
        return []
    entries = [entry for entry in folder.iterdir() if entry.name.isdigit()]
    return sorted(int(entry.name) for entry in entries if _is_committed(entry))


def _is_committed(checkpoint: Path) -> bool:
    """Returns whether a checkpoint is complete.

    Locally it gets its name when it is. In a bucket Orbax writes it under its name, and this file
    last.
    """
    return not isinstance(checkpoint, BucketPath) or (checkpoint / _COMMITTED).is_file()


def load_parameters(
    run_dir: Path, index: int, stage: str, step: int, abstract: TrainState
) -> TrainState:
    """Reads the model's parameters of a saved step, without heads, reference and optimizer.

    Nothing in the folder is changed, so the run may be under way.

    Args:
        run_dir, index, stage: of the stage.
        step: one of `saved_steps`.
        abstract: the stage's state, each leaf a shape, dtype and sharding.

    Returns:
        The state; what is not read is None.

    Raises:
        CheckpointError: they cannot be read.
    """
    folder = _stage_folder(run_dir, index, stage).absolute()
    abstract = dataclasses.replace(
        abstract,
        aux_head_params=None,
        value_head_params=None,
        reference_params=None,
        reference_lora_params=None,
        opt_state=None,
    )
    try:
        with _partial_load():
            changing = ocp.load(
                folder / str(step), _changing_fields(abstract), checkpointable_name=STATE
            )
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{folder / str(step)} cannot be read: {_reason(error)}; take another step"
        ) from None
    frozen = _load_frozen(folder, _frozen_fields(abstract))
    return dataclasses.replace(abstract, **changing, **frozen)


def export_checkpoint(
    run_dir: Path,
    target: Path,
    mesh: Mesh,
    *,
    stage: str | None = None,
    step: int | None = None,
) -> None:
    """Writes the model that a run had at a saved step, like the run's finished model.

    Nothing in the run's folder is changed. With several processes every one calls this.

    Args:
        run_dir: the run's folder.
        target: the folder to write; must not exist, or be empty.
        mesh: of the devices here, which need not be those of the run.
        stage: its name; None: the last one with a checkpoint.
        step: of the stage; None: the last one saved.

    Raises:
        CheckpointError: the run has no such checkpoint (the message says which there are), or it
            cannot be read, or the target is a place that the run itself writes to.
        ConfigError: the folder holds no run, or the model cannot be sharded over the mesh.
        OutputError: the target exists.
    """
    check_orbax_can_keep(run_dir)
    config = build(Config, read_run_config(run_dir))
    index, step = _find_checkpoint(config, run_dir, stage, step)
    name = config.stages[index].name
    check_output_directory(target)
    _check_target(target, run_dir)
    model, tokenizer = read_model_spec(run_dir)
    adapter = read_initial_adapter(run_dir)
    start = abstract_train_state(config, index, model, mesh, adapter)
    with jax.set_mesh(mesh):
        state = load_parameters(run_dir, index, name, step, start.abstract)
        params = start.model_def.params_after_stage(state, name)
        adapters = adapters_before_stage(config, index + 1, adapter)
        source = f"step {step} of stage {name!r} of {run_dir}"
        export_model(target, params, adapters, config, model, tokenizer, source=source)


def export_model(
    target: Path,
    params: ModelParams,
    adapters: Mapping[str, LoRAConfig],
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    source: str,
) -> None:
    """Writes the parameters that a stage left as a checkpoint folder, its adapters combined to one.

    With several processes every one calls this.

    Args:
        target: the folder to write; must not exist, or be empty.
        params: as `ModelDef.params_after_stage` returns them.
        adapters: rank, alpha and targets of those in `params`, by stage.
        config: the run's configuration.
        model, tokenizer: the run's model and tokenizer.
        source: in words, where the weights came from.

    Raises:
        OutputError: the target exists.
    """
    combined = None
    if params.lora_params:
        pairs = [
            (lora, hub.adapter_matrices_on_host(params.lora_params[name]))
            for name, lora in adapters.items()
        ]
        # The initial adapter is part of the combined one, whose base is then the model below it:
        # not the initial weights, and not known here.
        initial = config.initial.decoder or config.initial.model or ""
        base = "" if INITIAL_ADAPTER in adapters else initial
        combined = hub.combine_adapters(pairs, base)
    hub.save_checkpoint(target, params.params, model, tokenizer, source=source, adapter=combined)


def _find_checkpoint(
    config: Config, run_dir: Path, stage: str | None, step: int | None
) -> tuple[int, int]:
    """Returns stage index and step of a checkpoint; None: of the last one.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    saved = {
        stage.name: saved_steps(run_dir, index, stage.name)
        for index, stage in enumerate(config.stages)
    }
    with_checkpoints = [name for name, steps in saved.items() if steps]
    if stage is None:
        stage = with_checkpoints[-1] if with_checkpoints else ""
    if not saved.get(stage) or (step is not None and step not in saved[stage]):
        wanted = [f"stage {stage!r}"] if stage else []
        wanted += [f"step {step}"] if step is not None else []
        which = f" of {' '.join(wanted)}" if wanted else ""
        available = "; ".join(
            f"{name}: {', '.join(map(str, saved[name]))}" for name in with_checkpoints
        )
        raise CheckpointError(
            f"{run_dir} has no checkpoint{which}; saved steps are: {available or 'none'}"
        )
    return list(saved).index(stage), saved[stage][-1] if step is None else step


def _check_target(target: Path, run_dir: Path) -> None:
    """Checks that a run would not take a model there for its own checkpoint or finished model.

    Raises:
        CheckpointError: it would.
    """
    resolved, run = (
        path if isinstance(path, BucketPath) else pathlib.Path(os.path.realpath(path))
        for path in (target, run_dir)
    )
    if resolved == run / MODEL or (run / CHECKPOINTS) in (resolved, *resolved.parents):
        raise CheckpointError(
            f"{target}: the run writes there itself, and would take what is there for its own; "
            "choose another output"
        )


def _frozen_fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields that no step changes, without those that hold no array."""
    return _fields_with_arrays(state, _frozen_names(state))


def _changing_fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields that steps change, without those that hold no array."""
    frozen = _frozen_names(state)
    names = [field.name for field in dataclasses.fields(TrainState) if field.name not in frozen]
    return _fields_with_arrays(state, [name for name in names if name != "refreshes_reference"])


def _frozen_names(state: TrainState) -> list[str]:
    return _FROZEN_FIELDS + ([] if state.refreshes_reference else _REFERENCE_FIELDS)


def _fields_with_arrays(state: TrainState, names: Sequence[str]) -> dict[str, Any]:
    fields = {name: getattr(state, name) for name in names}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def _load_frozen(stage_folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Reads the frozen fields that `abstract` has."""
    folder = _frozen_folder(stage_folder)
    if not abstract:
        return {}
    try:
        with _partial_load():
            return ocp.load(folder, abstract)
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{folder}: the stage's frozen parameters cannot be read: {_reason(error)}; "
            f"bring the folder back, or remove {stage_folder} to begin the stage anew"
        ) from None


def _partial_load() -> ocp.Context:
    """Returns a context in which a tree may have more on disk than is asked for."""
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    return context


def _reason(error: Exception) -> str:
    """Returns the beginning of a message: Orbax's may describe all of the state for pages."""
    return textwrap.shorten(str(error), _MAX_REASON_CHARS, placeholder=" ..")


def _best_by(config: CheckpointConfig) -> str:
    """Returns the metric that decides which checkpoints are best."""
    return EVALUATION_LOSS if config.best_metric == "loss" else task_metric(config.best_metric)


def _preservation_policy(config: CheckpointConfig) -> Any:
    best_by = _best_by(config)
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(config.keep)]
    if config.keep_every_steps:
        kept.append(policies.EveryNSteps(config.keep_every_steps))
    if config.keep_best:
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[best_by],
            n=config.keep_best,
            keep_checkpoints_without_metrics=False,
            reverse=best_by == EVALUATION_LOSS,  # the lowest loss, and the highest score
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def _stage_folder(run_dir: Path, index: int, stage: str) -> Path:
    return run_dir / CHECKPOINTS / f"{index}_{stage}"


def _frozen_folder(stage_folder: Path) -> Path:
    return stage_folder.with_name(f"{stage_folder.name}.frozen")
