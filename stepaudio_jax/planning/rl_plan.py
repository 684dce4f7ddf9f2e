"""Plans an RL stage on a topology: what each of its parts takes of a chip, and whether all fit."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stepaudio_jax import hub
from stepaudio_jax.audio.lengths import encoder_frame_count
from stepaudio_jax.config import (
    ComputeConfig,
    Config,
    JudgeConfig,
    LoRAConfig,
    ModelConfig,
    SimulatedUserConfig,
    StageConfig,
)
from stepaudio_jax.generation.shardings import bucketed_slot_tokens, decode_mesh, round_up_slots
from stepaudio_jax.models import (
    CacheDtype,
    abstract_lora,
    cache_bytes,
    supports_shared_prefix,
)
from stepaudio_jax.parallel import (
    batch_sharding,
    check_batch_divisible,
    make_mesh,
    num_batch_shards,
    parameter_shardings,
)
from stepaudio_jax.planning.compile import (
    Effort,
    abstract_array,
    abstract_teacher,
    bytes_per_device,
    compile_lowered,
    compile_only_devices,
    find_initial_adapter,
    replicated_array,
)
from stepaudio_jax.planning.report import (
    PlanBase,
    common_fields,
    escalate_if_tight,
    fit_line,
    heading_lines,
    memory_lines,
)
from stepaudio_jax.planning.serving_plan import abstract_engine_weights
from stepaudio_jax.planning.topology import Topology
from stepaudio_jax.rl.packing import RolloutBatch
from stepaudio_jax.rl.policy_update import PolicyTargets, PolicyUpdate, UpdateScalars
from stepaudio_jax.training import abstract_train_state
from stepaudio_jax.training.initial_weights import adapters_before_stage
from stepaudio_jax.training.teacher import define_teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLPlan(PlanBase):
    """The plan of one RL stage on one topology.

    Attributes (besides those of `PlanBase`):
        stage: its name.
        peak_bytes_per_chip: during the update, all parts together with the batches of a step: the
            engine keeps its memory while the policy is updated. Or, if that is more, when the
            engine gets its weights: all parts without gradients and temporaries, and the policy's
            decoder once more.
        policy_bytes_per_chip, reference_bytes_per_chip, optimizer_bytes_per_chip,
        gradient_bytes_per_chip: of the train state.
        engine_bytes_per_chip: the engine's copy of the policy, in the computation's dtype and the
            engine's layout, LoRA adapters beside its kernels.
        cache_bytes_per_chip: the keys and values of the engine's slots.
        judge_bytes_per_chip: a judge in the same process, with slots for a question as long as a
            packed row, and its answer.
        user_bytes_per_chip: a simulated user in the same process, likewise.
        temporary_bytes_per_chip: of the larger of the two programs of the update.
        effort: how hard the compiler optimized.
    """

    stage: str
    policy_bytes_per_chip: int
    reference_bytes_per_chip: int
    optimizer_bytes_per_chip: int
    gradient_bytes_per_chip: int
    engine_bytes_per_chip: int
    cache_bytes_per_chip: int
    judge_bytes_per_chip: int
    user_bytes_per_chip: int
    temporary_bytes_per_chip: int
    effort: Effort


def plan_rl(config: Config, index: int, topology: Topology, effort: Effort = "full") -> RLPlan:
    """Compiles the update of stage `index` for a topology; nothing is allocated.

    Args:
        config: the run's configuration; its mesh is for the topology.
        index: the stage's number.
        topology: the slice.
        effort: how hard the compiler optimizes; a "quick" plan that leaves little or no room is
            made again with "full" effort.

    Raises:
        ConfigError: the settings contradict the topology, or there is no compiler for it.
        CheckpointError: the judge's folder holds no model.
    """
    return escalate_if_tight(functools.partial(_make_rl_plan, config, index, topology), effort)


def _make_rl_plan(config: Config, index: int, topology: Topology, effort: Effort) -> RLPlan:
    started = time.perf_counter()
    stage, devices = config.stages[index], compile_only_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    check_batch_divisible(config, mesh)
    update = _compile_update(config, index, mesh, topology.kind, effort)
    teacher = None
    objective = stage.policy_gradient
    if objective.teacher is not None:
        teacher_def = define_teacher(
            config, objective.teacher, config.model, inputs=objective.teacher_inputs
        )
        teacher = abstract_teacher(config, teacher_def, mesh)
    bytes_by_part: dict[str, Any] = {
        "policy_bytes_per_chip": bytes_per_device(
            (
                update.state.trainable,
                update.state.frozen_params,
                update.state.frozen_lora_params,
            )
        ),
        "reference_bytes_per_chip": bytes_per_device(
            (update.state.reference_params, update.state.reference_lora_params, teacher)
        ),
        "optimizer_bytes_per_chip": bytes_per_device(update.state.opt_state),
        "gradient_bytes_per_chip": bytes_per_device(update.gradients),
        **_generation_bytes(config, stage, devices),
        "temporary_bytes_per_chip": update.temporary_bytes,
    }
    peak = max(
        sum(bytes_by_part.values()) + _max_batches(stage) * update.batch_bytes,
        _weight_transfer_bytes(config, update.state, bytes_by_part),
    )
    return RLPlan(
        **common_fields(
            topology,
            mesh.shape,
            peak=peak,
            is_compiled=update.is_compiled,
            compile_seconds=time.perf_counter() - started,
        ),
        stage=stage.name,
        effort=effort,
        **bytes_by_part,
    )


def rl_plan_report(plan: RLPlan) -> str:
    """Returns the plan as a page of text; a GB is 10^9 bytes."""
    bytes_by_part = {
        "policy": plan.policy_bytes_per_chip,
        "reference": plan.reference_bytes_per_chip,
        "optimizer": plan.optimizer_bytes_per_chip,
        "gradients": plan.gradient_bytes_per_chip,
        "the engine's copy": plan.engine_bytes_per_chip,
        "KV cache": plan.cache_bytes_per_chip,
        **({"judge": plan.judge_bytes_per_chip} if plan.judge_bytes_per_chip else {}),
        **({"simulated user": plan.user_bytes_per_chip} if plan.user_bytes_per_chip else {}),
        "temporaries": plan.temporary_bytes_per_chip,
        "peak": plan.peak_bytes_per_chip,
        "available": plan.memory_bytes_per_chip,
    }
    return "\n".join(
        [
            *heading_lines(f"stage {plan.stage}", plan, plan.effort),
            "memory of a chip",
            *memory_lines(bytes_by_part),
            "",
            fit_line(plan),
        ]
    )


@dataclasses.dataclass(frozen=True)
class _CompiledUpdate:
    """The compiled programs of a policy update.

    Attributes:
        is_compiled: whether the compiler accepted both programs.
        state: the train state, as shapes with shardings.
        gradients: likewise.
        batch_bytes: one device's part of a batch and its targets.
        temporary_bytes: of the program that takes more.
    """

    is_compiled: bool
    state: Any
    gradients: Any
    batch_bytes: int
    temporary_bytes: int


def _compile_update(
    config: Config, index: int, mesh: Mesh, kind: str, effort: Effort
) -> _CompiledUpdate:
    """Compiles the two programs of an update: gradients of one more batch, and the optimizer."""
    stage = config.stages[index]
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
            kl_coef=replicated_array(mesh, jnp.float32),
            is_on_policy=replicated_array(mesh, jnp.bool_),
            policy_is_reference=replicated_array(mesh, jnp.bool_),
        )
        gradients, sums = jax.eval_shape(update.begin, state, batch, targets, scalars)
        gradients = jax.tree.map(abstract_array, gradients, start.shardings.trainable)
        sums = jax.tree.map(lambda leaf: replicated_array(mesh, leaf.dtype), sums)
        accumulated = (gradients, sums)
        programs = [
            compile_lowered(
                traced.lower(lowering_platforms=("tpu",)), arguments, effort=effort, kind=kind
            )
            for traced, arguments in (
                (
                    update.accumulate.trace(state, accumulated, batch, targets, scalars),
                    (state, accumulated, batch, targets),
                ),
                (update.apply.trace(state, accumulated), (state, accumulated)),
            )
        ]
    return _CompiledUpdate(
        is_compiled=all(compiled is not None for compiled, _ in programs),
        state=state,
        gradients=gradients,
        batch_bytes=bytes_per_device((batch, targets)),
        temporary_bytes=max(footprint.temporaries for _, footprint in programs),
    )


def _abstract_batch(
    config: Config, stage: StageConfig, mesh: Mesh
) -> tuple[RolloutBatch, PolicyTargets]:
    """Returns a batch of packed rollouts and its targets, as shapes with shardings."""
    data, model = stage.data, config.model
    rows = batch_sharding(config.compute.rules, mesh)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype, sharding=rows)

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
        reference_logprobs=values if objective.has_reference else None,
        returns=values,
        old_values=values,
    )
    return batch, targets


def _max_batches(stage: StageConfig) -> int:
    """Returns an upper bound of the batches of a step, all of which stay in memory during it.

    Each reply of a dialogue may take a row, the last one with all that was said before it.
    """
    rollout = stage.policy_gradient.rollout
    replies = rollout.num_prompts * rollout.num_generations * rollout.simulated_user.max_turns
    return math.ceil(replies / stage.data.batch_size)


def _weight_transfer_bytes(config: Config, state: Any, bytes_by_part: dict[str, int]) -> int:
    """Returns the bytes in use while the engine gets its weights from the policy.

    The decoder's weights exist once more then, sharded as in the policy. A frozen decoder is
    transferred once, before there are slots; later the engine gets adapters only.
    """
    decoder = (state.params | state.frozen_params)["decoder"]
    transferred = jax.tree.map(
        lambda leaf: abstract_array(leaf, leaf.sharding, jnp.dtype(config.compute.dtype)), decoder
    )
    absent = ["temporary_bytes_per_chip", "gradient_bytes_per_chip"]
    if "decoder" in state.frozen_params:
        absent.append("cache_bytes_per_chip")
    present = sum(count for part, count in bytes_by_part.items() if part not in absent)
    return present + bytes_per_device(transferred)


def _generation_bytes(config: Config, stage: StageConfig, devices: Sequence[Any]) -> dict[str, int]:
    """Returns the bytes of the engine's weights and caches, and of other models in the process."""
    rollout, judge = stage.policy_gradient.rollout, stage.policy_gradient.judge
    compute, tokens = config.compute, stage.data.seq_len
    mesh = decode_mesh(config.model, devices, tensor=rollout.tensor, slices=config.mesh.slices)
    weights, cache = _engine_bytes(
        config.model,
        compute,
        mesh,
        slots=rollout.slots,
        slot_tokens=min(tokens, config.model.decoder.max_positions),
        cache_dtype=rollout.cache_dtype or compute.dtype,
    )
    if "decoder" not in stage.trainable:
        adapters = adapters_before_stage(
            config, config.stages.index(stage), find_initial_adapter(config)
        )
        weights += sum(
            _adapter_bytes(config.model, lora, compute, mesh)
            for lora in (*adapters.values(), stage.lora)
            if lora.rank
        )
    return {
        "engine_bytes_per_chip": weights,
        "cache_bytes_per_chip": cache,
        "judge_bytes_per_chip": _model_bytes(config, judge, devices, tokens),
        "user_bytes_per_chip": _model_bytes(config, rollout.simulated_user, devices, tokens),
    }


