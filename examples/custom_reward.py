"""Reinforcement learning with a graded reward made of parts: near misses count, long replies cost.

    python -m examples.custom_reward [RUN_DIR]

Right or wrong tells a model little while it is mostly wrong. Here a reply gets a share of the
reward for each letter it has in common with the answer, in order, and loses some for its length:
the reward is verifier_weight * similarity - overlong_weight * (how far it is beyond
overlong_penalty_start tokens). Expected, on a CPU (the numbers move a little from machine to
machine):

    reward in the first step: 0.61, in the last: 0.84
"""

import difflib
import pathlib
import sys

import stepaudio_jax as sa
from examples.rl_verifier import make_config, read_metric, write_questions


def letters_in_common(reply: str, answer: str) -> float:
    """Returns 2 * matching letters / letters of both (Ratcliff and Obershelp): 1 where equal."""
    return difflib.SequenceMatcher(None, reply.strip(" .").lower(), answer).ratio()


def main(run_dir: str = "runs/examples/custom_reward") -> None:
    """Trains with the graded reward, and prints how it has risen."""
    folder = pathlib.Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_questions(folder / "questions.jsonl")
    reward = sa.RewardConfig(
        verifier="examples.custom_reward:letters_in_common",
        verifier_weight=1.0,
        overlong_weight=0.2,
        overlong_penalty_start=12,
    )
    config = make_config(folder / "run", folder / "questions.jsonl", (reward,), steps=10)
    sa.train(config)
    rewards = read_metric(folder / "run", "reward")
    print(f"reward in the first step: {rewards[0]:.2f}, in the last: {rewards[-1]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
