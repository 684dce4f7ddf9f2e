"""Checkpoints of a run: state and data position together, one folder a stage, written while training goes on (Orbax)."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.config import CheckpointConfig, Config, LoRAConfig, ModelConfig, build
from stepaudio_jax.errors import CheckpointError, ConfigError
from stepaudio_jax.storage import check_output_directory, read_bytes, read_text, rename
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.initial_weights import (
    INITIAL_ADAPTER,
    ModelParams,
    adapters_before_stage,
)
from stepaudio_jax.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    MODEL,
    read_initial_adapter,
    read_model_spec,
)
from stepaudio_jax.training.train_state import TrainState, abstract_train_state

STATE, DATA = "state", "data"
# Fields of `TrainState` that no step changes.
_FROZEN_FIELDS = (
    "frozen_params",
    "frozen_lora_params",
    "reference_params",
    "reference_lora_params",
)
HELD_OUT_LOSS = "evaluation/loss"
_MAX_REASON_CHARS = 400  # characters
_DAMAGED = (
    ValueError,
    OSError,
    KeyError,
)  # what Orbax and TensorStore raise for what is damaged, or not there

logger = logging.getLogger(__name__)


class StageCheckpoints:
    """The checkpoints of one stage, under `<run_dir>/checkpoints/<index>_<stage>/<step>`.

    A checkpoint becomes visible when it is complete; one that was being written when the process
    died is cleaned away. Frozen parameters are the same in all of them: they are written once,
    before the first, to `<index>_<stage>.frozen` beside them.
    """

    def __init__(self, run_dir: pathlib.Path, index: int, stage: str, config: CheckpointConfig):
        self._folder = _folder(run_dir, index, stage).absolute()
        self._frozen_folder = _frozen_folder(self._folder)
        self._policy = _preservation(config)
        self._checkpointer = self._open()
        # Frozen parameters without a checkpoint are what a run left that was killed before its
        # first one was complete.
        self._frozen_is_saved = self.latest_step is not None

    def _open(self) -> Any:
        if jax.process_index() == 0:
            self._drop_unreadable_figures()
            for unfinished in self._folder.parent.glob(
                f"{self._frozen_folder.name}.orbax-checkpoint-tmp*"
            ):
                shutil.rmtree(unfinished)
        multihost_utils.sync_global_devices("checkpoints looked over")
        checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
        )
        # Orbax asks JAX itself whether to stop, with the stage's step: a notice while it saves
        # would be counted from there, and be missed by a run that counts over all stages
        # (`PreemptionNotice`). It saves whenever it is told to, and need not ask.
        checkpointer._manager.reached_preemption = lambda step: False
        return checkpointer

    def _drop_unreadable_figures(self) -> None:
        """Orbax reads the figures of every checkpoint when it opens a folder, and cannot where they are half written."""
        for file in self._folder.glob("[0-9]*/metrics/metrics"):
            try:
                json.loads(read_bytes(file))
            except ValueError:
                logger.warning(
                    "%s cannot be read: the checkpoint is kept, its figures are not", file
                )
                file.unlink()

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(
        self, state: TrainState, data_state: dict[str, Any], figures: dict[str, float]
    ) -> None:
        """Starts to save `state` and the data iterator's state under the state's step.

        Returns when the arrays are copied; what is still being written is waited for by the next
        save or `close`, which raise what went wrong with it.

        Args:
            state: of the step.
            data_state: of the iterator, JSON-ready.
            figures: of the step; by the held-out loss among them the best checkpoints are kept.

        Raises:
            CheckpointError: this one, or the one before it, could not be written.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        loss = figures.get(HELD_OUT_LOSS, math.nan)
        metrics = (
            {HELD_OUT_LOSS: loss} if math.isfinite(loss) else None
        )  # among NaNs Orbax cannot tell which is best
        with self._writing():
            frozen = _frozen_fields(state)
            if frozen and not self._frozen_is_saved:
                ocp.save(self._frozen_folder, frozen, overwrite=True)
                self._frozen_is_saved = True
            self._checkpointer.save_checkpointables_async(
                step, {STATE: _changing_fields(state), DATA: data_state}, metrics=metrics
            )

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint that can be read, its arrays in the shapes, dtypes and shardings of `abstract_state`.

        One that is damaged is set aside, with a warning, once one before it has been read. Where
        none can be, the cause may be another (a disk that is away, another version): then all stay
        where they are.

        Raises:
            CheckpointError: none can be read, or the frozen parameters cannot.
        """
        frozen = _load_frozen(self._folder, _frozen_fields(abstract_state))
        problems: dict[int, str] = {}
        for step in sorted(
            (checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True
        ):
            try:
                changing, data_state = self._load(step, abstract_state)
            except _DAMAGED as error:
                problems[step] = f"{self._folder / str(step)}: {_reason(error)}"
                continue
            if problems:
                for problem in problems.values():
                    logger.warning("damaged checkpoint set aside: %s", problem)
                self._set_aside(list(problems))
            return dataclasses.replace(abstract_state, **changing, **frozen), data_state
        raise CheckpointError(
            f"no checkpoint can be read: {'; '.join(problems.values())}; remove {self._folder} to begin the stage anew"
        )

    def _load(self, step: int, abstract_state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
        loaded = self._checkpointer.load_checkpointables(
            step, abstract_checkpointables={STATE: _changing_fields(abstract_state), DATA: None}
        )
        state = loaded[STATE]
        # The optimizer's state is a tree of optax's named tuples; on disk it is plain containers of
        # the same leaves.
        opt_state = jax.tree.unflatten(
            jax.tree.structure(abstract_state.opt_state), jax.tree.leaves(state["opt_state"])
        )
        return {**state, "opt_state": opt_state}, loaded[DATA]

    def _set_aside(self, steps: Sequence[int]) -> None:
        self._checkpointer.close()
        if jax.process_index() == 0:
            aside = self._folder.with_name(f"{self._folder.name}.damaged")
            aside.mkdir(exist_ok=True)
            for step in steps:
                names = itertools.chain(
                    [str(step)], (f"{step}.{again}" for again in itertools.count(2))
                )
                free = next(name for name in names if not (aside / name).exists())
                rename(self._folder / str(step), aside / free)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._checkpointer = self._open()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        with self._writing():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the system refuses (a full disk, for example), told by a thread of Orbax's as a ValueError of TensorStore's."""
        try:
            yield
        except (ValueError, OSError) as error:
            if isinstance(error, ValueError) and "os_error_code" not in str(error):
                raise
            raise CheckpointError(
                f"{self._folder}: a checkpoint could not be written, those before it are whole: {_reason(error)}"
            ) from None


