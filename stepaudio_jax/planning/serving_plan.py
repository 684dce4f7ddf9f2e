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
from stepaudio_jax.generation.shardings import decode_mesh, slot_shardings, weight_shardings
from stepaudio_jax.models import (
    CacheDtype,
    Parameters,
    abstract_parameters,
    cache_bytes,
    quantize_weights,
    quantized_shardings,
    unstack_layers,
)
from stepaudio_jax.parallel import replicated
from stepaudio_jax.planning.compile import (
    Footprint,
    bytes_per_device,
    compile_lowered,
    compile_only_devices,
    compiler_flags,
    compiler_version,
)
from stepaudio_jax.planning.report import fit_summary, heading, memory
from stepaudio_jax.planning.topology import Topology

ServingProgram = Literal["prefill", "decode"]

_STEPS = 16  # tokens a call of `decode`, as the engine's default
_FORCED_SUFFIX_TOKENS = 4  # tokens that end a reasoning by force
_MAX_COMPILATIONS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """One program of the engine on one topology; bytes are of one chip (of Ironwood, of one device: half a chip).

    Attributes:
        topology, chips, mesh: where.
        program: "decode", or "prefill" of one prompt that fills a slot.
        slots, slot_tokens: of the engine that was compiled: the most slots that were found to fit,
        or what does not fit.
        cache_dtype: of keys and values.
        fits: as in `TrainPlan`.
        memory_bytes_per_chip, argument_bytes_per_chip, temporary_bytes_per_chip: as in `TrainPlan`.
        peak_bytes_per_chip: as in `TrainPlan`; of "decode" with the slots of the engine, a prompt
            that fills a slot beside them: it is read between the calls, and kept while replies to
            it wait for a slot.
        parameter_bytes_per_chip, cache_bytes_per_chip: of the arguments.
        prompt_bytes_per_chip: what reading that prompt takes beside weights and slots, temporaries
        included.
        step_seconds: no decoding step with all slots full is faster: the decoder's weights and the
            cache are read once, at the memory's bandwidth. For "prefill": the prompt's operations
            at the chip's peak.
        tokens_per_second: the bound that it implies, all slots together.
        compile_seconds, compiler_version, compiler_flags: of this compilation, see `TrainPlan`.
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
    prompt_bytes_per_chip: int
    step_seconds: float
    tokens_per_second: float
    compile_seconds: float
    compiler_version: str
    compiler_flags: tuple[str, ...] = ()

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

    Computation is in bf16, and so are the weights unless the decoder's matrices are asked for in
    int8. Heads are cut over as many chips as divide them; what remains replicates the weights and
    shares out the slots.

    Raises:
        ConfigError, ConfigError: the model cannot be cut for the topology, or there is no
            compiler for it.
    """
    version = compiler_version()
    attention = "splash" if compute.attention == "auto" else compute.attention
    compute = dataclasses.replace(
        compute, dtype="bfloat16", param_dtype="bfloat16", remat="none", attention=attention
    )
    mesh = decode_mesh(config, compile_only_devices(topology), slices=topology.slices)
    tensor = mesh.shape["tensor"]
    per_slot = cache_bytes(config.decoder, slot_tokens, cache_dtype) // tensor
    parameters = _abstract_parameters(config, compute, mesh, int8_weights)
    job = _Job(
        device.EngineSpec(config, compute, cache_dtype),
        parameters,
        topology,
        mesh,
        version,
        slot_tokens,
    )
    prompt, prefill = job.prefill()
    if program == "prefill":
        return prefill
    free = topology.chip.hbm_bytes - bytes_per_device(parameters) - (prompt.peak - prompt.arguments)
    replicas = topology.devices // tensor
    return max_slots_that_fit(
        lambda slots: job.decode(slots * replicas, prompt), max(1, free // per_slot), per_slot
    )


def max_slots_that_fit(
    compiled: Callable[[int], ServingPlan], most: int, per_slot: int
) -> ServingPlan:
    """The plan with the most slots that fit, or one that does not where none was found to.

    Args:
        compiled: the plan for so many slots a replica.
        most: what would fit if there were no temporaries.
        per_slot: bytes of a slot's cache in a chip.
    """
    fits: ServingPlan | None = None
    slots, least, too_many = most, 0, most + 1
    for _ in range(_MAX_COMPILATIONS):
        plan = compiled(slots)
        room = (plan.memory_bytes_per_chip - plan.peak_bytes_per_chip) // per_slot
        if plan.fits:
            fits, least = plan, slots
        else:
            too_many, room = slots, min(room, -1)
        if room == 0 or too_many <= least + 1:
            break
        # As if temporaries were the same for any number; where they grow with it, halving finds it
        # too.
        guess = slots + room
        slots = guess if least < guess < too_many else (least + too_many) // 2
    return fits or plan


def serving_plan_report(plan: ServingPlan) -> str:
    """The plan as a page of text; bytes in 10^9."""
    parts = {
        "parameters": plan.parameter_bytes_per_chip,
        "cache": plan.cache_bytes_per_chip,
        "temporaries": plan.temporary_bytes_per_chip,
        "a prompt": plan.prompt_bytes_per_chip,
        "peak": plan.peak_bytes_per_chip,
        "available": plan.memory_bytes_per_chip,
    }
    what = f"{plan.slots} slots" if plan.program == "decode" else "a prompt"
    return "\n".join(
        [
            *heading(
                *(
                    plan.program,
                    plan.topology,
                    plan.chips,
                    plan.mesh,
                    plan.compiler_version,
                    plan.compile_seconds,
                ),
                flags=plan.compiler_flags,
            ),
            f"memory of a chip, {what} of {plan.slot_tokens} tokens, cache in {plan.cache_dtype}",
            *memory(parts),
            "",
            f"no faster than {1e3 * plan.step_seconds:.2f} ms, at most {plan.tokens_per_second:.0f} tokens/s",
            fit_summary(plan.fits, plan.memory_bytes_per_chip, plan.peak_bytes_per_chip),
        ]
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    """An engine's programs, to be compiled."""

    engine: device.EngineSpec
    parameters: Any
    topology: Topology
    mesh: Mesh
    version: str
    slot_tokens: int

    def prefill(self) -> tuple[Footprint, ServingPlan]:
        """Of a prompt that fills a slot."""
        started, tokens = time.perf_counter(), self.slot_tokens
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            ids, is_audio = self._whole(jnp.int32, tokens), self._whole(jnp.bool_, tokens)
            audio = self._whole(jnp.float32, tokens, self.engine.config.decoder.hidden)
            length = self._whole(jnp.int32)
            traced = device.prefill.trace(
                self.engine, self.parameters, ids, length, audio, is_audio
            )
            compiled, used = compile_lowered(
                traced.lower(lowering_platforms=("tpu",)), self.parameters, kind=self.topology.kind
            )
        operations = (
            2.0
            * sum(
                math.prod(leaf.shape)
                for leaf in jax.tree.leaves(_per_token_weights(self.parameters))
            )
            * tokens
        )
        seconds = operations / (self.topology.devices * self.topology.chip.flops)
        figures = {"cache": 0, "prompt": used.peak - used.arguments, "peak": used.peak}
        return used, self._plan(
            "prefill", 1, compiled, used, **figures, seconds=seconds, tokens=tokens, started=started
        )

    def decode(self, slots: int, prompt: Footprint) -> ServingPlan:
        """Of so many slots in all, which a prompt is read beside."""
        started = time.perf_counter()
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            held = _abstract_slots(self.engine, slots, self.slot_tokens, self.mesh)
            closing, stop_when_slot_frees = (
                self._whole(jnp.int32, _FORCED_SUFFIX_TOKENS),
                self._whole(jnp.bool_),
            )
            traced = device.decode.trace(
                self.engine, self.parameters, held, closing, stop_when_slot_frees, _STEPS
            )
            compiled, used = compile_lowered(
                traced.lower(lowering_platforms=("tpu",)),
                (self.parameters, held),
                kind=self.topology.kind,
            )
        cache, reading = bytes_per_device(held.caches), prompt.peak - prompt.arguments
        seconds = (
            bytes_per_device(_per_token_weights(self.parameters)) + cache
        ) / self.topology.chip.hbm_bandwidth
        kept = reading - prompt.temporaries  # the prompt's keys and values
        peak = max(used.peak + kept, used.arguments + reading)
        figures = {"cache": cache, "prompt": reading, "peak": peak}
        return self._plan(
            "decode",
            slots,
            compiled,
            used,
            **figures,
            seconds=seconds,
            tokens=slots,
            started=started,
        )

    def _plan(
        self,
        program: ServingProgram,
        slots: int,
        compiled: Any | None,
        used: Footprint,
        *,
        cache: int,
        prompt: int,
        peak: int,
        seconds: float,
        tokens: int,
        started: float,
    ) -> ServingPlan:
        available = self.topology.chip.hbm_bytes
        return ServingPlan(
            topology=self.topology.name,
            chips=self.topology.chips,
            mesh={str(axis): size for axis, size in self.mesh.shape.items()},
            program=program,
            slots=slots,
            slot_tokens=self.slot_tokens,
            cache_dtype=self.engine.cache_dtype,
            fits=compiled is not None and peak <= available,
            memory_bytes_per_chip=available,
            peak_bytes_per_chip=peak,
            argument_bytes_per_chip=used.arguments,
            temporary_bytes_per_chip=used.temporaries,
            parameter_bytes_per_chip=bytes_per_device(self.parameters),
            cache_bytes_per_chip=cache,
            prompt_bytes_per_chip=prompt,
            step_seconds=seconds,
            tokens_per_second=tokens / seconds,
            compile_seconds=time.perf_counter() - started,
            compiler_version=self.version,
            compiler_flags=compiler_flags(self.topology.kind),
        )

    def _whole(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))


def _per_token_weights(parameters: Any) -> Any:
    """The weights that every token takes part in: of the embeddings it is one row, where they are no head as well."""
    decoder = parameters["decoder"]
    return {
        name: part
        for name, part in decoder.items()
        if name != "embedding" or "lm_head" not in decoder
    }


def _abstract_parameters(
    config: ModelConfig, compute: ComputeConfig, mesh: Mesh, int8_weights: bool
) -> Any:
    """The unstacked tree as shapes and shardings."""

    def made(parameters: Parameters) -> Parameters:
        return unstack_layers(quantize_weights(config, parameters) if int8_weights else parameters)

    shapes = jax.eval_shape(made, abstract_parameters(config, compute))
    return jax.tree.map(
        _at, shapes, quantized_shardings(shapes, weight_shardings(config, compute, mesh))
    )


def _abstract_slots(
    program: device.EngineSpec, slots: int, tokens: int, mesh: Mesh
) -> device.Slots:
    shapes = jax.eval_shape(lambda: device.empty_slots(program, slots, tokens))
    placed: device.Slots = jax.tree.map(
        _at, shapes, slot_shardings(shapes, program.compute.rules, mesh)
    )
    return placed


def _at(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
