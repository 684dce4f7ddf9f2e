"""Trains a stage by policy gradients, in the order of the algorithm.

prompts -> audio features -> rollouts -> rewards -> packed rows -> log-probabilities -> advantages
-> updates: `PolicyIteration` is one step of it, `PolicyTrainer` the loop with its checkpoints.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.data.checking import DataChecker
from stepaudio_jax.data.clips import open_clip_cache
from stepaudio_jax.errors import (
    DataError,
    DivergedError,
    EndpointError,
    InterruptedRunError,
    JudgeError,
    SimulatedUserError,
)
from stepaudio_jax.generation import Engine
from stepaudio_jax.generation.shardings import decode_mesh, round_up_slots
from stepaudio_jax.judge.clips import ClipReader
from stepaudio_jax.judge.judge import make_judge
from stepaudio_jax.models import Parameters, supports_shared_prefix
from stepaudio_jax.parallel import BatchPlacement
from stepaudio_jax.rl.advantages import (
    PolicyLogprobs,
    TokenValues,
    compute_advantages,
    prompts_in_range,
)
from stepaudio_jax.rl.audio_features import AudioFeatureEncoder, AudioFeatures
from stepaudio_jax.rl.data_check import check_policy_data, record_check
from stepaudio_jax.rl.dialogues import DialogueGenerator
from stepaudio_jax.rl.losses import KLController
from stepaudio_jax.rl.metrics import (
    PhaseTimer,
    SampleWriter,
    dialogue_metrics,
    logprob_metrics,
    mean_of_steps,
    rollout_metrics,
)
from stepaudio_jax.rl.packing import Minibatch, PackedRollouts, RolloutBatch
from stepaudio_jax.rl.policy_update import PolicyTargets, PolicyUpdate, make_targets
from stepaudio_jax.rl.prompts import PromptExample, PromptStream
from stepaudio_jax.rl.refills import DrawnRollouts, replace_prompts
from stepaudio_jax.rl.rewards import Reward, RewardFunction
from stepaudio_jax.rl.rollouts import Rollout, generate_rollouts
from stepaudio_jax.rl.simulated_user import make_simulated_user
from stepaudio_jax.rl.teacher import TeacherScorer
from stepaudio_jax.training.initial_weights import ModelParams
from stepaudio_jax.training.monitoring import MetricsWriter, progress_bar, write_diagnosis
from stepaudio_jax.training.preemption import data_error
from stepaudio_jax.training.stage_context import StageContext
from stepaudio_jax.training.train_state import (
    AbstractTrainState,
    TrainState,
    init_train_state,
    num_optimizer_updates,
)

_REFILL_SEED = 0x5EED  # added to the seed for the order of prompts in place of others
_BAR_METRICS = ("reward", "reply_tokens")
# Metrics that are 1 for an update that changed nothing -> the name of their sum over a step, which
# may have several updates.
_UPDATE_COUNTS = {
    "skipped_steps": "skipped_updates",
    "zero_gradient_steps": "zero_gradient_updates",
}


class PolicyTrainer:
    """Trains a stage by policy gradients (a `StageTrainer`).

    Args:
        context: the stage, and what the run gives it.
    """

    def __init__(self, context: StageContext):
        self._context = context

    def check_data(self, checker: DataChecker) -> None:
        """Checks the stage's data, rewards and judge; see `check_policy_data`."""
        check_policy_data(self._context, checker)

    def run(self, params: ModelParams) -> ModelParams:
        """Trains to the stage's last step, and returns the parameters then; see `StageTrainer`.

        Before any error the last whole step is saved, with two exceptions. A run of several
        processes can only be saved by all together, so it is saved before the errors that all of
        them raise, JudgeError, SimulatedUserError, EndpointError and InterruptedRunError. And an
        update that fails after it began has already consumed the state before it: the newest
        checkpoint remains.

        Raises:
            InterruptedRunError: SIGTERM or Ctrl-C came; everything is saved.
            DivergedError: too many updates in a row were not finite; the last state and the
                diagnosis are saved.
            DataError: a record cannot be used, or a verifier fails.
            ConfigError: no reward is for a record's source.
            JudgeError: the judge abstained too often.
            SimulatedUserError: the simulated user failed too often.
            EndpointError: the teacher's server does not answer.
        """
        context, stage = self._context, self._context.stage
        config, objective = context.config, stage.policy_gradient
        start = context.abstract_train_state()
        controller = KLController(objective.kl_coef, objective.kl_target, objective.kl_horizon)
        checkpoints = context.open_checkpoints()
        # Asked before the first step too, so that a notice until then counts for that step.
        context.should_stop(checkpoints.latest_step or 0)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(checkpoints))
            if checkpoints.latest_step is not None:
                state, data_state = checkpoints.restore(start.abstract)
                controller.restore(data_state["kl_coef"])
            else:
                state = init_train_state(config, context.index, context.model, start, params)
            params.clear()  # the state holds them now
            steps_done = int(state.step)
            context.should_stop(steps_done)

            iteration = PolicyIteration(context, start, state)
            writer = MetricsWriter(context.run_dir, stage=stage.name, resume_step=steps_done)
            samples = SampleWriter(
                context.run_dir,
                stage=stage.name,
                resume_step=steps_done,
                has_dialogues=objective.rollout.simulated_user.enabled,
            )
            stack.enter_context(contextlib.closing(iteration))
            stack.enter_context(contextlib.closing(writer))
            profile = stack.enter_context(contextlib.closing(context.open_profile()))
            bar = stack.enter_context(progress_bar(stage.name, stage.steps, steps_done))
            refresh_reference = jax.jit(
                TrainState.with_refreshed_reference, out_shardings=start.shardings
            )
            unlogged: list[dict[str, float]] = []  # metrics of each step since the last line
            # Of the steps in which the run may have begun to diverge.
            recent = collections.deque[dict[str, float]](maxlen=config.max_consecutive_skips + 1)

            def write_metrics(step: int) -> None:
                if unlogged:
                    metrics = mean_of_steps(unlogged)
                    unlogged.clear()
                    writer.write(step, metrics)

            def save() -> None:
                metrics = recent[-1] if recent else {}
                checkpoints.save(state, {"kl_coef": controller.coefficient}, metrics)

            @contextlib.contextmanager
            def save_on_error() -> Iterator[None]:
                try:
                    yield
                except Exception as error:
                    saved_step = checkpoints.latest_step
                    raised_by_all = isinstance(
                        error,
                        JudgeError | SimulatedUserError | EndpointError | InterruptedRunError,
                    )
                    if (jax.process_count() == 1 or raised_by_all) and not _is_donated(state):
                        save()
                        saved_step = int(state.step)
                        write_metrics(saved_step)
                    if isinstance(error, DataError):
                        data = None if error.kind == "reward" else stage.data
                        raise data_error(error, stage.name, saved_step, data) from error
                    raise

            # A run that was told to stop skipped the benchmarks of its last step.
            due = context.task_metrics(steps_done) if steps_done else []
            if any(writer.is_missing(steps_done, metric) for metric in due):
                scores = context.evaluate_tasks(state, start.model_def, steps_done)
                writer.add_to_step(steps_done, scores)

            for step in range(steps_done + 1, stage.steps + 1):
                with save_on_error():
                    check = functools.partial(self._raise_if_interrupted, step)
                    profile.before(context.steps_before_stage + step)
                    result = iteration(state, step, controller, check)
                state = dataclasses.replace(result.state, step=result.state.step + 1)
                refresh_steps = objective.reference_refresh_steps
                if refresh_steps and step % refresh_steps == 0:
                    state = refresh_reference(state)
                stopping = context.should_stop(step)
                preempted = stopping and step < stage.steps
                if not preempted:
                    with save_on_error():
                        scores = context.evaluate_tasks(state, start.model_def, step)
                        result.metrics.update(scores)
                unlogged.append(result.metrics)
                recent.append(result.metrics)
                skips = int(state.consecutive_skips)
                diverged = skips > config.max_consecutive_skips
                is_last = stopping or diverged or step == stage.steps
                with save_on_error():
                    profile.after(context.steps_before_stage + step, state)
                    if is_last or context.is_log_due(step):
                        write_metrics(step)
                    samples.write(step, result.rollouts, result.rewards)
                bar.update()
                shown = {
                    name: result.metrics[name] for name in _BAR_METRICS if name in result.metrics
                }
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})

                if is_last or context.is_checkpoint_due(step):
                    save()
                if diverged:
                    folder = write_diagnosis(
                        context.run_dir,
                        stage.name,
                        step,
                        list(recent),
                        {"batches": result.batches, "targets": result.targets},
                        {"kl_coef": controller.coefficient},
                    )
                    raise DivergedError(
                        f"stage {stage.name!r}, step {step}: loss or gradient were not finite for "
                        f"the last {skips} updates; see {folder}"
                    )
                if preempted:
                    raise context.notice.interrupted_error(stage.name, step)
                del result  # its batches would stay on the devices during the next rollouts
        context.warn_if_unchanged(state)
        return start.model_def.params_after_stage(state, stage.name)

    def _raise_if_interrupted(self, step: int) -> None:
        if self._context.should_stop(step, within_step=True):
            raise self._context.notice.interrupted_error(self._context.stage.name, step - 1)


