"""Rewards of dialogues: the judge compares whole ones, with a reference or within a group."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax.config import (
    JudgeConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SimulatedUserConfig,
)
from stepaudio_jax.data import Criterion
from stepaudio_jax.errors import DataError
from stepaudio_jax.generation import Prompt
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.rl.comparisons import ring_pairs
from stepaudio_jax.rl.metrics import rollout_metrics
from stepaudio_jax.rl.rewards import RewardFunction
from stepaudio_jax.rl.rollouts import Rollout, UserTurn
from stepaudio_jax.text import AudioPart, Message, ParsedReply, TextPart
from tests.generation.small_model import BYTES
from tests.judge.fakes import FunctionBackend
from tests.rl.test_rewards import longer_is_better, rollout

USER = SimulatedUserConfig(url="http://localhost/v1", model="m")
JUDGED = JudgeConfig(url="http://localhost/v1", model="m")
NO_SOUND = Prompt(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, bool), (), ())


def said(role, text):
    return Message(role, (TextPart(text),))


def dialogue(*texts, end="turns", group=0, parsed=None, **record):
    """Makes a rollout whose replies are every other text, and its user's turns the others."""
    replies = [rollout(text, group=group, **record) for text in texts[::2]]
    turns = tuple(reply.turns[0] for reply in replies)
    if parsed is not None:
        turns = (*turns[:-1], dataclasses.replace(turns[-1], parsed=parsed))
    nothing = np.zeros((0, 0, 0), np.float32)
    user_turns = tuple(UserTurn(said("user", text), NO_SOUND, nothing) for text in texts[1::2])
    return Rollout(group, replies[0].record, turns, user_turns, end)


def reward_function(function=longer_is_better, rubric="criteria", **reward):
    judge = Judge(
        FunctionBackend("longer", function), JudgePrompt(rubric=rubric), max_abstention_rate=1.0
    )
    config = PolicyGradient(
        rollout=RolloutConfig(simulated_user=USER),
        rewards=(RewardConfig(**{"judge_weight": 1.0, **reward}),),
        judge=dataclasses.replace(JUDGED, rubric=rubric),
    )
    return RewardFunction(config, judge)


REFERENCE = (said("assistant", "ref"), said("user", "more"), said("assistant", "reference 2"))


def test_dialogues_are_compared_with_the_reference_continuation():
    asked = []

    def answer(question):
        asked.append(question)
        return longer_is_better(question)

    long, short = reward_function(answer)(
        [
            dialogue(
                *("first", "and?", "second " * 9),
                reasoning="THOUGHT",
                reference_continuation=REFERENCE,
            ),
            dialogue("x", "y", "z", reference_continuation=REFERENCE),
        ]
    )
    assert long.value == pytest.approx(2 / 3)
    assert short.value == pytest.approx(-2 / 3)
    assert len(asked) == 4
    for text in ("first", "and?", "second", "ref", "more", "reference 2"):
        assert text in asked[0]
    assert "THOUGHT" not in asked[0]


def test_dialogues_of_a_group_are_compared_with_each_other():
    """Of three, the longest beats both others, the shortest loses to both: +2/3, 0, -2/3."""
    rollouts = [dialogue("a" * size, "b", "c") for size in (1, 30, 60)]
    rewards = reward_function(compare_with="group")(rollouts)
    assert [reward.value for reward in rewards] == pytest.approx([-2 / 3, 0, 2 / 3])
    others = [dialogue("a", "b", "c", group=1)]
    alone = reward_function(compare_with="group")([*rollouts, *others])[-1]
    assert alone.value is None  # there is nothing to compare with


def test_a_comparison_without_a_verdict_is_left_out_of_the_mean():
    rollouts = [dialogue("a" * size, "b", "c") for size in (1, 30)]
    rollouts.append(dialogue("abstain", "b", "c"))
    small, large, abstained = reward_function(compare_with="group")(rollouts)
    assert (small.value, large.value) == pytest.approx((-2 / 3, 2 / 3))
    assert abstained.value is None


