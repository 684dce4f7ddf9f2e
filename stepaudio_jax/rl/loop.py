"""A stage that learns from rewards: rollout, reward, advantage, update, again and again."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from stepaudio_jax.config import Config, ConfigError, ModelConfig, StageConfig
from stepaudio_jax.generation import Engine, load_model, require_fit
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import BatchPlacement
from stepaudio_jax.rl.endpoint import Endpoint
from stepaudio_jax.rl.hearing import Hearing
from stepaudio_jax.rl.judge import Judge, JudgeError
from stepaudio_jax.rl.judge_prompt import JudgePrompt
from stepaudio_jax.rl.layout import Layout, RolloutBatch
from stepaudio_jax.rl.learning import advantages, loss_weights
from stepaudio_jax.rl.model_judge import ModelJudge
from stepaudio_jax.rl.objective import KLController
from stepaudio_jax.rl.prompts import PromptStream
from stepaudio_jax.rl.rewards import Reward, Rewards
from stepaudio_jax.rl.rollouts import Rollout, roll_out
from stepaudio_jax.rl.update import Learning, PolicyUpdate, policy_parameters, reference_parameters
from stepaudio_jax.rl.watch import SampleWriter, rollout_figures
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.checkpoints import StageCheckpoints
from stepaudio_jax.training.loop import StageKind
from stepaudio_jax.training.metrics import MetricsWriter, progress_bar
from stepaudio_jax.training.start import describe_stage, keeps_reference, start_stage
from stepaudio_jax.training.step import REFERENCE, TrainState
from stepaudio_jax.training.stopping import DivergedError, InterruptedRunError, StopSignal

_LOOKED_AT = 256  # records of a source, before anything is written


def run_policy_stage(
    config: Config,
    index: int,
    model: ModelConfig,
    tokenizer: Tokenizer,
    parameters: Parameters,
    mesh: Mesh,
    stop: StopSignal,
) -> Parameters:
    """Trains stage `index` from its newest checkpoint, or from `parameters`, to its last step; returns its parameters.

    Raises:
        InterruptedRunError: SIGTERM came; everything is saved.
        DivergedError: too many updates in a row were not finite; the last state is saved.
        JudgeError: the judge abstained too often; everything before the step is saved.
    """
    stage, run_dir = config.stages[index], pathlib.Path(config.run_dir)
    start = describe_stage(config, index, model, mesh)
    checkpoints = StageCheckpoints(run_dir, index, stage.name, config.checkpoint)
    policy = stage.rl.policy
    controller = KLController(policy.kl_coefficient, policy.kl_target, policy.kl_horizon)
    with contextlib.closing(checkpoints):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(start.abstract)
            controller.coefficient = data_state["kl_coefficient"]
        else:
            state = start_stage(config, index, model, start, parameters)
        parameters.clear()  # the state holds them now
        done = int(state.step)
        iteration = _Iteration(config, index, model, tokenizer, mesh, start, state)
        writer = MetricsWriter(run_dir, stage=stage.name, resume_step=done)
        samples = SampleWriter(run_dir, stage=stage.name, resume_step=done)
        with contextlib.closing(writer), contextlib.closing(samples), progress_bar(stage.name, stage.steps, done) as bar:
            for step in range(done + 1, stage.steps + 1):

                def save() -> None:
                    checkpoints.save(state, {"kl_coefficient": controller.coefficient}, {})  # noqa: B023

                try:
                    rollouts, rewards, seconds = iteration.write(state, step)
                except JudgeError:
                    save()
                    raise
                state, figures = iteration.learn(state, rollouts, rewards, controller, seconds)
                state = dataclasses.replace(state, step=state.step + 1)
                bar.update()
                bar.set_postfix({name: f"{figures[name]:.3f}" for name in ("reward", "reply_tokens") if name in figures})
                writer.write(step, figures)
                samples.write(step, rollouts, rewards)
                stopping = stop.received(step)
                diverged = int(state.skipped_in_row) > config.skipped_steps_allowed
                every = config.checkpoint.every_steps
                if stopping or diverged or step == stage.steps or (every > 0 and step % every == 0):
                    save()
                if diverged:
                    raise DivergedError(
                        f"stage {stage.name!r}, step {step}: the last {int(state.skipped_in_row)} updates were not finite"
                    )
                if stopping and step < stage.steps:
                    raise InterruptedRunError(
                        f"stopped at step {step} of stage {stage.name!r}, and saved; the same command goes on"
                    )
    return start.definition.folded(policy_parameters(state))


def check_policy_stage(stage: StageConfig, tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Reads the beginning of every source, and what its rewards need.

    Raises:
        DataError, ConfigError: naming file and line, or the key.
    """
    stream = PromptStream(stage.data, tokenizer, model.length_convention, seed=0)
    try:
        rewards = Rewards(stage.rl, None)
        JudgePrompt(stage.rl.judge.prompt or None, levels=stage.rl.judge.levels)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from None
    for source in stream.sources:
        records = [source[number] for number in range(min(_LOOKED_AT, len(source)))]
        for record in records:
            rewards.require(record)
        for prompt in stream.prompts(0, records[:8]):
            require_fit(prompt, model, new_tokens=stage.rl.rollout.max_new_tokens, slot_tokens=stage.data.tokens_per_row)


