"""Monitoring: metrics.jsonl with one line a step, means and throughput, and profiles."""

import contextlib
import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from stepaudio_jax.config import Config, DataConfig, SourceConfig, StageConfig
from stepaudio_jax.errors import ConfigError
from stepaudio_jax.parallel import peak_flops
from stepaudio_jax.training.monitoring import (
    MetricsWriter,
    StepProfile,
    ThroughputMeter,
    progress_bar_metrics,
)


def write(run_dir, stage, resume_step, steps, value=0.0):
    writer = MetricsWriter(run_dir, stage=stage, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"loss": jnp.float32(value + step), "data_wait_fraction": 0.5})
    writer.close()


def lines(run_dir):
    return [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def steps_of(run_dir):
    return [(line["stage"], line["step"], line["loss"]) for line in lines(run_dir)]


def test_a_line_has_stage_step_and_metrics(tmp_path):
    write(tmp_path, "sft", 0, [3])
    assert lines(tmp_path) == [{"stage": "sft", "step": 3, "loss": 3.0, "data_wait_fraction": 0.5}]
    assert list((tmp_path / "tensorboard" / "sft").glob("events.*"))


def test_a_resumed_stage_drops_its_lines_after_the_resumed_step(tmp_path):
    write(tmp_path, "mid", 0, [2, 4, 6])
    write(tmp_path, "sft", 0, [2, 4, 6, 8])
    write(tmp_path, "sft", 4, [6, 8, 10], value=100.0)
    assert steps_of(tmp_path) == [
        *(("mid", step, step) for step in (2, 4, 6)),
        *(("sft", step, step) for step in (2, 4)),
        *(("sft", step, 100 + step) for step in (6, 8, 10)),
    ]


def test_a_stage_that_starts_again_drops_all_its_lines(tmp_path):
    write(tmp_path, "mid", 0, [2])
    write(tmp_path, "sft", 0, [2, 4])
    write(tmp_path, "mid", 2, [])  # the finished stage is opened again on the way to the next one
    write(tmp_path, "sft", 0, [2], value=100.0)
    assert steps_of(tmp_path) == [("mid", 2, 2), ("sft", 2, 102)]


@pytest.mark.parametrize("torn", [1, 20, 10_000])
def test_an_incomplete_last_line_is_dropped(tmp_path, torn):
    """A line that lacks only its newline is complete, and kept."""
    write(tmp_path, "sft", 0, [2, 4])
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{second[:torn]}", encoding="utf-8")
    write(tmp_path, "sft", 4, [6])
    kept = [2, 4, 6] if torn > len(second) else [2, 6]
    assert [line["step"] for line in lines(tmp_path)] == kept


def test_only_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path, "sft", 0, [1, 2, 3])
    first, second, third = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damaged = [b"\xff\xfe\n", b"{}\n", b"[1]\n", b'{"stage": "sft", "step": "2"}\n']
    (tmp_path / "metrics.jsonl").write_bytes(first + b"".join(damaged) + second + third)
    write(tmp_path, "sft", 3, [4])
    assert [step for _, step, _ in steps_of(tmp_path)] == [1, 2, 3, 4]
    numbers = [2, 3, 4, 5]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'metrics.jsonl'}:{number} is damaged, and left out" for number in numbers
    ]