@dataclasses.dataclass(frozen=True)
class IterationResult:
    """The outcome of one iteration.

    Attributes:
        state: after the updates; its `step` is that before them, since updates are not steps.
        metrics: means over the step, and seconds of each phase.
        rollouts, rewards: the step's rollouts, and the reward of each.
        batches, targets: what the updates were computed from, on the mesh.
    """

    state: TrainState
    metrics: dict[str, float]
    rollouts: list[Rollout]
    rewards: list[Reward]
    batches: list[RolloutBatch]
    targets: list[PolicyTargets]


@dataclasses.dataclass(frozen=True)
class UpdateResult:
    """The outcome of a step's updates.

    Attributes:
        state: after them, with the same `step`.
        metrics: means over the updates, and how many of them changed nothing.
        changed: whether any of them changed a parameter.
        logprobs: [rows,T] fp32, of the last minibatch before its last update.
    """

    state: TrainState
    metrics: dict[str, float]
    changed: bool
    logprobs: NDArray[np.float32]


class PolicyIteration:
    """One RL iteration: generate rollouts, score them, compute advantages, update the policy.

    It keeps what lives from step to step: the engine, the compiled programs, the judge.

    Args:
        context: the stage, and what the run gives it.
        start: its abstract train state.
        state: the policy that the engine is built for.
    """

    def __init__(self, context: StageContext, start: AbstractTrainState, state: TrainState):
        config, stage, model = context.config, context.stage, context.model
        self._data, self._objective = stage.data, stage.policy_gradient
        self._tokenizer, self._model_def = context.tokenizer, start.model_def
        self._seed = config.seed + context.index
        self._shares_prompts = supports_shared_prefix(config.compute)
        rollout = self._objective.rollout
        judge = make_judge(
            self._objective.judge,
            dtype=config.compute.dtype,
            slices=config.mesh.slices,
            cache=context.run_dir / f"judge_{stage.name}.jsonl",
            clips=ClipReader(
                channel=self._data.channel,
                allow_urls=self._data.allow_urls,
                clip_cache=open_clip_cache(self._data),
            ),
        )
        self._judge = judge
        self._judge_shares_features = judge is not None and judge.share_audio_encoder(
            model, config.compute, start.model_def.params_with_lora(state)
        )
        self._compute_rewards = RewardFunction(self._objective, judge)
        self._user = make_simulated_user(
            rollout.simulated_user,
            dtype=config.compute.dtype,
            slices=config.mesh.slices,
            cache=context.run_dir / f"user_{stage.name}.jsonl",
        )
        open_prompts = functools.partial(
            PromptStream,
            self._data,
            self._tokenizer,
            model,
            new_tokens=rollout.max_new_tokens,
            validate=record_check(self._compute_rewards, context),
        )
        self._prompts = open_prompts(seed=self._seed)
        # Those in place of others come in an order of their own.
        self._refills = self._prompts
        if self._objective.max_refills:
            self._refills = open_prompts(seed=self._seed + _REFILL_SEED)
        self._dialogues: DialogueGenerator | None = None
        if self._user is not None:
            self._dialogues = DialogueGenerator(
                rollout,
                self._user,
                self._tokenizer,
                convention=model.length_convention,
                channel=self._data.channel,
                history_reasoning=self._data.history_reasoning,
                check_fits=self._prompts.check_fits,
            )
        self._encode_audio = AudioFeatureEncoder(model, config.compute, self._data, context.mesh)
        self._update = PolicyUpdate(
            start.model_def, self._objective, start.optimizer, start.shardings
        )
        self._place = BatchPlacement(self._data, config.compute.rules, context.mesh)
        self._teacher: TeacherScorer | None = None
        if self._objective.has_teacher:
            self._teacher = TeacherScorer(
                context, self._on_mesh, shares_prompts=self._shares_prompts
            )
        self._is_decoder_frozen = "decoder" in state.frozen_params
        mesh = decode_mesh(model, tensor=rollout.tensor, slices=config.mesh.slices)
        self._engine = Engine(
            model,
            start.model_def.params_with_lora(state),
            self._tokenizer,
            compute=config.compute,
            slots=round_up_slots(rollout.slots, config.compute.rules, mesh),
            slot_tokens=min(self._data.seq_len, model.decoder.max_positions),
            cache_dtype=rollout.cache_dtype,
            mesh=mesh,
        )

    def __call__(
        self,
        state: TrainState,
        step: int,
        controller: KLController,
        raise_if_interrupted: Callable[[], None] = lambda: None,
    ) -> IterationResult:
        """Runs one iteration; donates the state once the updates begin.

        Args:
            state: the policy's train state.
            step: from 1; the same step draws the same prompts and replies.
            controller: holds the KL coefficient, and adapts it.
            raise_if_interrupted: called after the rollouts, which a resumed run draws again.

        Raises:
            DataError: a record cannot be used, or a verifier fails.
            JudgeError: the judge abstained too often.
        """
        timer = PhaseTimer()
        num_encoded = self._encode_audio.num_encoded
        params = self._model_def.params_with_lora(state)
        drawn = self._draw(params, self._prompts, step - 1, step, timer)
        # Before the state is donated, so that a run can still be saved if this fails.
        metrics = rollout_metrics(drawn.rollouts, drawn.rewards, self._tokenizer)
        if self._dialogues is not None:
            metrics |= dialogue_metrics(drawn.rollouts, self._tokenizer)
        for refill in range(self._objective.max_refills):
            outside = np.flatnonzero(
                ~prompts_in_range(drawn.rollouts, drawn.rewards, self._objective)
            )
            if not outside.size:
                break
            index = (step - 1) * self._objective.max_refills + refill
            others = self._draw(
                params, self._refills, index, step, timer, refill=refill + 1, count=outside.size
            )
            drawn = replace_prompts(drawn, outside, others)
            metrics["refilled_prompts"] = metrics.get("refilled_prompts", 0.0) + outside.size
        del params
        examples, features = drawn.examples, drawn.features
        rollouts, rewards = drawn.rollouts, drawn.rewards
        raise_if_interrupted()

        refresh_steps = self._objective.reference_refresh_steps
        is_refreshed = refresh_steps > 0 and (step - 1) % refresh_steps == 0
        is_reference = num_optimizer_updates(state) == 0 or is_refreshed
        policy_is_reference = is_reference and self._teacher is None
        with timer.phase("logprobs"):
            minibatches = self.pack(rollouts, features)
            logprobs = self.compute_logprobs(state, minibatches, policy_is_reference)
            if self._teacher is not None:
                prompts = [example.prompt for example in examples]
                # They stand for the reference policy's.
                by_teacher = self._teacher(rollouts, minibatches, prompts)
                logprobs = dataclasses.replace(logprobs, reference_logprobs=by_teacher)
            advantages = compute_advantages(
                rollouts, rewards, logprobs, self._objective, kl_coef=controller.coefficient
            )
            targets = [
                self._on_mesh(
                    make_targets(minibatch, rollouts, logprobs, advantages, self._objective)
                )
                for minibatch in minibatches
            ]
        with timer.phase("update"):
            update = self.update(
                state,
                minibatches,
                targets,
                kl_coef=controller.coefficient,
                policy_is_reference=policy_is_reference,
            )
            if not self._objective.recomputes_old_logprobs:  # the only update has computed them
                old_logprobs = minibatches[0].packed.gather(update.logprobs)
                logprobs = dataclasses.replace(logprobs, old_logprobs=old_logprobs)
                if policy_is_reference and self._objective.needs_reference_params:
                    logprobs = dataclasses.replace(logprobs, reference_logprobs=old_logprobs)
            metrics = update.metrics | metrics | logprob_metrics(rollouts, logprobs, advantages)
        metrics |= {
            "valid_rollouts": float(advantages.valid.mean()),
            "kl_coef": controller.coefficient,
            "audio_chunks_encoded": float(self._encode_audio.num_encoded - num_encoded),
            "skipped_records": float(sum(example.skipped for example in examples)),
        }
        if "reply_kl" in metrics and update.changed:
            controller.update(metrics["reply_kl"], len(rollouts))
        return IterationResult(
            update.state,
            metrics | timer.seconds,
            rollouts,
            rewards,
            [batch for minibatch in minibatches for batch in minibatch.batches],
            list(itertools.chain.from_iterable(targets)),
        )

    def close(self) -> None:
        """Cancels the waiting questions to the judge and to the simulated user."""
        self._compute_rewards.close()
        if self._user is not None:
            self._user.close()

    def _draw(
        self,
        params: Parameters,
        prompts: PromptStream,
        index: int,
        step: int,
        timer: PhaseTimer,
        *,
        refill: int = 0,
        count: int | None = None,
    ) -> DrawnRollouts:
        """Draws prompts, generates their rollouts and computes the rewards.

        Args:
            params: the policy's parameters.
            prompts: where to draw from.
            index: of a step's prompts in the stream.
            step: of the stage; decides the draws, together with `refill`.
            timer: of the step.
            refill: number of the draw in place of other prompts; 0 for the step's own.
            count: number of prompts; None for the step's.
        """
        with timer.phase("encode_audio"):
            examples = prompts.examples_at(index, self._objective.rollout.num_prompts)[:count]
            features = self._encode_audio(params, [example.prompt for example in examples])
        with timer.phase("rollout"):
            rollouts = self.generate_rollouts(params, examples, features, step, refill=refill)
        with timer.phase("reward"):
            if self._judge is not None and self._judge_shares_features:
                spoken = [turn for rollout in rollouts for turn in rollout.user_turns]
                of_users = AudioFeatures(
                    [turn.features for turn in spoken], [turn.sound for turn in spoken]
                )
                self._judge.set_audio_features(features.by_chunk | of_users.by_chunk)
            rewards = self._compute_rewards(rollouts)
            if self._judge is not None:
                self._judge.set_audio_features({})  # they are large, and used once
        return DrawnRollouts(examples, features, rollouts, rewards)

    def generate_rollouts(
        self,
        params: Parameters,
        examples: Sequence[PromptExample],
        features: AudioFeatures,
        step: int,
        *,
        refill: int = 0,
    ) -> list[Rollout]:
        """Generates the rollouts of a step, those of a prompt together.

        The judge begins with each as soon as it ends.

        Raises:
            SimulatedUserError: the user failed in too many dialogues, or cannot be asked.

        Args:
            params: the policy's parameters.
            examples: the step's prompts.
            features: audio features of their prompts.
            step, refill: decide the draws, together with the seed.
        """
        self._engine.set_parameters(params, lora_only=self._is_decoder_frozen)
        entropy = [self._seed, step, *([refill] if refill else [])]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        records = [example.record for example in examples]
        rollouts: dict[int, Rollout] = {}
        if self._dialogues is None:
            generated = generate_rollouts(
                self._engine,
                features.prompts,
                records,
                self._objective.rollout,
                self._tokenizer,
                seed,
            )
        else:
            encode_audio = functools.partial(self._encode_audio, params)
            generated = self._dialogues(self._engine, features.prompts, records, seed, encode_audio)
        for index, rollout in generated:
            rollouts[index] = rollout
            self._compute_rewards.prefetch(rollout)
        return [rollouts[index] for index in sorted(rollouts)]

    def pack(self, rollouts: Sequence[Rollout], features: AudioFeatures) -> list[Minibatch]:
        """Packs the rollouts of each update into rows; an update has whole prompts."""
        rollout = self._objective.rollout
        prompts_per_minibatch = rollout.num_prompts // self._objective.minibatches
        size = prompts_per_minibatch * rollout.num_generations
        minibatches = []
        for start in range(0, len(rollouts), size):
            indices = slice(start, start + size)
            packed = PackedRollouts(rollouts[indices], self._data, shared=self._shares_prompts)
            rows = packed.batch(features.by_prompt, self._tokenizer.special.pad)
            minibatches.append(Minibatch(indices, packed, self._on_mesh(rows)))
        return minibatches

    def compute_logprobs(
        self, state: TrainState, minibatches: Sequence[Minibatch], policy_is_reference: bool
    ) -> PolicyLogprobs:
        """Computes the log-probabilities that the advantages and the updates need beforehand."""
        of_rollouts: tuple[TokenValues, TokenValues, TokenValues] = [], [], []
        for minibatch in minibatches:
            evaluated = self._update.evaluate(
                state, minibatch.batches, policy_is_reference=policy_is_reference
            )
            for values, rows in zip(of_rollouts, evaluated, strict=True):
                if rows is not None:
                    values.extend(minibatch.packed.gather(rows))
        old_logprobs, reference_logprobs, values = of_rollouts
        return PolicyLogprobs(old_logprobs or None, reference_logprobs or None, values)

    def update(
        self,
        state: TrainState,
        minibatches: Sequence[Minibatch],
        targets: Sequence[list[PolicyTargets]],
        *,
        kl_coef: float,
        policy_is_reference: bool,
    ) -> UpdateResult:
        """Makes the updates of a step, `epochs` over all minibatches; donates the state."""
        is_on_policy, updates = True, []
        for _, (minibatch, batch_targets) in itertools.product(
            range(self._objective.epochs), list(zip(minibatches, targets, strict=True))
        ):
            state, metrics, logprobs = self._update(
                state,
                minibatch.batches,
                batch_targets,
                kl_coef=kl_coef,
                is_on_policy=is_on_policy,
                policy_is_reference=policy_is_reference,
            )
            updates.append(metrics)
            if not (metrics["skipped_steps"] or metrics["zero_gradient_steps"]):
                is_on_policy = policy_is_reference = False
        means = {
            name: float(np.mean([metrics[name] for metrics in updates]))
            for name in metrics
            if name not in _UPDATE_COUNTS
        }
        counts = {
            count: float(sum(metrics[name] for metrics in updates))
            for name, count in _UPDATE_COUNTS.items()
        }
        return UpdateResult(state, means | counts, not is_on_policy, logprobs)

    def _on_mesh(self, rows: Any) -> list[Any]:
        """Cuts host arrays [rows, ..] into batches of `data.batch_size` rows on the mesh."""
        num_rows = jax.tree.leaves(rows)[0].shape[0]
        local_rows = np.array(self._place.local_rows)
        return [
            self._place(jax.tree.map(lambda array, at=start + local_rows: array[at], rows))
            for start in range(0, num_rows, self._data.batch_size)
        ]


def _is_donated(state: TrainState) -> bool:
    """Returns whether an update has consumed the state's arrays."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
