"""A stage that learns from rewards: rollout, reward, advantage, update, again and again."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import ConfigError, ModelConfig, StageConfig, to_dict
from stepaudio_jax.data import DataError, Record, check_sizes
from stepaudio_jax.models import Parameters
from stepaudio_jax.parallel import all_gather_json
from stepaudio_jax.rl.endpoint import read_api_key
from stepaudio_jax.rl.iteration import PolicyTrainer
from stepaudio_jax.rl.judge import JudgeError
from stepaudio_jax.rl.judge_prompt import JudgePrompt
from stepaudio_jax.rl.objective import KLController
from stepaudio_jax.rl.prompts import PromptStream
from stepaudio_jax.rl.rewards import RewardError, RewardFunction
from stepaudio_jax.rl.watch import SampleWriter
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.data_check import DataChecker
from stepaudio_jax.training.metrics import MetricsWriter, progress_bar
from stepaudio_jax.training.stage_kind import StageContext, StageKind
from stepaudio_jax.training.start import init_train_state
from stepaudio_jax.training.step import TrainState
from stepaudio_jax.training.stopping import DivergedError, data_error


def train_policy(run: StageContext, parameters: Parameters) -> Parameters:
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
    config, stage, run_dir, start = run.config, run.stage, run.folder, run.describe()
    checkpoints, policy = run.checkpoints(), stage.rl.policy
    earlier = sum(one.steps for one in config.stages[: run.index])
    run.stop.should_stop(
        earlier + (checkpoints.latest_step or 0)
    )  # a notice before the first step is for the step after it
    controller = KLController(policy.kl_coef, policy.kl_target, policy.kl_horizon)
    with contextlib.closing(checkpoints):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(start.abstract)
            controller.restore(data_state["kl_coef"])
        else:
            state = init_train_state(config, run.index, run.model, start, parameters)
        parameters.clear()  # the state holds them now
        done = int(state.step)
        run.stop.should_stop(earlier + done)
        iteration = PolicyTrainer(run, start, state)
        writer = MetricsWriter(run_dir, stage=stage.name, resume_step=done)
        samples = SampleWriter(run_dir, stage=stage.name, resume_step=done)
        with (
            contextlib.closing(iteration),
            contextlib.closing(writer),
            contextlib.closing(samples),
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
                        data = None if isinstance(error, RewardError) else stage.data
                        raise data_error(error, stage.name, saved_step, data) from error
                    raise

            for step in range(done + 1, stage.steps + 1):
                with save_on_error():
                    rollouts, rewards, seconds = iteration.generate_rollouts(state, step)
                if run.stop.should_stop(
                    earlier + step, within_step=True
                ):  # replies are written again, as they were
                    save()
                    raise run.stop.interrupted_error(stage.name, step - 1)
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
                stopping = run.stop.should_stop(earlier + step)
                diverged = int(state.consecutive_skips) > config.max_consecutive_skips
                every = config.checkpoint.every_steps
                if stopping or diverged or step == stage.steps or (every > 0 and step % every == 0):
                    save()
                if diverged:
                    raise DivergedError(
                        f"stage {stage.name!r}, step {step}: the last {int(state.consecutive_skips)} updates were not finite"
                    )
                if stopping and step < stage.steps:
                    raise run.stop.interrupted_error(stage.name, step)
    run.warn_if_unchanged(state)
    return start.model_def.params_after_stage({**state.trainable, **state.frozen}, stage.name)


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
        rewards = RewardFunction(stage.rl, None)
        JudgePrompt(stage.rl.judge.prompt or None, levels=stage.rl.judge.preference_levels)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from None
    judge = stage.rl.judge
    if judge.folder:
        hub.read_model_config(judge.folder)
    if judge.url and judge.api_key_env and jax.process_index() == 0:  # it alone asks
        read_api_key(judge.api_key_env)
    stream = PromptStream(
        stage.data,
        tokenizer,
        model,
        seed=0,
        new_tokens=stage.rl.rollout.max_new_tokens,
        validate=rewards.check_record,
    )
    names: set[str] = set()  # that records give as their source

    def check(record: Record, *, decode: bool) -> None:
        names.add(record.source)
        stream.check(record, decode=decode)

    settings = {"rewards": to_dict(stage.rl.rewards), "new_tokens": stage.rl.rollout.max_new_tokens}
    checked = data_check(f"stage {stage.name!r}", stream.sources, stage.data, check, settings)
    if checked and stage.data.check == "all":
        names.update(*all_gather_json(sorted(names)))
        missing = sorted({name for reward in stage.rl.rewards for name in reward.sources} - names)
        if missing:
            raise ConfigError(
                f"stage {stage.name!r}: rl.rewards names the sources {', '.join(missing)}, and no record has "
                f"them; those of the records are {', '.join(sorted(names))}"
            )


POLICY_STAGE = StageKind(check_policy_stage, train_policy)
