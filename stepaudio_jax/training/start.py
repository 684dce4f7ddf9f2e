"""What a stage starts from: first as shapes and shardings, from which everything else follows, then as arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from stepaudio_jax.config import Config, ModelConfig, StageConfig
from stepaudio_jax.models import Parameters, abstract_model, initial_low_rank, low_rank_tree, parameter_metadata
from stepaudio_jax.parallel import parameter_shardings, replicated
from stepaudio_jax.training.auxiliary import AuxiliaryHeads
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.step import HEADS, LORA, REFERENCE, VALUE, ModelDefinition, TrainState


@dataclasses.dataclass(frozen=True)
class StageStart:
    """A stage before any array exists.

    Attributes:
        definition: the static side of the model.
        optimizer: of the stage.
        abstract: the state before the first step, each leaf a shape, dtype and sharding.
    """

    definition: ModelDefinition
    optimizer: optax.GradientTransformation
    abstract: TrainState

    @property
    def shardings(self) -> TrainState:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)


def describe_stage(config: Config, index: int, model: ModelConfig, mesh: Mesh) -> StageStart:
    """What stage `index` is made of: nothing is allocated, so it holds for any mesh, also of devices that are not here.

    Trainable parameters are kept in `compute.param_dtype`, frozen ones in `compute.dtype`. Moments lie like their parameter.

    Raises:
        ShardingError: the rules cannot place a parameter on the mesh.
    """
    stage = config.stages[index]
    graphdef, state = abstract_model(model, config.compute)
    module = nnx.merge(graphdef, state)
    axes, contracted = (parameter_metadata(module, name) for name in ("axes", "contracted"))
    shapes = nnx.to_pure_dict(state)
    shardings = parameter_shardings(axes, shapes, config.compute.rules, mesh)
    parts: Parameters = {
        part: _abstract(
            shapes[part],
            shardings[part],
            jnp.dtype(config.compute.param_dtype if part in stage.trainable else config.compute.dtype),
        )
        for part in shapes
    }
    trainable: Parameters = {part: parts[part] for part in stage.trainable}
    axes, contracted = ({part: tree[part] for part in trainable} for tree in (axes, contracted))
    heads_graphdef = None
    if stage.auxiliary.enabled:
        heads = nnx.eval_shape(lambda: _heads(config, index, model))
        heads_graphdef, heads_state = nnx.split(heads)
        head_shapes = nnx.to_pure_dict(heads_state)
        whole = jax.tree.map(lambda _: replicated(mesh), head_shapes)  # small, and their widths no mesh divides
        trainable[HEADS] = _abstract(head_shapes, whole, jnp.dtype(jnp.float32))
        axes[HEADS], contracted[HEADS] = (parameter_metadata(heads, name) for name in ("axes", "contracted"))
    if has_value_head(stage):
        sizes = {"kernel": (model.decoder.hidden,), "bias": ()}
        whole = replicated(mesh)
        trainable[VALUE] = {name: jax.ShapeDtypeStruct(size, jnp.float32, sharding=whole) for name, size in sizes.items()}
        axes[VALUE], contracted[VALUE] = {"kernel": ("embed",), "bias": ()}, {"kernel": (), "bias": ()}
    if stage.lora.rank:
        narrow = low_rank_tree(model, stage.lora)
        places = parameter_shardings(narrow.axes, narrow.shapes, config.compute.rules, mesh)
        trainable[LORA] = _abstract(narrow.shapes, places, jnp.dtype(jnp.float32))
        axes[LORA], contracted[LORA] = narrow.axes, narrow.contracted
    optimizer = make_optimizer(stage.optimizer, axes, contracted, _updates(stage))
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    abstract = TrainState(
        step=count,
        skipped_in_row=count,
        trainable=trainable,
        frozen={part: value for part, value in parts.items() if part not in stage.trainable},
        optimizer=_optimizer_state(optimizer, trainable, mesh),
    )
    if keeps_reference(stage):
        abstract.frozen[REFERENCE] = {
            part: _abstract(shapes[part], shardings[part], jnp.dtype(config.compute.dtype)) for part in stage.trainable
        }
    return StageStart(ModelDefinition(graphdef, heads_graphdef, stage.lora.scale), optimizer, abstract)


def start_stage(config: Config, index: int, model: ModelConfig, start: StageStart, parameters: Parameters) -> TrainState:
    """The state before the first step, from parameters that lie as `start` says (see `initial_weights`)."""
    shardings, abstract = start.shardings, start.abstract
    trainable = {
        part: _cast(parameters[part], like) for part, like in abstract.trainable.items() if part not in (HEADS, LORA, VALUE)
    }
    frozen = {part: _cast(parameters[part], like) for part, like in abstract.frozen.items() if part != REFERENCE}
    if REFERENCE in start.abstract.frozen:
        # Copies: the policy's own arrays are given up by the first step.
        like = start.abstract.frozen[REFERENCE]
        frozen[REFERENCE] = {part: jax.tree.map(jnp.copy, _cast(parameters[part], like[part])) for part in like}
    if HEADS in start.abstract.trainable:
        draw = jax.jit(
            lambda: nnx.to_pure_dict(nnx.state(_heads(config, index, model))), out_shardings=shardings.trainable[HEADS]
        )
        trainable[HEADS] = draw()
    if VALUE in abstract.trainable:  # a head of zeros: at first every state is worth nothing
        trainable[VALUE] = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, np.float32), leaf.sharding), abstract.trainable[VALUE]
        )
    if LORA in abstract.trainable:
        narrow = low_rank_tree(model, config.stages[index].lora)
        begin = jax.jit(lambda key: initial_low_rank(narrow, key), out_shardings=shardings.trainable[LORA])
        trainable[LORA] = begin(jax.random.key(config.seed + index))
    return TrainState(
        step=jax.device_put(np.zeros((), np.int32), shardings.step),
        skipped_in_row=jax.device_put(np.zeros((), np.int32), shardings.skipped_in_row),
        trainable=trainable,
        frozen=frozen,
        optimizer=jax.jit(start.optimizer.init, out_shardings=shardings.optimizer)(trainable),
    )


def keeps_reference(stage: StageConfig) -> bool:
    """Whether the stage keeps what it began with beside what it learns."""
    return stage.objective == "policy" and stage.rl.policy.kl_coefficient > 0


def has_value_head(stage: StageConfig) -> bool:
    """Whether the stage learns what a state is worth."""
    return stage.objective == "policy" and stage.rl.policy.baseline == "gae"


def _updates(stage: StageConfig) -> int:
    """Of the weights, over all of the stage."""
    policy = stage.rl.policy
    return stage.steps * (policy.epochs * policy.minibatches if stage.objective == "policy" else 1)


def _cast(parameters: Any, abstract: Any) -> Any:
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), parameters, abstract)


def _heads(config: Config, index: int, model: ModelConfig) -> AuxiliaryHeads:
    return AuxiliaryHeads(config.stages[index].auxiliary, model, rngs=nnx.Rngs(config.seed + index))


def _abstract(shapes: Any, shardings: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding), shapes, shardings)


def _optimizer_state(optimizer: optax.GradientTransformation, trainable: Parameters, mesh: Mesh) -> Any:
    """The optimizer's abstract state: a leaf that stands for a parameter and has its shape lies like it, others are whole."""
    places = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trainable)}

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = _keys(path)
        sharding: NamedSharding = replicated(mesh)
        for start in range(len(keys)):
            parameter = places.get(keys[start:])
            if parameter is not None and parameter.shape == leaf.shape:
                sharding = parameter.sharding
                break
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, trainable))


def _keys(path: Any) -> tuple[str, ...]:
    """The dictionary keys of a path: those of optax's own tuples are left out."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