def saved_steps(run_dir: pathlib.Path, index: int, stage: str) -> list[int]:
    """The steps of a stage that are saved, from the first (cheaply: nothing is created, and no file of them is opened)."""
    folder = _folder(run_dir, index, stage)
    return (
        sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
        if folder.is_dir()
        else []
    )


def load_parameters(
    run_dir: pathlib.Path, index: int, stage: str, step: int, abstract: TrainState
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
    folder = _folder(run_dir, index, stage).absolute()
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
    except _DAMAGED as error:
        raise CheckpointError(
            f"{folder / str(step)} cannot be read: {_reason(error)}; take another step"
        ) from None
    frozen = _load_frozen(folder, _frozen_fields(abstract))
    return dataclasses.replace(abstract, **changing, **frozen)


def _load_frozen(stage_folder: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Reads the frozen fields of a stage's state that `abstract` names."""
    folder = _frozen_folder(stage_folder)
    if not abstract:
        return {}
    try:
        with _partial_load():
            return ocp.load(folder, abstract)
    except _DAMAGED as error:
        raise CheckpointError(
            f"{folder}: the stage's frozen parameters cannot be read: {_reason(error)}; "
            f"bring the folder back, or remove {stage_folder} to begin the stage anew"
        ) from None


def _partial_load() -> ocp.Context:
    """In which a tree that is loaded may have more on disk than is asked for."""
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    return context


def _reason(error: Exception) -> str:
    """The beginning of what an error says: Orbax's may go on for pages about the state that was asked for."""
    return textwrap.shorten(str(error), _MAX_REASON_CHARS, placeholder=" ..")


def _preservation(config: CheckpointConfig) -> Any:
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(config.keep)]
    if config.keep_every_steps:
        kept.append(policies.EveryNSteps(config.keep_every_steps))
    if config.keep_best:
        best = policies.BestN(
            get_metric_fn=_held_out_loss,
            n=config.keep_best,
            keep_checkpoints_without_metrics=False,
            reverse=True,
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def _held_out_loss(metrics: dict[str, float]) -> float:
    return metrics[HELD_OUT_LOSS]


def _folder(run_dir: pathlib.Path, index: int, stage: str) -> pathlib.Path:
    return run_dir / CHECKPOINTS / f"{index}_{stage}"


def _frozen_folder(stage_folder: pathlib.Path) -> pathlib.Path:
    return stage_folder.with_name(f"{stage_folder.name}.frozen")


def _frozen_fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields that no step changes, without those that hold no array."""
    fields = {name: getattr(state, name) for name in _FROZEN_FIELDS}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def _changing_fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields that steps change, without those that hold no array."""
    names = (field.name for field in dataclasses.fields(TrainState))
    fields = {name: getattr(state, name) for name in names if name not in _FROZEN_FIELDS}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


# The finished model of a run, and that of a run that is under way, was stopped, or has diverged: of one of its checkpoints.


def export_model(
    target: pathlib.Path,
    params: ModelParams,
    adapters: Mapping[str, LoRAConfig],
    config: Config,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    source: str,
) -> None:
    """Writes what a stage has left as a checkpoint folder, its adapters as one beside the decoder.

    With several processes every one calls this, and the first one writes.

    Args:
        target: the folder to write; must not exist, or be empty.
        params: as `ModelDef.params_after_stage` returns them.
        adapters: rank, alpha and targets of those in `params`, by stage.
        config: of the run.
        model, tokenizer: that it trains.
        source: in words, where the weights came from.

    Raises:
        CheckpointError: the target exists.
    """
    combined = None
    if params.lora_params:
        pairs = [
            (lora, hub.adapter_matrices_on_host(params.lora_params[name]))
            for name, lora in adapters.items()
        ]
        # What came with the initial weights is part of the adapter, whose base then is another
        # model than they are.
        initial = config.initial.decoder or config.initial.model or ""
        base = "" if INITIAL_ADAPTER in adapters else initial
        combined = hub.combine_adapters(pairs, base)
    hub.save_checkpoint(target, params.params, model, tokenizer, source=source, adapter=combined)


def export_checkpoint(
    run_dir: pathlib.Path,
    target: pathlib.Path,
    mesh: Mesh,
    *,
    stage: str | None = None,
    step: int | None = None,
) -> None:
    """Writes the model that a run had at a saved step, as the run itself writes its finished one (see `export_model`).

    Nothing in the run's folder is changed. With several processes every one calls this, and the
    first one writes.

    Args:
        run_dir: the run's folder.
        target: the folder to write; must not exist, or be empty.
        mesh: of the devices here, which need not be those of the run.
        stage: its name; the last one that has a checkpoint if None.
        step: of the stage; the last one saved if None.

    Raises:
        CheckpointError: the run has no such checkpoint (the message says which there are), it
            cannot be read, or the target exists.
        ConfigError: the folder holds no run.
        ConfigError: the model cannot be cut over the mesh.
    """
    config = _config(run_dir)
    saved = {
        one.name: saved_steps(run_dir, index, one.name) for index, one in enumerate(config.stages)
    }
    found = (
        "; ".join(f"{name}: {', '.join(map(str, steps))}" for name, steps in saved.items() if steps)
        or "none"
    )
    name = stage or next((name for name in reversed(saved) if saved[name]), "")
    if not saved.get(name) or (step is not None and step not in saved[name]):
        asked = " ".join(
            part
            for part in (
                f"stage {name!r}" if name else "",
                f"step {step}" if step is not None else "",
            )
            if part
        )
        raise CheckpointError(
            f"{run_dir} has no checkpoint{f' of {asked}' if asked else ''}; saved steps are: {found}"
        )
    index = list(saved).index(name)
    step = saved[name][-1] if step is None else step
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


def _check_target(target: pathlib.Path, run_dir: pathlib.Path) -> None:
    """Refuses the places by which a run knows how far it is: a model there would pass for the run's finished one.

    Raises:
        CheckpointError: the target is one of them.
    """
    resolved, run = pathlib.Path(os.path.realpath(target)), pathlib.Path(os.path.realpath(run_dir))
    if resolved == run / MODEL or (run / CHECKPOINTS) in (resolved, *resolved.parents):
        raise CheckpointError(
            f"{target}: the run writes there itself, and would take what is there for its own; choose another output"
        )


def _config(run_dir: pathlib.Path) -> Config:
    path = run_dir / CONFIG
    try:
        return build(Config, json.loads(read_text(path)))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; name the run_dir of a run") from None
    except ValueError as error:  # a ConfigError too
        raise ConfigError(f"{path}: {error}; name the run_dir of a run") from None
