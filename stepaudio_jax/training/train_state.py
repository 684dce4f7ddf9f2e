"""The train state: its fields, its abstract form, its initial value, and its update."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from stepaudio_jax.config import Config, LoRAConfig, ModelConfig
from stepaudio_jax.models import (
    Parameters,
    StepAudio,
    abstract_lora,
    abstract_model,
    attach_lora,
    combine_lora,
    init_lora,
    parameter_metadata,
)
from stepaudio_jax.parallel import parameter_shardings, replicated
from stepaudio_jax.training.initial_weights import (
    ModelParams,
    adapters_before_stage,
    merge_adapters,
    read_stage_adapter,
)
from stepaudio_jax.training.losses import AuxiliaryHeads
from stepaudio_jax.training.optimizer import abstract_opt_state, make_optimizer

if TYPE_CHECKING:
    Count = Int[Array, ""]
else:  # an abstract state has shapes in place of arrays, which the shape checks must accept
    Count = Int[Array, ""] | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a train step reads and changes.

    Only what `trainable` returns is differentiated: frozen parameters have no gradients, no
    optimizer state and no stored activations. Trees that a stage does not have are None.

    Attributes:
        step: [] i32, steps of the stage that are done.
        consecutive_skips: [] i32, updates since the last one that changed something whose loss or
            gradient was not finite.
        params: the parts of the model that the stage trains: "encoder", "adaptor", "decoder".
        frozen_params: the other parts.
        lora_params: the adapter that the stage trains beside a frozen decoder, fp32.
        frozen_lora_params: the adapters that earlier stages left beside a frozen decoder, by stage.
        aux_head_params: of the stage's `AuxiliaryHeads`, fp32.
        value_head_params: of the linear value head, {"kernel": [H], "bias": []}, fp32.
        reference_params: the parts in `params` as they were when the stage began, in the compute
            dtype; they and `frozen_params` are the reference policy. None without a KL penalty.
        reference_lora_params: the reference policy's adapter, where the stage began with one from a
            folder. None: the reference policy is the model without the stage's adapter.
        opt_state: of the optimizer, over `trainable`.
        refreshes_reference: whether steps replace the reference policy by the policy, so that
            checkpoints hold it; static.
    """

    step: Count
    consecutive_skips: Count
    params: Parameters
    frozen_params: Parameters
    opt_state: Any
    lora_params: Parameters | None = None
    frozen_lora_params: dict[str, Parameters] = dataclasses.field(default_factory=dict)
    aux_head_params: Parameters | None = None
    value_head_params: Parameters | None = None
    reference_params: Parameters | None = None
    reference_lora_params: Parameters | None = None
    refreshes_reference: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def trainable(self) -> Parameters:
        """Returns what has gradients as one tree: the trained parts, "lora", "auxiliary", "value".

        Do not rename them: leaves are ordered by these names, and the gradient's norm sums over
        leaves in this order; `opt_state` has the same paths.
        """
        extras = {
            "lora": self.lora_params,
            "auxiliary": self.aux_head_params,
            "value": self.value_head_params,
        }
        return self.params | {name: tree for name, tree in extras.items() if tree is not None}

    def with_trainable(self, trainable: Parameters) -> "TrainState":
        """Returns the state with other values of what `trainable` returns."""
        return dataclasses.replace(
            self,
            params={part: trainable[part] for part in self.params},
            lora_params=trainable.get("lora"),
            aux_head_params=trainable.get("auxiliary"),
            value_head_params=trainable.get("value"),
        )

    def with_reference_policy(self) -> "TrainState":
        """Returns the state whose model is the reference policy, without a value head."""
        assert self.reference_params is not None
        return dataclasses.replace(
            self,
            params=self.reference_params,
            lora_params=self.reference_lora_params,
            value_head_params=None,
        )

    def with_refreshed_reference(self) -> "TrainState":
        """Returns the state whose reference policy is a copy of the policy as it is now."""
        assert self.reference_params is not None
        copies = jax.tree.map(
            lambda leaf, like: jnp.array(leaf, like.dtype), self.params, self.reference_params
        )
        state = dataclasses.replace(self, reference_params=copies)
        if self.lora_params is None:
            return state
        lora_copies = jax.tree.map(jnp.copy, self.lora_params)
        return dataclasses.replace(state, reference_lora_params=lora_copies)


