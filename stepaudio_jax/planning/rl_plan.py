"""The plan of a stage that learns from rewards: what each of its parts takes of a chip, and whether all of them fit."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from stepaudio_jax import hub
from stepaudio_jax.audio.lengths import encoder_frame_count
from stepaudio_jax.config import ComputeConfig, Config, LoRAConfig, ModelConfig, StageConfig
from stepaudio_jax.generation.shardings import (
    bucketed_slot_tokens,
    decode_mesh,
    round_up_slots,
    weight_shardings,
)
from stepaudio_jax.models import (
    CacheDtype,
    abstract_lora,
    abstract_parameters,
    cache_bytes,
    supports_shared_prefix,
    unstack_layers,
)
from stepaudio_jax.parallel import (
    batch_sharding,
    check_batch_divisible,
    make_mesh,
    num_batch_shards,
    parameter_shardings,
    replicated,
)
from stepaudio_jax.planning.compile import (
    Effort,
    bytes_per_device,
    compile_lowered,
    compile_only_devices,
    compiler_flags,
    compiler_version,
    escalate_if_tight,
    find_initial_adapter,
)
from stepaudio_jax.planning.report import fit_summary, heading, memory
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.rl.packing import RolloutBatch
from stepaudio_jax.rl.policy_update import PolicyTargets, PolicyUpdate, UpdateScalars
from stepaudio_jax.training import abstract_train_state
from stepaudio_jax.training.initial_weights import adapters_before_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLPlan:
    """One stage on one topology; bytes are of one chip (of Ironwood, of one device: half a chip).

    Attributes:
        topology, chips, mesh: where.
        stage: its name.
        fits: whether the peak lies within the chip's memory.
        memory_bytes_per_chip: what programs may use of it.
        policy_bytes_per_chip, reference_bytes_per_chip, optimizer_bytes_per_chip,
        gradient_bytes_per_chip: of the state.
        engine_bytes_per_chip: the copy of the policy that writes, in the computation's dtype and
            the engine's layout, adapters (LoRA) beside its kernels.
        cache_bytes_per_chip: the slots' keys and values.
        judge_bytes_per_chip: a judge in the same process, slots for a question as long as a row and
        its answer included.
        temporary_bytes_per_chip: of the larger of the two programs that learn.
        peak_bytes_per_chip: all of them together with a step's batches, for the engine keeps its
            place while the policy learns; or, if that is more, without gradients and temporaries
            and with a further decoder: when the engine gets its weights.
        compile_seconds, compiler_version, compiler_flags: of this compilation, see `TrainPlan`.
        effort: as in `TrainPlan`.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    stage: str
    fits: bool
    memory_bytes_per_chip: int
    policy_bytes_per_chip: int
    reference_bytes_per_chip: int
    optimizer_bytes_per_chip: int
    gradient_bytes_per_chip: int
    engine_bytes_per_chip: int
    cache_bytes_per_chip: int
    judge_bytes_per_chip: int
    temporary_bytes_per_chip: int
    peak_bytes_per_chip: int
    compile_seconds: float
    compiler_version: str
    effort: Effort
    compiler_flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def plan_rl(config: Config, index: int, topology: Topology, effort: Effort = "full") -> RLPlan:
    """Compiles the update of stage `index` for a topology; nothing is allocated.

    Args:
        config: of the run; its mesh is for the topology.
        index: the stage's number.
        topology: where.
        effort: the compiler's; where a "quick" plan leaves little room or none, it is made in
            "full".

    Raises:
        ConfigError, ConfigError: the settings contradict the topology, or there is no compiler
        for it.
        CheckpointError: the judge's folder holds no model.
    """
    return escalate_if_tight(functools.partial(_plan, config, index, topology), effort)