def test_every_line_is_on_disk_once_it_is_written(tmp_path):
    """A killed process must not lose buffered lines, which a resumed run does not log again."""
    writer = MetricsWriter(tmp_path, stage="sft", resume_step=0)
    writer.write(1, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    writer.close()


def step_metrics(loss, tokens=100, audio_seconds=2.0, skipped=0.0, zero_gradient=0.0):
    return {
        "loss": jnp.float32(loss),
        "skipped_steps": jnp.float32(skipped),
        "zero_gradient_steps": jnp.float32(zero_gradient),
        "tokens": jnp.int32(tokens),
        "loss_tokens": jnp.float32(10),
        "audio_seconds": jnp.float32(audio_seconds),
    }


def test_a_summary_averages_over_the_steps_since_the_last_one():
    meter = ThroughputMeter(1e12, None)
    meter.add(step_metrics(5.0))
    meter.summary()
    for loss in (1.0, 3.0):
        meter.add(step_metrics(loss))
    metrics = meter.summary()
    assert metrics["loss"] == 2.0
    assert "tokens" not in metrics
    assert metrics["tokens_per_second"] == pytest.approx(100 * metrics["steps_per_second"])
    assert metrics["audio_seconds_per_second"] == pytest.approx(2 * metrics["steps_per_second"])


def test_skipped_steps_are_counted_and_left_out_of_the_means():
    meter = ThroughputMeter(1e12, None)
    for loss, skipped in ((1.0, 0.0), (float("nan"), 1.0), (3.0, 0.0)):
        meter.add(step_metrics(loss, skipped=skipped))
    metrics = meter.summary()
    assert (metrics["loss"], metrics["skipped_steps"]) == (2.0, 1.0)
    assert [step["skipped_steps"] for step in meter.history] == [0.0, 1.0, 0.0]


def test_zero_gradient_steps_are_counted_and_left_out_of_the_means():
    meter = ThroughputMeter(1e12, None)
    for loss, zero_gradient in ((1.0, 0.0), (0.0, 1.0), (3.0, 0.0), (0.0, 1.0)):
        meter.add(step_metrics(loss, zero_gradient=zero_gradient))
    metrics = meter.summary()
    assert (metrics["loss"], metrics["zero_gradient_steps"], metrics["skipped_steps"]) == (
        2.0,
        2.0,
        0.0,
    )
    meter.add(step_metrics(0.0, zero_gradient=1.0))
    assert meter.summary()["loss"] == 0.0, "without a step that changed something, the mean of all"


def test_paused_time_is_left_out_and_waiting_is_a_share():
    meter = ThroughputMeter(1e12, None)
    start = time.perf_counter()
    with meter.waiting_for_data():
        time.sleep(0.1)
    with meter.paused():
        time.sleep(0.5)
    meter.add(step_metrics(1.0))
    metrics = meter.summary()
    elapsed = time.perf_counter() - start
    assert metrics["steps_per_second"] >= 1 / (elapsed - 0.5)
    assert metrics["steps_per_second"] <= 1 / 0.1
    assert metrics["data_wait_fraction"] >= 0.1 / (elapsed - 0.5)
    assert metrics["data_wait_fraction"] <= 1


def test_waiting_for_data_while_a_step_is_computed_does_not_count(monkeypatch):
    meter, computed = ThroughputMeter(1e12, None), threading.Event()
    monkeypatch.setattr("jax.block_until_ready", lambda _: computed.wait(60))
    meter.add(step_metrics(1.0))
    with meter.waiting_for_data():
        time.sleep(0.3)
    started = time.perf_counter()
    with meter.waiting_for_data():
        time.sleep(0.2)
        computed.set()
        time.sleep(0.3)
    in_second, metrics = time.perf_counter() - started, meter.summary()
    waited = metrics["data_wait_fraction"] / metrics["steps_per_second"]  # seconds, of one step
    assert 0.1 <= waited <= in_second - 0.2


def test_utilization_is_the_share_of_the_devices_peak_flops():
    meter = ThroughputMeter(3e12, 6e14)
    meter.add(step_metrics(1.0))
    metrics = meter.summary()
    expected = 3e12 * metrics["steps_per_second"] / (6e14 * jax.device_count())
    assert metrics["model_flops_utilization"] == pytest.approx(expected)
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    unknown = ThroughputMeter(3e12, None)
    unknown.add(step_metrics(1.0))
    assert "model_flops_utilization" not in unknown.summary()


def test_goodput_leaves_out_compilation_and_skipped_steps():
    meter = ThroughputMeter(1e12, None)
    start = time.perf_counter()
    with meter.compiling():
        time.sleep(0.2)
    for skipped in (0.0, 1.0):
        meter.add(step_metrics(1.0, skipped=skipped))
    time.sleep(0.2)
    metrics = meter.summary()
    elapsed = time.perf_counter() - start
    assert metrics["compile_seconds"] >= 0.2
    assert 0.1 / elapsed <= metrics["goodput"] <= (elapsed - 0.2) / 2 / (elapsed - 0.01)


def test_counts_do_not_overflow_between_two_log_lines():
    """Three billion tokens, as between two log lines of a large run, are more than an i32 holds."""
    meter = ThroughputMeter(1e12, None)
    for _ in range(3):
        meter.add(step_metrics(1.0, tokens=1_000_000_000))
    metrics = meter.summary()
    assert metrics["tokens_per_second"] == pytest.approx(1e9 * metrics["steps_per_second"])


def test_the_progress_bar_shows_loss_throughput_and_waiting():
    metrics = {
        "loss": 1.2345,
        "tokens_per_second": 999.6,
        "audio_seconds_per_second": 12.34,
        "data_wait_fraction": 0.256,
        "data_wait_seconds": 12.6,
    }
    assert progress_bar_metrics(metrics) == {
        "loss": "1.234",
        "tok/s": "1000",
        "audio-s/s": "12.3",
        "data-wait": "26%, 13s in all",
    }


def test_metrics_can_be_added_to_the_last_line(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, stage="sft", resume_step=0)) as writer:
        writer.write(1, {"loss": 2.0})
        writer.write(2, {"loss": 1.0})
    with contextlib.closing(MetricsWriter(tmp_path, stage="sft", resume_step=2)) as writer:
        assert not writer.is_missing(2, "loss")
        assert writer.is_missing(2, "evaluation/loss")
        writer.add_to_step(2, {"evaluation/loss": 3.0})
        assert not writer.is_missing(2, "evaluation/loss")
        writer.write(3, {"loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[1] == {"stage": "sft", "step": 2, "loss": 1.0, "evaluation/loss": 3.0}


def profile_config(profile_steps):
    stage = StageConfig(name="sft", steps=3, data=DataConfig(sources=(SourceConfig(path="none"),)))
    return Config(run_dir="none", stages=(stage,), profile_steps=profile_steps)


def test_the_configured_steps_are_profiled(tmp_path):
    profile = StepProfile(tmp_path, profile_config("2:3").profiled_steps())
    for step in (1, 2, 3, 4):
        profile.before(step)
        assert (tmp_path / "profile").exists() == (step > 3)
        profile.after(step, jnp.ones(3) * step)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_profile_is_written_when_the_run_ends_within_it(tmp_path):
    profile = StepProfile(tmp_path, (1, 100))
    profile.before(1)
    profile.after(1, jnp.ones(3))
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["3", "3:2", "0:4", "a:b"])
def test_invalid_profile_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"profile_steps='{steps}' must be FIRST:LAST"):
        profile_config(steps)