class _Iteration:
    """One step's work, with what it keeps from step to step."""

    def __init__(
        self,
        config: Config,
        index: int,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        start: Any,
        state: TrainState,
    ):
        self._stage, self._tokenizer, self._definition = config.stages[index], tokenizer, start.definition
        self._seed = config.seed + index
        rl = self._stage.rl
        self._stream = PromptStream(self._stage.data, tokenizer, model.length_convention, seed=self._seed)
        self._hearing = Hearing(start.definition, self._stage.data)
        self._update = PolicyUpdate(start.definition, rl, start.optimizer, start.shardings)
        self._rewards = Rewards(rl, _judge(config, self._stage, mesh))
        self._place = BatchPlacement(self._stage.data, config.compute.rules, mesh)
        self._engine = Engine(
            model,
            start.definition.folded(policy_parameters(state)),
            tokenizer,
            compute=config.compute,
            slots=rl.rollout.slots,
            slot_tokens=min(self._stage.data.tokens_per_row, model.decoder.max_positions),
            cache_dtype=rl.rollout.cache_dtype or None,
            mesh=mesh,
        )

    def write(self, state: TrainState, step: int) -> tuple[list[Rollout], list[Reward], dict[str, float]]:
        """Rollouts and their rewards, and how long each took."""
        rollout = self._stage.rl.rollout
        began = time.perf_counter()
        parameters = self._definition.folded(policy_parameters(state))
        records = self._stream.records(step - 1, rollout.prompts)
        for record in records:
            self._rewards.require(record)
        prompts = self._stream.prompts(step, records)
        self._features = self._hearing.features(parameters, prompts)
        prompts = self._hearing.heard(parameters, prompts, self._features)
        heard = time.perf_counter()
        self._engine.set_parameters(parameters)
        written: dict[int, Rollout] = {}
        seed = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
        for number, one in roll_out(self._engine, prompts, records, rollout, self._tokenizer, seed):
            written[number] = one
            self._rewards.ask_ahead(one)
        rollouts = [written[number] for number in sorted(written)]
        ended = time.perf_counter()
        rewards = self._rewards(rollouts)
        judged = time.perf_counter()
        seconds = {"seconds/hear": heard - began, "seconds/rollout": ended - heard, "seconds/reward": judged - ended}
        return rollouts, rewards, seconds | {"clips_encoded": float(self._hearing.encoded)}

    def learn(
        self,
        state: TrainState,
        rollouts: Sequence[Rollout],
        rewards: Sequence[Reward],
        controller: KLController,
        figures: dict[str, float],
    ) -> tuple[TrainState, dict[str, float]]:
        """The updates of a step, and all its figures."""
        policy, began = self._stage.rl.policy, time.perf_counter()
        advantage, valid = advantages(rollouts, rewards, policy)
        shares = [self._prepare(state, rollouts, chosen, advantage, valid) for chosen in self._minibatches(rollouts)]
        passed = time.perf_counter()
        updates = []
        for epoch in range(policy.epochs):
            for number, (parts, _) in enumerate(shares):
                fresh = epoch == 0 and number == 0
                state, sums = self._update(state, parts, beta=controller.coefficient, fresh=fresh)
                updates.append(sums)
        means = {name: float(np.mean([sums[name] for sums in updates])) for name in updates[0]}
        figures |= means | rollout_figures(rollouts, rewards, self._tokenizer)
        figures |= {name: float(np.mean([found[name] for _, found in shares])) for name in shares[0][1]}
        figures |= {"learnt_from": float(valid.mean()), "kl_coefficient": controller.coefficient}
        if keeps_reference(self._stage):
            controller.update(figures["reply_kl"], len(rollouts))
        figures |= {"seconds/passes": passed - began, "seconds/update": time.perf_counter() - passed}
        return state, figures

    def _minibatches(self, rollouts: Sequence[Rollout]) -> Iterator[list[int]]:
        """Indices of rollouts: the prompts in order, in equal shares."""
        rl = self._stage.rl
        size = rl.rollout.prompts // rl.policy.minibatches
        for first in range(0, rl.rollout.prompts, size):
            yield [index for index, rollout in enumerate(rollouts) if first <= rollout.group < first + size]

    def _prepare(
        self,
        state: TrainState,
        rollouts: Sequence[Rollout],
        chosen: Sequence[int],
        advantage: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> tuple[list[tuple[RolloutBatch, Learning]], dict[str, float]]:
        """The batches of one update, with the log-probabilities of the policies that do not learn."""
        own = [rollouts[index] for index in chosen]
        layout = Layout(own, self._stage.data)
        whole = layout.batch(self._features, self._tokenizer.special.pad)
        weights = layout.spread(loss_weights(own, valid[list(chosen)], self._stage.rl.policy))
        spread_advantage = layout.spread([np.full(len(rollouts[index].reply), advantage[index]) for index in chosen])
        sampler = layout.spread([rollout.sampler_logprobs for rollout in own])
        parts = []
        old_rows, reference_rows = [], []
        for first in range(0, layout.rows, self._stage.data.rows):
            rows = [first + row for row in self._place.rows]
            batch = self._place(jax.tree.map(lambda array: array[rows], whole))  # noqa: B023
            old, _ = self._update.logprobs(policy_parameters(state), batch)
            reference = old
            if REFERENCE in state.frozen:
                reference, _ = self._update.logprobs(reference_parameters(state), batch)
            weight, gain, drawn = (self._place(array[rows]) for array in (weights, spread_advantage, sampler))
            parts.append((batch, Learning(weight, gain, old, drawn, reference)))
            old_rows.append(np.asarray(old))
            reference_rows.append(np.asarray(reference))
        old, reference = (layout.gather(np.concatenate(found)) for found in (old_rows, reference_rows))
        off = np.concatenate([np.abs(mine - one.sampler_logprobs) for mine, one in zip(old, own, strict=True)])
        figures = {"engine_mismatch": float(np.exp(np.minimum(off, 20)).mean())}
        figures["reply_kl"] = float(np.mean([np.sum(mine - theirs) for mine, theirs in zip(old, reference, strict=True)]))
        return parts, figures


def _judge(config: Config, stage: StageConfig, mesh: Mesh) -> Judge | None:
    asked = stage.rl.judge
    if asked.folder:
        loaded = load_model(asked.folder, config.compute.dtype)
        model = ModelJudge(loaded, slots=asked.slots, max_tokens=asked.max_tokens, mesh=mesh)
        name: str = model.name
        ask: Any = model
    elif asked.url:
        endpoint = Endpoint(
            url=asked.url,
            model=asked.model,
            key_variable=asked.key_variable,
            max_tokens=asked.max_tokens,
            timeout_s=asked.timeout_s,
            retries=asked.retries,
        )
        name, ask = endpoint.name, endpoint.ask
    else:
        return None
    return Judge(
        name,
        ask,
        JudgePrompt(asked.prompt or None, levels=asked.levels),
        together=bool(asked.folder),
        cache=pathlib.Path(config.run_dir) / f"judge_{stage.name}.jsonl",
        concurrency=asked.concurrency,
        most_abstentions=asked.most_abstentions,
    )


POLICY_STAGE = StageKind(check_policy_stage, run_policy_stage)
