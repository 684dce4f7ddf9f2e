"""Trains the judge of the reward trap: `python -m examples.reward_trap.tiny_judge`.

The judge learns a synthetic rule. It ships with the project since its training takes longer than
that of the models that it judges. An interrupted command resumes.
"""

import argparse
import pathlib

import stepaudio_jax as sa
from examples import ON_INTERRUPT
from examples.quickstart.publish import check_replaceable_model, publish_model
from examples.reward_trap.report import describe_judge
from examples.reward_trap.reward_trap import RewardTrap
from launch.errors import exit_on_error
from stepaudio_jax.config import Config, load_config
from stepaudio_jax.judge.training import JudgeReport
from stepaudio_jax.storage import expand_home, user_path


def make_tiny_judge(trap: RewardTrap, config: Config, output: pathlib.Path) -> str:
    """Trains, evaluates and publishes the judge, or resumes an interrupted run.

    Args:
        trap: the experiment whose data the judge is trained on.
        config: the configuration of the judge's training.
        output: the Step-Audio folder to write, in bfloat16; it may replace an earlier model.

    Returns:
        A sentence on the judge's quality on held-out pairs.

    Raises:
        OutputError: `output` exists and is not a model.
    """
    quickstart = trap.configs["quickstart"]
    inputs = (quickstart.initial.model, config.initial.model, config.tokenizer)
    check_replaceable_model(output, inputs)
    trap.write_data()
    sa.train(quickstart)  # the judge's initial weights
    with publish_model(sa.train(config), output) as published:
        report = trap.evaluate_judge(published)  # evaluates the weights that ship, in bfloat16
        (published / "README.md").write_text(_model_card(report, config), encoding="utf-8")
    return describe_judge(report)


def _model_card(report: JudgeReport, config: Config) -> str:
    """Returns the model card in Markdown."""
    steps = sum(stage.steps for stage in config.stages)
    calibration = "\n".join(
        f"| {size:g} | {agreement:.1%} | {pairs} |"
        for size, (agreement, pairs) in sorted(report.calibration.items())
    )
    return f"""---
license: apache-2.0
---

# A small judge

The quickstart's model, trained for {steps} steps to compare two replies to a spoken question by a
synthetic rule (`examples/reward_trap/style.py`), and to reason before its verdict. It does not
receive audio: it is told the fact that is asked for. It is the judge of `make quickstart-rlhf` and
`make trap`, and not meant for use. Made by `make tiny-judge` (`configs/tiny_judge.py`). Weights are
bfloat16.

{describe_judge(report)}

A pair is judged in both orders; its value is half the difference of the two verdicts. For pairs of
which the rule prefers one reply:

| value | prefers the better one | pairs |
|---:|---:|---:|
{calibration}
"""


def main() -> None:
    """Parses the command line, makes the judge and prints its quality."""
    parser = argparse.ArgumentParser(description="Trains the judge of the reward trap.")
    parser.add_argument("--config", type=expand_home, default="configs/tiny_judge.py")
    parser.add_argument("--output", type=user_path, default=pathlib.Path("models/tiny_judge"))
    arguments = parser.parse_args()
    with exit_on_error(ON_INTERRUPT):
        config = load_config(arguments.config)
        print(make_tiny_judge(RewardTrap.from_configs(), config, arguments.output))


if __name__ == "__main__":
    main()
