"""A zero gradient changes only the count of steps, despite momentum and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.config import OptimizerConfig
from stepaudio_jax.training.optimizer import make_optimizer
from stepaudio_jax.training.train_state import (
    TrainState,
    apply_gradients,
    num_optimizer_updates,
)
from tests.end_to_end.runs import run

AXES = {"matrix": ("embed", "ffn"), "head": ("embed", "vocab"), "bias": ("ffn",)}
CONTRACTED = {"matrix": (0,), "head": (0,), "bias": ()}


def equal(ours, theirs):
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def init_state(name="adamw"):
    """A state of three parameters, and a compiled update of it from gradients and a loss."""
    config = OptimizerConfig(name=name, learning_rate=0.01, warmup_steps=3, weight_decay=0.5)
    optimizer = make_optimizer(config, AXES, CONTRACTED, num_updates=10)
    parameters = {"matrix": jnp.eye(4) + 0.1, "head": jnp.ones((4, 8)), "bias": jnp.ones(4)}
    state = TrainState(
        step=jnp.int32(0),
        consecutive_skips=jnp.int32(0),
        params=parameters,
        frozen_params={},
        opt_state=optimizer.init(parameters),
    )
    return state, jax.jit(
        lambda state, gradients, loss: apply_gradients(
            state, gradients, jnp.float32(loss), optimizer
        )
    )


def zeros(state):
    return jax.tree.map(jnp.zeros_like, state.trainable)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_zero_gradient_changes_only_the_count_of_steps(name):
    """As the first update, and after one that left momentum; the next update is not affected."""
    start, update = init_state(name)
    gradients = jax.tree.map(lambda leaf: 0.3 * leaf, start.trainable)
    after, metrics = update(start, zeros(start), 0.0)
    assert (int(after.step), num_optimizer_updates(after)) == (1, 0)
    assert (metrics["zero_gradient_steps"], metrics["skipped_steps"], metrics["gradient_norm"]) == (
        1,
        0,
        0,
    )
    assert equal((after.trainable, after.opt_state), (start.trainable, start.opt_state))

    moving, metrics = update(start, gradients, 1.0)
    assert (metrics["zero_gradient_steps"], metrics["skipped_steps"]) == (0, 0)
    assert num_optimizer_updates(moving) == 1
    still, _ = update(moving, zeros(moving), 0.0)
    assert (int(still.step), num_optimizer_updates(still)) == (2, 1)
    assert equal((still.trainable, still.opt_state), (moving.trainable, moving.opt_state))
    straight, late = update(moving, gradients, 1.0)[0], update(still, gradients, 1.0)[0]
    assert not equal(straight.trainable, moving.trainable)
    assert equal((late.trainable, late.opt_state), (straight.trainable, straight.opt_state))


def test_a_gradient_whose_square_underflows_is_not_zero():
    """Its norm is 0 in float32."""
    state, update = init_state()
    tiny = zeros(state) | {"bias": jnp.full(4, 1e-30)}
    after, metrics = update(state, tiny, 1.0)
    assert (metrics["gradient_norm"], metrics["zero_gradient_steps"]) == (0, 0)
    assert num_optimizer_updates(after) == 1


def test_zero_gradients_neither_end_nor_add_to_consecutive_skips():
    """Otherwise a diverging run would not be noticed if some of its gradients are zero."""
    state, update = init_state()
    broken = zeros(state) | {"bias": jnp.full(4, jnp.nan)}
    rows = []
    for gradients, loss in (
        (broken, 0.0),
        (zeros(state), 0.0),
        (zeros(state), jnp.nan),
        (zeros(state), 0.0),
    ):
        state, metrics = update(state, gradients, loss)
        rows.append(
            (
                int(state.consecutive_skips),
                float(metrics["skipped_steps"]),
                float(metrics["zero_gradient_steps"]),
            )
        )
    assert rows == [(1, 1, 0), (1, 0, 1), (2, 1, 0), (2, 0, 1)]
    assert num_optimizer_updates(state) == 0
    state, _ = update(state, jax.tree.map(jnp.ones_like, state.trainable), 1.0)
    assert (int(state.consecutive_skips), int(state.step)) == (0, 5)


ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from stepaudio_jax.config import MeshConfig
from stepaudio_jax.parallel import make_mesh
from tests.training.test_apply_gradients import init_state, equal, zeros

mesh = make_mesh(MeshConfig(data=2, fsdp=2))
state, update = init_state()
cut = lambda leaf: NamedSharding(mesh, P("fsdp", "data") if leaf.ndim == 2 else P())
state = jax.device_put(state, jax.tree.map(cut, state))
nothing = zeros(state)
moving, _ = update(state, jax.tree.map(lambda leaf: 0.3 * leaf, state.trainable), 1.0)
still, metrics = update(moving, nothing, 0.0)
assert metrics["zero_gradient_steps"] == 1
assert equal((still.trainable, still.opt_state), (moving.trainable, moving.opt_state))
# A gradient on a single device counts for all.
on_one_device = nothing | {"head": nothing["head"].at[3, 7].set(1.0)}
after, metrics = update(moving, on_one_device, 1.0)
assert metrics["zero_gradient_steps"] == 0
assert not np.array_equal(after.trainable["matrix"], moving.trainable["matrix"])
print("on", jax.device_count())
"""


@pytest.mark.slow
def test_all_devices_of_a_mesh_decide_alike():
    ended = run("-c", ON_FOUR_DEVICES, devices=4)
    assert ended.stdout == "on 4\n", ended.stderr[-3000:]