@dataclasses.dataclass(frozen=True)
class ModelDef:
    """The static side of the model and its auxiliary heads: what `nnx.merge` needs with parameters.

    Attributes:
        model, aux_heads: graph definitions; no auxiliary heads: None.
        lora_scale: multiplies the products of the stage's adapter, where it has one.
        frozen_lora: name and scale of each adapter in `TrainState.frozen_lora_params`, in order.
    """

    model: Any
    aux_heads: Any | None = None
    lora_scale: float = 0.0
    frozen_lora: tuple[tuple[str, float], ...] = ()

    def merge(self, state: TrainState) -> tuple[StepAudio, AuxiliaryHeads | None]:
        """Returns the model with its adapters, and the auxiliary heads if there are any."""
        heads = None
        if self.aux_heads is not None and state.aux_head_params is not None:
            heads = nnx.merge(self.aux_heads, state.aux_head_params)
        return nnx.merge(self.model, self.params_with_lora(state)), heads

    def params_with_lora(self, state: TrainState) -> Parameters:
        """Returns encoder, adaptor and decoder, each adapted kernel a `LoRAKernel`."""
        params = state.params | state.frozen_params
        adapters = [(state.frozen_lora_params[name], scale) for name, scale in self.frozen_lora]
        if state.lora_params is not None:
            adapters.append((state.lora_params, self.lora_scale))
        if adapters:
            params["decoder"] = attach_lora(params["decoder"], *combine_lora(adapters))
        return params

    def params_after_stage(self, state: TrainState, stage: str) -> ModelParams:
        """Returns the parameters that a stage of this name passes on to the next."""
        adapters = dict(state.frozen_lora_params)
        if state.lora_params is not None:
            adapters[stage] = state.lora_params
        return ModelParams(state.params | state.frozen_params, adapters)


