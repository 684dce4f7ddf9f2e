"""Optimizers and learning-rate schedules, from optax."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from optax.contrib import MuonDimensionNumbers, muon

from stepaudio_jax.config import OptimizerConfig
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import replicated


def make_optimizer(
    config: OptimizerConfig, axes: Any, contracting_dims: Any, num_updates: int
) -> optax.GradientTransformation:
    """Returns the optimizer of a stage.

    Weight decay is for matrices only. Muon updates the matrices that map hidden to hidden, each as
    [contracting dims, rest] and batched over layers; embeddings, biases, norms and everything with
    a vocabulary dimension use AdamW, as in Muon's original recipe.

    Args:
        config: its name and settings.
        axes: a tree like the trainable parameters, each leaf the logical axes of its dimensions.
        contracting_dims: the same tree, each leaf the dimensions that its matrix product sums over,
            which precede the output dimensions; empty for what is no matrix.
        num_updates: the stage's optimizer updates, for the schedule.
    """
    is_matrix = jax.tree.map(bool, contracting_dims, is_leaf=_is_tuple)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    rate = learning_rate_schedule(config, config.learning_rate, num_updates)
    if config.name == "adafactor":
        return optax.chain(*clip, _adafactor(config, rate, is_matrix))
    optimizer = optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=is_matrix,
        mu_dtype=config.moment_dtype,
    )
    if config.name == "muon":
        dimensions = jax.tree.map(_muon_dimensions, axes, contracting_dims, is_leaf=_is_tuple)
        matrices = muon(
            learning_rate_schedule(config, config.muon_learning_rate, num_updates),
            beta=config.muon_momentum,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
            muon_weight_dimension_numbers=dimensions,
        )
        # optax's muon can update the rest too, but its AdamW has Nesterov momentum and no weight
        # decay.
        names = jax.tree.map(
            lambda leaf: "muon" if isinstance(leaf, MuonDimensionNumbers) else "adamw",
            dimensions,
            is_leaf=_is_tuple,
        )
        optimizer = optax.partition({"muon": matrices, "adamw": optimizer}, names)
    return optax.chain(*clip, optimizer)


def learning_rate_schedule(
    config: OptimizerConfig, peak: float, num_updates: int
) -> optax.Schedule:
    """Returns the learning-rate schedule: a linear warm-up to `peak`, then the configured decay.

    Update k of a warm-up of n, counted from 1, has `peak * k / n`: the first is not 0, the last is
    the peak.

    Args:
        config: the lengths and the kind of decay.
        peak: the highest learning rate.
        num_updates: the stage's optimizer updates.

    Returns:
        A function of the number of updates before this one.
    """
    decay_updates = max(num_updates - config.warmup_steps, 1)
    final_fraction = config.final_learning_rate_fraction
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * final_fraction, decay_updates),
        "cosine": optax.cosine_decay_schedule(peak, decay_updates, alpha=final_fraction),
    }
    first = peak / max(config.warmup_steps, 1)
    warmup = optax.linear_schedule(first, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decays[config.decay]], [config.warmup_steps])


def abstract_opt_state(
    optimizer: optax.GradientTransformation, trainable: Parameters, mesh: Mesh
) -> Any:
    """Returns the optimizer's abstract state.

    A leaf whose path ends like a parameter's and that has its shape is sharded like it; other
    leaves are replicated.
    """
    parameters = {
        _dict_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trainable)
    }

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = _dict_keys(path)
        sharding: NamedSharding = replicated(mesh)
        for start in range(len(keys)):
            parameter = parameters.get(keys[start:])
            if parameter is not None and parameter.shape == leaf.shape:
                sharding = parameter.sharding
                break
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, trainable))


def _dict_keys(path: Any) -> tuple[str, ...]:
    """Returns the dictionary keys of a path, without those of optax's own tuples."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def _adafactor(
    config: OptimizerConfig, rate: optax.Schedule, is_matrix: Any
) -> optax.GradientTransformation:
    """Returns Adafactor without momentum (Shazeer and Stern 2018).

    It keeps the second moments of a matrix as a row and a column. Updates are not scaled by the
    parameter's size, and weight decay is decoupled, so that `learning_rate` and `weight_decay` mean
    what they mean for AdamW.
    """
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
        optax.scale_by_learning_rate(rate),
    )


def _muon_dimensions(
    axes: tuple[str, ...], contracting_dims: tuple[int, ...]
) -> MuonDimensionNumbers | optax.MaskedNode:
    if not contracting_dims or "vocab" in axes:
        return optax.MaskedNode()
    return MuonDimensionNumbers(
        reduction_axis=contracting_dims,
        output_axis=tuple(range(contracting_dims[-1] + 1, len(axes))),
    )


def _is_tuple(leaf: Any) -> bool:
    return isinstance(leaf, tuple)
