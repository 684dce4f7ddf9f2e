"""Tests the quick plan of one RL job; `make test-all` plans every configuration."""

import importlib.util

import pytest

from stepaudio_jax.config import load_config
from stepaudio_jax.planning import parse_topology, plan_rl
from tests.end_to_end.runs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is for Linux on x86-64"
    ),
]


def test_rl_job_fits_v5p_in_a_quick_plan() -> None:
    settings = [("trainable", '("adaptor",)'), ("lora.rank", "32"), ("data.batch_size", "32")]
    overrides = [(f"stages.rlhf.{key}", value) for key, value in settings]
    config = load_config(ROOT / "configs" / "rlhf_32b.py", overrides)
    plan = plan_rl(config, 0, parse_topology("v5p-64"), "quick")
    assert plan.fits
    assert plan.effort == "quick"
    assert plan.topology == "v5p:2x4x4"
    # The policy is frozen in bf16 but for the adaptor and LoRA, and the engine's copy is cut over
    # eight chips.
    weights = 2 * 33e9
    assert plan.policy_bytes_per_chip == pytest.approx(weights / 32, rel=0.2)
    assert plan.engine_bytes_per_chip == pytest.approx(weights / 8, rel=0.2)
    parts = ("policy", "reference", "optimizer", "gradient", "engine", "cache", "temporary")
    assert (
        sum(getattr(plan, f"{part}_bytes_per_chip") for part in parts) <= plan.peak_bytes_per_chip
    )
