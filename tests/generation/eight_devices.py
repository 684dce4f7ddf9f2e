"""The engine on one device and on meshes of eight devices; prints one JSON object.

Run by test_on_a_mesh.py in a process of its own, since JAX fixes the number of devices as it
starts.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from stepaudio_jax.config import LoRAConfig, MeshConfig, ShardingRules
from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Engine, Sampling, build_prompt
from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.prefill_programs import prefill
from stepaudio_jax.models import (
    abstract_lora,
    abstract_parameters,
    attach_lora,
    logical_axes,
    quantize_weights,
)
from stepaudio_jax.parallel import make_mesh, parameter_shardings
from stepaudio_jax.text import render_prompt
from tests.generation.small_model import BYTES, CONFIG, peaked_parameters, user, write_clip
from tests.models.random_model import FLOAT32

MESHES = {
    "data 8": MeshConfig(data=8, fsdp=1),
    "data 4 x tensor 2": MeshConfig(data=4, fsdp=1, tensor=2),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
}
REQUESTS = 20  # through 8 slots
NEW_TOKENS = 24


def prompts_and_samplings(folder: pathlib.Path) -> tuple:
    """Written and spoken prompts, greedy and sampled."""
    clips = [write_clip(folder / f"{seed}.wav", 0.3 + 0.2 * seed, seed) for seed in range(3)]
    prompts, samplings = [], []
    for number in range(REQUESTS):
        parts = [f"request {number}"] + ([clips[number % 3]] if number % 2 else [])
        prompts.append(
            build_prompt(render_prompt([user(*parts)], BYTES), BYTES, CONFIG.length_convention)
        )
        kinds = (
            {"temperature": 0.0},
            {"temperature": 0.8, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 20},
        )
        samplings.append(
            Sampling(max_new_tokens=NEW_TOKENS - number % 5, seed=number, **kinds[number % 3])
        )
    return prompts, samplings


def replies(engine: Engine, prompts: list, samplings: list) -> list:
    completions = dict(engine.generate(prompts, samplings))
    return [
        (completions[index].tokens, completions[index].logprobs) for index in range(len(prompts))
    ]


def main(folder: pathlib.Path) -> None:
    assert len(jax.devices()) == 8
    parameters = peaked_parameters()
    prompts, samplings = prompts_and_samplings(folder)
    expected = replies(
        Engine(CONFIG, parameters, BYTES, compute=FLOAT32, slots=8, steps=6), prompts, samplings
    )
    # Weights come as a training run has them: cut over another mesh of the same devices.
    training = make_mesh(MeshConfig(fsdp=8))
    shardings = parameter_shardings(
        logical_axes(CONFIG), abstract_parameters(CONFIG), ShardingRules(), training
    )
    trained = jax.device_put(parameters, shardings)
    report = {}
    small = quantize_weights(CONFIG, parameters)
    few = prompts[:4], samplings[:4]
    alone, cut = (
        replies(Engine(CONFIG, small, BYTES, compute=FLOAT32, slots=8, steps=6, mesh=mesh), *few)
        for mesh in (None, make_mesh(MESHES["data 4 x tensor 2"]))
    )
    report["int8 weights"] = [ours[0] == theirs[0] for ours, theirs in zip(cut, alone, strict=True)]
    # An adapter beside the kernels, first as the engine is made and then anew, as a training state
    # gives it.
    lora = LoRAConfig(rank=3)
    narrow = abstract_lora(CONFIG, lora)
    rng = np.random.default_rng(1)
    matrices = jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), narrow.shapes
    )
    spread = jax.device_put(
        matrices, parameter_shardings(narrow.axes, narrow.shapes, ShardingRules(), training)
    )
    nothing = jax.tree.map(lambda leaf: 0 * leaf, spread)
    mesh = make_mesh(MESHES["2 x 2 x 2"])
    beside = {**parameters, "decoder": attach_lora(parameters["decoder"], matrices, lora.scale)}
    alone = replies(Engine(CONFIG, beside, BYTES, compute=FLOAT32, slots=8, steps=6), *few)
    begins, then = (
        {**trained, "decoder": attach_lora(trained["decoder"], part, lora.scale)}
        for part in (nothing, spread)
    )
    engine = Engine(CONFIG, begins, BYTES, compute=FLOAT32, slots=8, steps=6, mesh=mesh)
    before = replies(engine, *few)
    engine.set_parameters(then, lora_only=True)
    report["adapter"] = [
        ours[0] == theirs[0] for ours, theirs in zip(replies(engine, *few), alone, strict=True)
    ]
    report["no adapter yet"] = [
        ours[0] == theirs[0] for ours, theirs in zip(before, expected[:4], strict=True)
    ]
    for name, config in MESHES.items():
        engine = Engine(
            CONFIG, trained, BYTES, compute=FLOAT32, slots=8, steps=6, mesh=make_mesh(config)
        )
        got = replies(engine, prompts, samplings)
        programs = (
            prefill,
            device.admit,
            device.write_prefix_cache,
            device.decode,
            device.release,
            device.resume,
        )
        compiled = [program._cache_size() for program in programs]
        again = replies(engine, prompts, samplings)
        key = engine._slots.caches[0].keys
        report[name] = {
            "same_tokens": [
                ours[0] == theirs[0] for ours, theirs in zip(got, expected, strict=True)
            ],
            "logprobs": max(
                float(np.max(np.abs(np.subtract(ours[1], theirs[1]))))
                for ours, theirs in zip(got, expected, strict=True)
            ),
            "again": got == again,
            "compiled_again": compiled != [program._cache_size() for program in programs],
            "cache_share": key.addressable_shards[0].data.size / key.size,
        }
    try:
        Engine(CONFIG, trained, BYTES, compute=FLOAT32, slots=6, mesh=make_mesh(MESHES["data 8"]))
    except GenerationError as error:
        report["six slots on data 8"] = str(error)
    print(json.dumps(report))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