@dataclasses.dataclass(frozen=True)
class AbstractTrainState:
    """A stage before any array exists.

    Attributes:
        model_def: the static side of the model.
        optimizer: the stage's optimizer.
        abstract: the state before the first step, each leaf a shape, dtype and sharding.
        adapters_to_merge: name and scale of each adapter that the stage merges into the decoder
            when it begins: those that earlier stages left, where it trains the decoder itself.
    """

    model_def: ModelDef
    optimizer: optax.GradientTransformation
    abstract: TrainState
    adapters_to_merge: tuple[tuple[str, float], ...] = ()

    @property
    def shardings(self) -> TrainState:
        """Returns the sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)


def abstract_train_state(
    config: Config, index: int, model: ModelConfig, mesh: Mesh, initial: LoRAConfig | None = None
) -> AbstractTrainState:
    """Builds the abstract train state of a stage (shapes, dtypes, shardings) without allocating.

    Works with compile-only devices too.

    Trained parameters are in `compute.param_dtype`, and so are frozen ones that an earlier stage
    trained, since bf16 would round away what they learnt. Other frozen ones are in `compute.dtype`,
    adapters and heads in fp32. Optimizer moments are sharded like their parameter.

    Args:
        config, index: the run's configuration, and the stage's index in it.
        model: its shape.
        mesh: the mesh of the devices.
        initial: settings of the adapter beside the initial weights, if any.

    Raises:
        ConfigError: the rules cannot place a parameter on the mesh.
    """
    stage = config.stages[index]
    graphdef, variables = abstract_model(model, config.compute)
    module = nnx.merge(graphdef, variables)
    axes, contracting_dims = (
        parameter_metadata(module, name) for name in ("axes", "contracting_dims")
    )
    shapes = nnx.to_pure_dict(variables)
    shardings = parameter_shardings(axes, shapes, config.compute.rules, mesh)
    stage_parts: tuple[str, ...] = stage.trainable
    trained = {part for earlier in config.stages[: index + 1] for part in earlier.trainable}
    parts: Parameters = {
        part: _abstract(
            shapes[part],
            shardings[part],
            config.compute.param_dtype if part in trained else config.compute.dtype,
        )
        for part in shapes
    }
    axes, contracting_dims = (
        {part: tree[part] for part in stage_parts} for tree in (axes, contracting_dims)
    )
    # Heads are replicated: they are small, and no mesh divides their widths.
    aux_heads = None
    aux_head_params = value_head_params = lora_params = None
    if stage.auxiliary.enabled:
        heads = nnx.eval_shape(lambda: _make_aux_heads(config, index, model))
        aux_heads, head_variables = nnx.split(heads)
        head_shapes = nnx.to_pure_dict(head_variables)
        head_shardings = jax.tree.map(lambda _: replicated(mesh), head_shapes)
        aux_head_params = _abstract(head_shapes, head_shardings, jnp.float32)
        axes["auxiliary"], contracting_dims["auxiliary"] = (
            parameter_metadata(heads, name) for name in ("axes", "contracting_dims")
        )
    if stage.objective.has_value_head:
        sizes = {"kernel": (model.decoder.hidden,), "bias": ()}
        value_head_params = {
            name: jax.ShapeDtypeStruct(size, jnp.float32, sharding=replicated(mesh))
            for name, size in sizes.items()
        }
        axes["value"] = {"kernel": ("embed",), "bias": ()}
        contracting_dims["value"] = {"kernel": (), "bias": ()}
    if stage.lora.rank:
        lora = abstract_lora(model, stage.lora)
        lora_params = _abstract_lora_params(config, model, stage.lora, mesh)
        axes["lora"], contracting_dims["lora"] = lora.axes, lora.contracting_dims
    reference_params = reference_lora_params = None
    if stage.objective.needs_reference_params:
        reference_params = {
            part: _abstract(shapes[part], shardings[part], config.compute.dtype)
            for part in stage_parts
        }
        # A new adapter changes nothing at first: the reference is the model without it, unless the
        # reference follows the policy.
        if stage.lora.adapter is not None or stage.objective.refreshes_reference:
            reference_lora_params = lora_params
    earlier_adapters = adapters_before_stage(config, index, initial)
    scales = tuple((name, lora.scale) for name, lora in earlier_adapters.items())
    trains_decoder = "decoder" in stage_parts
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    state = TrainState(
        step=count,
        consecutive_skips=count,
        params={part: parts[part] for part in stage_parts},
        frozen_params={part: tree for part, tree in parts.items() if part not in stage_parts},
        lora_params=lora_params,
        frozen_lora_params={}
        if trains_decoder
        else {
            name: _abstract_lora_params(config, model, lora, mesh)
            for name, lora in earlier_adapters.items()
        },
        aux_head_params=aux_head_params,
        value_head_params=value_head_params,
        reference_params=reference_params,
        reference_lora_params=reference_lora_params,
        refreshes_reference=stage.objective.refreshes_reference,
        opt_state=None,
    )
    optimizer = make_optimizer(stage.optimizer, axes, contracting_dims, stage.num_updates)
    opt_state = abstract_opt_state(optimizer, state.trainable, mesh)
    return AbstractTrainState(
        ModelDef(graphdef, aux_heads, stage.lora.scale, () if trains_decoder else scales),
        optimizer,
        dataclasses.replace(state, opt_state=opt_state),
        adapters_to_merge=scales if trains_decoder else (),
    )


def init_train_state(
    config: Config,
    index: int,
    model: ModelConfig,
    start: AbstractTrainState,
    params: ModelParams,
) -> TrainState:
    """Returns the state before the first step, from parameters that are placed as `start` says.

    Args:
        config, index: the run's configuration, and the stage's index in it.
        model: its shape.
        start: of the stage.
        params: as `initial_weights` or the stage before returned them.

    Raises:
        CheckpointError: the adapter that the stage is to start from cannot be read.
        ConfigError: that adapter has another rank, alpha or targets.
    """
    abstract, shardings = start.abstract, start.shardings
    parts = merge_adapters(params, start.adapters_to_merge, config.compute.param_dtype, donate=True)
    state = dataclasses.replace(
        abstract,
        params=_cast({part: parts[part] for part in abstract.params}, abstract.params),
        frozen_params=_cast(
            {part: parts[part] for part in abstract.frozen_params}, abstract.frozen_params
        ),
        frozen_lora_params=_cast(
            {name: params.lora_params[name] for name in abstract.frozen_lora_params},
            abstract.frozen_lora_params,
        ),
        step=jax.device_put(np.zeros((), np.int32), shardings.step),
        consecutive_skips=jax.device_put(np.zeros((), np.int32), shardings.consecutive_skips),
    )
    if abstract.lora_params is not None:
        lora_params = _init_stage_lora(config, index, model, shardings.lora_params)
        state = dataclasses.replace(state, lora_params=lora_params)
    if abstract.reference_params is not None:
        # Copies: the first step donates the policy's own arrays.
        copies = jax.tree.map(jnp.copy, _cast(state.params, abstract.reference_params))
        state = dataclasses.replace(state, reference_params=copies)
    if abstract.reference_lora_params is not None:
        copies = jax.tree.map(jnp.copy, state.lora_params)
        state = dataclasses.replace(state, reference_lora_params=copies)
    if abstract.aux_head_params is not None:
        init_heads = jax.jit(
            lambda: nnx.to_pure_dict(nnx.state(_make_aux_heads(config, index, model))),
            out_shardings=shardings.aux_head_params,
        )
        state = dataclasses.replace(state, aux_head_params=init_heads())
    if abstract.value_head_params is not None:  # zeros: at first every state has the value 0
        zeros = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, np.float32), leaf.sharding),
            abstract.value_head_params,
        )
        state = dataclasses.replace(state, value_head_params=zeros)
    init_optimizer = jax.jit(start.optimizer.init, out_shardings=shardings.opt_state)
    return dataclasses.replace(state, opt_state=init_optimizer(state.trainable))


def apply_gradients(
    state: TrainState,
    gradients: Parameters,
    loss: Float[Array, ""],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
    """Updates the state, if loss and gradient are finite and the gradient is not exactly zero.

    Otherwise only the state's counts change. A gradient is zero if no token has weight or all
    advantages are 0; momentum and weight decay would move the parameters even then, Muon's by a
    full step. The optimizer's state stays too, and with it the place in the learning-rate schedule,
    which counts updates and not steps.

    Args:
        state: before.
        gradients: the gradients of the whole step, like `state.trainable`.
        loss: the loss of the whole step.
        optimizer: the stage's optimizer.

    Returns:
        The new state, and scalar metrics: gradient_norm, skipped_steps (1 if something was not
        finite, else 0) and zero_gradient_steps (1 or 0).
    """
    norm = optax.global_norm(gradients)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    # Not read from the norm: the squares of small gradients are 0 in fp32.
    is_nonzero = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients)]))
    is_updated = is_finite & is_nonzero
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)

    def select(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(is_updated, new, old), new, old)

    new_state = dataclasses.replace(
        state.with_trainable(select(trainable, state.trainable)),
        step=state.step + 1,
        consecutive_skips=jnp.where(is_updated, 0, state.consecutive_skips + ~is_finite),
        opt_state=select(opt_state, state.opt_state),
    )
    metrics = {
        "gradient_norm": norm,
        "skipped_steps": 1.0 - is_finite,
        "zero_gradient_steps": (is_finite & ~is_nonzero) * 1.0,
    }
    return new_state, metrics


def num_optimizer_updates(state: TrainState) -> int:
    """Returns how many updates of the stage changed parameters, as the optimizer counts them."""
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    return max(int(count) for _, count in counts)


def _make_aux_heads(config: Config, index: int, model: ModelConfig) -> AuxiliaryHeads:
    return AuxiliaryHeads(config.stages[index].auxiliary, model, rngs=nnx.Rngs(config.seed + index))


def _init_stage_lora(config: Config, index: int, model: ModelConfig, shardings: Any) -> Parameters:
    """Returns the adapter that the stage starts from: that of the folder it names, or a new one."""
    lora = config.stages[index].lora
    if lora.adapter is not None:
        adapter = read_stage_adapter(config, index, model)
        placed: Parameters = jax.jit(lambda matrices: matrices, out_shardings=shardings)(
            adapter.matrices
        )
        return placed
    abstract = abstract_lora(model, lora)
    init = jax.jit(lambda key: init_lora(abstract, key), out_shardings=shardings)
    return init(jax.random.key(config.seed + index))


def _abstract_lora_params(
    config: Config, model: ModelConfig, lora: LoRAConfig, mesh: Mesh
) -> Parameters:
    abstract = abstract_lora(model, lora)
    shardings = parameter_shardings(abstract.axes, abstract.shapes, config.compute.rules, mesh)
    return _abstract(abstract.shapes, shardings, jnp.float32)


def _abstract(shapes: Any, shardings: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype), sharding=sharding
        ),
        shapes,
        shardings,
    )


def _cast(params: Any, abstract: Any) -> Any:
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), params, abstract)
