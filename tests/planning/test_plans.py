"""Every job's configuration, planned for the pod that it names; the compiler is real, the chips are not here."""

import importlib.metadata
import importlib.util
import json

import pytest

from tests.end_to_end.runs import ROOT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='no TPU compiler: pip install -e ".[tpu]"'),
]
KEYS = [
    "fits",
    "peak_bytes_per_chip",
    "argument_bytes_per_chip",
    "temporary_bytes_per_chip",
    "memory_bytes_per_chip",
    "flops_per_step",
    "collective_bytes_per_chip",
    "roofline_step_seconds",
    "mfu_bound",
    "compile_seconds",
    "compiler_version",
    "effort",
]


def plan(file, config, topology, *settings):
    ended = run(
        *("-m", "launch.plan", f"--config=configs/{config}.py", f"--topology={topology}", "--json", str(file)), *settings
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("config", "topology", "stage"),
    [
        ("sft_32b", "v5p-128", "sft"),
        ("midtrain_32b", "v5p:4x8x8", "adaptor"),
        ("midtrain_32b", "v5p:4x8x8", "midtrain"),
        ("sft_mini_8b", "v5litepod-64", "sft"),
        ("plan_text_32b", "v5p:4x4x4", "text"),
    ],
)
def test_a_job_fits_its_pod(tmp_path, config, topology, stage):
    made = plan(tmp_path / "plan.json", config, topology, "--stage", stage)
    assert set(KEYS) <= set(made)
    assert made["fits"]
    assert made["peak_bytes_per_chip"] <= made["memory_bytes_per_chip"]
    assert made["argument_bytes_per_chip"] >= made["parameter_bytes_per_chip"] + made["optimizer_bytes_per_chip"]
    assert made["compiler_version"] == f"libtpu {importlib.metadata.version('libtpu')}"
    assert 0 < made["mfu_bound"] <= 1


def test_the_chunked_loss_saves_at_least_one_array_of_logits_a_row(tmp_path):
    tokens, vocabulary = 8192, 152064
    longer = ("--effort=full", "--config.stages.text.data.rows=64", f"--config.stages.text.data.tokens_per_row={tokens}")
    whole, chunked = (
        plan(tmp_path / f"{chunks}.json", "plan_text_32b", "v5p:4x4x4", *longer, f"--config.compute.loss_chunks={chunks}")
        for chunks in (1, 16)
    )
    assert whole["temporary_bytes_per_chip"] - chunked["temporary_bytes_per_chip"] >= 4 * tokens * vocabulary  # a row a chip


def test_a_job_too_large_for_a_slice_is_told_by_how_much():
    ended = run("-m", "launch.plan", "--config=configs/sft_32b.py", "--topology=v5e:4x4")
    assert ended.returncode == 1
    assert "it does NOT fit: " in ended.stdout
    assert "GB too much" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_slots_leave_room_for_the_prompt_that_is_read_beside_them(tmp_path):
    serving = ("--program=decode", "--slot-tokens", "4096")
    made = plan(tmp_path / "plan.json", "sft_mini_8b", "v5e:2x2", *serving)
    assert made["fits"]
    held = made["parameter_bytes_per_chip"] + made["cache_bytes_per_chip"]
    assert made["prompt_bytes_per_chip"] > made["cache_bytes_per_chip"] / made["slots"]  # its keys and values, and temporaries
    assert held + made["prompt_bytes_per_chip"] <= made["peak_bytes_per_chip"] <= made["memory_bytes_per_chip"]
    per_slot = made["cache_bytes_per_chip"] / made["slots"]
    assert made["memory_bytes_per_chip"] - made["peak_bytes_per_chip"] < 1.05 * per_slot  # one more does not fit


def test_a_judge_in_the_process_is_counted(tmp_path):
    adaptor = ("--config.stages.rlhf.trainable=('adaptor',)", "--config.stages.rlhf.data.rows=32")
    judge = ("url=", "model=", "folder=models/tiny_judge")
    settings = [f"--config.stages.rlhf.rl.judge.{setting}" for setting in judge]
    made = plan(tmp_path / "plan.json", "rlhf_32b", "v5p:2x4x4", *adaptor, *settings)
    assert made["fits"]
    weights = sum(file.stat().st_size for file in (ROOT / "models" / "tiny_judge").glob("*.safetensors"))
    assert weights / 2 < made["judge_bytes_per_chip"] < 10 * weights  # cut over two chips, for it has two key heads; and slots
    parts = ("policy", "engine", "cache", "judge", "gradient", "optimizer", "temporary")
    assert made["peak_bytes_per_chip"] >= sum(made[f"{part}_bytes_per_chip"] for part in parts)
