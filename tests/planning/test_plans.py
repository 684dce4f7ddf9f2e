"""Tests the plans of every job's configuration for the pod that it names, by the real compiler."""

import importlib.metadata
import importlib.util
import json

import pytest

from stepaudio_jax.planning import parse_topology
from tests.end_to_end.runs import ROOT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason='no TPU compiler: pip install -e ".[tpu]"',
    ),
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
    "expected_step_seconds",
    "expected_step_seconds_range",
    "expected_mfu",
    "expected_mfu_range",
    "expected_parts",
    "compile_seconds",
    "compiler_version",
    "effort",
]


def plan(file, config, topology, *settings):
    """Returns the plan that the command writes as JSON."""
    ended = run(
        *(
            "-m",
            "launch.plan",
            f"--config=configs/{config}.py",
            f"--topology={topology}",
            "--json",
            str(file),
        ),
        *settings,
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
def test_job_fits_its_pod(tmp_path, config, topology, stage):
    made = plan(tmp_path / "plan.json", config, topology, "--stage", stage)
    assert set(KEYS) <= set(made)
    assert made["fits"]
    assert made["peak_bytes_per_chip"] <= made["memory_bytes_per_chip"]
    assert (
        made["argument_bytes_per_chip"]
        >= made["parameter_bytes_per_chip"] + made["optimizer_bytes_per_chip"]
    )
    assert made["compiler_version"] == f"libtpu {importlib.metadata.version('libtpu')}"
    low, high = made["expected_mfu_range"]
    assert 0 < low < made["expected_mfu"] < high < 1
    assert made["roofline_step_seconds"] < made["expected_step_seconds"]


# The flags with which MaxText's runs were made: benchmarks/xla_flags_library.py, CF_FOR_ALL_GATHER.
OVERLAP = (
    "--xla_enable_async_all_gather=true --xla_tpu_enable_async_collective_fusion=true "
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true "
    "--xla_tpu_overlap_compute_collective_tc=true"
)
SHAPE = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab_size")


@pytest.mark.parametrize(
    ("shape", "topology", "settings", "published"),
    [
        # maxtext, src/maxtext/configs/tpu/v5p/32b.sh and README.md: "minimal" keeps every product
        # but those of attention; 328 TFLOP/s a chip, which is 1683 tokens/s of 194.9 GFLOP. What
        # else it keeps does not fit here.
        (
            (32, 8192, 64, 64, 28672, 32000),
            "v5p-128",
            (
                "data.batch_size=384",
                "data.seq_len=2048",
                "remat=save",
                "remat_names=('attn_out','gate','up')",
            ),
            1683,
        ),
        # tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-16/README.md
        (
            (32, 4096, 32, 8, 14336, 128256),
            "v6e-16",
            (
                "data.batch_size=48",
                "data.seq_len=8192",
                "remat=offload",
                "remat_names=('query','key','value','attn_proj')",
            ),
            7243,
        ),
    ],
    ids=["MaxText 32B on v5p-128", "Llama 3.1 8B on v6e-16"],
)
def test_published_run_lies_in_the_range_of_its_plan(
    monkeypatch, tmp_path, shape, topology, settings, published
):
    """The plan is of this project's program, with nearly the rematerialisation of the run."""
    monkeypatch.setenv("LIBTPU_INIT_ARGS", OVERLAP)
    sections = {"data": "stages.text.", "mesh": "", "remat": "compute.", "remat_names": "compute."}
    changed = [
        f"--config.model.decoder.{key}={size}" for key, size in zip(SHAPE, shape, strict=True)
    ]
    changed += [
        f"--config.{sections[setting.split('=')[0].split('.')[0]]}{setting}" for setting in settings
    ]
    made = plan(tmp_path / "plan.json", "plan_text_32b", topology, "--effort=full", *changed)
    assert made["settings"] == []  # it fits as it is
    assert made["compiler_flags"] == OVERLAP.split()
    shortest, longest = made["expected_step_seconds_range"]
    assert shortest < made["tokens_per_step"] / made["chips"] / published < longest


def test_flags_that_overlap_collectives_reduce_the_waiting(monkeypatch, tmp_path):
    longer = (
        "--effort=full",
        "--config.stages.text.data.batch_size=64",
        "--config.stages.text.data.seq_len=8192",
    )
    without = plan(tmp_path / "without.json", "plan_text_32b", "v5p:4x4x4", *longer)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", OVERLAP)
    overlapped = plan(tmp_path / "overlapped.json", "plan_text_32b", "v5p:4x4x4", *longer)
    assert sum(without["collective_bytes_per_chip"].values()) == pytest.approx(260e9, rel=0.01)
    assert without["expected_parts"]["waiting"] == without["expected_parts"]["links"]
    assert overlapped["expected_parts"]["waiting"] < 0.8 * overlapped["expected_parts"]["links"]
    assert overlapped["expected_step_seconds"] < without["expected_step_seconds"]


def test_gathers_that_overlap_with_products_count_once(tmp_path):
    """A decoder of 14 B sends 120 GB: weights gathered twice in bf16, and gradients reduced."""
    shape = (
        "--config.model.decoder.layers=48",
        "--config.model.decoder.ffn=13824",
        "--config.stages.text.data.batch_size=64",
    )
    made = plan(tmp_path / "plan.json", "plan_text_32b", "v5e:8x8", "--effort=full", *shape)
    assert sum(made["collective_bytes_per_chip"].values()) == pytest.approx(120e9, rel=0.01)
    assert made["expected_parts"]["waiting"] < made["expected_parts"]["links"]


@pytest.mark.parametrize("topology", ["v5p-384", "tpu7x-128", "v6e-256"])
def test_slices_of_every_kind_are_planned(tmp_path, topology):
    """The decoder's width is no multiple of 192, so v5p-384 has three copies of the weights."""
    rows = parse_topology(topology).devices
    made = plan(
        tmp_path / "plan.json",
        "plan_text_32b",
        topology,
        f"--config.stages.text.data.batch_size={rows}",
    )
    assert made["fits"]
    assert made["mesh"]["data"] == (3 if topology == "v5p-384" else 1)
    assert made["mesh"]["data"] * made["mesh"]["fsdp"] == rows


def test_chunked_loss_saves_most_of_an_array_of_logits_a_row(tmp_path):
    tokens, vocabulary = 8192, 152064
    longer = (
        "--effort=full",
        "--config.stages.text.data.batch_size=64",
        f"--config.stages.text.data.seq_len={tokens}",
    )
    unchunked, chunked = (
        plan(
            tmp_path / f"{chunks}.json",
            "plan_text_32b",
            "v5p:4x4x4",
            *longer,
            f"--config.compute.loss_chunks={chunks}",
        )
        for chunks in (1, 16)
    )
    # The layers' own peak is then the higher one: it does not fall with more chunks.
    logits = 4 * tokens * vocabulary  # a row a chip
    saved = unchunked["temporary_bytes_per_chip"] - chunked["temporary_bytes_per_chip"]
    assert 0.75 * logits <= saved <= logits


def test_job_too_large_for_a_slice_says_by_how_much():
    ended = run("-m", "launch.plan", "--config=configs/sft_32b.py", "--topology=v5e:4x4")
    assert ended.returncode == 1
    assert "it does NOT fit: " in ended.stdout
    assert "GB too much" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_slots_leave_room_for_the_prompt_that_is_prefilled(tmp_path):
    serving = ("--program=decode", "--slot-tokens", "4096")
    made = plan(tmp_path / "plan.json", "sft_mini_8b", "v5e:2x2", *serving)
    assert made["fits"]
    weights_and_cache = made["parameter_bytes_per_chip"] + made["cache_bytes_per_chip"]
    assert (
        made["prompt_bytes_per_chip"] > made["cache_bytes_per_chip"] / made["slots"]
    )  # its keys and values, and temporaries
    assert (
        weights_and_cache + made["prompt_bytes_per_chip"]
        <= made["peak_bytes_per_chip"]
        <= made["memory_bytes_per_chip"]
    )
    per_slot = made["cache_bytes_per_chip"] / made["slots"]
    assert (
        made["memory_bytes_per_chip"] - made["peak_bytes_per_chip"] < 1.05 * per_slot
    )  # one more does not fit


def test_judge_and_simulated_user_in_the_process_are_counted(tmp_path):
    adaptor = (
        "--config.stages.rlhf.trainable=('adaptor',)",
        "--config.stages.rlhf.data.batch_size=32",
    )
    judge = ("url=None", "model=None", "folder=models/tiny_judge")
    settings = [f"--config.stages.rlhf.objective.judge.{setting}" for setting in judge]
    user = "--config.stages.rlhf.objective.rollout.simulated_user.folder=models/tiny_judge"
    made = plan(tmp_path / "plan.json", "rlhf_32b", "v5p:2x4x4", *adaptor, *settings, user)
    assert made["fits"]
    assert 0 < made["user_bytes_per_chip"] <= made["judge_bytes_per_chip"]  # shorter answers
    weights = sum(
        file.stat().st_size for file in (ROOT / "models" / "tiny_judge").glob("*.safetensors")
    )
    assert (
        weights / 2 < made["judge_bytes_per_chip"] < 10 * weights
    )  # cut over two chips, for it has two key heads; and slots
    parts = ("policy", "engine", "cache", "judge", "user", "gradient", "optimizer", "temporary")
    assert made["peak_bytes_per_chip"] >= sum(made[f"{part}_bytes_per_chip"] for part in parts)
