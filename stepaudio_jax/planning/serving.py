"""The plan of generating on a topology: how many slots fit, and how fast a token can be at most."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.generation import slots as device
from stepaudio_jax.generation.layout import slot_shardings, weight_shardings, writing_mesh
from stepaudio_jax.models import (
    CacheDtype,
    Parameters,
    abstract_parameters,
    cache_bytes,
    quantize_weights,
    quantized_shardings,
    unstack,
)
from stepaudio_jax.parallel import replicated
from stepaudio_jax.planning.page import heading, memory, verdict
from stepaudio_jax.planning.program import compile_lowered, compiler_version, shard_bytes, topology_devices
from stepaudio_jax.planning.topology import Topology

ServingProgram = Literal["prefill", "decode"]

_STEPS = 16  # tokens a call of `decode`, as the engine's default
_CLOSING = 4  # tokens that end a reasoning by force
_MOST_COMPILATIONS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """One program of the engine on one topology; bytes are of one chip.

    Attributes:
        topology, chips, mesh: where.
        program: "decode", or "prefill" of one prompt that fills a slot.
        slots, slot_tokens: of the engine that was compiled: the most slots that were found to fit, or what does not fit.
        cache_dtype: of keys and values.
        fits: as in `Plan`.
        memory_bytes_per_chip, peak_bytes_per_chip, argument_bytes_per_chip, temporary_bytes_per_chip: as in `Plan`.
        parameter_bytes_per_chip, cache_bytes_per_chip: of the arguments.
        step_seconds: no decoding step with all slots full is faster: weights and cache are read once, at the memory's
            bandwidth. For "prefill": the prompt's operations at the chip's peak.
        tokens_per_second: the bound that it implies, all slots together.
        compile_seconds, compiler_version: of this compilation.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    program: ServingProgram
    slots: int
    slot_tokens: int
    cache_dtype: CacheDtype
    fits: bool
    memory_bytes_per_chip: int
    peak_bytes_per_chip: int
    argument_bytes_per_chip: int
    temporary_bytes_per_chip: int
    parameter_bytes_per_chip: int
    cache_bytes_per_chip: int
    step_seconds: float
    tokens_per_second: float
    compile_seconds: float
    compiler_version: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def plan_serving(
    config: ModelConfig,
    compute: ComputeConfig,
    topology: Topology,
    *,
    program: ServingProgram,
    slot_tokens: int,
    cache_dtype: CacheDtype = "bfloat16",
    int8_weights: bool = False,
) -> ServingPlan:
    """Compiles an engine's program for a topology, with as many slots as fit.

    Computation is in bf16, and so are the weights unless the decoder's matrices are asked for in int8. Heads are cut over as
    many chips as divide them; what remains replicates the weights and shares out the slots.

    Raises:
        ConfigError, ShardingError: the model cannot be cut for the topology, or there is no compiler for it.
    """
    version = compiler_version()
    attention = "splash" if compute.attention == "auto" else compute.attention
    compute = dataclasses.replace(compute, dtype="bfloat16", param_dtype="bfloat16", remat="none", attention=attention)
    mesh = writing_mesh(config, topology_devices(topology), slices=topology.slices)
    tensor = mesh.shape["tensor"]
    per_slot = cache_bytes(config.decoder, slot_tokens, cache_dtype) // tensor
    replicas = topology.chips // tensor
    available = topology.chip.memory_bytes
    parameters = _abstract_parameters(config, compute, mesh, int8_weights)
    engine = device.Program(config, compute, cache_dtype)

    def compiled(slots: int) -> ServingPlan:
        return _compile(engine, parameters, topology, mesh, version, program, slots * replicas, slot_tokens)

    if program == "prefill":
        return compiled(1)
    return most_slots(compiled, max(1, (available - shard_bytes(parameters)) // per_slot), per_slot)


def most_slots(compiled: Callable[[int], ServingPlan], most: int, per_slot: int) -> ServingPlan:
    """The plan with the most slots that fit, or one that does not where none was found to.

    Args:
        compiled: the plan for so many slots a replica.
        most: what would fit if there were no temporaries.
        per_slot: bytes of a slot's cache in a chip.
    """
    fits: ServingPlan | None = None
    slots, least, too_many = most, 0, most + 1
    for _ in range(_MOST_COMPILATIONS):
        plan = compiled(slots)
        room = (plan.memory_bytes_per_chip - plan.peak_bytes_per_chip) // per_slot
        if plan.fits:
            fits, least = plan, slots
        else:
            too_many, room = slots, min(room, -1)
        if room == 0 or too_many <= least + 1:
            break
        # As if temporaries were the same for any number; where they grow with it, halving finds it too.
        guess = slots + room
        slots = guess if least < guess < too_many else (least + too_many) // 2
    return fits or plan


def serving_as_text(plan: ServingPlan) -> str:
    """The plan as a page of text; bytes in 10^9."""
    parts = {
        "parameters": plan.parameter_bytes_per_chip,
        "cache": plan.cache_bytes_per_chip,
        "temporaries": plan.temporary_bytes_per_chip,
        "peak": plan.peak_bytes_per_chip,
        "available": plan.memory_bytes_per_chip,
    }
    what = f"{plan.slots} slots" if plan.program == "decode" else "a prompt"
    return "\n".join(
        [
            *heading(plan.program, plan.topology, plan.chips, plan.mesh, plan.compiler_version, plan.compile_seconds),
            f"memory of a chip, {what} of {plan.slot_tokens} tokens, cache in {plan.cache_dtype}",
            *memory(parts),
            "",
            f"no faster than {1e3 * plan.step_seconds:.2f} ms, at most {plan.tokens_per_second:.0f} tokens/s",
            verdict(plan.fits, plan.memory_bytes_per_chip, plan.peak_bytes_per_chip),
        ]
    )


def _compile(
    engine: device.Program,
    parameters: Any,
    topology: Topology,
    mesh: Mesh,
    version: str,
    program: ServingProgram,
    slots: int,
    slot_tokens: int,
) -> ServingPlan:
    """The plan for so many slots in all."""
    started = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        held = _abstract_slots(engine, slots, slot_tokens, mesh)

        def whole(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

        if program == "decode":
            closing, until_free = whole(jnp.int32, _CLOSING), whole(jnp.bool_)
            traced = device.decode.trace(engine, parameters, held, closing, until_free, _STEPS)
        else:
            tokens, is_audio = whole(jnp.int32, slot_tokens), whole(jnp.bool_, slot_tokens)
            audio = whole(jnp.float32, slot_tokens, engine.config.decoder.hidden)
            traced = device.prefill.trace(engine, parameters, tokens, whole(jnp.int32), audio, is_audio)
        arguments = (parameters, held) if program == "decode" else parameters
        compiled, used = compile_lowered(traced.lower(lowering_platforms=("tpu",)), arguments)
    available = topology.chip.memory_bytes
    weights, cache = shard_bytes(parameters), shard_bytes(held.caches)
    if program == "decode":
        seconds, tokens_a_step = (weights + cache) / topology.chip.memory_bandwidth, slots
    else:
        operations = 2.0 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters["decoder"])) * slot_tokens
        seconds, tokens_a_step = operations / (topology.chips * topology.chip.flops), slot_tokens
    return ServingPlan(
        topology=topology.name,
        chips=topology.chips,
        mesh={str(axis): size for axis, size in mesh.shape.items()},
        program=program,
        slots=slots,
        slot_tokens=slot_tokens,
        cache_dtype=engine.cache_dtype,
        fits=compiled is not None and used.peak <= available,
        memory_bytes_per_chip=available,
        peak_bytes_per_chip=used.peak,
        argument_bytes_per_chip=used.arguments,
        temporary_bytes_per_chip=used.temporaries,
        parameter_bytes_per_chip=weights,
        cache_bytes_per_chip=cache if program == "decode" else 0,
        step_seconds=seconds,
        tokens_per_second=tokens_a_step / seconds,
        compile_seconds=time.perf_counter() - started,
        compiler_version=version,
    )


def _abstract_parameters(config: ModelConfig, compute: ComputeConfig, mesh: Mesh, int8_weights: bool) -> Any:
    """The unstacked tree as shapes and shardings."""

    def made(parameters: Parameters) -> Parameters:
        return unstack(quantize_weights(config, parameters) if int8_weights else parameters)

    shapes = jax.eval_shape(made, abstract_parameters(config, compute))
    return jax.tree.map(_at, shapes, quantized_shardings(shapes, weight_shardings(config, compute, mesh)))


def _abstract_slots(program: device.Program, slots: int, tokens: int, mesh: Mesh) -> device.Slots:
    shapes = jax.eval_shape(lambda: device.empty_slots(program, slots, tokens))
    placed: device.Slots = jax.tree.map(_at, shapes, slot_shardings(shapes, program.compute.rules, mesh))
    return placed


def _at(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
