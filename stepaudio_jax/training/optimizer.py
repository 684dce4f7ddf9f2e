"""Optimizers and learning-rate schedules, from optax."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from stepaudio_jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then the configured decay, over a stage of `steps` steps."""
    after = max(steps - config.warmup_steps, 1)
    final = peak * config.final_learning_rate_fraction
    decays = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final, after),
        "cosine": optax.cosine_decay_schedule(peak, after, alpha=config.final_learning_rate_fraction),
    }
    warmup = optax.linear_schedule(0.0, peak, max(config.warmup_steps, 1))
    return optax.join_schedules([warmup, decays[config.decay]], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, axes: Any, contracted: Any, steps: int) -> optax.GradientTransformation:
    """The optimizer of a stage.

    Weight decay is on matrices alone. Muon takes the matrices that map hidden to hidden, each as [contracted, rest] and batched
    over layers; tables, biases, norms and whatever has a vocabulary dimension go to AdamW, as in its original recipe.

    Args:
        config: which, and its settings.
        axes: a tree like the trainable parameters, each leaf the logical names of its dimensions.
        contracted: the same tree, each leaf the dimensions that the parameter sums over in its matrix product, in front of its
            output dimensions; empty for what is no matrix.
        steps: length of the stage, for the schedule.
    """
    is_matrix = jax.tree.map(bool, contracted, is_leaf=_is_tuple)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule(config, config.learning_rate, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=is_matrix,
            mu_dtype=config.moment_dtype,
        )
    else:
        dimensions = jax.tree.map(_muon_dimensions, axes, contracted, is_leaf=_is_tuple)
        optimizer = muon(
            schedule(config, config.muon_learning_rate, steps),
            beta=config.muon_momentum,
            weight_decay=config.weight_decay,
            weight_decay_mask=is_matrix,
            mu_dtype=config.moment_dtype,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=schedule(config, config.learning_rate, steps),
            muon_weight_dimension_numbers=dimensions,
        )
    return optax.chain(*clip, optimizer)


def _muon_dimensions(axes: tuple[str, ...], contracted: tuple[int, ...]) -> MuonDimensionNumbers | None:
    if not contracted or "vocab" in axes:
        return None
    return MuonDimensionNumbers(reduction_axis=contracted, output_axis=tuple(range(contracted[-1] + 1, len(axes))))


def _is_tuple(leaf: Any) -> bool:
    return isinstance(leaf, tuple)
