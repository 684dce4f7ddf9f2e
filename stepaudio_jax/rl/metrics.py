"""Metrics of a step besides its loss, in total and by source, and samples of its replies.

The mean reward alone may look healthy while replies degenerate.
"""

import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.rl.advantages import Advantages, PolicyLogprobs
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import DialogueEnd, Rollout, said
from stepaudio_jax.storage import Path, StepLog
from stepaudio_jax.text import Tokenizer

_SAMPLES_PER_STEP = 4
# Metrics that are summed over steps.
_COUNTS = (
    *("audio_chunks_encoded", "skipped_records", "skipped_updates", "zero_gradient_updates"),
    *("refilled_prompts", "user_failures"),
)
_MIN_RELATIVE_VARIANCE = 1e-10  # of returns, to their mean square; less is rounding of float32


def rollout_metrics(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], tokenizer: Tokenizer
) -> dict[str, float]:
    """Computes means over the rollouts of a step; see `metrics_by_source`."""
    return metrics_by_source(
        rollouts,
        lambda indices: _rollout_means(
            [rollouts[index] for index in indices],
            [rewards[index] for index in indices],
            tokenizer,
        ),
    )


def logprob_metrics(
    rollouts: Sequence[Rollout], logprobs: PolicyLogprobs, advantages: Advantages
) -> dict[str, float]:
    """Computes the distances between engine and trainer, policy and reference, values and returns.

    * sampler_mismatch: mean exp |log p of the trainer - log p of the engine|.
    * reply_kl: mean over rollouts of the sum of log p of the policy - log p of the reference, where
      there is a reference policy.
    * explained_variance: of the rollouts that contribute to the update; others have no returns.

    See `metrics_by_source`.
    """
    assert logprobs.old_logprobs is not None  # known after the updates
    sampler_gap = [
        np.abs(old - rollout.sampler_logprobs)
        for old, rollout in zip(logprobs.old_logprobs, rollouts, strict=True)
    ]
    reply_kl = None
    if logprobs.reference_logprobs is not None:
        reply_kl = [
            np.sum(old - reference)
            for old, reference in zip(
                logprobs.old_logprobs, logprobs.reference_logprobs, strict=True
            )
        ]

    def metrics_of(indices: Sequence[int]) -> dict[str, float]:
        gap = np.concatenate([sampler_gap[index] for index in indices])
        metrics = {"sampler_mismatch": float(np.exp(np.minimum(gap, 20)).mean())}
        if reply_kl is not None:
            metrics["reply_kl"] = float(np.mean([reply_kl[index] for index in indices]))
        valid = [index for index in indices if advantages.valid[index]]
        if valid:
            returns, values = (
                np.concatenate([of_rollout[index] for index in valid])
                for of_rollout in (advantages.returns, logprobs.values)
            )
            explained = explained_variance(returns, values)
            if explained is not None:
                metrics["explained_variance"] = explained
        return metrics

    return metrics_by_source(rollouts, metrics_of)


def explained_variance(returns: NDArray[np.float32], values: NDArray[np.float32]) -> float | None:
    """Computes 1 - Var(returns - values) / Var(returns), both [tokens], in float64.

    Returns None where the returns are all equal, up to rounding.
    """
    returns, values = returns.astype(np.float64), values.astype(np.float64)
    variance = np.var(returns)
    if not variance > _MIN_RELATIVE_VARIANCE * np.mean(returns**2):
        return None
    return float(1 - np.var(returns - values) / variance)


def metrics_by_source(
    rollouts: Sequence[Rollout], metrics_of: Callable[[Sequence[int]], dict[str, float]]
) -> dict[str, float]:
    """Computes metrics of all rollouts and, of several sources, of each: "reward/SOURCE".

    Args:
        rollouts: all rollouts of a step.
        metrics_of: computes the metrics of the rollouts with these indices.
    """
    metrics = metrics_of(range(len(rollouts)))
    sources = sorted({rollout.record.source for rollout in rollouts})
    if len(sources) > 1:
        for source in sources:
            indices = [
                index for index, rollout in enumerate(rollouts) if rollout.record.source == source
            ]
            metrics |= {f"{name}/{source}": value for name, value in metrics_of(indices).items()}
    return metrics


def _rollout_means(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], tokenizer: Tokenizer
) -> dict[str, float]:
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    replies = [tokenizer.encode_written(turn.parsed.reply) for turn in turns]
    pairs = [pair for reply in replies for pair in itertools.pairwise(reply)]
    values = [reward.value for reward in rewards if reward.value is not None]
    metrics = {
        "abstained": float(np.mean([reward.value is None for reward in rewards])),
        "reply_tokens": float(np.mean([len(reply) for reply in replies])),
        "reasoning_tokens": float(
            np.mean([len(tokenizer.encode(turn.parsed.reasoning)) for turn in turns])
        ),
        "completion_tokens": float(np.mean([len(turn.completion_tokens) for turn in turns])),
        "well_formed": float(np.mean([turn.parsed.well_formed for turn in turns])),
        "truncated": float(np.mean([turn.truncated for turn in turns])),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 0.0,
    }
    if values:
        metrics |= {"reward": float(np.mean(values)), "reward_std": float(np.std(values))}
    return metrics | _judge_metrics(rollouts, rewards) | _part_metrics(rewards)


