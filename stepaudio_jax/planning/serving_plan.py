"""Plans generation on a topology: how many slots fit, and the least time of a decoding step."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stepaudio_jax.config import ComputeConfig, ModelConfig
from stepaudio_jax.generation import slots as engine_programs
from stepaudio_jax.generation.engine import STEPS_PER_CALL
from stepaudio_jax.generation.prefill_programs import EngineSpec, prefill
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
from stepaudio_jax.planning.compile import (
    Footprint,
    abstract_array,
    bytes_per_device,
    compile_lowered,
    compile_only_devices,
    replicated_array,
)
from stepaudio_jax.planning.report import (
    PlanBase,
    common_fields,
    fit_line,
    heading_lines,
    memory_lines,
)
from stepaudio_jax.planning.topology import Topology

ServingProgram = Literal["prefill", "decode"]

_FORCED_SUFFIX_TOKENS = 4  # tokens that end a reasoning by force
_MAX_COMPILATIONS = 5  # while the number of slots is searched for


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingPlan(PlanBase):
    """The plan of one of the engine's programs on one topology.

    Attributes (besides those of `PlanBase`):
        program: "decode", or "prefill" of one prompt that fills a slot.
        slots: the most slots that were found to fit, or the number that does not fit.
        slot_tokens: the length of a slot.
        cache_dtype: dtype of keys and values.
        peak_bytes_per_chip: for "decode", with a prompt that fills a slot beside the engine's
            slots: it is prefilled between the calls of `decode`, and its keys and values are kept
            while replies to it wait for a slot.
        argument_bytes_per_chip, temporary_bytes_per_chip: of the program.
        parameter_bytes_per_chip, cache_bytes_per_chip: of the arguments.
        prompt_bytes_per_chip: what prefilling that prompt takes besides the weights and slots,
            temporaries included.
        step_seconds: a lower bound of a decoding step with all slots full, in which the decoder's
            weights and the cache are read once at the memory's bandwidth. For "prefill": the
            prompt's operations at the chip's peak.
        tokens_per_second: the bound that follows, of all slots together.
    """

    program: ServingProgram
    slots: int
    slot_tokens: int
    cache_dtype: CacheDtype
    argument_bytes_per_chip: int
    temporary_bytes_per_chip: int
    parameter_bytes_per_chip: int
    cache_bytes_per_chip: int
    prompt_bytes_per_chip: int
    step_seconds: float
    tokens_per_second: float


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
    """Compiles one of the engine's programs for a topology, with as many slots as fit.

    Computation is in bf16, and so are the weights unless the decoder's matrices are asked for in
    int8. Heads are sharded over as many chips as divide them; the remaining mesh axes replicate the
    weights and share out the slots.

    Raises:
        ConfigError: the model cannot be sharded for the topology, or there is no compiler for it.
    """
    compute = dataclasses.replace(compute, dtype="bfloat16", param_dtype="bfloat16", remat="none")
    mesh = decode_mesh(config, compile_only_devices(topology), slices=topology.slices)
    tensor = mesh.shape["tensor"]
    parameters = abstract_engine_weights(config, compute, mesh, int8_weights=int8_weights)
    compiler = _EngineCompiler(
        spec=EngineSpec(config, compute, cache_dtype),
        parameters=parameters,
        topology=topology,
        mesh=mesh,
        slot_tokens=slot_tokens,
    )
    prompt, prefill_plan = compiler.compile_prefill()
    if program == "prefill":
        return prefill_plan
    slot_bytes = cache_bytes(config.decoder, slot_tokens, cache_dtype) // tensor
    free = topology.chip.hbm_bytes - bytes_per_device(parameters) - (prompt.peak - prompt.arguments)
    replicas = topology.devices // tensor
    return max_slots_that_fit(
        lambda slots: compiler.compile_decode(slots * replicas, prompt),
        max(1, free // slot_bytes),
        slot_bytes,
    )


def max_slots_that_fit(
    plan_for_slots: Callable[[int], ServingPlan], max_slots: int, slot_bytes: int
) -> ServingPlan:
    """Searches for the most slots that fit, with few compilations.

    Args:
        plan_for_slots: makes the plan for a number of slots of a replica.
        max_slots: how many would fit if there were no temporaries.
        slot_bytes: of a slot's cache in a chip.

    Returns:
        The plan with the most slots that fit; the last one that was tried where none fits.
    """
    best: ServingPlan | None = None
    slots, fitting, too_many = max_slots, 0, max_slots + 1
    for _ in range(_MAX_COMPILATIONS):
        plan = plan_for_slots(slots)
        spare_slots = (plan.memory_bytes_per_chip - plan.peak_bytes_per_chip) // slot_bytes
        if plan.fits:
            best, fitting = plan, slots
        else:
            too_many, spare_slots = slots, min(spare_slots, -1)
        if spare_slots == 0 or too_many <= fitting + 1:
            break
        # Guess as if temporaries were the same for any number of slots. Where they grow with it,
        # the guess may lie outside of the bounds, which are then halved.
        guess = slots + spare_slots
        slots = guess if fitting < guess < too_many else (fitting + too_many) // 2
    return best or plan


def abstract_engine_weights(
    config: ModelConfig, compute: ComputeConfig, mesh: Mesh, *, int8_weights: bool = False
) -> Any:
    """Returns an engine's weights as shapes with shardings: one tree for each layer."""

    def engine_layout(parameters: Parameters) -> Parameters:
        return unstack_layers(quantize_weights(config, parameters) if int8_weights else parameters)

    shapes = jax.eval_shape(engine_layout, abstract_parameters(config, compute))
    shardings = quantized_shardings(shapes, weight_shardings(config, compute, mesh))
    return jax.tree.map(abstract_array, shapes, shardings)


