"""Makes the preference pairs of the arm "dpo": replies of the start model, and a judge's verdicts.

The prompts are as many as the joint stage uses, in the same shares, with as many replies each. The
judge compares every reply with the reference reply, in both orders, as in the joint stage; of each
prompt the best and the worst reply are a pair, where their rewards differ.
"""

import pathlib

import numpy as np

from stepaudio_jax.config import StageConfig
from stepaudio_jax.data import Record, read_records
from stepaudio_jax.data.containers.places import absolute_path
from stepaudio_jax.data.sources.serialization import part_times, serialize_record
from stepaudio_jax.generation import (
    Sampling,
    answer_file,
    finished_generation,
    load_model,
)
from stepaudio_jax.judge.judge import make_judge
from stepaudio_jax.rl.rewards import RewardFunction
from stepaudio_jax.rl.selection import select_replies
from stepaudio_jax.storage import read_json_lines, write_json_lines


def write_judged_pairs(
    folder: pathlib.Path, start: pathlib.Path, joint: StageConfig, *, seed: int
) -> pathlib.Path:
    """Writes the pairs unless they exist; resumes what was interrupted.

    Args:
        folder: of the pairs, and of all that leads to them.
        start: the start model.
        joint: the joint stage, whose prompts, number of replies and judge are used.
        seed: of the choice of prompts and of the replies.

    Returns:
        The file of the pairs.

    Raises:
        JudgeError: the judge abstained too often.
    """
    output = folder / "pairs.jsonl"
    if output.exists():
        return output
    objective = joint.policy_gradient
    prompts, replies = folder / "prompts.jsonl", folder / "replies.jsonl"
    if not prompts.exists():
        write_json_lines(prompts, map(_serialize, _draw_prompts(joint, seed)))
    sampling = Sampling(
        temperature=1.0, top_p=1.0, max_new_tokens=objective.rollout.max_new_tokens, seed=seed
    )
    num_samples = objective.rollout.num_generations
    done = finished_generation(
        start, prompts, replies, sampling, "float32", num_samples=num_samples
    )
    if done is None:
        answer_file(
            load_model(start, "float32"),
            prompts,
            replies,
            sampling,
            slots=objective.rollout.slots,
            num_samples=num_samples,
        )
    judge = make_judge(objective.judge, dtype="float32", cache=folder / "judge.jsonl")
    rewards = RewardFunction(objective, judge)
    lines = [line.value for line in read_json_lines(replies)]
    selection = select_replies(list(read_records(prompts)), lines, rewards, keep="pairs")
    rewards.close()
    write_json_lines(output, selection.rows)
    return output


def _draw_prompts(joint: StageConfig, seed: int) -> list[Record]:
    """Draws the prompts without replacement, each source's share by its weight."""
    rng = np.random.default_rng((seed, 36))
    total = joint.steps * joint.policy_gradient.rollout.num_prompts
    weights = np.array([source.weight for source in joint.data.sources])
    counts = np.rint(total * weights / weights.sum()).astype(int)
    prompts: list[Record] = []
    for source, count in zip(joint.data.sources, counts, strict=True):
        records = list(read_records(source.path))
        prompts += [records[int(index)] for index in rng.permutation(len(records))[:count]]
    return [prompts[int(index)] for index in rng.permutation(len(prompts))]


def _serialize(record: Record) -> dict[str, object]:
    return serialize_record(
        record, lambda part: {"audio": absolute_path(part.path), **part_times(part)}
    )
