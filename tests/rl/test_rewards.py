"""Rewards, part by part, and which rollouts contribute to the update."""

import dataclasses
import json
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from stepaudio_jax.config import JudgeConfig, PolicyGradient, RewardConfig, RolloutConfig
from stepaudio_jax.data import Criterion, Record
from stepaudio_jax.errors import ConfigError, DataError
from stepaudio_jax.generation import Completion, Prompt
from stepaudio_jax.generation.outputs import StopToken
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.query import JudgeAnswer
from stepaudio_jax.rl.advantages import PolicyLogprobs, compute_advantages, compute_loss_weights
from stepaudio_jax.rl.rewards import Reward, RewardFunction
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout, policy_turn
from stepaudio_jax.text import Message, ParsedReply, TextPart
from tests.generation.small_model import BYTES
from tests.judge.fakes import FunctionBackend
from tests.judge.judge_server import replies_and_code

HELLO = (Message(role="user", parts=(TextPart("Hello?"),)),)


def rollout(reply="7", *, group=0, tokens=4, reasoning="so", problems=(), **record):
    turn = PolicyTurn(
        prompt_tokens=np.zeros(3, np.int32),
        is_audio=np.zeros(3, bool),
        chunk_tokens=(),
        completion_tokens=np.zeros(tokens, np.int32),
        sampler_logprobs=np.zeros(tokens, np.float32),
        parsed=ParsedReply(reasoning, reply, problems),
        truncated=False,
    )
    made = Record(
        **{
            "id": "r",
            "messages": HELLO,
            "source": "s",
            "origin": "file:1",
            "answer": "7",
            **record,
        }
    )
    return Rollout(group, made, (turn,))


def longer_is_better(question):
    """Prefers the longer reply; abstains where one says so."""
    first, second, code = replies_and_code(question)
    if "abstain" in question:
        return JudgeAnswer("no")
    comparison = (
        "both are equal"
        if len(first) == len(second)
        else f"{'a' if len(first) > len(second) else 'b'} is better"
    )
    verdict = {"comparison": comparison, "code": code}
    if "Say besides" in question:
        verdict["criteria"] = [
            {"a": "kind" in first, "b": "kind" in second},
            {"a": "rude" in first, "b": "rude" in second},
        ]
    return JudgeAnswer(json.dumps(verdict))


def judge():
    return Judge(
        FunctionBackend("longer", longer_is_better), JudgePrompt(), max_abstention_rate=1.0
    )


JUDGED = JudgeConfig(url="http://localhost/v1", model="m")


def test_a_repetition_ended_early_is_penalised_like_a_reply_cut_at_the_limit():
    """The engine ends it after 4 of 10 tokens; a repetition must not save the overlong penalty."""
    reward = RewardConfig(format_weight=1.0, overlong_weight=1.0, overlong_penalty_start=5)
    rewards = RewardFunction(
        PolicyGradient(rollout=RolloutConfig(max_new_tokens=10), rewards=(reward,)), None
    )
    prompt = Prompt(np.array([1], np.int32), *[np.zeros(1, bool)] * 2, (), ())
    made = {}
    for reason, tokens in (("repetition", 4), ("length", 10), ("stop", 4)):
        end = StopToken(BYTES.special.eot, -0.1, -0.1) if reason == "stop" else None
        completion = Completion(
            tuple(BYTES.encode("a\n</think>\na" * 9))[:tokens],
            (-1.0,) * tokens,
            (-1.0,) * tokens,
            reason,
            end,
        )
        turn = policy_turn(prompt, completion, BYTES)
        made[reason] = Rollout(0, rollout().record, (turn,))
    assert [made[reason].truncated for reason in ("repetition", "length", "stop")] == [
        True,
        True,
        False,
    ]
    assert "not_ended" in made["repetition"].parsed.problems
    loop, cut, ended = rewards(list(made.values()))
    assert (loop.value, cut.value, ended.parts["overlong"]) == (-1, -1, 0)


