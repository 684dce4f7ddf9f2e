"""The check of an RL stage's data, rewards and judge, before a run writes anything."""

from collections.abc import Callable
from typing import Any

import jax

from stepaudio_jax import hub
from stepaudio_jax.config import SimulatedUserConfig, to_dict
from stepaudio_jax.data import Record, check_sizes
from stepaudio_jax.data.checking import DataChecker
from stepaudio_jax.data.record import Content
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.judge.endpoint import read_api_key
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.parallel import all_gather_json
from stepaudio_jax.rl.endpoint_teacher import EndpointTeacher
from stepaudio_jax.rl.prompts import PromptStream
from stepaudio_jax.rl.rewards import RewardFunction
from stepaudio_jax.rl.simulated_user import UserPrompt
from stepaudio_jax.rl.speech import check_speech_command
from stepaudio_jax.rl.teacher import teacher_check
from stepaudio_jax.training.stage_context import StageContext


def check_policy_data(context: StageContext, checker: DataChecker) -> None:
    """Checks a stage's data, its rewards, its judge, its simulated user and its teacher.

    Raises:
        DataError, ConfigError: names file and line, or the key.
        CheckpointError: the folder of judge, simulated user or teacher holds no model.
    """
    stage, objective = context.stage, context.stage.policy_gradient
    context.define_teacher()  # raises where it cannot be learnt from
    if objective.teacher_endpoint.url is not None:
        EndpointTeacher(objective.teacher_endpoint, context.tokenizer).connect()
    judge, user = objective.judge, objective.rollout.simulated_user
    check_sizes(stage.data, context.tokenizer, context.model)
    try:
        rewards = RewardFunction(objective, None)
        JudgePrompt(judge.prompt, levels=judge.preference_levels, rubric=judge.rubric)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from None
    for asked in (judge, user):
        if asked.folder:
            hub.read_model_config(asked.folder)
        if asked.url and asked.api_key_env and jax.process_index() == 0:  # the one that asks
            read_api_key(asked.api_key_env)
    if jax.process_index() == 0:  # the one that speaks
        _check_simulated_user(stage.name, user)
    stream = PromptStream(
        stage.data,
        context.tokenizer,
        context.model,
        seed=0,
        new_tokens=objective.rollout.max_new_tokens,
        validate=record_check(rewards, context),
    )
    sources: set[str] = set()

    def check(record: Record, *, decode: bool) -> Content:
        sources.add(record.source)
        return stream.check(record, decode=decode)

    settings: dict[str, Any] = {
        "rewards": to_dict(objective.rewards),
        "new_tokens": objective.rollout.max_new_tokens,
    }
    if objective.has_teacher:
        settings["teacher"] = [objective.teacher is None, objective.teacher_inputs]
    checked = checker(f"stage {stage.name!r}", stream.sources, stage.data, check, settings)
    if checked and stage.data.check == "all":
        sources.update(*all_gather_json(sorted(sources)))
        missing = {name for reward in objective.rewards for name in reward.sources} - sources
        if missing:
            raise ConfigError(
                f"stage {stage.name!r}: objective.rewards names the sources "
                f"{', '.join(sorted(missing))}, and no record has them; those of the records "
                f"are {', '.join(sorted(sources))}"
            )


def _check_simulated_user(stage: str, user: SimulatedUserConfig) -> None:
    """Checks what a simulated user needs on this machine, if there is one.

    Raises:
        ConfigError: its instructions cannot be used, or there is no program that speaks.
    """
    if not user.enabled:
        return
    try:
        UserPrompt(user.prompt, end=user.end)
        check_speech_command(user.speak)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"stage {stage!r}: objective.rollout.simulated_user: {error}") from None


def record_check(rewards: RewardFunction, context: StageContext) -> Callable[[Record], None]:
    """Returns a function that raises a DataError where reward or teacher cannot use a record."""
    check_for_teacher = teacher_check(context.stage.policy_gradient, context)

    def check(record: Record) -> None:
        rewards.check_record(record)
        check_for_teacher(record)

    return check
