"""What a stage starts from: first as shapes and shardings, from which everything else follows, then as arrays."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from stepaudio_jax import hub
from stepaudio_jax.config import Config, ConfigError, LoRAConfig, ModelConfig, Part
from stepaudio_jax.models import (
    Parameters,
    abstract_lora,
    abstract_model,
    abstract_parameters,
    init_lora,
    init_parameters,
    logical_axes,
    parameter_metadata,
)
from stepaudio_jax.parallel import parameter_shardings, replicated
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.losses import AuxiliaryHeads
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.train_step import (
    FROZEN_LORA,
    HEADS,
    LORA,
    REFERENCE,
    VALUE,
    ModelDef,
    TrainState,
)

# The model a run starts from: its shape, its tokenizer, its weights.


def initial_model(config: Config) -> tuple[ModelConfig, Tokenizer]:
    """The shape of the model, as the folders that `config.initial` names say where it names any, and the tokenizer.

    Raises:
        ConfigError: neither `initial` nor `tokenizer` says which tokenizer to use.
        CheckpointError: a folder cannot be read, or the model's vocabulary has no rows for what the
            tokenizer writes.
    """
    sources = _sources(config)
    model = hub.read_model_config(sources) if sources else config.model
    tokenizer = _tokenizer(config)
    hub.check_vocab_size(tokenizer, model.decoder.vocab_size)
    return model, tokenizer


def initial_adapter(config: Config) -> LoRAConfig | None:
    """Returns rank, alpha and targets of the adapter that the run's initial decoder has beside it, if any.

    Raises:
        CheckpointError: its folder cannot be read.
    """
    return hub.source_lora_config(_sources(config))


def check_stage_adapter(config: Config, index: int, model: ModelConfig) -> None:
    """Checks the adapter that `lora.adapter` of a stage names, before anything is written.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model.
        ConfigError: it is not of the stage's form, or the initial weights have the very same one
            beside them already.
    """
    adapter = read_stage_adapter(config, index, model)
    beside = hub.read_source_adapter(_sources(config))
    if beside is None or beside.lora != adapter.lora:
        return
    if jax.tree.all(jax.tree.map(np.array_equal, beside.matrices, adapter.matrices)):
        stage = config.stages[index]
        folder = config.initial.decoder or config.initial.model
        raise ConfigError(
            f"stages.{stage.name}.lora.adapter={stage.lora.adapter!r} is beside the decoder of {folder} already, "
            f"and would count twice: to go on with it, start from the model without it ({beside.base or 'its base'})"
        )


def initial_weights(config: Config, model: ModelConfig, mesh: Mesh) -> Parameters:
    """Reads or draws the weights that `config.initial` asks for, each device its own part.

    What a stage trains is in `compute.param_dtype`, what none does in `compute.dtype`. An adapter
    beside the decoder is under FROZEN_LORA, in fp32.

    Parts that no folder gives are drawn from `config.seed`: all of them for a run from nothing, the
    adaptor where encoder and decoder come from folders of their own.

    Raises:
        CheckpointError: a folder is incomplete.
        ShardingError: the rules cannot place a parameter on the mesh.
    """
    shardings = parameter_shardings(
        logical_axes(model), abstract_parameters(model), config.compute.rules, mesh
    )
    trained = {part for stage in config.stages for part in stage.trainable}
    sources = _sources(config)
    parameters: Parameters = {}
    if sources:
        compute = config.compute
        dtypes: dict[Part, str] = {
            part: compute.param_dtype if part in trained else compute.dtype for part in sources
        }
        parameters = hub.read_parameters(
            sources, config=model, dtype=dtypes, shardings=shardings, merge_adapter=False
        )
        adapter = hub.read_source_adapter(sources)
        if adapter is not None:
            tree = abstract_lora(model, adapter.lora)
            places = parameter_shardings(tree.axes, tree.shapes, compute.rules, mesh)
            placed = jax.jit(lambda matrices: matrices, out_shardings=places)(adapter.matrices)
            parameters[FROZEN_LORA] = {INITIAL_ADAPTER: placed}
    if missing := shardings.keys() - parameters.keys():
        key = jax.random.key(config.seed)
        parameters |= init_parameters(
            model, key, config.compute, shardings=shardings, parts=missing
        )
    return parameters


def _sources(config: Config) -> dict[Part, pathlib.Path]:
    initial = config.initial
    return hub.weight_sources(initial.model, encoder=initial.encoder, decoder=initial.decoder)


def _tokenizer(config: Config) -> Tokenizer:
    if config.tokenizer == "bytes":
        return Tokenizer.byte_level()
    folder = config.tokenizer or config.initial.model or config.initial.decoder
    if not folder:
        raise ConfigError(
            "tokenizer is None, and there is no initial.model to take one from: "
            'name a folder, or "bytes"'
        )
    return hub.load_tokenizer(folder)


INITIAL_ADAPTER = (
    "@initial"  # the adapter that came with the initial weights; no stage can have this name
)


@dataclasses.dataclass(frozen=True)
class AbstractTrainState:
    """A stage before any array exists.

    Attributes:
        model_def: the static side of the model.
        optimizer: of the stage.
        abstract: the state before the first step, each leaf a shape, dtype and sharding.
        previous_model_def: the static side of the model that the stage starts from: its adapters
            are merged where the decoder learns.
    """

    model_def: ModelDef
    optimizer: optax.GradientTransformation
    abstract: TrainState
    previous_model_def: ModelDef

    @property
    def shardings(self) -> TrainState:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)


def adapters_before_stage(
    config: Config, index: int, initial: LoRAConfig | None
) -> dict[str, LoRAConfig]:
    """Returns the adapters beside the decoder when stage `index` begins, by the stage that left them, in order.

    A stage that trains the decoder itself begins by merging them into it, and leaves none.

    Args:
        config: of the run.
        index: of the stage; the number of stages for what the run leaves.
        initial: of the adapter that the initial weights have, if any.
    """
    adapters = {} if initial is None else {INITIAL_ADAPTER: initial}
    for stage in config.stages[:index]:
        if "decoder" in stage.trainable:
            adapters = {}
        elif stage.lora.rank:
            adapters[stage.name] = stage.lora
    return adapters


def abstract_train_state(
    config: Config, index: int, model: ModelConfig, mesh: Mesh, initial: LoRAConfig | None = None
) -> AbstractTrainState:
    """What stage `index` is made of: nothing is allocated, so it holds for any mesh, also of devices that are not here.

    Trainable parameters are kept in `compute.param_dtype`, and so are frozen ones that an earlier
    stage trained, for bf16 would lose what they have learnt; other frozen ones are in
    `compute.dtype`, adapters in fp32. Moments lie like their parameter.

    Args:
        config, index: of the stage.
        model: its shape.
        mesh: of the devices.
        initial: of the adapter that the initial weights have beside them, if any.

    Raises:
        ShardingError: the rules cannot place a parameter on the mesh.
    """
    stage = config.stages[index]
    graphdef, state = abstract_model(model, config.compute)
    module = nnx.merge(graphdef, state)
    axes, contracting_dims = (
        parameter_metadata(module, name) for name in ("axes", "contracting_dims")
    )
    shapes = nnx.to_pure_dict(state)
    shardings = parameter_shardings(axes, shapes, config.compute.rules, mesh)
    trained = {part for earlier in config.stages[: index + 1] for part in earlier.trainable}
    parts: Parameters = {
        part: _abstract(
            shapes[part],
            shardings[part],
            jnp.dtype(config.compute.param_dtype if part in trained else config.compute.dtype),
        )
        for part in shapes
    }
    trainable: Parameters = {part: parts[part] for part in stage.trainable}
    axes, contracting_dims = (
        {part: tree[part] for part in trainable} for tree in (axes, contracting_dims)
    )
    heads_graphdef = None
    if stage.auxiliary.enabled:
        heads = nnx.eval_shape(lambda: _heads(config, index, model))
        heads_graphdef, heads_state = nnx.split(heads)
        head_shapes = nnx.to_pure_dict(heads_state)
        whole = jax.tree.map(
            lambda _: replicated(mesh), head_shapes
        )  # small, and their widths no mesh divides
        trainable[HEADS] = _abstract(head_shapes, whole, jnp.dtype(jnp.float32))
        axes[HEADS], contracting_dims[HEADS] = (
            parameter_metadata(heads, name) for name in ("axes", "contracting_dims")
        )
    if stage.objective.has_value_head:
        sizes = {"kernel": (model.decoder.hidden,), "bias": ()}
        whole = replicated(mesh)
        trainable[VALUE] = {
            name: jax.ShapeDtypeStruct(size, jnp.float32, sharding=whole)
            for name, size in sizes.items()
        }
        axes[VALUE], contracting_dims[VALUE] = (
            {"kernel": ("embed",), "bias": ()},
            {"kernel": (), "bias": ()},
        )
    if stage.lora.rank:
        narrow = abstract_lora(model, stage.lora)
        trainable[LORA] = _abstract_lora(config, model, stage.lora, mesh)
        axes[LORA], contracting_dims[LORA] = narrow.axes, narrow.contracting_dims
    optimizer = make_optimizer(stage.optimizer, axes, contracting_dims, stage.num_updates)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    abstract = TrainState(
        step=count,
        consecutive_skips=count,
        trainable=trainable,
        frozen={part: value for part, value in parts.items() if part not in stage.trainable},
        optimizer=_optimizer_state(optimizer, trainable, mesh),
    )
    if stage.objective.needs_reference_params:
        abstract.frozen[REFERENCE] = {
            part: _abstract(shapes[part], shardings[part], jnp.dtype(config.compute.dtype))
            for part in stage.trainable
        }
        if (
            stage.lora.adapter is not None
        ):  # else the decoder without the stage's adapter is what it began with
            abstract.frozen[REFERENCE][LORA] = trainable[LORA]
    left = adapters_before_stage(config, index, initial)
    beside = {} if "decoder" in stage.trainable else left
    if beside:
        abstract.frozen[FROZEN_LORA] = {
            name: _abstract_lora(config, model, lora, mesh) for name, lora in beside.items()
        }
    definition = ModelDef(graphdef, heads_graphdef, stage.lora.scale, _scales(beside))
    return AbstractTrainState(
        definition, optimizer, abstract, ModelDef(graphdef, None, frozen_lora=_scales(left))
    )


def init_train_state(
    config: Config,
    index: int,
    model: ModelConfig,
    start: AbstractTrainState,
    parameters: Parameters,
) -> TrainState:
    """Returns the state before the first step, from parameters that lie as `start` says (see `initial_weights`).

    Raises:
        CheckpointError: the adapter that the stage is to start from cannot be read, or is another
            one.
    """
    shardings, abstract = start.shardings, start.abstract
    stage = config.stages[index]
    if "decoder" in stage.trainable:
        parameters = start.previous_model_def.merged(
            parameters, config.compute.param_dtype, donate=True
        )
    trainable = {
        part: _cast(parameters[part], like)
        for part, like in abstract.trainable.items()
        if part not in (HEADS, LORA, VALUE)
    }
    if LORA in abstract.trainable:
        trainable[LORA] = _first_lora(config, index, model, shardings.trainable[LORA])
    frozen = {
        part: _cast(parameters[part], like)
        for part, like in abstract.frozen.items()
        if part != REFERENCE
    }
    if REFERENCE in abstract.frozen:
        # Copies: the policy's own arrays are given up by the first step.
        first = {**parameters, **trainable}
        frozen[REFERENCE] = {
            part: jax.tree.map(jnp.copy, _cast(first[part], like))
            for part, like in abstract.frozen[REFERENCE].items()
        }
    if HEADS in start.abstract.trainable:
        draw = jax.jit(
            lambda: nnx.to_pure_dict(nnx.state(_heads(config, index, model))),
            out_shardings=shardings.trainable[HEADS],
        )
        trainable[HEADS] = draw()
    if VALUE in abstract.trainable:  # a head of zeros: at first every state is worth nothing
        trainable[VALUE] = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, np.float32), leaf.sharding),
            abstract.trainable[VALUE],
        )
    return TrainState(
        step=jax.device_put(np.zeros((), np.int32), shardings.step),
        consecutive_skips=jax.device_put(np.zeros((), np.int32), shardings.consecutive_skips),
        trainable=trainable,
        frozen=frozen,
        optimizer=jax.jit(start.optimizer.init, out_shardings=shardings.optimizer)(trainable),
    )


def _scales(adapters: Mapping[str, LoRAConfig]) -> tuple[tuple[str, float], ...]:
    return tuple((name, lora.scale) for name, lora in adapters.items())


def _abstract_lora(config: Config, model: ModelConfig, lora: LoRAConfig, mesh: Mesh) -> Parameters:
    narrow = abstract_lora(model, lora)
    places = parameter_shardings(narrow.axes, narrow.shapes, config.compute.rules, mesh)
    lora_parameters: Parameters = _abstract(narrow.shapes, places, jnp.dtype(jnp.float32))
    return lora_parameters


def _first_lora(config: Config, index: int, model: ModelConfig, shardings: Any) -> Parameters:
    """Returns the adapter that the stage starts from: that of the folder it names, or a new one."""
    lora = config.stages[index].lora
    if lora.adapter is not None:
        adapter = read_stage_adapter(config, index, model)
        placed: Parameters = jax.jit(lambda matrices: matrices, out_shardings=shardings)(
            adapter.matrices
        )
        return placed
    narrow = abstract_lora(model, lora)
    begin = jax.jit(lambda key: init_lora(narrow, key), out_shardings=shardings)
    return begin(jax.random.key(config.seed + index))


def read_stage_adapter(config: Config, index: int, model: ModelConfig) -> hub.Adapter:
    """Reads the adapter that `lora.adapter` of a stage names.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model.
        ConfigError: its rank, alpha or targets are not the stage's.
    """
    stage = config.stages[index]
    lora, folder = stage.lora, stage.lora.adapter
    assert folder is not None
    adapter = hub.read_adapter(folder, model.decoder)
    stored = adapter.lora
    wanted = {"rank": lora.rank, "alpha": lora.alpha, "targets": tuple(sorted(lora.targets))}
    stored_values = {
        "rank": stored.rank,
        "alpha": stored.alpha,
        "targets": tuple(sorted(stored.targets)),
    }
    differing = [name for name, value in wanted.items() if stored_values[name] != value]
    if differing:
        key = f"stages.{stage.name}.lora"
        settings = ", ".join(
            f"{key}.{name}={stored_values[name]!r} (not {wanted[name]!r})" for name in differing
        )
        raise ConfigError(
            f"{key}.adapter={folder!r} is of another form; to go on with it, set {settings}"
        )
    return adapter


def _cast(parameters: Any, abstract: Any) -> Any:
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), parameters, abstract)


def _heads(config: Config, index: int, model: ModelConfig) -> AuxiliaryHeads:
    return AuxiliaryHeads(config.stages[index].auxiliary, model, rngs=nnx.Rngs(config.seed + index))


def _abstract(shapes: Any, shardings: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _optimizer_state(
    optimizer: optax.GradientTransformation, trainable: Parameters, mesh: Mesh
) -> Any:
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
