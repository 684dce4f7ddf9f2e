"""The verifiable reward trap in miniature: one start model, trained on different rewards.

Step-Audio-R1.5 reports that verifiable rewards alone make an audio model terse, that a judge of
preference and rubric in one joint stage repairs this without losing accuracy, and that stages of
rubric and of preference in sequence forget. Here a small model is trained in each of these ways,
and by DPO on the same judge's verdicts, from the same start and for the same number of steps.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import stepaudio_jax as sa
from examples.reward_trap.arms import ARMS, DPO, RUBRIC_FORMS, arm_stage, rubric_judge_config
from examples.reward_trap.judged_pairs import write_judged_pairs
from examples.reward_trap.metrics import TEMPERATURES, ReplyMetrics, measure_replies
from examples.reward_trap.style_data import write_style_data
from examples.spoken_corpus import ensure_corpus
from stepaudio_jax.config import Config, JudgeConfig, RubricUse, StageConfig, load_config
from stepaudio_jax.data import read_records
from stepaudio_jax.generation import load_model
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import JudgeReport, evaluate_judge, write_judge_data
from stepaudio_jax.reports import write_report
from stepaudio_jax.storage import atomic_text_writer, fingerprint_folder

FOLDER = pathlib.Path("runs/quickstart_rlhf")
CORPUS = pathlib.Path("runs/corpus/quickstart")
CONFIGS: Mapping[str, str] = {
    "quickstart": "configs/quickstart.py",
    "style": "configs/quickstart_style.py",
    "joint": "configs/quickstart_rlhf.py",
    "tiny_judge": "configs/tiny_judge.py",
}
QUESTIONS_PER_TASK = 200


@dataclasses.dataclass(frozen=True)
class RewardTrap:
    """Trains and measures the models of the experiment.

    What exists already is not made again, so every method resumes after an interruption.

    Attributes:
        folder: the folder of data and runs, as in the configurations.
        corpus: the quickstart's corpus.
        configs: the configurations "quickstart", "style" (the start model), "joint" and
            "tiny_judge".
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
            write_style_data(self.corpus, data, self._judge_prompt(), per_task=self.per_task)

    def train_start(self) -> None:
        """Writes the data and trains the start model of every arm."""
        self.write_data()
        sa.train(self.configs["quickstart"])
        sa.train(self.configs["style"])

    def train_rubric_judge(self) -> None:
        """Trains the judge of the arms whose judge compares in the light of the rubric."""
        data = []
        for form in RUBRIC_FORMS:
            path = self.folder / "rubric_judge_data" / f"{form}.jsonl"
            if not path.exists():
                pairs = self.folder / "data" / "pairs.jsonl"
                write_judge_data(pairs, path, self._judge_prompt(form))
            data.append(path)
        assert self._judge.folder is not None
        sa.train(
            rubric_judge_config(
                self.configs["tiny_judge"],
                self._judge.folder,
                self.folder / "rubric_judge",
                tuple(data),
            )
        )

    def evaluate_judge(
        self, folder: pathlib.Path | None = None, form: RubricUse = "criteria"
    ) -> JudgeReport:
        """Evaluates a judge on the held-out pairs.

        Args:
            folder: the judge's model; None for the judge of the arm with that form.
            form: of the question about a pair with a rubric.
        """
        backend = ModelBackend(
            load_model(folder or self._judge_folder(form), "float32"),
            slots=self._judge.slots,
            max_tokens=self._judge.max_tokens,
        )
        pairs = list(read_records(self.folder / "data" / "held_out_pairs.jsonl"))
        return evaluate_judge(
            Judge(backend, self._judge_prompt(form), max_abstention_rate=1.0), pairs
        )

    def judge_quality(self, form: RubricUse) -> JudgeReport | None:
        """Returns the stored evaluation of an arm's judge; None if there is none."""
        path = self._judge_quality_path(form)
        if not path.exists():
            return None
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return JudgeReport(calibration={}, **stored)

    def measure_judge(self, form: RubricUse) -> JudgeReport:
        """Evaluates the judge of an arm, and stores the evaluation, without its calibration."""
        if (stored := self.judge_quality(form)) is not None:
            return stored
        report = self.evaluate_judge(form=form)
        values = dataclasses.asdict(report)
        del values["calibration"]
        with atomic_text_writer(self._judge_quality_path(form)) as file:
            file.write(json.dumps(values) + "\n")
        return report

    def measure_start(self) -> dict[str, ReplyMetrics]:
        """Measures the start model: decoding -> metrics."""
        return self._measure(self._start.parent)

    def run(self, arm: str, seed: int) -> Iterator[tuple[str, dict[str, ReplyMetrics]]]:
        """Trains the models of an arm, and writes the report of each run.

        Yields:
            (model, decoding -> metrics).
        """
        for name, config in self._run_configs(arm, seed):
            if name == DPO:
                write_judged_pairs(
                    self._pairs(seed).parent, self._start, self._joint_stage, seed=seed
                )
            sa.train(config)
            folder = pathlib.Path(config.run_dir)
            write_report(folder / "report.html", folder, f"{name}, seed {seed}")
            yield name, self._measure(folder)

    def finished(self, name: str, seed: int) -> dict[str, ReplyMetrics] | None:
        """Returns the metrics of a model, decoding -> metrics; None if it is not measured yet."""
        return _read_metrics(self.folder / f"{name}-{seed}")

    def finished_start(self) -> dict[str, ReplyMetrics] | None:
        """Returns the metrics of the start model; None if it is not measured yet."""
        return _read_metrics(self._start.parent)

    @property
    def _start(self) -> pathlib.Path:
        return pathlib.Path(self.configs["style"].run_dir) / "model"

    @property
    def _joint_stage(self) -> StageConfig:
        (stage,) = self.configs["joint"].stages
        return stage

    @property
    def _judge(self) -> JudgeConfig:
        return self._joint_stage.policy_gradient.judge

    def _judge_folder(self, form: RubricUse) -> pathlib.Path:
        assert self._judge.folder is not None
        if form == "criteria":
            return pathlib.Path(self._judge.folder)
        return self.folder / "rubric_judge" / "model"

    def _judge_prompt(self, form: RubricUse = "criteria") -> JudgePrompt:
        judge = self._judge
        return JudgePrompt(judge.prompt, levels=judge.preference_levels, rubric=form)

    def _judge_quality_path(self, form: RubricUse) -> pathlib.Path:
        # A judge that is trained again is another one.
        weights = fingerprint_folder(self._judge_folder(form))[:12]
        return self.folder / f"judge_{form}_{weights}.json"

    def _pairs(self, seed: int) -> pathlib.Path:
        return self.folder / f"pairs-{seed}" / "pairs.jsonl"

    def _run_configs(self, arm: str, seed: int) -> Iterator[tuple[str, Config]]:
        """Yields (model, configuration) of an arm; each run starts from the model before it."""
        joint = self.configs["joint"]
        initial = joint.initial
        for name in ARMS[arm]:
            stage = arm_stage(
                self._joint_stage,
                name,
                num_stages=len(ARMS[arm]),
                rubric_judge=self.folder / "rubric_judge" / "model",
                pairs=self._pairs(seed),
            )
            run_dir = self.folder / f"{name}-{seed}"
            config = dataclasses.replace(
                joint, run_dir=str(run_dir), initial=initial, seed=seed, stages=(stage,)
            )
            yield name, config
            initial = dataclasses.replace(initial, model=str(run_dir / "model"))

    def _measure(self, folder: pathlib.Path) -> dict[str, ReplyMetrics]:
        """Measures the model of a run, or reads its earlier metrics."""
        if (stored := _read_metrics(folder)) is not None:
            return stored
        model = load_model(folder / "model", "float32")
        is_start = folder / "model" == self._start
        start = None if is_start else load_model(self._start, "float32")
        measured = measure_replies(model, self.questions, start=start)
        for decoding, metrics in measured.items():
            metrics.write(_metrics_path(folder, decoding))
        return measured


def _read_metrics(folder: pathlib.Path) -> dict[str, ReplyMetrics] | None:
    """Reads the metrics of a run's model; returns None if there are not those of all decodings."""
    paths = {decoding: _metrics_path(folder, decoding) for decoding in TEMPERATURES}
    if not all(path.exists() for path in paths.values()):
        return None
    return {decoding: ReplyMetrics.read(path) for decoding, path in paths.items()}


def _metrics_path(folder: pathlib.Path, decoding: str) -> pathlib.Path:
    return folder / f"replies_{decoding}.json"
