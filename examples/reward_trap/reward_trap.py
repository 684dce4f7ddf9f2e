"""The verifiable reward trap in miniature: one model rewarded by verifiers alone, by a judge, and by a judge in two stages.

Step-Audio-R1.5 reports that verifiable rewards alone make an audio model terse, that a judge of
preference and rubric in one joint stage repairs it without losing accuracy, and that rubric and
preference one after the other forget. Here a small model learns each way from the same start, with
the same prompts and the same number of steps.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from examples.reward_trap.metrics import TEMPERATURES, ReplyMetrics, measure
from examples.reward_trap.style_data import write_style_data
from examples.spoken_corpus import write_corpus
from stepaudio_jax import train
from stepaudio_jax.config import Config, JudgeConfig, RewardConfig, StageConfig, load_config
from stepaudio_jax.data import read_jsonl
from stepaudio_jax.generation import load_model
from stepaudio_jax.judge.backends import ModelBackend
from stepaudio_jax.judge.judge import Judge
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import JudgeReport, evaluate_judge
from stepaudio_jax.reports import write_report

START = "start"
RLVR, JOINT, RUBRIC, THEN_PREFERENCE = "rlvr", "joint", "rubric_only", "then_preference"
ARMS: Mapping[str, tuple[str, ...]] = {
    "rlvr": (RLVR,),
    "joint": (JOINT,),
    "sequential": (RUBRIC, THEN_PREFERENCE),
}
"""What can be run: arm -> the models that it leaves, in order."""

_LAST_STEPS = 5  # over which the KL is averaged


@dataclasses.dataclass(frozen=True)
class RewardTrap:
    """The demonstration's files.

    Attributes:
        folder: where everything goes, as the configurations have it: data, manners, and the arms'
        runs.
        corpus: the quickstart's, made where it is not there.
        configs: of the quickstart, its manners and the joint stage, by those names.
        per_task: held-out questions of each task.
    """

    folder: pathlib.Path
    corpus: pathlib.Path
    configs: Mapping[str, Config]
    per_task: int

    @classmethod
    def from_configs(cls) -> "RewardTrap":
        """With the project's configurations."""
        files = ("quickstart", "quickstart_manners", "quickstart_rlhf")
        names = ("quickstart", "manners", "joint")
        configs = {
            name: load_config(f"configs/{file}.py") for name, file in zip(names, files, strict=True)
        }
        return cls(
            pathlib.Path("runs/quickstart_rlhf"),
            pathlib.Path("runs/corpus/quickstart"),
            configs,
            per_task=200,
        )

    @property
    def questions(self) -> pathlib.Path:
        """The held-out ones."""
        return self.folder / "data" / "held_out_questions.jsonl"

    def write_data(self) -> None:
        """Corpus, and what is learnt from it here, each where it is not there yet."""
        if not self.corpus.exists():
            write_corpus(self.corpus, "quickstart")
        data = self.folder / "data"
        if not data.exists():
            write_style_data(self.corpus, data, self._judge_prompt, per_task=self.per_task)

    def prepare(self) -> JudgeReport:
        """Data, and the model that every arm begins with; says how good the judge is on held-out pairs."""
        self.write_data()
        train(self.configs["quickstart"])
        train(self.configs["manners"])
        assert self._judge.folder is not None
        return self.evaluate_judge(pathlib.Path(self._judge.folder))

    def evaluate_judge(self, folder: pathlib.Path) -> JudgeReport:
        """How good a judge is on held-out pairs."""
        backend = ModelBackend(
            load_model(folder, "float32"),
            slots=self._judge.slots,
            max_tokens=self._judge.max_tokens,
        )
        pairs = list(read_jsonl(self.folder / "data" / "held_out_pairs.jsonl"))
        return evaluate_judge(Judge(backend, self._judge_prompt, max_abstention_rate=1.0), pairs)

    def start(self) -> dict[str, ReplyMetrics]:
        """The model that every arm begins with, measured in both ways."""
        return self._measured(self.folder / "manners", kl=0.0)

    def run(self, arm: str, seed: int) -> Iterator[tuple[str, dict[str, ReplyMetrics]]]:
        """Trains an arm, or goes on with it; yields each model that it leaves, measured in both ways, and writes its report."""
        for name, config in self._runs(arm, seed):
            train(config)
            folder = pathlib.Path(config.run_dir)
            write_report(folder / "report.html", folder, f"{name}, seed {seed}")
            yield name, self._measured(folder, kl=_last_kl(folder))

    @property
    def _judge(self) -> JudgeConfig:
        (stage,) = self.configs["joint"].stages
        return stage.policy_gradient.judge

    @property
    def _judge_prompt(self) -> JudgePrompt:
        return JudgePrompt(self._judge.prompt, levels=self._judge.preference_levels)

    def _runs(self, arm: str, seed: int) -> Iterator[tuple[str, Config]]:
        """The arm's runs in order, each beginning with what the one before it left."""
        joint = self.configs["joint"]
        (stage,) = joint.stages
        initial = joint.initial
        for name in ARMS[arm]:
            changed = _stage(stage, name, len(ARMS[arm]))
            run_dir = self.folder / f"{name}-{seed}"
            yield (
                name,
                dataclasses.replace(
                    joint, run_dir=str(run_dir), initial=initial, seed=seed, stages=(changed,)
                ),
            )
            initial = dataclasses.replace(initial, model=str(run_dir / "model"))

    def _measured(self, folder: pathlib.Path, *, kl: float) -> dict[str, ReplyMetrics]:
        paths = {way: folder / f"metrics_{way}.json" for way in TEMPERATURES}
        if not all(path.exists() for path in paths.values()):
            for way, measured in measure(
                load_model(folder / "model", "float32"), self.questions, kl=kl
            ).items():
                measured.write(paths[way])
        return {way: ReplyMetrics.read(path) for way, path in paths.items()}


def _stage(joint: StageConfig, name: str, of: int) -> StageConfig:
    """The joint stage with an arm's rewards or prompts, and its share of the steps."""
    stage = dataclasses.replace(joint, name=name, steps=joint.steps // of)
    if name == RLVR:
        rewards = (RewardConfig(verifier="exact_text", verifier_weight=0.8, format_weight=0.2),)
        objective = dataclasses.replace(joint.policy_gradient, rewards=rewards, judge=JudgeConfig())
        return dataclasses.replace(stage, objective=objective)
    wanted = {RUBRIC: "rubric", THEN_PREFERENCE: "preference"}.get(name)
    sources = tuple(
        source for source in joint.data.sources if wanted in (None, pathlib.Path(source.path).stem)
    )
    return dataclasses.replace(stage, data=dataclasses.replace(joint.data, sources=sources))


def _last_kl(run_dir: pathlib.Path) -> float:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last: Sequence[float] = [json.loads(line)["reply_kl"] for line in lines][-_LAST_STEPS:]
    return sum(last) / len(last)
