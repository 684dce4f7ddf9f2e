"""Learning curves: counting on from a digit, and a digit that only the speaker's voice tells."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from examples.spoken_corpus import write_corpus
from stepaudio_jax import train
from stepaudio_jax.config import (
    AugmentationConfig,
    CheckpointConfig,
    ComputeConfig,
    Config,
    DataConfig,
    InitialWeights,
    OptimizerConfig,
    PolicyGradient,
    RewardConfig,
    RolloutConfig,
    SourceConfig,
    StageConfig,
)

pytestmark = [pytest.mark.slow, pytest.mark.first]  # minutes each

BASE = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny_base"
SHAPE = {"batch_size": 16, "seq_len": 256, "audio_chunks_per_seq": 4, "mel_frames_per_chunk": 224}


def prefix(reply: str, answer: str) -> float:
    """Returns the share of the answer that the reply begins with."""
    same = 0
    for ours, theirs in zip(reply, answer, strict=False):
        if ours != theirs:
            break
        same += 1
    return same / len(answer) if len(reply) <= len(answer) else 0.0


def config(folder: pathlib.Path, *, steps: int, silenced: bool = False) -> Config:
    """Makes a stage that teaches the form of the answers, and one that learns the right ones."""
    optimizer = OptimizerConfig(
        name="muon",
        learning_rate=5e-4,
        muon_learning_rate=0.005,
        decay="constant",
        weight_decay=0.0,
    )
    form = StageConfig(
        name="form",
        steps=40,
        data=DataConfig(sources=(SourceConfig(path=str(folder / "form.jsonl")),), **SHAPE),
        optimizer=optimizer,
    )
    policy = StageConfig(
        name="policy",
        steps=steps,
        data=DataConfig(
            sources=(SourceConfig(path=str(folder / "prompts.jsonl")),),
            augmentation=AugmentationConfig(silence_probability=float(silenced)),
            **SHAPE,
        ),
        # Muon's steps are as long for noise as for a gradient: they must decay.
        optimizer=dataclasses.replace(
            optimizer,
            learning_rate=5e-4,
            muon_learning_rate=0.006,
            decay="linear",
            final_learning_rate_fraction=0.05,
        ),
        objective=PolicyGradient(
            rollout=RolloutConfig(num_prompts=16, num_generations=16, max_new_tokens=12, slots=64),
            rewards=(
                RewardConfig(verifier="tests.rl.test_learning_curves:prefix", verifier_weight=1.0),
            ),
            # Without the KL the policy becomes deterministic before it has found the right answers.
            advantage_estimator="rloo",
            kl_coef=0.02,
        ),
    )
    return Config(
        run_dir=str(folder / ("silenced" if silenced else "run")),
        initial=InitialWeights(model=str(BASE)),
        stages=(form, policy),
        compute=ComputeConfig(dtype="float32", remat="none", unroll=0),
        checkpoint=CheckpointConfig(every_steps=0),
    )


def write(folder: pathlib.Path, prompts: list[dict], replies: list[str]) -> None:
    """Writes dialogues with these replies, and the same ones as prompts."""

    def lines(records: list[dict]) -> str:
        return "".join(json.dumps(record) + "\n" for record in records)

    answered = [
        {"messages": [*prompt["messages"], {"role": "assistant", "content": reply}]}
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    (folder / "form.jsonl").write_text(lines(answered), encoding="utf-8")
    (folder / "prompts.jsonl").write_text(lines(prompts), encoding="utf-8")


def rewards(run: Config) -> list[float]:
    lines = (pathlib.Path(run.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["reward"] for line in map(json.loads, lines) if line["stage"] == "policy"]


def test_counting_on_is_learnt(tmp_path):
    """Three digits after the first; a reward for each correct one, if those before it are."""
    rng = np.random.default_rng(0)
    starts = [number % 6 + 1 for number in range(300)]
    prompts = [
        {
            "messages": [{"role": "user", "content": f"Count on from {start}."}],
            "answer": "".join(str(start + more) for more in (1, 2, 3)),
        }
        for start in starts
    ]
    write(tmp_path, prompts, ["".join(map(str, rng.integers(1, 10, 3))) for _ in prompts])
    run = config(tmp_path, steps=90)
    train(run)
    curve = rewards(run)
    assert np.mean(curve[:3]) < 0.3
    assert np.mean(curve[-5:]) >= 0.9


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Clips whose speaker's gender decides which of two digits is correct."""
    folder = tmp_path_factory.mktemp("voices")
    write_corpus(folder / "corpus", "quickstart", clips=600, per_task=16)
    prompts = []
    for line in (
        (folder / "corpus" / "train" / "audio_qa.jsonl").read_text(encoding="utf-8").splitlines()
    ):
        (clip, _), *_ = (message["content"] for message in json.loads(line)["messages"][:1])
        if gender := clip.get("attributes", {}).get("gender"):
            clip["audio"] = str(folder / "corpus" / "train" / clip["audio"])
            parts = [clip, {"type": "text", "text": "Which digit?"}]
            prompts.append(
                {
                    "messages": [{"role": "user", "content": parts}],
                    "answer": {"female": "1", "male": "2"}[gender],
                }
            )
    rng = np.random.default_rng(0)
    count = {answer: sum(prompt["answer"] == answer for prompt in prompts) for answer in ("1", "2")}
    fewest = min(count.values())
    balanced = [
        [prompt for prompt in prompts if prompt["answer"] == answer][:fewest]
        for answer in ("1", "2")
    ]
    prompts = [prompt for pair in zip(*balanced, strict=True) for prompt in pair]
    write(folder, prompts, [str(digit) for digit in rng.integers(1, 3, len(prompts))])
    return folder


def test_a_digit_that_the_voice_tells_is_learnt(voices):
    run = config(voices, steps=60)
    train(run)
    curve = rewards(run)
    assert 0.3 < np.mean(curve[:2]) < 0.7
    assert np.mean(curve[-5:]) >= 0.9


def test_a_digit_is_not_learnt_from_silenced_audio(voices):
    run = config(voices, steps=60, silenced=True)
    train(run)
    assert 0.35 < np.mean(rewards(run)[-20:]) < 0.65
