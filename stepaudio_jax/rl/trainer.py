"""A stage that learns from rewards: rollout, reward, advantage, update, again and again."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from stepaudio_jax import hub
from stepaudio_jax.config import ModelConfig, StageConfig, to_dict
from stepaudio_jax.data import Record, check_sizes
from stepaudio_jax.data.checking import DataChecker
from stepaudio_jax.errors import ConfigError, DataError, DivergedError, JudgeError
from stepaudio_jax.generation import Engine
from stepaudio_jax.generation.shardings import decode_mesh, round_up_slots
from stepaudio_jax.judge.backends import read_api_key
from stepaudio_jax.judge.judge import make_judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.models import supports_shared_prefix
from stepaudio_jax.parallel import BatchPlacement, all_gather_json
from stepaudio_jax.rl.advantages import (
    Advantages,
    PolicyLogprobs,
    compute_advantages,
    compute_loss_weights,
)
from stepaudio_jax.rl.losses import KLController
from stepaudio_jax.rl.metrics import SampleWriter, logprob_metrics, rollout_metrics
from stepaudio_jax.rl.packing import PackedRollouts, RolloutBatch
from stepaudio_jax.rl.policy_update import (
    PolicyChanged,
    PolicyTargets,
    PolicyUpdate,
)
from stepaudio_jax.rl.prompts import AudioFeatureCache, PromptStream
from stepaudio_jax.rl.rewards import Reward, RewardFunction
from stepaudio_jax.rl.rollouts import Rollout, generate_rollouts
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.monitoring import MetricsWriter, progress_bar
from stepaudio_jax.training.preemption import data_error
from stepaudio_jax.training.train_state import (
    AbstractTrainState,
    TrainState,
    init_train_state,
    num_optimizer_updates,
)
from stepaudio_jax.training.trainer import StageContext

# One step of a stage that learns from rewards: what is written and what it is worth, then what is learnt from it.


@dataclasses.dataclass(frozen=True)
class _Minibatch:
    """The rollouts of one update: which of the step's they are, and where they lie in rows."""

    indices: slice
    layout: PackedRollouts
    batches: list[RolloutBatch]  # on the mesh
    passed: PolicyLogprobs


