"""The reward of a rollout: verifier, form, length, and the judge's comparison, on one scale."""

import asyncio
import collections
import contextlib
import dataclasses
import inspect
import math
import numbers
import reprlib
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from stepaudio_jax.config import PolicyGradient, RewardConfig
from stepaudio_jax.data import Record
from stepaudio_jax.errors import DataError
from stepaudio_jax.judge.judge import Judge, Judgement
from stepaudio_jax.judge.pairs import DialoguePair
from stepaudio_jax.judge.query import JudgeInput
from stepaudio_jax.judge.verdict import (
    RewardMap,
    preference,
    prefers_position,
    rubric_reward,
)
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.rl.comparisons import group_pair, reference_pair, ring_pairs
from stepaudio_jax.rl.rollouts import PolicyTurn, Rollout
from stepaudio_jax.rl.verifiers import (
    Verifier,
    check_answer,
    find_verifier,
    format_reward,
    overlong_penalty,
)

_ASYNC_CALLS = 64  # of an async verifier at the same time
_TOLERANCE = 1e-6  # of a verifier's score beyond 0 and 1, such as the rounding of a sum


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of one rollout.

    Attributes:
        value: the weighted sum of the parts; None where the judge abstained or the simulated user
            failed: the rollout is then left out of the update.
        parts: the reward's parts by name, before their weights.
        is_correct: whether the verifier gave the full score; None without a verifier.
        given: what the judge was given of the dialogue's clips; None without a judge.
    """

    value: float | None
    parts: dict[str, float]
    is_correct: bool | None = None
    given: JudgeInput | None = None


def compute_rewards(
    rollouts: Sequence[Rollout], config: PolicyGradient, judge: Judge | None = None
) -> list[Reward]:
    """Computes the reward of every rollout; see `RewardFunction`, which also checks records.

    Raises:
        JudgeError: the judge abstained too often.
        DataError: a verifier failed, or a reward is not finite.
        ValueError: a verifier cannot be found.
    """
    return RewardFunction(config, judge)(rollouts)


class RewardFunction:
    """The rewards of a stage.

    Args:
        config: the stage's objective.
        judge: needed where a reward has judge_weight.

    Raises:
        ValueError: a verifier cannot be found.
    """

    def __init__(self, config: PolicyGradient, judge: Judge | None):
        self._config, self._judge = config, judge
        self._reward_map = RewardMap(
            config.judge.preference_levels,
            config.judge.reward_map,
            config.judge.reward_map_temperature,
        )
        names = {reward.verifier for reward in config.rewards if reward.verifier_weight}
        self._verifiers = {name: find_verifier(name) for name in names}

    def check_record(self, record: Record) -> None:
        """Checks that a record has what the reward of its source needs.

        Raises:
            DataError: something is missing; names file and line.
        """
        if not self._config.rewards:
            return
        reward = self._config.reward_for_source(record.source)
        if reward.verifier_weight and record.answer is None:
            raise DataError(
                f"{record.origin}: its reward has verifier_weight, and the record has no 'answer'"
            )
        if reward.judge_weight and reward.compare_with == "reference":
            self._check_reference(record)
        if (
            reward.judge_weight
            and record.rubric
            and not any(criterion.weight > 0 for criterion in record.rubric)
        ):
            raise DataError(
                f"{record.origin}: its rubric has no criterion of a positive weight: every reply "
                "would score the same"
            )
        if reward.verifier_weight and record.answer is not None:
            try:
                check_answer(reward.verifier, record.answer)
            except ValueError as error:
                raise DataError(f"{record.origin}: {error}") from None

    def prefetch(self, rollout: Rollout) -> None:
        """Lets the judge begin with a rollout while others are still being generated.

        One that is compared with others of its prompt waits for them.
        """
        if self._judge is None or not self._is_judged(rollout):
            return
        if self._config.reward_for_source(rollout.record.source).compare_with == "reference":
            self._judge.prefetch(self._reference_pair(rollout))

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Reward]:
        """Computes the reward of every rollout.

        Raises:
            JudgeError: the judge abstained too often.
            DataError: a verifier failed or returned no score, or a reward is not finite.
        """
        if not self._config.rewards:  # a teacher is all that is learnt from
            return [Reward(0.0, {}) for _ in rollouts]
        judgements = self._judgements(rollouts)
        scores = self._async_scores(rollouts)
        return [
            self._reward(rollout, judgements.get(index), scores.get(index))
            for index, rollout in enumerate(rollouts)
        ]

    def close(self) -> None:
        """Cancels the judge's waiting questions."""
        if self._judge is not None:
            self._judge.close()

    def _check_reference(self, record: Record) -> None:
        """Checks that a record has what the judge compares its rollouts with.

        Raises:
            DataError: it has not; names file and line.
        """
        if self._config.rollout.simulated_user.enabled:
            if not record.reference_continuation:
                raise DataError(
                    f"{record.origin}: its reward has judge_weight, and the record has no "
                    "'reference_continuation', with which dialogues of several turns are compared; "
                    "give it one, or set compare_with='group'"
                )
        elif not (record.reference_reply or "").strip():
            raise DataError(
                f"{record.origin}: its reward has judge_weight, and the record has no "
                "'reference_reply'"
            )

    def _judgements(self, rollouts: Sequence[Rollout]) -> dict[int, list[Judgement]]:
        """Returns for each rollout that is judged its comparisons, each from its side.

        A rollout that is compared with those of its prompt has none where it is the only one.
        """
        if self._judge is None:
            return {}
        judgements: dict[int, list[Judgement]] = {}
        groups: dict[int, list[int]] = collections.defaultdict(list)
        compared: list[tuple[int, int | None]] = []
        for index, rollout in enumerate(rollouts):
            if not self._is_judged(rollout):
                continue
            judgements[index] = []
            reward = self._config.reward_for_source(rollout.record.source)
            if reward.compare_with == "group":
                groups[rollout.group].append(index)
            else:
                compared.append((index, None))
        for indices in groups.values():
            reward = self._config.reward_for_source(rollouts[indices[0]].record.source)
            compared += ring_pairs(indices, reward.group_opponents)
        pairs = [
            self._reference_pair(rollouts[first])
            if second is None
            else group_pair(rollouts[first], rollouts[second])
            for first, second in compared
        ]
        results = self._judge.judge(pairs) if pairs else []
        for (first, second), judgement in zip(compared, results, strict=True):
            judgements[first].append(judgement)
            if second is not None:
                other_side = dataclasses.replace(
                    judgement, original=judgement.swapped, swapped=judgement.original
                )
                judgements[second].append(other_side)
        return judgements

    def _reference_pair(self, rollout: Rollout) -> DialoguePair:
        has_turns = self._config.rollout.simulated_user.enabled
        return reference_pair(rollout, is_continuation=has_turns)

    def _is_judged(self, rollout: Rollout) -> bool:
        if not self._config.rewards or rollout.end == "failed":
            return False
        return self._config.reward_for_source(rollout.record.source).judge_weight > 0

    def _async_scores(self, rollouts: Sequence[Rollout]) -> dict[int, float]:
        """Returns the scores by async verifiers, which work on many rollouts at the same time.

        What such a function asks may answer otherwise a second time, so of several processes the
        first calls it, and sends the scores to the others.
        """
        names = {
            index: config.verifier
            for index, rollout in enumerate(rollouts)
            if rollout.end != "failed"
            and (config := self._config.reward_for_source(rollout.record.source)).verifier_weight
            and inspect.iscoroutinefunction(self._verifiers[config.verifier])
        }
        if not names:
            return {}

        async def score_all() -> list[float]:
            free = asyncio.Semaphore(_ASYNC_CALLS)

            async def score(name: str, rollout: Rollout) -> float:
                async with free:
                    return await _verify_async(name, self._verifiers[name], rollout)

            calls = [score(name, rollouts[index]) for index, name in names.items()]
            return await asyncio.gather(*calls)

        result: tuple[str, list[float]] | None = None
        if jax.process_index() == 0:
            try:
                # On a thread of its own: a notebook's main thread already runs an event loop.
                with ThreadPoolExecutor(1) as pool:
                    result = "", pool.submit(asyncio.run, score_all()).result()
            except DataError as error:
                result = str(error), []
        problem, scores = broadcast_json(result)
        if problem:
            raise DataError(problem, kind="reward")
        return dict(zip(names, scores, strict=True))

    def _reward(
        self, rollout: Rollout, judgements: Sequence[Judgement] | None, async_score: float | None
    ) -> Reward:
        if rollout.end == "failed":  # its last reply was to be followed by others
            return Reward(None, {})
        config = self._config.reward_for_source(rollout.record.source)
        parts: dict[str, float] = {}
        is_correct = None
        if config.verifier_weight:
            assert rollout.record.answer is not None
            score = async_score
            if score is None:
                score = _verify(config.verifier, self._verifiers[config.verifier], rollout)
            parts["verifier"] = score
            is_correct = parts["verifier"] >= 1
        parts["format"] = _mean([format_reward(turn.parsed) for turn in rollout.turns])
        if config.overlong_weight:
            penalties = [self._overlong_penalty(turn, config) for turn in rollout.turns]
            parts["overlong"] = _mean(penalties)
        given = None
        if judgements is not None:
            given = judgements[0].given if judgements else None
            judged = [
                self._judged_parts(rollout, judgement)
                for judgement in judgements
                if judgement.verdicts is not None
            ]
            if not judged:
                return Reward(None, parts, is_correct, given)
            parts |= {name: _mean([part[name] for part in judged]) for name in judged[0]}
        value = _weighted_sum(config, parts)
        if not math.isfinite(value):
            raise DataError(
                f"{rollout.record.origin}: the reward of a reply is {value}, from {parts}; are its "
                "rubric's weights huge?",
                kind="reward",
            )
        return Reward(value, parts, is_correct, given)

    def _overlong_penalty(self, turn: PolicyTurn, config: RewardConfig) -> float:
        max_tokens = self._config.rollout.max_new_tokens
        # A repetition that the engine ended would have gone on to the limit, and must not pay.
        tokens = max_tokens if turn.truncated else len(turn.completion_tokens)
        return overlong_penalty(
            tokens, free_tokens=config.overlong_penalty_start, max_tokens=max_tokens
        )

    def _judged_parts(self, rollout: Rollout, judgement: Judgement) -> dict[str, float]:
        """Returns the preference and, with a rubric, its reward and the policy's own score.

        Where the judge compares in the light of the rubric, the preference is its reward.
        """
        assert judgement.verdicts is not None
        original, swapped = judgement.verdicts
        parts = {
            "preference": preference(original, swapped, self._reward_map),
            "flips": float(prefers_position(original, swapped)),
        }
        rubric, use = rollout.record.rubric, self._config.judge.rubric
        if rubric and use != "ordinal":
            parts["rubric"], parts["rubric_score"] = rubric_reward(rubric, original, swapped)
        if rubric and use == "both":
            parts["rubric_criteria"] = parts["rubric"]
            parts["rubric"] = (parts["rubric_criteria"] + parts["preference"]) / 2
        return parts