def _model_bytes(
    config: Config, asked: JudgeConfig | SimulatedUserConfig, devices: Sequence[Any], tokens: int
) -> int:
    """Returns one device's bytes of a judge or simulated user in the process; 0 without one.

    Args:
        config: the run's configuration.
        asked: names the model's folder, if there is one.
        devices: of the topology.
        tokens: of the longest question.
    """
    if not asked.folder:
        return 0
    model = hub.read_model_config(asked.folder)
    return sum(
        _engine_bytes(
            model,
            config.compute,
            decode_mesh(model, devices, slices=config.mesh.slices),
            slots=asked.slots,
            slot_tokens=bucketed_slot_tokens(tokens + asked.max_tokens, model),
            cache_dtype=config.compute.dtype,
        )
    )


def _engine_bytes(
    model: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    *,
    slots: int,
    slot_tokens: int,
    cache_dtype: CacheDtype,
) -> tuple[int, int]:
    """Returns one device's bytes of an engine's weights and of its caches."""
    compute = dataclasses.replace(compute, param_dtype=compute.dtype)
    weights = abstract_engine_weights(model, compute, mesh)
    slots_per_shard = round_up_slots(slots, compute.rules, mesh) // num_batch_shards(
        compute.rules, mesh
    )
    slot_bytes = cache_bytes(model.decoder, slot_tokens, cache_dtype)
    return bytes_per_device(weights), slots_per_shard * slot_bytes // mesh.shape["tensor"]


def _adapter_bytes(model: ModelConfig, lora: LoRAConfig, compute: ComputeConfig, mesh: Mesh) -> int:
    """Returns one device's bytes of an adapter's matrices beside the engine's kernels."""
    tree = abstract_lora(model, lora)
    shardings = parameter_shardings(tree.axes, tree.shapes, compute.rules, mesh)
    dtype = jnp.dtype(compute.dtype)
    return bytes_per_device(
        jax.tree.map(
            lambda leaf, sharding: abstract_array(leaf, sharding, dtype), tree.shapes, shardings
        )
    )
