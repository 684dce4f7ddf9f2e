"""Resolved configurations, as reviewed files: a change of a default shows as a difference there.

`pytest tests/config/test_golden.py --update-golden` writes them anew.
"""

import json
import pathlib

import pytest

from stepaudio_jax.config import load_config, split_flags, to_dict
from tests.end_to_end.runs import ROOT

GOLDEN = pathlib.Path(__file__).parent / "golden"
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
COMMANDS = {name: [f"--config=configs/{name}.py"] for name in CONFIGS} | {
    "rlhf_32b.lora": [
        "--config=configs/rlhf_32b.py",
        "--config.stages.rlhf.trainable=('adaptor',)",
        "--config.stages.rlhf.lora.rank=32",
        "--config.stages.rlhf.data.batch_size=32",
    ],
    "sft.policy_gradient": [
        "--config=configs/sft.py",
        "--config.stages.sft.objective=policy_gradient",
        "--config.stages.sft.objective.rewards=({'verifier_weight': 1.0},)",
        "--config.stages.sft.objective.kl_coef=0.02",
    ],
    "sft.preference": [
        "--config=configs/sft.py",
        "--config.stages.sft.objective=preference",
        "--config.stages.sft.objective.loss=simpo",
        "--config.stages.sft.objective.target_margin=0.5",
    ],
    "sft_32b.tiny": [
        "--config=configs/sft_32b.py",
        "--config.model.preset=tiny",
        "--config.model.decoder.layers=3",
    ],
    "midtrain_32b.by_number": [
        "--config=configs/midtrain_32b.py",
        "--config.stages.1.steps=10",
        "--config.stages.sft.optimizer={'learning_rate': 2e-6}",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_resolved_configuration_is_the_reviewed_one(name, request, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, settings, _ = split_flags(COMMANDS[name])
    text = json.dumps(to_dict(load_config(path, settings)), indent=2, ensure_ascii=False) + "\n"
    golden = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"no {golden.name}: write it with --update-golden"
    assert text == golden.read_text(encoding="utf-8"), (
        "reviewed? then write it with --update-golden"
    )


def test_every_golden_file_has_its_command():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(COMMANDS)
