"""The verifiable reward trap in miniature: one start model, trained on different rewards.

Step-Audio-R1.5 reports that verifiable rewards alone make an audio model terse, that a judge of
preference and rubric in one joint stage repairs this without losing accuracy, and that stages of
rubric and of preference in sequence forget. Here a small model is trained in each of these ways,
from the same start, on the same prompts and for the same number of steps.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import stepaudio_jax as sa
from examples.reward_trap.metrics import TEMPERATURES, ReplyMetrics, measure_replies
from examples.reward_trap.style_data import write_style_data
from examples.spoken_corpus import ensure_corpus
from stepaudio_jax.config import Config, JudgeConfig, RewardConfig, StageConfig, load_config
from stepaudio_jax.data import read_records
from stepaudio_jax.generation import load_model
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import JudgeReport, evaluate_judge
from stepaudio_jax.reports import write_report
from stepaudio_jax.reports.logged_run import read_run

FOLDER = pathlib.Path("runs/quickstart_rlhf")
CORPUS = pathlib.Path("runs/corpus/quickstart")
CONFIGS: Mapping[str, str] = {
    "quickstart": "configs/quickstart.py",
    "style": "configs/quickstart_style.py",
    "joint": "configs/quickstart_rlhf.py",
}
QUESTIONS_PER_TASK = 200

START = "start"
RLVR, JOINT, RUBRIC, THEN_PREFERENCE = "rlvr", "joint", "rubric_only", "then_preference"
ARMS: Mapping[str, tuple[str, ...]] = {
    "rlvr": (RLVR,),
    "joint": (JOINT,),
    "sequential": (RUBRIC, THEN_PREFERENCE),
}
"""Arm of the experiment -> the models that it trains, in order."""

_KL_STEPS = 5  # the last steps of a run, whose KL is averaged


@dataclasses.dataclass(frozen=True)
class RewardTrap:
    """Trains and measures the models of the experiment.

    What exists already is not made again, so every method resumes after an interruption.

    Attributes:
        folder: the folder of data and runs, as in the configurations.
        corpus: the quickstart's corpus.
        configs: the configurations "quickstart", "style" (the start model) and "joint".
        per_task: held-out questions of each task.
    """

    folder: pathlib.Path
    corpus: pathlib.Path
    configs: Mapping[str, Config]
    per_task: int

    @classmethod
    def from_configs(cls) -> "RewardTrap":
        """Returns the experiment of `make trap`, with the paths and configurations above."""
        configs = {name: load_config(path) for name, path in CONFIGS.items()}
        return cls(FOLDER, CORPUS, configs, QUESTIONS_PER_TASK)

    @property
    def questions(self) -> pathlib.Path:
        """Returns the file of the held-out questions."""
        return self.folder / "data" / "held_out_questions.jsonl"

    def write_data(self) -> None:
        """Writes the corpus and the data made from it, each unless it exists."""
        ensure_corpus(self.corpus, "quickstart")
        data = self.folder / "data"
        if not data.exists():
            write_style_data(self.corpus, data, self._judge_prompt, per_task=self.per_task)

    def train_start(self) -> None:
        """Writes the data and trains the start model of every arm."""
        self.write_data()
        sa.train(self.configs["quickstart"])
        sa.train(self.configs["style"])

    def evaluate_judge(self, folder: pathlib.Path | None = None) -> JudgeReport:
        """Evaluates a judge on the held-out pairs.

        Args:
            folder: the judge's model; None for the judge of the configurations.
        """
        if folder is None:
            assert self._judge.folder is not None
            folder = pathlib.Path(self._judge.folder)
        backend = ModelBackend(
            load_model(folder, "float32"),
            slots=self._judge.slots,
            max_tokens=self._judge.max_tokens,
        )
        pairs = list(read_records(self.folder / "data" / "held_out_pairs.jsonl"))
        return evaluate_judge(Judge(backend, self._judge_prompt, max_abstention_rate=1.0), pairs)

    def measure_start(self) -> dict[str, ReplyMetrics]:
        """Measures the start model: decoding -> metrics."""
        return self._measure(self.folder / "style", kl=0.0)

    def run(self, arm: str, seed: int) -> Iterator[tuple[str, dict[str, ReplyMetrics]]]:
        """Trains the models of an arm, and writes the report of each run.

        Yields:
            (model, decoding -> metrics).
        """
        for name, config in self._run_configs(arm, seed):
            sa.train(config)
            folder = pathlib.Path(config.run_dir)
            write_report(folder / "report.html", folder, f"{name}, seed {seed}")
            yield name, self._measure(folder, kl=_final_kl(folder))

    @property
    def _judge(self) -> JudgeConfig:
        (stage,) = self.configs["joint"].stages
        return stage.policy_gradient.judge

    @property
    def _judge_prompt(self) -> JudgePrompt:
        judge = self._judge
        return JudgePrompt(judge.prompt, levels=judge.preference_levels, rubric=judge.rubric)

    def _run_configs(self, arm: str, seed: int) -> Iterator[tuple[str, Config]]:
        """Yields (model, configuration) of an arm; each run starts from the model before it."""
        joint = self.configs["joint"]
        (joint_stage,) = joint.stages
        initial = joint.initial
        for name in ARMS[arm]:
            stage = _arm_stage(joint_stage, name, num_stages=len(ARMS[arm]))
            run_dir = self.folder / f"{name}-{seed}"
            config = dataclasses.replace(
                joint, run_dir=str(run_dir), initial=initial, seed=seed, stages=(stage,)
            )
            yield name, config
            initial = dataclasses.replace(initial, model=str(run_dir / "model"))

    def _measure(self, folder: pathlib.Path, *, kl: float) -> dict[str, ReplyMetrics]:
        """Measures the model of a run, or reads its earlier metrics."""
        paths = {decoding: folder / f"metrics_{decoding}.json" for decoding in TEMPERATURES}
        if not all(path.exists() for path in paths.values()):
            model = load_model(folder / "model", "float32")
            for decoding, metrics in measure_replies(model, self.questions, kl=kl).items():
                metrics.write(paths[decoding])
        return {decoding: ReplyMetrics.read(path) for decoding, path in paths.items()}


def _arm_stage(joint: StageConfig, name: str, *, num_stages: int) -> StageConfig:
    """Returns the joint stage with the rewards or prompts of a model, and its part of the steps."""
    stage = dataclasses.replace(joint, name=name, steps=joint.steps // num_stages)
    if name == RLVR:
        rewards = (RewardConfig(verifier="exact_text", verifier_weight=0.8, format_weight=0.2),)
        objective = dataclasses.replace(joint.policy_gradient, rewards=rewards, judge=JudgeConfig())
        return dataclasses.replace(stage, objective=objective)
    file = {RUBRIC: "rubric", THEN_PREFERENCE: "preference"}.get(name)
    sources = tuple(
        source for source in joint.data.sources if file in (None, pathlib.Path(source.path).stem)
    )
    return dataclasses.replace(stage, data=dataclasses.replace(joint.data, sources=sources))


def _final_kl(run_dir: pathlib.Path) -> float:
    """Returns the mean KL divergence of the last steps of a run, in nats per reply."""
    values = [line.metrics["reply_kl"] for line in read_run(run_dir).lines][-_KL_STEPS:]
    return sum(values) / len(values)