def serving_plan_report(plan: ServingPlan) -> str:
    """Returns the plan as a page of text; a GB is 10^9 bytes."""
    bytes_by_part = {
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
            *heading_lines(plan.program, plan),
            f"memory of a chip, {what} of {plan.slot_tokens} tokens, cache in {plan.cache_dtype}",
            *memory_lines(bytes_by_part),
            "",
            f"no faster than {1e3 * plan.step_seconds:.2f} ms, "
            f"at most {plan.tokens_per_second:.0f} tokens/s",
            fit_line(plan),
        ]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EngineCompiler:
    """Compiles an engine's programs.

    Attributes:
        spec: the engine's static description.
        parameters: its weights, as shapes with shardings.
        topology: the slice.
        mesh: of its devices.
        slot_tokens: the length of a slot.
    """

    spec: EngineSpec
    parameters: Any
    topology: Topology
    mesh: Mesh
    slot_tokens: int

    def compile_prefill(self) -> tuple[Footprint, ServingPlan]:
        """Compiles the prefill of a prompt that fills a slot; returns its memory and its plan."""
        started, tokens = time.perf_counter(), self.slot_tokens
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            traced = prefill.trace(
                self.spec,
                self.parameters,
                self._replicated(jnp.int32, tokens),  # token ids
                self._replicated(jnp.int32),  # the prompt's length
                self._replicated(jnp.float32, tokens, self.spec.config.decoder.hidden),  # audio
                self._replicated(jnp.bool_, tokens),  # which positions are audio
            )
            compiled, footprint = compile_lowered(
                traced.lower(lowering_platforms=("tpu",)), self.parameters, kind=self.topology.kind
            )
        weights = jax.tree.leaves(_per_token_weights(self.parameters))
        flops = 2.0 * sum(math.prod(leaf.shape) for leaf in weights) * tokens
        plan = self._plan(
            "prefill",
            1,
            compiled,
            footprint,
            cache=0,
            prompt=footprint.peak - footprint.arguments,
            peak=footprint.peak,
            seconds=flops / (self.topology.devices * self.topology.chip.flops),
            tokens=tokens,
            started=started,
        )
        return footprint, plan

    def compile_decode(self, slots: int, prompt: Footprint) -> ServingPlan:
        """Compiles the decoding of so many slots in all; returns its plan.

        Args:
            slots: of all replicas together.
            prompt: the memory of the prefill that happens between the calls.
        """
        started = time.perf_counter()
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            state = self._abstract_slots(slots)
            traced = engine_programs.decode.trace(
                self.spec,
                self.parameters,
                state,
                self._replicated(jnp.int32, _FORCED_SUFFIX_TOKENS),
                self._replicated(jnp.bool_),  # whether to stop when a slot frees
                STEPS_PER_CALL,
            )
            compiled, footprint = compile_lowered(
                traced.lower(lowering_platforms=("tpu",)),
                (self.parameters, state),
                kind=self.topology.kind,
            )
        cache = bytes_per_device(state.caches)
        bytes_read = bytes_per_device(_per_token_weights(self.parameters)) + cache
        prompt_bytes = prompt.peak - prompt.arguments
        prompt_cache = prompt_bytes - prompt.temporaries  # the prompt's keys and values
        return self._plan(
            "decode",
            slots,
            compiled,
            footprint,
            cache=cache,
            prompt=prompt_bytes,
            peak=max(footprint.peak + prompt_cache, footprint.arguments + prompt_bytes),
            seconds=bytes_read / self.topology.chip.hbm_bandwidth,
            tokens=slots,
            started=started,
        )

    def _plan(
        self,
        program: ServingProgram,
        slots: int,
        compiled: Any | None,
        footprint: Footprint,
        *,
        cache: int,
        prompt: int,
        peak: int,
        seconds: float,
        tokens: int,
        started: float,
    ) -> ServingPlan:
        return ServingPlan(
            **common_fields(
                self.topology,
                self.mesh.shape,
                peak=peak,
                is_compiled=compiled is not None,
                compile_seconds=time.perf_counter() - started,
            ),
            program=program,
            slots=slots,
            slot_tokens=self.slot_tokens,
            cache_dtype=self.spec.cache_dtype,
            argument_bytes_per_chip=footprint.arguments,
            temporary_bytes_per_chip=footprint.temporaries,
            parameter_bytes_per_chip=bytes_per_device(self.parameters),
            cache_bytes_per_chip=cache,
            prompt_bytes_per_chip=prompt,
            step_seconds=seconds,
            tokens_per_second=tokens / seconds,
        )

    def _abstract_slots(self, slots: int) -> engine_programs.Slots:
        shapes = jax.eval_shape(
            lambda: engine_programs.empty_slots(self.spec, slots, self.slot_tokens)
        )
        shardings = slot_shardings(shapes, self.spec.compute.rules, self.mesh)
        state: engine_programs.Slots = jax.tree.map(abstract_array, shapes, shardings)
        return state

    def _replicated(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return replicated_array(self.mesh, dtype, *shape)


def _per_token_weights(parameters: Any) -> Any:
    """Returns the decoder's weights that every token uses.

    A token uses one row of the embeddings, so that they are left out, unless they are the LM head
    as well.
    """
    decoder = parameters["decoder"]
    return {
        name: weights
        for name, weights in decoder.items()
        if name != "embedding" or "lm_head" not in decoder
    }