def _verify(name: str, verifier: Verifier, rollout: Rollout) -> float:
    """Returns a verifier's score of a reply, from 0 to 1.

    Raises:
        DataError: it raised, or returned something else; names the record and the verifier,
            which may be a function of the user's.
    """
    with _verifier_errors(name, rollout):
        returned = verifier(rollout.parsed.reply, rollout.record.answer or "")
    return _score(returned, name, rollout)


async def _verify_async(name: str, verifier: Verifier, rollout: Rollout) -> float:
    """Returns the score of a verifier that is an async function; see `_verify`."""
    with _verifier_errors(name, rollout):
        returned = await verifier(  # type: ignore[misc]  # it is known to be async
            rollout.parsed.reply, rollout.record.answer or ""
        )
    return _score(returned, name, rollout)


@contextlib.contextmanager
def _verifier_errors(name: str, rollout: Rollout) -> Iterator[None]:
    """Turns what a verifier raises into a DataError that names the record and its line."""
    try:
        yield
    except Exception as error:
        # The function's own frame; there is none where it takes other arguments.
        frames = traceback.extract_tb(error.__traceback__)[2:3]
        line = "".join(f" ({frame.filename}:{frame.lineno})" for frame in frames)
        raise DataError(
            f"{_verifier_place(name, rollout)} raised {type(error).__name__}: {error}{line}",
            kind="reward",
        ) from error