def test_parts_add_up_with_their_weights():
    config = PolicyGradient(
        rollout=RolloutConfig(max_new_tokens=10),
        rewards=(
            RewardConfig(
                verifier="number",
                verifier_weight=0.8,
                format_weight=0.2,
                judge_weight=0.5,
                overlong_weight=0.1,
                overlong_penalty_start=2,
            ),
        ),
        judge=JUDGED,
    )
    rewards = RewardFunction(config, judge())
    good, wrong, bad = rewards(
        [
            rollout("it is 7", tokens=6, reference_reply="7"),
            rollout("8", reference_reply="long reference"),
            rollout("7", reasoning="", reference_reply="7"),
        ]
    )
    assert good.value == pytest.approx(0.8 + 0.2 + 0.5 * 2 / 3 - 0.1 * 4 / 8)
    assert wrong.value == pytest.approx(0.2 - 0.5 * 2 / 3 - 0.1 * 2 / 8)
    assert bad.value == pytest.approx(0.8 - 0.1 * 2 / 8)
    assert (good.is_correct, wrong.is_correct) == (True, False)
    assert good.parts == pytest.approx(
        {"verifier": 1, "format": 1, "overlong": -0.5, "preference": 2 / 3, "flips": 0}
    )


def test_a_rubric_takes_the_place_of_preference():
    rubric = (Criterion("kind", 5.0), Criterion("rude", -3.0))
    config = PolicyGradient(rewards=(RewardConfig(judge_weight=1.0),), judge=JUDGED)
    (reward,) = RewardFunction(config, judge())(
        [rollout("kind and rude", reference_reply="rude", rubric=rubric)]
    )
    assert reward.value == pytest.approx((5 - 3) / 5 - (-3 / 5))
    assert reward.parts["rubric_score"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("use", "value"), [("ordinal", 2 / 3), ("criteria", 1.0), ("both", (1 + 2 / 3) / 2)]
)
def test_a_rubric_is_used_as_the_judge_says(use, value):
    """By criteria the difference is 2/5 + 3/5; the longer reply is better by 2 of 3 levels."""
    rubric = (Criterion("kind", 5.0), Criterion("rude", -3.0))
    asked = []

    def answer(question):
        asked.append(question)
        return longer_is_better(question)

    prompt = JudgePrompt(rubric=use)
    compares = Judge(FunctionBackend("longer", answer), prompt, max_abstention_rate=1.0)
    config = PolicyGradient(
        rewards=(RewardConfig(judge_weight=1.0, scale=3.0),),
        judge=JudgeConfig(url="http://localhost/v1", model="m", rubric=use),
    )
    (reward,) = RewardFunction(config, compares)(
        [rollout("kind and rude", reference_reply="rude", rubric=rubric)]
    )
    assert reward.value == pytest.approx(3 * value)
    assert ("rubric" in reward.parts) == (use != "ordinal")
    assert all(("(-3) rude" in question) == (use != "criteria") for question in asked)
    assert all(("Say besides" in question) == (use != "ordinal") for question in asked)


async def slowly_even(reply, answer):
    import asyncio

    waiting.append(reply)
    await asyncio.sleep(0)
    assert len(waiting) == 3  # all were called before any returned
    if reply == "broken":
        raise RuntimeError("no")
    return int(reply) % 2 == 0


waiting: list[str] = []


def test_an_async_verifier_scores_replies_concurrently():
    reward = RewardConfig(verifier=f"{__name__}:slowly_even", verifier_weight=1.0)
    rewards = RewardFunction(PolicyGradient(rewards=(reward,)), None)
    waiting.clear()
    values = [reward.value for reward in rewards([rollout(reply) for reply in ("1", "2", "4")])]
    assert values == [0, 1, 1]
    waiting.clear()
    with pytest.raises(DataError, match=r"file:1: verifier='.*:slowly_even' on the reply 'broken'"):
        rewards([rollout(reply) for reply in ("1", "broken", "4")])


