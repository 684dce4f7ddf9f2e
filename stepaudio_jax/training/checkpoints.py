"""Checkpoints of a run: state and data position together, one folder a stage, the last few kept (Orbax)."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from stepaudio_jax.training.run_folder import CHECKPOINTS
from stepaudio_jax.training.step import TrainState

STATE, DATA = "state", "data"


class StageCheckpoints:
    """The checkpoints of one stage, under `<run_dir>/checkpoints/<index>_<stage>/<step>`.

    A checkpoint becomes visible when it is complete; one that was being written when the process died is cleaned away.
    """

    def __init__(self, run_dir: pathlib.Path, index: int, stage: str, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            _folder(run_dir, index, stage).absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves `state` and the data iterator's state under the state's step."""
        step = int(state.step)
        if step != self.latest_step:
            self._checkpointer.save_checkpointables(step, {STATE: _as_dict(state), DATA: data_state})

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, its arrays in the shapes, dtypes and shardings of `abstract_state`."""
        loaded = self._checkpointer.load_checkpointables(
            self.latest_step, abstract_checkpointables={STATE: _as_dict(abstract_state), DATA: None}
        )
        state = loaded[STATE]
        # The optimizer's state is a tree of optax's named tuples; on disk it is plain containers of the same leaves.
        optimizer = jax.tree.unflatten(jax.tree.structure(abstract_state.optimizer), jax.tree.leaves(state["optimizer"]))
        restored = TrainState(step=state["step"], trainable=state["trainable"], frozen=state["frozen"], optimizer=optimizer)
        return restored, loaded[DATA]

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def has_checkpoint(run_dir: pathlib.Path, index: int, stage: str) -> bool:
    """Whether this stage has been started and saved (cheaply: nothing is created)."""
    folder = _folder(run_dir, index, stage)
    return folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())


def _folder(run_dir: pathlib.Path, index: int, stage: str) -> pathlib.Path:
    return run_dir / CHECKPOINTS / f"{index}_{stage}"


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trainable": state.trainable, "frozen": state.frozen, "optimizer": state.optimizer}