def dialogue_metrics(rollouts: Sequence[Rollout], tokenizer: Tokenizer) -> dict[str, float]:
    """Computes metrics of rollouts with a simulated user; see `metrics_by_source`.

    * turns: replies of the policy in a dialogue.
    * ended_by_REASON: share of the dialogues that ended so, see `DialogueEnd`.
    * user_failures: number of dialogues in which the user failed.
    * reply_tokens_turn_N: tokens of the policy's reply number N, where there is one.
    * user_tokens_turn_N: tokens of the user's words after it.
    """

    def metrics_of(indices: Sequence[int]) -> dict[str, float]:
        chosen = [rollouts[index] for index in indices]
        ends = collections.Counter(rollout.end for rollout in chosen)
        metrics = {"turns": float(np.mean([len(rollout.turns) for rollout in chosen]))}
        metrics |= {f"ended_by_{end}": ends[end] / len(chosen) for end in get_args(DialogueEnd)}
        metrics["user_failures"] = float(ends["failed"])
        lengths: dict[str, list[int]] = collections.defaultdict(list)
        for rollout in chosen:
            for number, turn in enumerate(rollout.turns, 1):
                reply = tokenizer.encode_written(turn.parsed.reply)
                lengths[f"reply_tokens_turn_{number}"].append(len(reply))
            for number, user_turn in enumerate(rollout.user_turns, 1):
                words = tokenizer.encode(said(user_turn.message))
                lengths[f"user_tokens_turn_{number}"].append(len(words))
        return metrics | {name: float(np.mean(values)) for name, values in lengths.items()}

    return metrics_by_source(rollouts, metrics_of)


def _judge_metrics(rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> dict[str, float]:
    """Compares rewards by rubrics with those by preference, where a step has both kinds."""
    by_kind: dict[str, list[float | None]] = {"rubric": [], "pairwise": []}
    for rollout, reward in zip(rollouts, rewards, strict=True):
        is_judged = reward.value is None or "preference" in reward.parts
        if is_judged:
            by_kind["rubric" if rollout.record.rubric else "pairwise"].append(reward.value)
    metrics: dict[str, float] = {}
    if all(by_kind.values()):
        for kind, values in by_kind.items():
            known = [value for value in values if value is not None]
            metrics[f"abstained_{kind}"] = 1 - len(known) / len(values)
            if known:
                metrics[f"reward_std_{kind}"] = float(np.std(known))
    return metrics


def _part_metrics(rewards: Sequence[Reward]) -> dict[str, float]:
    """Computes the means of the rewards' parts, and the policy's win rate against the reference."""
    parts: dict[str, list[float]] = collections.defaultdict(list)
    for reward in rewards:
        for name, value in reward.parts.items():
            # With a rubric the preference is not rewarded: the win rate is without it.
            is_unused = name == "preference" and "rubric" in reward.parts
            parts["preference_beside_rubric" if is_unused else name].append(value)
    metrics = {f"reward_{name}": float(np.mean(values)) for name, values in parts.items()}
    if parts["preference"]:
        wins = [np.sign(value) / 2 + 0.5 for value in parts["preference"]]
        metrics["win_rate"] = float(np.mean(wins))
    return metrics


def mean_of_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Computes the metrics of several steps: sums of counts, and means of the others.

    A mean is over the steps that have the metric.

    Args:
        steps: metrics of each step, at least one.
    """
    values: dict[str, list[float]] = collections.defaultdict(list)
    for step in steps:
        for name, value in step.items():
            values[name].append(value)
    return {
        name: sum(of_steps) if name in _COUNTS else sum(of_steps) / len(of_steps)
        for name, of_steps in values.items()
    }


class PhaseTimer:
    """Measures the phases of a step, each the sum of its parts: {"seconds/PHASE": seconds}."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the seconds of the block; not of one that raises."""
        started = time.perf_counter()
        yield
        key = f"seconds/{name}"
        self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - started


class SampleWriter:
    """Writes a few replies of each step with their rewards to `samples.jsonl`.

    Of several processes only the first writes. A resumed run drops the lines of later steps.

    Args:
        run_dir: the run's folder.
        stage: the stage's name.
        resume_step: steps that were done before.
        has_dialogues: whether rollouts have several turns, which are written too.
    """

    def __init__(self, run_dir: Path, *, stage: str, resume_step: int, has_dialogues: bool = False):
        self._has_dialogues = has_dialogues
        self._writes = jax.process_index() == 0
        if self._writes:
            self._log = StepLog(run_dir / "samples.jsonl", stage, resume_step)

    def write(self, step: int, rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> None:
        """Writes the first reply to each of a few prompts."""
        if not self._writes:
            return
        first_of_group: dict[int, int] = {}
        for index, rollout in enumerate(rollouts):
            first_of_group.setdefault(rollout.group, index)
        lines = []
        for index in sorted(first_of_group.values())[:_SAMPLES_PER_STEP]:
            rollout, reward = rollouts[index], rewards[index]
            line: dict[str, Any] = {
                "id": rollout.record.id,
                "source": rollout.record.source,
                "reasoning": rollout.parsed.reasoning,
                "reply": rollout.parsed.reply,
                "reference_reply": rollout.record.reference_reply,
                "answer": rollout.record.answer,
                "reward": reward.value,
                "parts": reward.parts,
            }
            if reward.given is not None:
                line["judge_given"] = dataclasses.asdict(reward.given)
            if self._has_dialogues:
                line["end"] = rollout.end
                line["dialogue"] = [
                    {"role": message.role, "content": said(message)}
                    for message in rollout.continuation
                ]
            lines.append(line)
        self._log.append(step, *lines)
