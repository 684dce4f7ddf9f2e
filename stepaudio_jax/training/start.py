"""The state a stage starts from."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stepaudio_jax.config import Config, ModelConfig
from stepaudio_jax.models import Parameters, abstract_model, parameter_metadata
from stepaudio_jax.training.auxiliary import AuxiliaryHeads
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.step import HEADS, ModelDefinition, TrainState


def start_stage(
    config: Config, index: int, model: ModelConfig, parameters: Parameters
) -> tuple[ModelDefinition, optax.GradientTransformation, TrainState]:
    """The model's definition, the optimizer of stage `index`, and the state before its first step.

    Trainable parameters are kept in `compute.param_dtype`, frozen ones in `compute.dtype`.
    """
    stage = config.stages[index]
    graphdef, abstract = abstract_model(model, config.compute)
    module = nnx.merge(graphdef, abstract)
    trainable: dict[str, Any] = {part: _cast(parameters[part], config.compute.param_dtype) for part in stage.trainable}
    frozen = {part: _cast(value, config.compute.dtype) for part, value in parameters.items() if part not in stage.trainable}
    axes, contracted = (_select(parameter_metadata(module, name), trainable) for name in ("axes", "contracted"))
    heads_graphdef = None
    if stage.auxiliary.enabled:
        heads = AuxiliaryHeads(stage.auxiliary, model, rngs=nnx.Rngs(config.seed + index))
        heads_graphdef, heads_state = nnx.split(heads)
        trainable[HEADS] = nnx.to_pure_dict(heads_state)
        axes[HEADS], contracted[HEADS] = (parameter_metadata(heads, name) for name in ("axes", "contracted"))
    optimizer = make_optimizer(stage.optimizer, axes, contracted, stage.steps)
    state = TrainState(
        step=jnp.zeros((), jnp.int32), trainable=trainable, frozen=frozen, optimizer=jax.jit(optimizer.init)(trainable)
    )
    return ModelDefinition(model=graphdef, heads=heads_graphdef), optimizer, state


def _cast(parameters: Parameters, dtype: str) -> Parameters:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), parameters)


def _select(tree: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: tree[name] for name in names}