def test_truncated_replies_are_masked_and_stay_in_the_baseline():
    rollouts = [rollout(str(number), group=0) for number in range(3)]
    cut = dataclasses.replace(rollouts[2].turns[0], truncated=True)
    rollouts[2] = dataclasses.replace(rollouts[2], turns=(cut,))
    rewards = [Reward(value, {}) for value in (1.0, 0.0, 0.5)]
    config = PolicyGradient(rewards=(RewardConfig(format_weight=1.0),), mask_truncated=True)
    none = PolicyLogprobs(None, None, [np.zeros(4, np.float32)] * 3)
    advantages = compute_advantages(rollouts, rewards, none, config, kl_coef=0.0)
    assert advantages.valid.tolist() == [True, True, False]
    np.testing.assert_allclose(
        [of_rollout[0] for of_rollout in advantages.advantages[:2]], [1 - 0.25, 0 - 0.75]
    )
    weights = compute_loss_weights(rollouts, advantages.valid, config)
    assert [of_rollout.sum() for of_rollout in weights] == [0.5, 0.5, 0]


def test_online_dpo_makes_no_pair_of_a_truncated_reply():
    rollouts = [rollout(str(number), group=0) for number in range(3)]
    cut = dataclasses.replace(rollouts[0].turns[0], truncated=True)
    rollouts[0] = dataclasses.replace(rollouts[0], turns=(cut,))
    rewards = [Reward(value, {}) for value in (1.0, 0.75, 0.5)]
    config = PolicyGradient(
        rewards=(RewardConfig(format_weight=1.0),),
        mask_truncated=True,
        advantage_estimator="dpo",
        aggregation="sequence_sum",
    )
    logprobs = PolicyLogprobs(*[[np.zeros(4, np.float32)] * 3] * 2, [np.zeros(4, np.float32)] * 3)
    advantages = compute_advantages(rollouts, rewards, logprobs, config, kl_coef=0.0)
    assert advantages.valid.tolist() == [False, True, True]
    better, worse = (advantages.advantages[number][0] for number in (1, 2))
    assert better == -worse > 0


def test_a_rubric_with_weights_that_overflow_is_an_error():
    """Their sum is infinite, and infinity over infinity is not a number."""
    rubric = (Criterion("kind", 1.5e308), Criterion("rude", 1.5e308))
    config = PolicyGradient(rewards=(RewardConfig(judge_weight=1.0),), judge=JUDGED)
    with pytest.raises(DataError, match=r"file:1: the reward of a reply is nan, .*'rubric'"):
        RewardFunction(config, judge())(
            [rollout("kind and rude", reference_reply="rude", rubric=rubric)]
        )


def test_an_abstention_gives_no_reward():
    config = PolicyGradient(
        rewards=(RewardConfig(judge_weight=1.0, format_weight=1.0),), judge=JUDGED
    )
    none, some = RewardFunction(config, judge())(
        [rollout("abstain", reference_reply="x"), rollout("xx", reference_reply="x")]
    )
    assert none.value is None
    assert some.value == pytest.approx(1 + 2 / 3)


def test_each_source_has_its_reward():
    config = PolicyGradient(
        rewards=(
            RewardConfig(format_weight=1.0),
            RewardConfig(sources=("sums",), verifier="number", verifier_weight=2.0),
        )
    )
    first, second = RewardFunction(config, None)([rollout("8"), rollout("7", source="sums")])
    assert (first.value, second.value) == (1.0, 2.0)
    with pytest.raises(ConfigError, match="no reward is for the source 's'"):
        PolicyGradient(
            rewards=(RewardConfig(sources=("sums",), format_weight=1.0),)
        ).reward_for_source("s")
    with pytest.raises(ConfigError, match="sums have more than one"):
        PolicyGradient(rewards=(RewardConfig(sources=("sums", "sums"), format_weight=1.0),))