def test_group_comparison_needs_no_simulated_user_and_no_reference():
    config = PolicyGradient(
        rewards=(RewardConfig(judge_weight=1.0, compare_with="group"),), judge=JUDGED
    )
    judge = Judge(FunctionBackend("longer", longer_is_better), JudgePrompt())
    rewards = RewardFunction(config, judge)
    items = [rollout("a"), rollout("bbb")]
    rewards.check_record(items[0].record)
    rewards.prefetch(items[0])
    assert [reward.value for reward in rewards(items)] == pytest.approx([-2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("size", "opponents", "count"),
    [(1, None, 0), (2, None, 1), (4, None, 6), (4, 1, 4), (5, 2, 10), (4, 3, 6), (2, 1, 1)],
)
def test_ring_pairs_compare_each_two_at_most_once(size, opponents, count):
    pairs = ring_pairs([10 * index for index in range(size)], opponents)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == count
    assert all(first != second for first, second in pairs)
    if opponents is not None and 2 * opponents < size:
        flat = [item for pair in pairs for item in pair]
        assert {flat.count(10 * index) for index in range(size)} == {2 * opponents}


def test_a_rubric_is_about_the_whole_dialogue():
    """Only the first reply of the policy is kind, and only the reference's last one is rude."""
    reference = (*REFERENCE[:2], said("assistant", "rude"))
    rubric = (Criterion("kind", 5.0), Criterion("rude", -3.0))
    (reward,) = reward_function()(
        [dialogue("kind", "b", "c", reference_continuation=reference, rubric=rubric)]
    )
    assert reward.value == pytest.approx(1.0)  # 5/5 + 3/5, clipped
    assert reward.parts["rubric_score"] == 1
    # Within a group the difference of one is minus that of the other.
    first, second = reward_function(compare_with="group")(
        [dialogue("kind", "b", "c", rubric=rubric), dialogue("c", "b", "rude", rubric=rubric)]
    )
    assert first.parts["rubric_score"] == 1
    assert second.parts["rubric_score"] == pytest.approx(-3 / 5)
    assert first.value == -second.value == 1


def test_a_verifier_checks_the_last_reply_and_form_is_a_mean():
    malformed = ParsedReply("", "", ("not_ended", "no_think_end"))
    items = [
        dialogue("8", "and 3 + 4?", "7"),
        dialogue("7", "and 3 + 4?", "8"),
        dialogue("7", "and?", "", end="malformed", parsed=malformed),
    ]
    settings = {"judge_weight": 0.0, "verifier": "number", "verifier_weight": 1.0}
    rewards = reward_function(**settings, format_weight=0.5)(items)
    assert [reward.is_correct for reward in rewards] == [True, False, False]
    assert [reward.value for reward in rewards] == pytest.approx([1.5, 0.5, 0.25])
    metrics = rollout_metrics(items, rewards, BYTES)
    assert metrics["well_formed"] == pytest.approx(5 / 6)  # of the replies of all turns


def test_a_dialogue_without_users_words_has_no_reward_and_is_not_judged():
    asked = []

    def answer(question):
        asked.append(question)
        return longer_is_better(question)

    settings = {"verifier": "number", "verifier_weight": 1.0}
    failed, other = reward_function(answer, **settings)(
        [
            dialogue("7", end="failed", reference_continuation=REFERENCE),
            dialogue("7", end="user", reference_continuation=REFERENCE),
        ]
    )
    assert failed.value is None
    assert failed.is_correct is None
    assert other.value == pytest.approx(1 - 2 / 3)
    assert len(asked) == 2


def test_spoken_turns_are_read_by_their_transcripts():
    spoken = AudioPart("data:audio/wav;base64,UklGRg==", transcript="what was said")
    item = dialogue("first", "x", "second", reference_continuation=REFERENCE)
    turn = dataclasses.replace(item.user_turns[0], message=Message("user", (spoken,)))
    asked = []

    def answer(question):
        asked.append(question)
        return longer_is_better(question)

    reward_function(answer)([dataclasses.replace(item, user_turns=(turn,))])
    assert "what was said" in asked[0]
    assert "base64" not in asked[0]


def test_a_record_without_a_continuation_is_refused():
    record = rollout("7", reference_reply="7").record
    with pytest.raises(DataError, match=r"file:1: .* no 'reference_continuation', .*'group'"):
        reward_function().check_record(record)
    reward_function(compare_with="group").check_record(record)
    reward_function().check_record(dataclasses.replace(record, reference_continuation=REFERENCE))
