"""Learning-rate schedules in closed form, and what an update does with them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stepaudio_jax.config import OptimizerConfig
from stepaudio_jax.training.optimizer import learning_rate_schedule, make_optimizer

PEAK = 3e-4


def rates(config, steps):
    learning_rate = learning_rate_schedule(config, PEAK, steps)
    return np.array([float(learning_rate(step)) for step in range(steps)])


def decayed(config, share):
    """The learning rate when `share` of the steps after warm-up are done."""
    fraction = config.final_learning_rate_fraction
    return (
        PEAK
        * {
            "constant": 1.0,
            "linear": 1 - (1 - fraction) * share,
            "cosine": fraction + (1 - fraction) * (1 + math.cos(math.pi * share)) / 2,
        }[config.decay]
    )


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup_steps"), [(40, 10), (40, 0), (7, 1), (7, 2), (5, 5)])
def test_the_schedule_is_a_warm_up_and_then_the_decay(decay, steps, warmup_steps):
    config = OptimizerConfig(
        decay=decay, warmup_steps=warmup_steps, final_learning_rate_fraction=0.2
    )
    expected = [
        PEAK * (step + 1) / warmup_steps
        if step < warmup_steps
        else decayed(config, (step - warmup_steps) / (steps - warmup_steps))
        for step in range(steps)
    ]
    np.testing.assert_allclose(rates(config, steps), expected, rtol=1e-5, atol=1e-12)


def test_a_stage_may_end_within_its_warm_up():
    np.testing.assert_allclose(
        rates(OptimizerConfig(warmup_steps=10), 4), PEAK * np.arange(1, 5) / 10, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_the_first_update_of_a_warm_up_moves_every_parameter(name):
    config = OptimizerConfig(
        name=name, learning_rate=1e-3, muon_learning_rate=0.08, warmup_steps=4, weight_decay=0
    )
    optimizer = make_optimizer(config, AXES, CONTRACTED, num_updates=8)
    parameters = {"matrix": jnp.eye(4), "head": jnp.ones((4, 9)), "bias": jnp.ones(4)}
    updates, _ = optimizer.update(parameters, optimizer.init(parameters), parameters)
    assert float(jnp.abs(updates["bias"]).max()) == pytest.approx(1e-3 / 4, rel=1e-3)
    assert float(jnp.abs(updates["matrix"]).max()) == pytest.approx(
        {"muon": 0.08}.get(name, 1e-3) / 4, rel=0.4
    )


AXES = {"matrix": ("embed", "ffn"), "head": ("embed", "vocab"), "bias": ("ffn",)}
CONTRACTED = {"matrix": (0,), "head": (0,), "bias": ()}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_every_parameter_moves_by_its_own_schedule(name):
    """An update has the size of its learning rate, which halves each step here."""
    config = OptimizerConfig(
        name=name,
        learning_rate=1e-3,
        muon_learning_rate=0.08,
        decay="linear",
        final_learning_rate_fraction=0,
        weight_decay=0,
    )
    optimizer = make_optimizer(config, AXES, CONTRACTED, num_updates=2)
    parameters = {"matrix": jnp.eye(4), "head": jnp.ones((4, 9)), "bias": jnp.ones(4)}
    state = optimizer.init(parameters)
    sizes = []
    for _ in range(2):
        updates, state = optimizer.update(
            parameters, state, parameters
        )  # the gradient stays the same
        sizes.append({key: float(jnp.abs(value).max()) for key, value in updates.items()})
    assert sizes[0]["bias"] == pytest.approx(1e-3, rel=1e-3)
    assert sizes[0]["head"] == pytest.approx(1e-3, rel=1e-3)
    assert sizes[0]["matrix"] == pytest.approx(
        {"muon": 0.08}.get(name, 1e-3), rel=0.4
    )  # Newton-Schulz levels roughly
    for key in parameters:
        assert sizes[1][key] == pytest.approx(sizes[0][key] / 2, rel=1e-2)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_weight_decay_is_on_every_matrix_and_on_nothing_else(name):
    """Without a gradient only decay moves parameters; a head is updated by AdamW under Muon too."""
    config = OptimizerConfig(
        name=name, learning_rate=0.01, muon_learning_rate=0.03, decay="constant", weight_decay=0.5
    )
    optimizer = make_optimizer(config, AXES, CONTRACTED, num_updates=2)
    parameters = {"matrix": jnp.eye(4), "head": jnp.ones((4, 9)), "bias": jnp.ones(4)}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters), parameters
    )
    rate = {"muon": 0.03}.get(name, 0.01)
    np.testing.assert_allclose(updates["matrix"], -rate * 0.5 * parameters["matrix"], rtol=1e-5)
    np.testing.assert_allclose(updates["head"], -0.01 * 0.5 * parameters["head"], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], 0)


def test_gradients_are_clipped_by_their_global_norm():
    gradients = {
        "matrix": jnp.full((4, 4), 3.0),
        "head": jnp.zeros((4, 9)),
        "bias": jnp.full(4, 4.0),
    }
    norm = math.sqrt(16 * 9 + 4 * 16)
    for clip_norm, scale in ((0.0, 1.0), (100.0, 1.0), (1.0, 1 / norm)):
        optimizer = make_optimizer(
            OptimizerConfig(clip_norm=clip_norm, b1=0.9), AXES, CONTRACTED, num_updates=2
        )
        _, state = optimizer.update(gradients, optimizer.init(gradients), gradients)
        moments = optax.tree.get(state, "mu")
        np.testing.assert_allclose(moments["matrix"], 0.1 * 3 * scale, rtol=1e-6)
        np.testing.assert_allclose(moments["bias"], 0.1 * 4 * scale, rtol=1e-6)
