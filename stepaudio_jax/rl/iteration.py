"""One step of a stage that learns from rewards: what is written and what it is worth, then what is learnt from it."""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.config import Config, StageConfig
from stepaudio_jax.generation import Engine, load_model
from stepaudio_jax.generation.layout import decode_mesh, round_up_slots
from stepaudio_jax.models import supports_shared_prefix
from stepaudio_jax.parallel import BatchPlacement
from stepaudio_jax.rl.endpoint import EndpointBackend
from stepaudio_jax.rl.hearing import AudioFeatureCache
from stepaudio_jax.rl.judge import Judge
from stepaudio_jax.rl.judge_prompt import JudgePrompt
from stepaudio_jax.rl.layout import PackedRollouts, RolloutBatch
from stepaudio_jax.rl.learning import (
    Advantages,
    PolicyLogprobs,
    compute_advantages,
    compute_loss_weights,
)
from stepaudio_jax.rl.model_judge import ModelBackend
from stepaudio_jax.rl.objective import KLController
from stepaudio_jax.rl.prompts import PromptStream
from stepaudio_jax.rl.rewards import Reward, RewardFunction
from stepaudio_jax.rl.rollouts import Rollout, generate_rollouts
from stepaudio_jax.rl.update import (
    PolicyChanged,
    PolicyTargets,
    PolicyUpdate,
    policy_parameters,
    reference_parameters,
)
from stepaudio_jax.rl.watch import logprob_metrics, rollout_metrics
from stepaudio_jax.training.stage_kind import StageContext
from stepaudio_jax.training.start import AbstractTrainState, needs_reference_params
from stepaudio_jax.training.step import TrainState, num_optimizer_updates


@dataclasses.dataclass(frozen=True)
class _Minibatch:
    """The rollouts of one update: which of the step's they are, and where they lie in rows."""

    indices: slice
    layout: PackedRollouts
    batches: list[RolloutBatch]  # on the mesh
    passed: PolicyLogprobs