def test_records_that_lack_what_their_reward_needs_are_named():
    rewards = RewardFunction(
        PolicyGradient(
            rewards=(RewardConfig(verifier_weight=1.0, judge_weight=1.0),), judge=JUDGED
        ),
        judge(),
    )
    with pytest.raises(DataError, match=r"file:1: .* has no 'answer'"):
        rewards.check_record(rollout(answer=None).record)
    with pytest.raises(DataError, match=r"file:1: .* has no 'reference_reply'"):
        rewards.check_record(rollout().record)
    rewards.check_record(rollout(reference_reply="x").record)
    with pytest.raises(
        DataError, match=r"file:1: its rubric has no criterion of a positive weight"
    ):
        rewards.check_record(rollout(reference_reply="x", rubric=(Criterion("rude", -1.0),)).record)
    numbers = RewardFunction(
        PolicyGradient(rewards=(RewardConfig(verifier="number", verifier_weight=1.0),)), None
    )
    with pytest.raises(DataError, match=r"file:1: the answer 'seven' must have one number"):
        numbers.check_record(rollout(answer="seven").record)


def mine(reply, answer):
    """A custom verifier, which tests replace."""
    return True


def returned(value):
    """Makes a verifier that returns `value`, or raises it."""

    def verifier(reply, answer):
        if isinstance(value, Exception):
            raise value
        return value

    return verifier


def rewards_by(monkeypatch, verifier):
    monkeypatch.setattr("tests.rl.test_rewards.mine", verifier)
    reward = RewardConfig(verifier="tests.rl.test_rewards:mine", verifier_weight=2.0)
    return RewardFunction(PolicyGradient(rewards=(reward,)), None)


@pytest.mark.parametrize(
    ("value", "score"),
    [
        *((value, 1.0) for value in (True, 1, np.True_, np.int64(1), np.float32(1), 1 + 1e-9)),
        *((value, 0.0) for value in (False, 0, -0.0, np.False_, -1e-9)),
        *(
            (value, 0.75)
            for value in (0.75, np.float16(0.75), np.array(0.75), jnp.float32(0.75), Fraction(3, 4))
        ),
    ],
    ids=repr,
)
def test_a_verifier_may_return_any_number_from_0_to_1(monkeypatch, value, score):
    (reward,) = rewards_by(monkeypatch, returned(value))([rollout("so be it")])
    assert (reward.value, reward.is_correct) == (2 * score, score == 1)
    assert type(reward.parts["verifier"]) is float


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, np.float32("nan"), np.array(np.nan), jnp.float32(np.inf)),
        *(
            None,
            "1",
            "",
            [1.0],
            (0.5,),
            {},
            1.5,
            -1,
            2,
            np.ones(1),
            np.array([0.5, 1]),
            1j,
            np.array("1"),
            Record,
        ),
    ],
    ids=repr,
)
def test_a_verifier_that_returns_no_score_is_an_error_that_names_it(monkeypatch, value):
    """A NaN among the rewards would poison the whole step."""
    with pytest.raises(DataError) as error:
        rewards_by(monkeypatch, returned(value))([rollout("so be it", origin="talk.jsonl:7")])
    assert str(error.value).startswith(
        "talk.jsonl:7: verifier='tests.rl.test_rewards:mine' on the reply 'so be it' returned "
    )
    assert str(error.value).endswith("; it must return True or False, or a number from 0 to 1")


def test_a_verifier_that_fails_is_an_error_that_names_it_and_its_line(monkeypatch):
    message = (
        r"^file:1: verifier='tests.rl.test_rewards:mine' on the reply '7' raised KeyError: 'unit' "
        r"\(.*test_rewards.py:\d+\)$"
    )
    with pytest.raises(DataError, match=message):
        rewards_by(monkeypatch, returned(KeyError("unit")))([rollout()])
    with pytest.raises(
        DataError, match=r"raised TypeError: .*takes 1 positional argument but 2 were given$"
    ):
        rewards_by(monkeypatch, lambda reply: True)([rollout()])
    with pytest.raises(DataError, match=r"on the reply 'x{60}\.\.' returned '[^ ]{,40}'; it must"):
        rewards_by(monkeypatch, returned("y" * 300_000))([rollout("x" * 300_000)])


