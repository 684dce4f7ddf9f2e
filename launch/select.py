r"""Selects sampled replies to train on: the best of n, all that are right, or preference pairs.

    python -m launch.generate --model DIR --input prompts.jsonl --output replies.jsonl \
      --num-samples 8
    python -m launch.select --input prompts.jsonl --replies replies.jsonl --output sft.jsonl \
      --keep right --reward "{'verifier': 'choice', 'verifier_weight': 1.0}" --grounded attributes

--reward and --judge are values of objective.rewards and objective.judge (docs/rl.md).
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

from launch.errors import exit_on_error
from stepaudio_jax.config import JudgeConfig, PolicyGradient, RewardConfig, build
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.storage import check_output_file, expand_home


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments, selects, and prints what became of the replies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", type=expand_home, required=True, help="the dialogues that were answered"
    )
    parser.add_argument(
        "--replies", type=expand_home, required=True, help="the output of launch.generate"
    )
    parser.add_argument(
        "--output", type=expand_home, required=True, help="JSONL of dialogues, or of preferences"
    )
    parser.add_argument(
        "--keep",
        choices=("best", "right", "pairs"),
        default="best",
        help="of each dialogue the best reply (the default); all that the verifier calls right; or"
        " the best and the worst as a preference pair",
    )
    parser.add_argument("--reward", required=True, help="how replies are scored, as a Python dict")
    parser.add_argument("--judge", help="the judge of a reward with judge_weight")
    parser.add_argument("--min-reward", type=float, help="lowest reward of a reply that is kept")
    parser.add_argument(
        "--grounded",
        help="keep replies whose reasoning names what was heard: 'attributes' (a value of the"
        " clips' attributes), or module:function of (reasoning, record)",
    )
    options = parser.parse_args(arguments)
    with exit_on_error("nothing was written; start the same command again"):
        inputs = [options.input, options.replies]
        check_output_file(options.output, inputs, may_replace=lambda path: False)
        reward = build(RewardConfig, _literal(options.reward, "--reward"), "--reward")
        judge_config = build(JudgeConfig, _literal(options.judge or "{}", "--judge"), "--judge")
        if options.keep == "right" and not reward.verifier_weight:
            raise ConfigError("--keep right needs a --reward with verifier_weight")
        if reward.overlong_weight:
            raise ConfigError("--reward: overlong_weight is for training; leave it out")
        from stepaudio_jax.data import read_records
        from stepaudio_jax.judge.judge import make_judge
        from stepaudio_jax.rl.rewards import RewardFunction
        from stepaudio_jax.rl.selection import find_grounding, select_replies
        from stepaudio_jax.storage import read_json_lines, write_json_lines

        objective = PolicyGradient(rewards=(reward,), judge=judge_config)
        try:
            grounded = None if options.grounded is None else find_grounding(options.grounded)
            rewards = RewardFunction(objective, make_judge(judge_config, dtype="float32"))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        records = list(read_records(options.input))
        lines = [line.value for line in read_json_lines(options.replies)]
        selection = select_replies(
            records,
            lines,
            rewards,
            keep=options.keep,
            min_reward=options.min_reward,
            is_grounded=grounded,
        )
        if not selection.rows:
            raise ConfigError(f"no reply was kept ({_format(selection.counts)})")
        write_json_lines(options.output, selection.rows)
        print(f"{options.output}: {_format(selection.counts)}")


def _literal(text: str, option: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{option}={text!r} must be a Python dict, as {{'format_weight': 1.0}}")
    return value


def _format(counts: Any) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


if __name__ == "__main__":
    main(sys.argv[1:])
