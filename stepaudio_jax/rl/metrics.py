"""What to watch besides the reward, which looks healthy while replies turn terse: by source, and in total."""

import collections
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.rl.advantages import Advantages, PolicyLogprobs
from stepaudio_jax.rl.rewards import Reward
from stepaudio_jax.rl.rollouts import Rollout
from stepaudio_jax.text import Tokenizer
from stepaudio_jax.training.monitoring import drop_steps_after

_SAMPLES_PER_STEP = 4
_TOLERANCE = 1e-10  # of float32 returns, as a share of their mean square


def rollout_metrics(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], tokenizer: Tokenizer
) -> dict[str, float]:
    """Means over the rollouts of a step; see `metrics_by_source`."""
    return metrics_by_source(
        rollouts,
        lambda chosen: _rollout_means(
            [rollouts[index] for index in chosen], [rewards[index] for index in chosen], tokenizer
        ),
    )


def logprob_metrics(
    rollouts: Sequence[Rollout], passed: PolicyLogprobs, advantages: Advantages
) -> dict[str, float]:
    """Returns how far the engine is from the trainer, the policy from the reference, and the values from the returns.

    Explained variance is of the replies that are learnt from alone: an abstained one has no return.
    See `metrics_by_source`.
    """
    off = [
        np.abs(old - rollout.sampler_logprobs)
        for old, rollout in zip(passed.old_logprobs, rollouts, strict=True)
    ]
    away = [
        np.sum(old - reference)
        for old, reference in zip(passed.old_logprobs, passed.reference_logprobs, strict=True)
    ]

    def metrics_of(chosen: Sequence[int]) -> dict[str, float]:
        mismatch = np.concatenate([off[index] for index in chosen])
        metrics = {
            "sampler_mismatch": float(np.exp(np.minimum(mismatch, 20)).mean()),
            "reply_kl": float(np.mean([away[index] for index in chosen])),
        }
        learnt = [index for index in chosen if advantages.valid[index]]
        if learnt:
            returns, values = (
                np.concatenate([x[index] for index in learnt])
                for x in (advantages.returns, passed.values)
            )
            explained = explained_variance(returns, values)
            if explained is not None:
                metrics["explained_variance"] = explained
        return metrics

    return metrics_by_source(rollouts, metrics_of)


def explained_variance(returns: NDArray[np.float32], values: NDArray[np.float32]) -> float | None:
    """Returns 1 - Var(returns - values) / Var(returns) over all tokens [R] at once; None where returns do not differ."""
    returns, values = returns.astype(np.float64), values.astype(np.float64)
    variance = np.var(returns)
    if not variance > _TOLERANCE * np.mean(returns**2):
        return None
    return float(1 - np.var(returns - values) / variance)


def metrics_by_source(
    rollouts: Sequence[Rollout], metrics_of: Callable[[Sequence[int]], dict[str, float]]
) -> dict[str, float]:
    """Figures of all rollouts, and of those of each source where there are several: named "reward", and "reward/SOURCE".

    Args:
        rollouts: of a step.
        metrics_of: the metrics of the rollouts with these numbers.
    """
    metrics = metrics_of(range(len(rollouts)))
    sources = sorted({rollout.record.source for rollout in rollouts})
    if len(sources) > 1:
        for source in sources:
            chosen = [
                index for index, rollout in enumerate(rollouts) if rollout.record.source == source
            ]
            metrics |= {f"{name}/{source}": value for name, value in metrics_of(chosen).items()}
    return metrics


def _rollout_means(
    rollouts: Sequence[Rollout], rewards: Sequence[Reward], tokenizer: Tokenizer
) -> dict[str, float]:
    replies = [tokenizer.encode(rollout.parsed.reply) for rollout in rollouts]
    pairs = [pair for reply in replies for pair in itertools.pairwise(reply)]
    values = [reward.value for reward in rewards if reward.value is not None]
    metrics = {
        "abstained": float(np.mean([reward.value is None for reward in rewards])),
        "reply_tokens": float(np.mean([len(reply) for reply in replies])),
        "reasoning_tokens": float(
            np.mean([len(tokenizer.encode(rollout.parsed.reasoning)) for rollout in rollouts])
        ),
        "completion_tokens": float(
            np.mean([len(rollout.completion_tokens) for rollout in rollouts])
        ),
        "well_formed": float(np.mean([rollout.parsed.well_formed for rollout in rollouts])),
        "truncated": float(np.mean([rollout.truncated for rollout in rollouts])),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 0.0,
    }
    if values:
        metrics |= {"reward": float(np.mean(values)), "reward_std": float(np.std(values))}
    kinds: dict[str, list[float | None]] = {"rubric": [], "pairwise": []}
    for rollout, reward in zip(rollouts, rewards, strict=True):
        if reward.value is None or "preference" in reward.parts:  # it was judged
            kinds["rubric" if rollout.record.rubric else "pairwise"].append(reward.value)
    if all(
        kinds.values()
    ):  # one mixture of both: where the judge abstains, and what it tells apart, is seen of each
        for kind, of_kind in kinds.items():
            given = [value for value in of_kind if value is not None]
            metrics[f"abstained_{kind}"] = 1 - len(given) / len(of_kind)
            if given:
                metrics[f"reward_std_{kind}"] = float(np.std(given))
    parts: dict[str, list[float]] = collections.defaultdict(list)
    for reward in rewards:
        for name, value in reward.parts.items():
            # Where a rubric rewards, the preference is only looked at: the win rate is that of the
            # other replies.
            beside = name == "preference" and "rubric" in reward.parts
            parts["preference_beside_rubric" if beside else name].append(value)
    metrics |= {f"reward_{name}": float(np.mean(of_part)) for name, of_part in parts.items()}
    if parts["preference"]:
        metrics["win_rate"] = float(
            np.mean([np.sign(value) / 2 + 0.5 for value in parts["preference"]])
        )
    return metrics


class SampleWriter:
    """Some replies of each step with what they were worth, in `samples.jsonl`; of several processes only the first writes.

    A run that resumes from a step drops what was written after it.
    """

    def __init__(self, run_dir: pathlib.Path, *, stage: str, resume_step: int):
        self._stage = stage
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = run_dir / "samples.jsonl"
        if path.exists():
            drop_steps_after(path, stage, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> None:
        """The first reply to each of a few prompts."""
        if not self._writes:
            return
        shown = {rollout.group: index for index, rollout in reversed(list(enumerate(rollouts)))}
        for index in sorted(shown.values())[:_SAMPLES_PER_STEP]:
            rollout, reward = rollouts[index], rewards[index]
            line = {
                "stage": self._stage,
                "step": step,
                "id": rollout.record.id,
                "source": rollout.record.source,
                "reasoning": rollout.parsed.reasoning,
                "reply": rollout.parsed.reply,
                "reference_reply": rollout.record.reference_reply,
                "answer": rollout.record.answer,
                "reward": reward.value,
                "parts": reward.parts,
            }
            self._file.write(_as_line(line))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writes:
            self._file.close()


def _as_line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
