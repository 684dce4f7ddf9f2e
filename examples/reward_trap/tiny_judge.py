"""The judge of the demonstration of RLHF: taught by a synthetic rule, and shipped, for it takes longer than what it judges."""

import argparse
import pathlib

from examples.quickstart.publish import check_replaceable_model, publish_model
from examples.reward_trap.report import describe_judge
from examples.reward_trap.reward_trap import RewardTrap
from launch.errors import exit_on_error
from stepaudio_jax import train
from stepaudio_jax.config import Config, load_config
from stepaudio_jax.judge.training import JudgeReport
from stepaudio_jax.storage import expand_home, user_path


def make_tiny_judge(trap: RewardTrap, config: Config, output: pathlib.Path) -> str:
    """Makes the judge, or goes on where an interrupted run was; returns how good it is on held-out pairs.

    Args:
        trap: whose data it learns from.
        config: of the training run.
        output: the Step-Audio folder to write, weights in bfloat16; a model that is there is
            replaced, and nothing else.
    """
    begins = trap.configs["quickstart"].initial.model
    check_replaceable_model(output, (begins, config.initial.model, config.tokenizer))
    trap.write_data()
    train(trap.configs["quickstart"])  # which the judge begins with
    with publish_model(train(config), output) as fresh:
        report = trap.evaluate_judge(fresh)  # what is shipped is what is measured
        (fresh / "README.md").write_text(_card(report, config), encoding="utf-8")
    return describe_judge(report)


def _card(report: JudgeReport, config: Config) -> str:
    steps = sum(stage.steps for stage in config.stages)
    calibration = "\n".join(
        f"| {size:g} | {right:.1%} | {pairs} |"
        for size, (right, pairs) in sorted(report.calibration.items())
    )
    return f"""---
license: apache-2.0
---

# A small judge

The quickstart's model, taught in {steps} steps to compare two replies to a spoken question by a synthetic rule
(`stepaudio_jax/quickstart/manners.py`), and to say why before it does. It does not hear: it is told the fact that is asked for.
It is the judge of `make quickstart-rlhf` and `make trap`, and no model for use. Made by `make tiny-judge`
(`configs/tiny_judge.py`). Weights are bfloat16.

{describe_judge(report)}

A pair is asked about in both orders; its value is half the difference of the two verdicts. Where the rule prefers a reply:

| value | prefers the better one | pairs |
|---:|---:|---:|
{calibration}
"""


# Makes the judge of the demonstration of RLHF: `python -m examples.reward_trap.tiny_judge` (on two cores; interrupt and go on at will).


def main() -> None:
    """Parses arguments, makes the judge, prints how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=expand_home, default="configs/tiny_judge.py")
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_judge"))
    arguments = parser.parse_args()
    with exit_on_error("what is made so far is kept; the same command goes on from there"):
        from examples.reward_trap.reward_trap import RewardTrap

        print(
            make_tiny_judge(
                RewardTrap.from_configs(), load_config(arguments.config), arguments.output
            )
        )


if __name__ == "__main__":
    main()