class PolicyTrainer:
    """A step's work, with what is kept from step to step: the engine, compiled programs, the judge."""

    def __init__(self, run: StageContext, start: AbstractTrainState, state: TrainState):
        config, model, tokenizer, mesh = run.config, run.model, run.tokenizer, run.mesh
        self._stage, self._tokenizer, self._definition = run.stage, tokenizer, start.model_def
        self._seed = config.seed + run.index
        self._shared = supports_shared_prefix(config.compute)
        rl = self._stage.rl
        writing = decode_mesh(model, tensor=rl.rollout.tensor, slices=config.mesh.slices)
        new_tokens = rl.rollout.max_new_tokens
        self._rewards = RewardFunction(rl, make_judge(config, self._stage))
        self._stream = PromptStream(
            self._stage.data,
            tokenizer,
            model,
            seed=self._seed,
            new_tokens=new_tokens,
            validate=self._rewards.check_record,
        )
        self._audio = AudioFeatureCache(model, config.compute, self._stage.data, mesh)
        self._update = PolicyUpdate(start.model_def, rl, start.optimizer, start.shardings)
        self._place = BatchPlacement(self._stage.data, config.compute.rules, mesh)
        self._same_kernels = "decoder" in state.frozen
        self._engine = Engine(
            model,
            start.model_def.with_lora(policy_parameters(state)),
            tokenizer,
            compute=config.compute,
            slots=round_up_slots(rl.rollout.slots, config.compute.rules, writing),
            slot_tokens=min(self._stage.data.seq_len, model.decoder.max_positions),
            cache_dtype=rl.rollout.cache_dtype or None,
            mesh=writing,
        )

    def generate_rollouts(
        self, state: TrainState, step: int
    ) -> tuple[list[Rollout], list[Reward], dict[str, float]]:
        """The rollouts of a step, those of a prompt side by side, their rewards, and how long each took.

        Raises:
            DataError: a record cannot be used.
            JudgeError: the judge abstained too often.
        """
        rollout = self._stage.rl.rollout
        began, encoded = time.perf_counter(), self._audio.num_encoded
        parameters = self._definition.with_lora(policy_parameters(state))
        asked = self._stream.examples_at(step - 1, rollout.num_prompts)
        records, prompts = [one.record for one in asked], [one.prompt for one in asked]
        self._features = self._audio.encode(parameters, prompts)
        prompts = self._audio.embed(parameters, prompts, self._features)
        heard = time.perf_counter()
        self._engine.set_parameters(parameters, lora_only=self._same_kernels)
        del parameters
        written: dict[int, Rollout] = {}
        seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
        for number, one in generate_rollouts(
            self._engine, prompts, records, rollout, self._tokenizer, seed
        ):
            written[number] = one
            self._rewards.prefetch(one)
        rollouts = [written[number] for number in sorted(written)]
        ended = time.perf_counter()
        rewards = self._rewards(rollouts)
        judged = time.perf_counter()
        seconds = {
            "seconds/encode_audio": heard - began,
            "seconds/rollout": ended - heard,
            "seconds/reward": judged - ended,
        }
        counts = {
            "audio_chunks_encoded": self._audio.num_encoded - encoded,
            "skipped_records": sum(one.skipped for one in asked),
        }
        return rollouts, rewards, seconds | {name: float(count) for name, count in counts.items()}

    def close(self) -> None:
        """Lets the judge go."""
        self._rewards.close()

    def update(
        self,
        state: TrainState,
        rollouts: Sequence[Rollout],
        rewards: Sequence[Reward],
        controller: KLController,
    ) -> tuple[TrainState, dict[str, float]]:
        """The updates of a step, and their metrics; the given state is used up."""
        policy, began = self._stage.rl.policy, time.perf_counter()
        moved = num_optimizer_updates(state) > 0  # else the policy still is the reference
        described = rollout_metrics(
            rollouts, rewards, self._tokenizer
        )  # before the state is used up: what fails here is saved
        size = (
            self._stage.rl.rollout.num_prompts
            // policy.minibatches
            * self._stage.rl.rollout.num_generations
        )
        starts = range(0, len(rollouts), size)
        minibatches = [
            self._compute_logprobs(state, rollouts, slice(first, first + size), moved)
            for first in starts
        ]
        passed = PolicyLogprobs(
            *(
                list(itertools.chain.from_iterable(found))
                for found in zip(*map(_lists, minibatches), strict=True)
            )
        )
        found = compute_advantages(rollouts, rewards, passed, policy, beta=controller.coefficient)
        learning = [self._policy_targets(rollouts, minibatch, found) for minibatch in minibatches]
        ready = time.perf_counter()
        updates, changed = (
            [],
            PolicyChanged(since_rollout=np.bool_(False), since_stage_start=np.bool_(moved)),
        )
        for _, (number, minibatch) in itertools.product(
            range(policy.epochs), enumerate(minibatches)
        ):
            parts = list(zip(minibatch.batches, learning[number], strict=True))
            state, sums, logprobs = self._update(
                state, parts, beta=controller.coefficient, changed=changed
            )
            updates.append(sums)
            if not (sums["skipped_steps"] or sums["zero_gradient_steps"]):
                changed = PolicyChanged(
                    since_rollout=np.bool_(True), since_stage_start=np.bool_(True)
                )
        if not policy.recomputes_old_logprobs:  # the only update has passed over the rollouts
            old = minibatches[0].layout.gather(logprobs)
            passed = PolicyLogprobs(
                old,
                passed.reference_logprobs if moved and needs_reference_params(self._stage) else old,
                passed.values,
            )
        metrics = {name: float(np.mean([sums[name] for sums in updates])) for name in updates[0]}
        metrics |= described | logprob_metrics(rollouts, passed, found)
        if not needs_reference_params(self._stage):
            metrics = {
                name: value
                for name, value in metrics.items()
                if name.partition("/")[0] != "reply_kl"
            }
        metrics |= {"valid_rollouts": float(found.valid.mean()), "kl_coef": controller.coefficient}
        if (
            needs_reference_params(self._stage) and changed.since_rollout
        ):  # a step that changed nothing leaves beta as well
            controller.update(metrics["reply_kl"], len(rollouts))
        return state, metrics | {
            "seconds/logprobs": ready - began,
            "seconds/update": time.perf_counter() - ready,
        }

    def _compute_logprobs(
        self, state: TrainState, rollouts: Sequence[Rollout], indices: slice, moved: bool
    ) -> _Minibatch:
        """Puts the rollouts of one update in rows, with what policy and reference say of them (0 where the update says it).

        `moved` is whether the policy has changed since the stage began.
        """
        layout = PackedRollouts(rollouts[indices], self._stage.data, shared=self._shared)
        whole = layout.batch(self._features, self._tokenizer.special.pad)
        batches, rows = [], []
        for batch in self._on_mesh(whole):
            old = values = np.zeros(batch.tokens.shape, np.float32)
            if self._stage.rl.policy.recomputes_old_logprobs:
                old, values = self._update.statistics(policy_parameters(state), batch)
            reference = old
            if needs_reference_params(self._stage) and moved:
                reference, _ = self._update.statistics(reference_parameters(state), batch)
            batches.append(batch)
            rows.append([np.asarray(array) for array in (old, reference, values)])
        passed = PolicyLogprobs(
            *(layout.gather(np.concatenate(parts)) for parts in zip(*rows, strict=True))
        )
        return _Minibatch(indices, layout, batches, passed)

    def _policy_targets(
        self, rollouts: Sequence[Rollout], minibatch: _Minibatch, found: Advantages
    ) -> list[PolicyTargets]:
        """What is learnt from each of a minibatch's batches."""
        own = rollouts[minibatch.indices]
        whole = PolicyTargets(
            weights=minibatch.layout.scatter(
                compute_loss_weights(own, found.valid[minibatch.indices], self._stage.rl.policy)
            ),
            advantages=minibatch.layout.scatter(found.advantages[minibatch.indices]),
            old_logprobs=minibatch.layout.scatter(minibatch.passed.old_logprobs),
            sampler_logprobs=minibatch.layout.scatter(
                [rollout.sampler_logprobs for rollout in own]
            ),
            reference_logprobs=minibatch.layout.scatter(minibatch.passed.reference_logprobs),
            returns=minibatch.layout.scatter(found.returns[minibatch.indices]),
            old_values=minibatch.layout.scatter(minibatch.passed.values),
        )
        return self._on_mesh(whole)

    def _on_mesh(self, whole: Any) -> list[Any]:
        """A tree of host arrays [rows, ..] as trees of `data.batch_size` rows each, on the mesh."""
        size = self._stage.data.batch_size
        starts = range(0, jax.tree.leaves(whole)[0].shape[0], size)
        own = np.array(self._place.local_rows)
        return [
            self._place(jax.tree.map(lambda array, at=start + own: array[at], whole))
            for start in starts
        ]