class PolicyIteration:
    """A step's work, with what is kept from step to step: the engine, compiled programs, the judge."""

    def __init__(self, run: StageContext, start: AbstractTrainState, state: TrainState):
        config, model, tokenizer, mesh = run.config, run.model, run.tokenizer, run.mesh
        self._stage, self._tokenizer, self._definition = run.stage, tokenizer, start.model_def
        self._seed = config.seed + run.index
        self._shared = supports_shared_prefix(config.compute)
        objective = self._stage.policy_gradient
        writing = decode_mesh(model, tensor=objective.rollout.tensor, slices=config.mesh.slices)
        new_tokens = objective.rollout.max_new_tokens
        judge = make_judge(
            objective.judge,
            dtype=config.compute.dtype,
            slices=config.mesh.slices,
            cache=run.run_dir / f"judge_{self._stage.name}.jsonl",
        )
        self._rewards = RewardFunction(objective, judge)
        self._stream = PromptStream(
            self._stage.data,
            tokenizer,
            model,
            seed=self._seed,
            new_tokens=new_tokens,
            validate=self._rewards.check_record,
        )
        self._audio = AudioFeatureCache(model, config.compute, self._stage.data, mesh)
        self._update = PolicyUpdate(start.model_def, objective, start.optimizer, start.shardings)
        self._place = BatchPlacement(self._stage.data, config.compute.rules, mesh)
        self._same_kernels = "decoder" in state.frozen_params
        self._engine = Engine(
            model,
            start.model_def.params_with_lora(state),
            tokenizer,
            compute=config.compute,
            slots=round_up_slots(objective.rollout.slots, config.compute.rules, writing),
            slot_tokens=min(self._stage.data.seq_len, model.decoder.max_positions),
            cache_dtype=objective.rollout.cache_dtype,
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
        rollout = self._stage.policy_gradient.rollout
        began, encoded = time.perf_counter(), self._audio.num_encoded
        parameters = self._definition.params_with_lora(state)
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
        policy, began = self._stage.policy_gradient, time.perf_counter()
        moved = num_optimizer_updates(state) > 0  # else the policy still is the reference
        described = rollout_metrics(
            rollouts, rewards, self._tokenizer
        )  # before the state is used up: what fails here is saved
        size = (
            self._stage.policy_gradient.rollout.num_prompts
            // policy.minibatches
            * self._stage.policy_gradient.rollout.num_generations
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
        found = compute_advantages(
            rollouts, rewards, passed, policy, kl_coef=controller.coefficient
        )
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
                passed.reference_logprobs
                if moved and self._stage.policy_gradient.needs_reference_params
                else old,
                passed.values,
            )
        metrics = {name: float(np.mean([sums[name] for sums in updates])) for name in updates[0]}
        metrics |= described | logprob_metrics(rollouts, passed, found)
        if not self._stage.policy_gradient.needs_reference_params:
            metrics = {
                name: value
                for name, value in metrics.items()
                if name.partition("/")[0] != "reply_kl"
            }
        metrics |= {"valid_rollouts": float(found.valid.mean()), "kl_coef": controller.coefficient}
        if (
            self._stage.policy_gradient.needs_reference_params and changed.since_rollout
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
            if self._stage.policy_gradient.recomputes_old_logprobs:
                old, values = self._update.statistics(state, batch)
            reference = old
            if self._stage.policy_gradient.needs_reference_params and moved:
                reference, _ = self._update.statistics(state.with_reference_policy(), batch)
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
                compute_loss_weights(
                    own, found.valid[minibatch.indices], self._stage.policy_gradient
                )
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


def _lists(minibatch: _Minibatch) -> tuple[Any, ...]:
    return (
        minibatch.passed.old_logprobs,
        minibatch.passed.reference_logprobs,
        minibatch.passed.values,
    )


def train_policy(run: StageContext, parameters: ModelParams) -> ModelParams:
    """Trains a stage from its newest checkpoint, or from `parameters`, to its last step; returns its parameters.

    Raises:
        InterruptedRunError: SIGTERM or Ctrl-C came; everything is saved.
        DivergedError: too many updates in a row were not finite; the last state is saved.
        DataError: a record cannot be used, or a verifier fails.
        ConfigError: no reward is for a record's source.
        JudgeError: the judge abstained too often.

    Before these three and any other error, everything up to the last whole step is saved, with two
    exceptions. Of several processes one alone may have failed, and saving is the work of all: they
    save before a JudgeError, which all of them raise. And an update that failed once it had begun
    has used up the state before it: then the newest checkpoint is what there is.
    """
    config, stage, run_dir, start = run.config, run.stage, run.run_dir, run.abstract_train_state()
    checkpoints, policy = run.open_checkpoints(), stage.policy_gradient
    # Asked before the first step too, so that a notice until then counts for that step.
    run.should_stop(checkpoints.latest_step or 0)
    controller = KLController(policy.kl_coef, policy.kl_target, policy.kl_horizon)
    with contextlib.closing(checkpoints):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(start.abstract)
            controller.restore(data_state["kl_coef"])
        else:
            state = init_train_state(config, run.index, run.model, start, parameters)
        parameters.clear()  # the state holds them now
        done = int(state.step)
        run.should_stop(done)
        iteration = PolicyIteration(run, start, state)
        writer = MetricsWriter(run_dir, stage=stage.name, resume_step=done)
        samples = SampleWriter(run_dir, stage=stage.name, resume_step=done)
        with (
            contextlib.closing(iteration),
            contextlib.closing(writer),
            progress_bar(stage.name, stage.steps, done) as bar,
        ):

            def save() -> None:
                checkpoints.save(state, {"kl_coef": controller.coefficient}, {})

            @contextlib.contextmanager
            def save_on_error() -> Iterator[None]:
                try:
                    yield
                except Exception as error:
                    saved_step = checkpoints.latest_step
                    together = jax.process_count() == 1 or isinstance(error, JudgeError)
                    if together and not _is_donated(state):
                        save()
                        saved_step = int(state.step)
                    if isinstance(error, DataError):
                        data = None if error.kind == "reward" else stage.data
                        raise data_error(error, stage.name, saved_step, data) from error
                    raise

            for step in range(done + 1, stage.steps + 1):
                with save_on_error():
                    rollouts, rewards, seconds = iteration.generate_rollouts(state, step)
                if run.should_stop(step, within_step=True):  # replies are drawn again, the same
                    save()
                    raise run.notice.interrupted_error(stage.name, step - 1)
                with save_on_error():
                    state, metrics = iteration.update(state, rollouts, rewards, controller)
                metrics |= seconds
                state = dataclasses.replace(state, step=state.step + 1)
                bar.update()
                bar.set_postfix(
                    {
                        name: f"{metrics[name]:.3f}"
                        for name in ("reward", "reply_tokens")
                        if name in metrics
                    }
                )
                with save_on_error():
                    writer.write(step, metrics)
                    samples.write(step, rollouts, rewards)
                stopping = run.should_stop(step)
                diverged = int(state.consecutive_skips) > config.max_consecutive_skips
                every = config.checkpoint.every_steps
                if stopping or diverged or step == stage.steps or (every > 0 and step % every == 0):
                    save()
                if diverged:
                    raise DivergedError(
                        f"stage {stage.name!r}, step {step}: the last {int(state.consecutive_skips)} updates were not finite"
                    )
                if stopping and step < stage.steps:
                    raise run.notice.interrupted_error(stage.name, step)
    run.warn_if_unchanged(state)
    return start.model_def.params_after_stage(state, stage.name)


def _is_donated(state: TrainState) -> bool:
    """Returns whether an update has taken the state's arrays for its own."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def check_policy_stage(
    stage: StageConfig, tokenizer: Tokenizer, model: ModelConfig, data_check: DataChecker
) -> None:
    """Checks a stage's data, its rewards and its judge.

    Raises:
        DataError, ConfigError: naming file and line, or the key.
        CheckpointError: the judge's folder holds no model.
    """
    check_sizes(stage.data, tokenizer, model)
    try:
        rewards = RewardFunction(stage.policy_gradient, None)
        JudgePrompt(
            stage.policy_gradient.judge.prompt, levels=stage.policy_gradient.judge.preference_levels
        )
    except ValueError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from None
    judge = stage.policy_gradient.judge
    if judge.folder:
        hub.read_model_config(judge.folder)
    if judge.url and judge.api_key_env and jax.process_index() == 0:  # it alone asks
        read_api_key(judge.api_key_env)
    stream = PromptStream(
        stage.data,
        tokenizer,
        model,
        seed=0,
        new_tokens=stage.policy_gradient.rollout.max_new_tokens,
        validate=rewards.check_record,
    )
    names: set[str] = set()  # that records give as their source

    def check(record: Record, *, decode: bool) -> None:
        names.add(record.source)
        stream.check(record, decode=decode)

    settings = {
        "rewards": to_dict(stage.policy_gradient.rewards),
        "new_tokens": stage.policy_gradient.rollout.max_new_tokens,
    }
    checked = data_check(f"stage {stage.name!r}", stream.sources, stage.data, check, settings)
    if checked and stage.data.check == "all":
        names.update(*all_gather_json(sorted(names)))
        missing = sorted(
            {name for reward in stage.policy_gradient.rewards for name in reward.sources} - names
        )
        if missing:
            raise ConfigError(
                f"stage {stage.name!r}: objective.rewards names the sources {', '.join(missing)}, and no record has "
                f"them; those of the records are {', '.join(sorted(names))}"
            )


class PolicyTrainer:
    """Trains a stage by policy gradients (a `StageTrainer`).

    Args:
        context: of the stage.
    """

    def __init__(self, context: StageContext):
        self._context = context

    def check_data(self, checker: DataChecker) -> None:
        """Checks the stage's data, its rewards and its judge; see `check_policy_stage`."""
        context = self._context
        check_policy_stage(context.stage, context.tokenizer, context.model, checker)

    def run(self, params: ModelParams) -> ModelParams:
        """Trains to the stage's last step, and returns the parameters then; see `train_policy`."""
        return train_policy(self._context, params)
