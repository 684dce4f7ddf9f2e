"""A judge that hears against one that reads, where the tone of the voice decides.

python -m examples.reward_trap.tone

Makes the data of `tone_data`, trains both judges on the same pairs, from the same weights and for
as many steps, and says how often each prefers the fitting reply on voices and words that it was
not trained on. An interrupted command resumes.

Result of `--couples 600 --held-out 60 --steps 250`, one seed, 120 held-out pairs: the judge that
hears prefers the fitting reply in 99.2 % (95.3 to 99.9), the one that reads in 50.0 %.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import stepaudio_jax as sa
from examples import ON_INTERRUPT
from examples.reward_trap.tone_data import (
    INPUTS,
    couple_of,
    write_judge_dialogues,
    write_tone_data,
)
from launch.errors import exit_on_error
from stepaudio_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    InitialWeights,
    JudgeInputs,
    OptimizerConfig,
    SourceConfig,
    StageConfig,
)
from stepaudio_jax.data import read_records
from stepaudio_jax.evaluation.statistics import Interval, mean_interval
from stepaudio_jax.generation import load_model
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.dialogue_records import pair_of_record
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.verdict import pair_value
from stepaudio_jax.storage import user_path

FOLDER = pathlib.Path("runs/tone")
BASE = "models/tiny_base"
TEMPLATE = "configs/tiny_judge.txt"
LEVELS = 3
COUPLES, HELD_OUT, STEPS = 1500, 100, 400
_MAX_TOKENS = 64  # of a judge's answer, which has two short critiques and a verdict


@dataclasses.dataclass(frozen=True)
class ToneResult:
    """How a judge does on the held-out pairs.

    Attributes:
        inputs: what it is given of the clips.
        agreement: share of pairs whose fitting reply it prefers; a tie and an abstention count
            half.
        interval: of the agreement, over couples.
        abstained: share of pairs without a verdict in both orders.
        clips: number of different clips that it was given as sound.
    """

    inputs: JudgeInputs
    agreement: float
    interval: Interval
    abstained: float
    clips: int

    def __str__(self) -> str:
        return (
            f"{self.inputs}: prefers the fitting reply in {self.agreement:.1%} "
            f"({self.interval.low:.1%} to {self.interval.high:.1%}), "
            f"abstains in {self.abstained:.1%}, heard {self.clips} clips"
        )


def judge_prompt(inputs: JudgeInputs) -> JudgePrompt:
    """Returns the template of a judge of the task."""
    return JudgePrompt(TEMPLATE, levels=LEVELS, inputs=inputs)


def judge_config(
    inputs: JudgeInputs, dialogues: pathlib.Path, run_dir: pathlib.Path, *, steps: int, seed: int
) -> Config:
    """Returns how a judge is trained; the two differ in nothing but their dialogues."""
    stage = StageConfig(
        name="judge",
        steps=steps,
        data=DataConfig(
            sources=(SourceConfig(path=str(dialogues)),),
            batch_size=8,
            seq_len=640,
            audio_chunks_per_seq=6,
            mel_frames_per_chunk=352,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=1e-3,
            muon_learning_rate=0.01,
            warmup_steps=min(10, steps - 1),
            decay="linear",
            final_learning_rate_fraction=0.02,
            weight_decay=0.01,
        ),
    )
    return Config(
        run_dir=str(run_dir),
        seed=seed,
        initial=InitialWeights(model=BASE),
        stages=(stage,),
        compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
        checkpoint=CheckpointConfig(every_steps=100),
    )


def measure_judge(inputs: JudgeInputs, model: pathlib.Path, held_out: pathlib.Path) -> ToneResult:
    """Asks a judge about the held-out pairs, in both orders."""
    backend = ModelBackend(load_model(model, "float32"), slots=16, max_tokens=_MAX_TOKENS)
    judge = Judge(backend, judge_prompt(inputs), max_abstention_rate=1.0)
    records = list(read_records(held_out))
    judgements = judge.judge([pair_of_record(record) for record in records])
    values = [
        0.0 if judgement.verdicts is None else pair_value(*judgement.verdicts)
        for judgement in judgements
    ]
    right = [0.5 if value == 0 else float(value > 0) for value in values]
    return ToneResult(
        inputs=inputs,
        agreement=sum(right) / len(right),
        interval=mean_interval(right, [couple_of(record.id) for record in records]),
        abstained=sum(judgement.verdicts is None for judgement in judgements) / len(judgements),
        clips=len({clip for judgement in judgements for clip in judgement.given.clips}),
    )


def compare_judges(folder: pathlib.Path, *, steps: int, seed: int = 0) -> list[ToneResult]:
    """Trains both judges and measures them; what exists is not made again.

    Args:
        folder: of runs, and of the data in it.
        steps: of training each judge.
        seed: of the training.
    """
    data = folder / "data"
    results = []
    for inputs in INPUTS:
        dialogues = write_judge_dialogues(data, judge_prompt(inputs))
        run_dir = folder / inputs
        sa.train(judge_config(inputs, dialogues, run_dir, steps=steps, seed=seed))
        result = measure_judge(inputs, run_dir / "model", data / "held_out_pairs.jsonl")
        print(result, flush=True)
        results.append(result)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, and compares the judges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=user_path, default=FOLDER)
    parser.add_argument("--couples", type=int, default=COUPLES)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-data", action="store_true", help="train no judge")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"--steps {options.steps} must be at least 2")
    with exit_on_error(ON_INTERRUPT):
        data = options.folder / "data"
        if not data.exists():
            write_tone_data(
                data, couples=options.couples, held_out=options.held_out, seed=options.seed
            )
        if not options.only_data:
            compare_judges(options.folder, steps=options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