def logprobs_of(rollouts, old=0.0, reference=0.0, values=0.0):
    return PolicyLogprobs(
        *(
            [np.full(len(one.completion_tokens), value, np.float32) for one in rollouts]
            for value in (old, reference, values)
        )
    )


def test_prompts_outside_num_correct_range_are_masked():
    rollouts = [rollout(group=group) for group in range(3) for _ in range(4)]
    right = [0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1]
    rewards = [Reward(float(one), {}, bool(one)) for one in right]
    found = compute_advantages(
        rollouts,
        rewards,
        logprobs_of(rollouts),
        PolicyGradient(num_correct_range=(1, 3)),
        kl_coef=0,
    )
    assert found.valid.tolist() == [False] * 4 + [True] * 4 + [False] * 4
    weights = compute_loss_weights(rollouts, found.valid, PolicyGradient())
    assert [float(weight.sum()) for weight in weights] == pytest.approx(
        [0] * 4 + [0.25] * 4 + [0] * 4
    )


def test_prompts_without_a_verifier_ignore_num_correct_range():
    rollouts = [rollout(group=group) for group in range(2) for _ in range(2)]
    rewards = [Reward(0.0, {}, False), Reward(0.0, {}, False), Reward(0.5, {}), Reward(None, {})]
    found = compute_advantages(
        rollouts,
        rewards,
        logprobs_of(rollouts),
        PolicyGradient(num_correct_range=(1, 2)),
        kl_coef=0,
    )
    assert found.valid.tolist() == [False, False, True, False]


def test_contradicting_settings_are_errors():
    with pytest.raises(
        ConfigError,
        match=r"overlong_penalty_start=10 must lie between 0 and rollout.max_new_tokens=10",
    ):
        PolicyGradient(
            rollout=RolloutConfig(max_new_tokens=10),
            rewards=(
                RewardConfig(format_weight=1.0, overlong_weight=1.0, overlong_penalty_start=10),
            ),
        )
    with pytest.raises(ConfigError, match="counts correct replies, and no reward has a verifier"):
        PolicyGradient(
            rewards=(RewardConfig(format_weight=1.0),),
            num_correct_range=(1, 2),
        )
    with pytest.raises(ConfigError, match="must begin with http"):
        JudgeConfig(url="localhost:8000/v1", model="m")


def test_advantages_compare_the_replies_to_one_prompt():
    rollouts = [
        rollout(group=0, tokens=2),
        rollout(group=0, tokens=5),
        rollout(group=0, tokens=1),
        rollout(group=1),
    ]
    rewards = [Reward(1.0, {}), Reward(0.0, {}), Reward(None, {}), Reward(5.0, {})]
    found = compute_advantages(
        rollouts,
        rewards,
        logprobs_of(rollouts),
        PolicyGradient(advantage_estimator="rloo"),
        kl_coef=0,
    )
    expected = [np.full(2, 1.0), np.full(5, -1.0), np.zeros(1), np.zeros(4)]
    for ours, theirs in zip(found.advantages, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_kl_in_the_reward_is_k1_of_every_token():
    rollouts = [rollout(group=0, tokens=2), rollout(group=0, tokens=5)]
    rewards = [Reward(1.0, {}), Reward(1.0, {})]
    config = PolicyGradient(advantage_estimator="rloo", kl_placement="reward")
    found = compute_advantages(
        rollouts, rewards, logprobs_of(rollouts, old=-1.0, reference=-1.5), config, kl_coef=0.1
    )
    difference = -0.1 * 0.5 * (2 - 5)
    np.testing.assert_allclose(found.advantages[0], difference, rtol=1e-5)
    np.testing.assert_allclose(found.advantages[1], -difference, rtol=1e-5)
