"""Plans of DPO by the real compiler: with a copy of the reference, without it, and with LoRA."""

import importlib.util
import re

import pytest

from launch.plan import DOES_NOT_FIT
from launch.plan import main as plan
from stepaudio_jax.config import load_config
from stepaudio_jax.planning import parse_topology, plan_training
from tests.end_to_end.runs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is for Linux on x86-64"
    ),
]


def test_the_reference_is_counted() -> None:
    plans = {}
    for name, settings in {
        "stored": [],
        "copy": [("stages.dpo.objective.precompute_reference", "false")],
        "lora": [
            ("stages.dpo.objective.precompute_reference", "false"),
            ("stages.dpo.trainable", "()"),
            ("stages.dpo.lora.rank", "8"),
        ],
    }.items():
        tiny = [("model.preset", "tiny"), ("stages.dpo.data.batch_size", "4"), *settings]
        config = load_config(ROOT / "configs" / "dpo_32b.py", tiny)
        plans[name] = plan_training(config, "dpo", parse_topology("v6e:2x2"), "quick")
    assert all(plan.fits for plan in plans.values())
    stored, copy, lora = (plans[name] for name in ("stored", "copy", "lora"))
    # A copy in bf16 of what is trained in fp32, and none of the frozen encoder; its
    # forward pass is a third of training's products.
    assert copy.parameter_bytes_per_chip > 1.25 * stored.parameter_bytes_per_chip
    assert lora.parameter_bytes_per_chip < stored.parameter_bytes_per_chip
    assert copy.flops_per_step > 1.2 * stored.flops_per_step
    assert stored.expected is not None
    assert copy.expected is not None
    assert copy.expected.product_flops_per_chip > 1.1 * stored.expected.product_flops_per_chip


LORA = ["--config.stages.dpo.trainable=()", "--config.stages.dpo.lora.rank=32"]
EIGHT_ROWS = ["--config.stages.dpo.data.batch_size=8"]


@pytest.mark.parametrize(
    ("topology", "settings", "fits"),
    [
        ("v6e:2x4", EIGHT_ROWS, False),
        ("v6e:2x4", [*LORA, *EIGHT_ROWS], True),
        ("v5p:4x4x4", [], True),
        ("v6e:8x8", [], True),
        ("v5p:4x4x4", LORA, True),
        ("v6e:8x8", LORA, True),
    ],
    ids=["2x4-all", "2x4-lora", "v5p-all", "8x8-all", "v5p-lora", "8x8-lora"],
)
def test_dpo_of_32_b(topology: str, settings: list[str], fits: bool, capsys) -> None:
    config = f"--config={ROOT / 'configs' / 'dpo_32b.py'}"
    code = plan([config, f"--topology={topology}", *settings])
    report = capsys.readouterr().out
    with capsys.disabled():
        print("", topology, *settings, report, sep="\n")
    for part in ("parameters", "optimizer", "peak", "available"):
        assert re.search(rf"^ *{part} +[0-9.]+ GB", report, re.MULTILINE), part
    assert code == (0 if fits else DOES_NOT_FIT)
    assert ("to spare" if fits else "too much") in report
