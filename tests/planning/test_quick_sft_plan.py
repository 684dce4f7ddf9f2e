"""Tests the quick plan of one SFT job; `make test-all` plans every configuration."""

import importlib.metadata
import importlib.util

import pytest

from stepaudio_jax.config import load_config
from stepaudio_jax.planning import parse_topology, plan_training, train_plan_report
from stepaudio_jax.training.flops import decoder_flops
from tests.end_to_end.runs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is for Linux on x86-64"
    ),
]


def test_sft_job_fits_v5e_in_a_quick_plan(capfd: pytest.CaptureFixture[str]) -> None:
    config = load_config(ROOT / "configs" / "sft_mini_8b.py")
    topology = parse_topology("v5litepod-64")
    plan = plan_training(config, "sft", topology, "quick")
    assert plan.fits
    assert plan.effort == "quick"
    assert plan.compiler_version == f"libtpu {importlib.metadata.version('libtpu')}"
    assert plan.parameter_bytes_per_chip + plan.optimizer_bytes_per_chip < plan.peak_bytes_per_chip
    # Every decoder weight is gathered in bf16 for the forward pass and again for the backward one,
    # and its gradient reduced.
    data, decoder = config.stages[0].data, config.model.decoder
    weights = decoder_flops(decoder, 1).kernels / 2
    sent_fraction = (topology.chips - 1) / topology.chips
    assert plan.collective_bytes_per_chip is not None
    assert plan.collective_bytes_per_chip["all-gather"] == pytest.approx(
        2 * 2 * weights * sent_fraction, rel=0.1
    )
    # A product in three is for the forward pass; of a layer, all but the last are computed again.
    model = 3 * decoder_flops(decoder, data.seq_len).kernels * data.batch_size / topology.chips
    assert plan.expected is not None
    assert 1.15 < plan.expected.product_flops_per_chip / model < 1.4
    low, high = plan.expected.expected_mfu_range
    assert 0 < low < plan.expected.expected_mfu < high < 1
    json_plan = plan.to_json()
    assert json_plan["expected_mfu"] == plan.expected.expected_mfu
    assert json_plan["expected_step_seconds"] == plan.expected.expected_step_seconds
    assert f"MFU {100 * plan.expected.expected_mfu:.0f} % (" in train_plan_report(plan)
    assert "at most" not in train_plan_report(plan)
    assert capfd.readouterr().err == ""  # the compiler's complaints that there is no TPU
