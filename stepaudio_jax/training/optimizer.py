"""Optimizers and learning-rate schedules, from optax."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from stepaudio_jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Returns the learning rate of each update: a linear warm-up to `peak`, then the configured decay.

    Update k of a warm-up of n, counted from 1, has `peak * k / n`: the first one has some, and the
    last one all of it.

    Args:
        config: the lengths and the kind of decay.
        peak: the highest learning rate.
        steps: the updates of the stage.

    Returns:
        A function of how many updates have been made before.
    """
    after = max(steps - config.warmup_steps, 1)
    final = peak * config.final_learning_rate_fraction
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final, after),
        "cosine": optax.cosine_decay_schedule(
            peak, after, alpha=config.final_learning_rate_fraction
        ),
    }
    first = peak / max(config.warmup_steps, 1)
    warmup = optax.linear_schedule(first, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decays[config.decay]], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, axes: Any, contracting_dims: Any, steps: int
) -> optax.GradientTransformation:
    """The optimizer of a stage.

    Weight decay is on matrices alone. Muon takes the matrices that map hidden to hidden, each as
    [contracting_dims, rest] and batched over layers; tables, biases, norms and whatever has a
    vocabulary dimension go to AdamW, as in its original recipe.

    Args:
        config: which, and its settings.
        axes: a tree like the trainable parameters, each leaf the logical names of its dimensions.
        contracting_dims: the same tree, each leaf the dimensions that the parameter sums over in
            its matrix product, in front of its output dimensions; empty for what is no matrix.
        steps: length of the stage, for the schedule.
    """
    is_matrix = jax.tree.map(bool, contracting_dims, is_leaf=_is_tuple)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    rate = schedule(config, config.learning_rate, steps)
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
            schedule(config, config.muon_learning_rate, steps),
            beta=config.muon_momentum,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype,
            muon_weight_dimension_numbers=dimensions,
        )
        # optax's muon would take the rest too, but with Nesterov's momentum in AdamW and no weight
        # decay.
        names = jax.tree.map(
            lambda leaf: "muon" if isinstance(leaf, MuonDimensionNumbers) else "adamw",
            dimensions,
            is_leaf=_is_tuple,
        )
        optimizer = optax.partition({"muon": matrices, "adamw": optimizer}, names)
    return optax.chain(*clip, optimizer)


def _adafactor(
    config: OptimizerConfig, rate: optax.Schedule, is_matrix: Any
) -> optax.GradientTransformation:
    """Adafactor without momentum (Shazeer and Stern 2018): second moments of a matrix as a row and a column.

    Updates are not scaled by the parameter's size, and weight decay is decoupled: `learning_rate`
    and `weight_decay` mean what they mean for AdamW.
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
