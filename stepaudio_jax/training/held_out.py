"""How well a stage's model does on data that it does not learn from."""

import contextlib
import itertools

import jax

from stepaudio_jax.data import DataError, evaluation_batches
from stepaudio_jax.parallel import BatchPlacement, num_batch_shards
from stepaudio_jax.training.checkpoints import HELD_OUT_LOSS
from stepaudio_jax.training.stage_kind import StageContext
from stepaudio_jax.training.step import ModelDef, TrainState, make_eval_step


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
        parameters, place, count = (
            {**state.trainable, **state.frozen},
            self._place,
            self._evaluation.batches,
        )
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
                for name, value in self._step(parameters, place(batch)).items():
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