def _plan(config: Config, index: int, topology: Topology, effort: Effort) -> RLPlan:
    version, started = compiler_version(), time.perf_counter()
    if config.compute.attention == "auto":  # what "auto" is on a TPU
        config = dataclasses.replace(
            config, compute=dataclasses.replace(config.compute, attention="splash")
        )
    stage, devices = config.stages[index], compile_only_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    check_batch_divisible(config, mesh)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        start = abstract_train_state(
            config, index, config.model, mesh, find_initial_adapter(config)
        )
        state = start.abstract
        update = PolicyUpdate(
            start.model_def, stage.policy_gradient, start.optimizer, start.shardings
        )
        batch, targets = _abstract_batch(config, stage, mesh)
        scalars = UpdateScalars(
            kl_coef=_whole(jnp.float32, mesh),
            is_on_policy=_whole(jnp.bool_, mesh),
            policy_is_reference=_whole(jnp.bool_, mesh),
        )
        carried = jax.eval_shape(update.begin, state, batch, targets, scalars)
        gradients = jax.tree.map(_at, carried[0], start.shardings.trainable)
        carried = gradients, jax.tree.map(lambda leaf: _whole(leaf.dtype, mesh), carried[1])
        traced = (
            (
                update.accumulate.trace(state, carried, batch, targets, scalars),
                (state, carried, batch, targets),
            ),
            (update.apply.trace(state, carried), (state, carried)),
        )
        programs = [
            compile_lowered(
                one.lower(lowering_platforms=("tpu",)), arguments, effort, topology.kind
            )
            for one, arguments in traced
        ]
    temporary = max(footprint.temporaries for _, footprint in programs)
    reference = bytes_per_device((state.reference_params, state.reference_lora_params))
    held = {
        "policy_bytes_per_chip": bytes_per_device(
            (state.trainable, state.frozen_params, state.frozen_lora_params)
        ),
        "reference_bytes_per_chip": reference,
        "optimizer_bytes_per_chip": bytes_per_device(state.opt_state),
        "gradient_bytes_per_chip": bytes_per_device(gradients),
        **_generation_bytes(config, stage, devices),
        "temporary_bytes_per_chip": temporary,
    }
    batches = -(
        -stage.policy_gradient.rollout.num_prompts
        * stage.policy_gradient.rollout.num_generations
        // stage.data.batch_size
    )  # at most; all are kept for a step
    learns = sum(held.values()) + batches * bytes_per_device((batch, targets))
    # Before that, when the engine gets its weights, they are there once more as the policy has
    # them.
    decoder = (state.params | state.frozen_params)["decoder"]
    sent = jax.tree.map(
        lambda leaf: _at(jax.ShapeDtypeStruct(leaf.shape, config.compute.dtype), leaf.sharding),
        decoder,
    )
    writes = (
        sum(held.values()) - temporary - held["gradient_bytes_per_chip"] + bytes_per_device(sent)
    )
    if (
        "decoder" in state.frozen_params
    ):  # that is done once, before there are slots; later the engine gets adapters only
        writes -= held["cache_bytes_per_chip"]
    peak, available = max(learns, writes), topology.chip.hbm_bytes
    return RLPlan(
        topology=topology.name,
        chips=topology.chips,
        mesh={str(axis): size for axis, size in mesh.shape.items()},
        stage=stage.name,
        fits=peak <= available and all(compiled is not None for compiled, _ in programs),
        memory_bytes_per_chip=available,
        peak_bytes_per_chip=peak,
        compile_seconds=time.perf_counter() - started,
        compiler_version=version,
        effort=effort,
        compiler_flags=compiler_flags(topology.kind),
        **held,
    )


def rl_plan_report(plan: RLPlan) -> str:
    """The plan as a page of text; bytes in 10^9."""
    parts = {
        "policy": plan.policy_bytes_per_chip,
        "reference": plan.reference_bytes_per_chip,
        "optimizer": plan.optimizer_bytes_per_chip,
        "gradients": plan.gradient_bytes_per_chip,
        "the engine's copy": plan.engine_bytes_per_chip,
        "KV cache": plan.cache_bytes_per_chip,
        **({"judge": plan.judge_bytes_per_chip} if plan.judge_bytes_per_chip else {}),
        "temporaries": plan.temporary_bytes_per_chip,
        "peak": plan.peak_bytes_per_chip,
        "available": plan.memory_bytes_per_chip,
    }
    what = f"stage {plan.stage}"
    return "\n".join(
        [
            *heading(
                *(
                    what,
                    plan.topology,
                    plan.chips,
                    plan.mesh,
                    plan.compiler_version,
                    plan.compile_seconds,
                    plan.effort,
                ),
                flags=plan.compiler_flags,
            ),
            "memory of a chip",
            *memory(parts),
            "",
            fit_summary(plan.fits, plan.memory_bytes_per_chip, plan.peak_bytes_per_chip),
        ]
    )