def make_judge(config: Config, stage: StageConfig) -> Judge | None:
    """The judge that a stage asks for, if any, on all devices if in this process; its answers are kept in the run folder."""
    asked = stage.rl.judge
    if asked.folder:
        mesh = decode_mesh(hub.read_model_config(asked.folder), slices=config.mesh.slices)
        loaded = load_model(asked.folder, config.compute.dtype, mesh=mesh, for_generation=True)
        model = ModelBackend(loaded, slots=asked.slots, max_tokens=asked.max_tokens)
        name: str = model.name
        ask: Any = model
    elif asked.url:
        endpoint = EndpointBackend(
            url=asked.url,
            model=asked.model,
            api_key_env=asked.api_key_env,
            max_tokens=asked.max_tokens,
            timeout_s=asked.timeout_s,
            retries=asked.retries,
        )
        name, ask = endpoint.name, endpoint.generate
    else:
        return None
    return Judge(
        name,
        ask,
        JudgePrompt(asked.prompt or None, levels=asked.preference_levels),
        together=bool(asked.folder),
        cache=pathlib.Path(config.run_dir) / f"judge_{stage.name}.jsonl",
        concurrency=asked.concurrency,
        max_abstention_rate=asked.max_abstention_rate,
    )


def _lists(minibatch: _Minibatch) -> tuple[Any, ...]:
    return (
        minibatch.passed.old_logprobs,
        minibatch.passed.reference_logprobs,
        minibatch.passed.values,
    )
