"""The arms of the reward trap: what each of them trains the start model on.

Every arm is the joint stage of `configs/quickstart_rlhf.py` with another reward, other prompts or
another objective. The optimizer and the number of steps of all stages are the same.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from stepaudio_jax.config import (
    Config,
    JudgeConfig,
    PolicyGradient,
    Preference,
    RewardConfig,
    RubricUse,
    SourceConfig,
    StageConfig,
)

START = "start"
RLVR, JOINT, ORDINAL, BOTH = "rlvr", "joint", "ordinal", "both"
RUBRIC, THEN_PREFERENCE = "rubric_only", "then_preference"
DPO, ONLINE_DPO = "dpo", "online_dpo"
ARMS: Mapping[str, tuple[str, ...]] = {
    "rlvr": (RLVR,),
    "joint": (JOINT,),
    "ordinal": (ORDINAL,),
    "sequential": (RUBRIC, THEN_PREFERENCE),
    "dpo": (DPO,),
    "online_dpo": (ONLINE_DPO,),
    "both": (BOTH,),
}
"""Arm of the experiment -> the models that it trains, in order."""

RUBRIC_FORMS: tuple[RubricUse, ...] = ("ordinal", "both")
"""Forms of `judge.rubric` in which the judge compares in the light of the rubric: arms, too."""

_DPO_BETA = 0.5  # a KL of about the joint stage's
_DPO_SEQ_LEN = 512  # of a row, which then holds about three pairs
_RUBRIC_JUDGE_STEPS = 200
_CHECKED_RECORDS = 1000  # before training, of tens of thousands that a program has made


def arm_stage(
    joint: StageConfig,
    name: str,
    *,
    num_stages: int,
    rubric_judge: pathlib.Path,
    pairs: pathlib.Path,
) -> StageConfig:
    """Returns the joint stage, changed to what a model of an arm is trained on.

    Args:
        joint: the stage of the arm "joint".
        name: of the model.
        num_stages: among which the arm divides the steps.
        rubric_judge: folder of the judge of the arms `RUBRIC_FORMS`.
        pairs: the pairs of the arm "dpo".
    """
    stage = dataclasses.replace(joint, name=name, steps=joint.steps // num_stages)
    objective = joint.policy_gradient
    if name == DPO:
        data = dataclasses.replace(
            joint.data, sources=(SourceConfig(path=str(pairs)),), seq_len=_DPO_SEQ_LEN
        )
        return dataclasses.replace(stage, data=data, objective=Preference(beta=_DPO_BETA))
    return dataclasses.replace(
        stage,
        data=dataclasses.replace(joint.data, sources=_sources(joint, name)),
        objective=_objective(objective, name, rubric_judge),
    )


def rubric_judge_config(
    tiny_judge: Config, folder: str, run_dir: pathlib.Path, data: tuple[pathlib.Path, ...]
) -> Config:
    """Returns the training of the judge that compares in the light of a rubric.

    The tiny judge goes on learning, with a lower learning rate: it has never seen such a question.

    Args:
        tiny_judge: the training of the tiny judge.
        folder: of the tiny judge.
        run_dir: of the training.
        data: the dialogues of the judge, by the form of their question.
    """
    stage = tiny_judge.stages[0]
    optimizer = dataclasses.replace(
        stage.optimizer, learning_rate=4e-4, muon_learning_rate=0.004, warmup_steps=0
    )
    sources = tuple(SourceConfig(path=str(path)) for path in data)
    stage = dataclasses.replace(
        stage,
        name="rubric_judge",
        steps=_RUBRIC_JUDGE_STEPS,
        optimizer=optimizer,
        data=dataclasses.replace(stage.data, sources=sources, check=_CHECKED_RECORDS),
    )
    initial = dataclasses.replace(tiny_judge.initial, model=folder)
    return dataclasses.replace(tiny_judge, run_dir=str(run_dir), initial=initial, stages=(stage,))


def _sources(joint: StageConfig, name: str) -> tuple[SourceConfig, ...]:
    file = {RUBRIC: "rubric", THEN_PREFERENCE: "preference"}.get(name)
    return tuple(
        source for source in joint.data.sources if file in (None, pathlib.Path(source.path).stem)
    )


def _objective(joint: PolicyGradient, name: str, rubric_judge: pathlib.Path) -> PolicyGradient:
    if name == RLVR:
        rewards = (RewardConfig(verifier="exact_text", verifier_weight=0.8, format_weight=0.2),)
        return dataclasses.replace(joint, rewards=rewards, judge=JudgeConfig())
    for form in RUBRIC_FORMS:
        if name == form:
            judge = dataclasses.replace(joint.judge, folder=str(rubric_judge), rubric=form)
            return dataclasses.replace(joint, judge=judge)
    if name == ONLINE_DPO:
        return dataclasses.replace(
            joint,
            advantage_estimator="dpo",
            dpo_beta=_DPO_BETA,
            aggregation="sequence_sum",
            kl_coef=0.0,
        )
    return joint
