"""A stage that learns from rewards: rollout, reward, advantage, update, again and again."""

import contextlib
import dataclasses

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import ConfigError, ModelConfig, StageConfig
from stepaudio_jax.data import DataError, check_sizes
from stepaudio_jax.models import Parameters
from stepaudio_jax.rl.endpoint import server_key
from stepaudio_jax.rl.iteration import Iteration
from stepaudio_jax.rl.judge import JudgeError
from stepaudio_jax.rl.judge_prompt import JudgePrompt
from stepaudio_jax.rl.objective import KLController
from stepaudio_jax.rl.prompts import PromptStream
from stepaudio_jax.rl.rewards import Rewards
from stepaudio_jax.rl.watch import SampleWriter
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.metrics import MetricsWriter, progress_bar
from stepaudio_jax.training.stage_kind import StageKind, StageRun
from stepaudio_jax.training.start import start_stage
from stepaudio_jax.training.stopping import DivergedError, InterruptedRunError

_LOOKED_AT, _READ = 256, 8  # records of a source looked at before anything is written, and those of them whose clips are read


def run_policy_stage(run: StageRun, parameters: Parameters) -> Parameters:
    """Trains a stage from its newest checkpoint, or from `parameters`, to its last step; returns its parameters.

    Raises:
        InterruptedRunError: SIGTERM came; everything is saved.
        DivergedError: too many updates in a row were not finite; the last state is saved.
        DataError: a record cannot be used; everything before the step is saved.
        ConfigError: no reward is for a record's source; the same.
        JudgeError: the judge abstained too often; everything before the step is saved.
    """
    config, stage, run_dir, start = run.config, run.stage, run.folder, run.describe()
    checkpoints, policy = run.checkpoints(), stage.rl.policy
    earlier = sum(one.steps for one in config.stages[: run.index])
    run.stop.received(earlier + (checkpoints.latest_step or 0))  # a notice before the first step is for the step after it
    controller = KLController(policy.kl_coefficient, policy.kl_target, policy.kl_horizon)
    with contextlib.closing(checkpoints):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(start.abstract)
            controller.coefficient = data_state["kl_coefficient"]
        else:
            state = start_stage(config, run.index, run.model, start, parameters)
        parameters.clear()  # the state holds them now
        done = int(state.step)
        run.stop.received(earlier + done)
        iteration = Iteration(run, start, state)
        writer = MetricsWriter(run_dir, stage=stage.name, resume_step=done)
        samples = SampleWriter(run_dir, stage=stage.name, resume_step=done)
        with (
            contextlib.closing(iteration),
            contextlib.closing(writer),
            contextlib.closing(samples),
            progress_bar(stage.name, stage.steps, done) as bar,
        ):
            for step in range(done + 1, stage.steps + 1):

                def save() -> None:
                    checkpoints.save(state, {"kl_coefficient": controller.coefficient}, {})  # noqa: B023

                try:
                    rollouts, rewards, seconds = iteration.write(state, step)
                except JudgeError:
                    save()
                    raise
                except (DataError, ConfigError):
                    if jax.process_count() == 1:  # of several, it may be one alone that cannot read its file
                        save()
                    raise
                if run.stop.received(earlier + step, within=True):  # replies are written again, as they were
                    save()
                    raise _interrupted(stage, step - 1)
                state, figures = iteration.learn(state, rollouts, rewards, controller)
                figures |= seconds
                state = dataclasses.replace(state, step=state.step + 1)
                bar.update()
                bar.set_postfix({name: f"{figures[name]:.3f}" for name in ("reward", "reply_tokens") if name in figures})
                writer.write(step, figures)
                samples.write(step, rollouts, rewards)
                stopping = run.stop.received(earlier + step)
                diverged = int(state.skipped_in_row) > config.skipped_steps_allowed
                every = config.checkpoint.every_steps
                if stopping or diverged or step == stage.steps or (every > 0 and step % every == 0):
                    save()
                if diverged:
                    raise DivergedError(
                        f"stage {stage.name!r}, step {step}: the last {int(state.skipped_in_row)} updates were not finite"
                    )
                if stopping and step < stage.steps:
                    raise _interrupted(stage, step)
    return start.definition.after_stage({**state.trainable, **state.frozen}, stage.name)


def _interrupted(stage: StageConfig, step: int) -> InterruptedRunError:
    return InterruptedRunError(f"stopped at step {step} of stage {stage.name!r}, and saved; the same command goes on")


def check_policy_stage(stage: StageConfig, tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Reads the beginning of every source, and what its rewards need.

    Raises:
        DataError, ConfigError: naming file and line, or the key.
        CheckpointError: the judge's folder holds no model.
    """
    check_sizes(stage.data, tokenizer, model)
    stream = PromptStream(stage.data, tokenizer, model, seed=0, new_tokens=stage.rl.rollout.max_new_tokens)
    try:
        rewards = Rewards(stage.rl, None)
        JudgePrompt(stage.rl.judge.prompt or None, levels=stage.rl.judge.levels)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from None
    judge = stage.rl.judge
    if judge.folder:
        hub.read_model_config(judge.folder)
    if judge.url and judge.key_variable and jax.process_index() == 0:  # it alone asks
        server_key(judge.key_variable)
    seen = set()
    for source in stream.sources:
        records = [source[number] for number in range(min(_LOOKED_AT, len(source)))]
        for record in records:
            rewards.require(record)
            seen.add(record.source)
        stream.check(records[:_READ])
    named = [source for reward in stage.rl.rewards for source in reward.sources]
    if all(len(source) <= _LOOKED_AT for source in stream.sources) and (missing := sorted(set(named) - seen)):
        raise ConfigError(
            f"stage {stage.name!r}: rl.rewards names the sources {', '.join(missing)}, and no record has them; "
            f"those of the records are {', '.join(sorted(seen))}"
        )


POLICY_STAGE = StageKind(check_policy_stage, run_policy_stage)
