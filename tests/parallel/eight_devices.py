"""Compares loss and gradients of a packed batch with audio on one device and on meshes of eight.

test_meshes.py runs it in a process of its own, since the number of devices is fixed when JAX
starts. Prints one JSON object.
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from stepaudio_jax.config import (
    ComputeConfig,
    MeshConfig,
    ModelConfig,
    ShardingRules,
)
from stepaudio_jax.data import Batch
from stepaudio_jax.models import abstract_parameters, logical_axes
from stepaudio_jax.parallel import batch_sharding, make_mesh, parameter_shardings
from tests.models.random_model import SMALL, model_with, random_parameters
from tests.training.batches import next_token_loss, random_batch

# Eight key heads, so that a tensor axis of eight cuts them.
MODEL = dataclasses.replace(
    SMALL, decoder=dataclasses.replace(SMALL.decoder, vocab_size=224, heads=8, kv_heads=8)
)
# Two key heads on a tensor axis of eight are repeated, and not cut themselves.
GROUPED = dataclasses.replace(
    SMALL, decoder=dataclasses.replace(SMALL.decoder, vocab_size=224, heads=8, kv_heads=2)
)
REPLICATED_KEYS = ShardingRules(kv_heads=())
FLOAT32 = ComputeConfig(dtype="float32", remat="full", loss_chunks=2)

CASES: dict[str, tuple[ModelConfig, MeshConfig, ComputeConfig]] = {
    "data 8": (MODEL, MeshConfig(data=8, fsdp=1), FLOAT32),
    "fsdp 8": (MODEL, MeshConfig(fsdp=8), FLOAT32),
    "tensor 8": (MODEL, MeshConfig(fsdp=1, tensor=8), FLOAT32),
    "tensor 8, two key heads": (
        GROUPED,
        MeshConfig(fsdp=1, tensor=8),
        dataclasses.replace(FLOAT32, rules=REPLICATED_KEYS),
    ),
    "2 x 2 x 2": (MODEL, MeshConfig(data=2, fsdp=2, tensor=2), FLOAT32),
    "fsdp 2 x tensor 2 x sequence 2": (MODEL, MeshConfig(fsdp=2, tensor=2, sequence=2), FLOAT32),
    "sequence 4 x fsdp 2": (MODEL, MeshConfig(fsdp=2, sequence=4), FLOAT32),
    "sequence 4 x fsdp 2, splash": (
        MODEL,
        MeshConfig(fsdp=2, sequence=4),
        dataclasses.replace(FLOAT32, attention="splash_interpreted"),
    ),
    "2 x 2 x 2, splash": (
        MODEL,
        MeshConfig(data=2, fsdp=2, tensor=2),
        dataclasses.replace(FLOAT32, attention="splash_interpreted"),
    ),
}


def loss_and_gradients(
    model: ModelConfig, compute: ComputeConfig, parameters: dict, batch: Batch
) -> tuple:
    def loss(parameters: dict) -> jax.Array:
        return next_token_loss(model_with(parameters, model, compute), batch)

    return jax.jit(jax.value_and_grad(loss))(parameters)


def main(names: list[str]) -> None:
    assert len(jax.devices()) == 8
    batch = random_batch(rows=8, seed=1)
    report, single_device = {}, {}
    for name in names or CASES:
        model, mesh_config, compute = CASES[name]
        parameters = random_parameters(model, seed=3)
        if model not in single_device:
            plain = dataclasses.replace(FLOAT32, attention="xla", remat="none", loss_chunks=1)
            single_device[model] = loss_and_gradients(model, plain, parameters, batch)
        expected_loss, expected = single_device[model]
        mesh = make_mesh(mesh_config)
        with jax.set_mesh(mesh):
            shardings = parameter_shardings(
                logical_axes(model), abstract_parameters(model), compute.rules, mesh
            )
            placed = jax.device_put(parameters, shardings)
            rows = jax.device_put(batch, batch_sharding(compute.rules, mesh))
            loss, gradients = loss_and_gradients(model, compute, placed, rows)
        differences = jax.tree.map(
            lambda ours, theirs: float(
                np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-3)
            ),
            gradients,
            expected,
        )
        largest = max(jax.tree.leaves_with_path(differences), key=lambda leaf: leaf[1])
        report[name] = {
            "loss": float(abs(loss - expected_loss) / abs(expected_loss)),
            "gradient": largest[1],
            "where": jax.tree_util.keystr(largest[0]),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