def _score(returned: object, name: str, rollout: Rollout) -> float:
    """Returns what a verifier returned, any number or truth value, as a float from 0 to 1."""
    score: Any = returned
    if hasattr(score, "item") and getattr(score, "shape", None) == ():  # an array of no dimensions
        score = score.item()
    is_number = isinstance(score, numbers.Real)
    if not is_number or not -_TOLERANCE <= score <= 1 + _TOLERANCE:
        raise DataError(
            f"{_verifier_place(name, rollout)} returned {reprlib.repr(returned)}; it must return "
            "True or False, or a number from 0 to 1",
            kind="reward",
        )
    return min(max(float(score), 0.0), 1.0)


def _verifier_place(name: str, rollout: Rollout) -> str:
    reply = rollout.parsed.reply
    excerpt = reply if len(reply) <= 60 else f"{reply[:60]}.."
    return f"{rollout.record.origin}: verifier={name!r} on the reply {excerpt!r}"


def _weighted_sum(config: RewardConfig, parts: dict[str, float]) -> float:
    judged = parts.get("rubric", parts.get("preference", 0.0))
    return config.scale * (
        config.verifier_weight * parts.get("verifier", 0.0)
        + config.format_weight * parts["format"]
        + config.overlong_weight * parts.get("overlong", 0.0)
        + config.judge_weight * judged
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