def _abstract_batch(
    config: Config, stage: StageConfig, mesh: Mesh
) -> tuple[RolloutBatch, PolicyTargets]:
    data, model = stage.data, config.model
    rows = batch_sharding(config.compute.rules, mesh)

    def array(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.batch_size, *sizes), dtype, sharding=rows)

    tokens = data.seq_len
    names = ("tokens", "targets", "positions", "segment_ids", "audio_index")
    batch = RolloutBatch(
        **{name: array(jnp.int32, tokens) for name in names},
        prefix_ids=array(jnp.int32, tokens) if supports_shared_prefix(config.compute) else None,
        features=array(
            jnp.float32,
            data.audio_chunks_per_seq,
            encoder_frame_count(data.mel_frames_per_chunk),
            model.encoder.hidden,
        ),
    )
    values, objective = array(jnp.float32, tokens), stage.policy_gradient
    targets = PolicyTargets(
        weights=values,
        advantages=values,
        old_logprobs=values if objective.updates_per_step > 1 else None,
        sampler_logprobs=values,
        reference_logprobs=values if objective.needs_reference_params else None,
        returns=values,
        old_values=values,
    )
    return batch, targets


def _generation_bytes(config: Config, stage: StageConfig, devices: Any) -> dict[str, int]:
    """Of the engine's copy of the weights and of its caches, and of a judge's."""
    rollout, judge, compute, tokens = (
        stage.policy_gradient.rollout,
        stage.policy_gradient.judge,
        config.compute,
        stage.data.seq_len,
    )
    mesh = decode_mesh(config.model, devices, tensor=rollout.tensor, slices=config.mesh.slices)
    cache_dtype = rollout.cache_dtype or compute.dtype
    held = min(tokens, config.model.decoder.max_positions)
    weights, cache = _engine_bytes(config.model, compute, mesh, rollout.slots, held, cache_dtype)
    adapters = [
        *adapters_before_stage(
            config, config.stages.index(stage), find_initial_adapter(config)
        ).values(),
        stage.lora,
    ]
    if "decoder" not in stage.trainable:
        weights += sum(
            _adapter_bytes(config.model, lora, compute, mesh) for lora in adapters if lora.rank
        )
    judged = 0
    if judge.folder:
        model = hub.read_model_config(judge.folder)
        mesh = decode_mesh(model, devices, slices=config.mesh.slices)
        asked = bucketed_slot_tokens(tokens + judge.max_tokens, model)
        judged = sum(_engine_bytes(model, compute, mesh, judge.slots, asked, compute.dtype))
    return {
        "engine_bytes_per_chip": weights,
        "cache_bytes_per_chip": cache,
        "judge_bytes_per_chip": judged,
    }


def _adapter_bytes(model: ModelConfig, lora: LoRAConfig, compute: ComputeConfig, mesh: Mesh) -> int:
    """Returns the bytes of an adapter's matrices beside the engine's kernels."""
    tree = abstract_lora(model, lora)
    shardings = parameter_shardings(tree.axes, tree.shapes, compute.rules, mesh)
    matrices = jax.tree.map(
        lambda leaf, sharding: _at(jax.ShapeDtypeStruct(leaf.shape, compute.dtype), sharding),
        tree.shapes,
        shardings,
    )
    return bytes_per_device(matrices)


def _engine_bytes(
    model: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    slots: int,
    tokens: int,
    cache_dtype: CacheDtype,
) -> tuple[int, int]:
    """Of an engine's weights and of its caches."""
    compute = dataclasses.replace(compute, param_dtype=compute.dtype)
    shapes = jax.eval_shape(unstack_layers, abstract_parameters(model, compute))
    weights = jax.tree.map(_at, shapes, weight_shardings(model, compute, mesh))
    of_part = round_up_slots(slots, compute.rules, mesh) // num_batch_shards(compute.rules, mesh)
    cache = of_part * cache_bytes(model.decoder, tokens, cache_dtype) // mesh.shape["tensor"]
    return bytes_per_device(weights), cache


def _at(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _whole(dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), dtype, sharding=replicated(mesh))
