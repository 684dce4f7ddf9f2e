"""What is logged: means and throughput, and a file in which every step stands once, whatever happened to the run."""

import contextlib
import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from stepaudio_jax.parallel import peak_flops
from stepaudio_jax.training.monitoring import MetricsWriter, ThroughputMeter, progress_bar_metrics


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


def test_a_line_holds_its_figures(tmp_path):
    write(tmp_path, "sft", 0, [3])
    assert lines(tmp_path) == [{"stage": "sft", "step": 3, "loss": 3.0, "data_wait_fraction": 0.5}]
    assert list((tmp_path / "tensorboard" / "sft").glob("events.*"))


def test_a_resumed_stage_drops_what_it_will_log_again_and_nothing_else(tmp_path):
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
def test_a_last_line_cut_short_by_a_kill_is_dropped(tmp_path, torn):
    """Cut in its middle, or just before its newline (it is whole then, and kept)."""
    write(tmp_path, "sft", 0, [2, 4])
    path = tmp_path / "metrics.jsonl"
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{second[:torn]}", encoding="utf-8")
    write(tmp_path, "sft", 4, [6])
    kept = [2, 4, 6] if torn > len(second) else [2, 6]
    assert [line["step"] for line in lines(tmp_path)] == kept


def test_a_damaged_line_is_left_out_with_a_warning_and_no_other(tmp_path, caplog):
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
    """A killed process must not lose lines in a buffer, or a run that resumes would lack them."""
    writer = MetricsWriter(tmp_path, stage="sft", resume_step=0)
    writer.write(1, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    writer.close()


def step_metrics(loss, tokens=100, audio_seconds=2.0, skipped=0.0, nothing=0.0):
    return {
        "loss": jnp.float32(loss),
        "skipped_steps": jnp.float32(skipped),
        "zero_gradient_steps": jnp.float32(nothing),
        "tokens": jnp.int32(tokens),
        "loss_tokens": jnp.float32(10),
        "audio_seconds": jnp.float32(audio_seconds),
    }


def test_figures_are_means_over_the_steps_since_the_last_ones():
    meter = ThroughputMeter(1e12, None)
    meter.add(step_metrics(5.0))
    meter.summary()
    for loss in (1.0, 3.0):
        meter.add(step_metrics(loss))
    figures = meter.summary()
    assert figures["loss"] == 2.0
    assert "tokens" not in figures
    assert figures["tokens_per_second"] == pytest.approx(100 * figures["steps_per_second"])
    assert figures["audio_seconds_per_second"] == pytest.approx(2 * figures["steps_per_second"])


def test_skipped_steps_are_counted_and_left_out_of_the_means():
    meter = ThroughputMeter(1e12, None)
    for loss, skipped in ((1.0, 0.0), (float("nan"), 1.0), (3.0, 0.0)):
        meter.add(step_metrics(loss, skipped=skipped))
    figures = meter.summary()
    assert (figures["loss"], figures["skipped_steps"]) == (2.0, 1.0)
    assert [step["skipped_steps"] for step in meter.history] == [0.0, 1.0, 0.0]


def test_steps_with_nothing_to_learn_are_counted_and_left_out_of_the_means():
    meter = ThroughputMeter(1e12, None)
    for loss, nothing in ((1.0, 0.0), (0.0, 1.0), (3.0, 0.0), (0.0, 1.0)):
        meter.add(step_metrics(loss, nothing=nothing))
    figures = meter.summary()
    assert (figures["loss"], figures["zero_gradient_steps"], figures["skipped_steps"]) == (
        2.0,
        2.0,
        0.0,
    )
    meter.add(step_metrics(0.0, nothing=1.0))
    assert meter.summary()["loss"] == 0.0, "of none that changed something, the mean of all"


def test_paused_time_is_left_out_and_waiting_is_a_share():
    meter = ThroughputMeter(1e12, None)
    start = time.perf_counter()
    with meter.waiting_for_data():
        time.sleep(0.1)
    with meter.paused():
        time.sleep(0.5)
    meter.add(step_metrics(1.0))
    figures = meter.summary()
    elapsed = time.perf_counter() - start
    assert figures["steps_per_second"] >= 1 / (elapsed - 0.5)
    assert figures["steps_per_second"] <= 1 / 0.1
    assert figures["data_wait_fraction"] >= 0.1 / (elapsed - 0.5)
    assert figures["data_wait_fraction"] <= 1


def test_data_that_comes_while_a_step_is_computed_was_not_waited_for(monkeypatch):
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
    in_second, figures = time.perf_counter() - started, meter.summary()
    waited = figures["data_wait_fraction"] / figures["steps_per_second"]  # seconds, of one step
    assert 0.1 <= waited <= in_second - 0.2


def test_utilization_follows_from_the_formula_and_the_chips_peak():
    meter = ThroughputMeter(3e12, 6e14)
    meter.add(step_metrics(1.0))
    figures = meter.summary()
    expected = 3e12 * figures["steps_per_second"] / (6e14 * jax.device_count())
    assert figures["model_flops_utilization"] == pytest.approx(expected)
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    unknown = ThroughputMeter(3e12, None)
    unknown.add(step_metrics(1.0))
    assert "model_flops_utilization" not in unknown.summary()


def test_goodput_counts_steps_and_neither_compilation_nor_skipped_ones():
    meter = ThroughputMeter(1e12, None)
    start = time.perf_counter()
    with meter.compiling():
        time.sleep(0.2)
    for skipped in (0.0, 1.0):
        meter.add(step_metrics(1.0, skipped=skipped))
    time.sleep(0.2)
    figures = meter.summary()
    elapsed = time.perf_counter() - start
    assert figures["compile_seconds"] >= 0.2
    assert 0.1 / elapsed <= figures["goodput"] <= (elapsed - 0.2) / 2 / (elapsed - 0.01)


def test_counts_do_not_overflow_between_two_log_lines():
    """Three billion tokens: more than an i32 holds, fewer than a log line of a large run may cover."""
    meter = ThroughputMeter(1e12, None)
    for _ in range(3):
        meter.add(step_metrics(1.0, tokens=1_000_000_000))
    figures = meter.summary()
    assert figures["tokens_per_second"] == pytest.approx(1e9 * figures["steps_per_second"])


def test_the_bar_shows_loss_throughput_and_waiting():
    figures = {
        "loss": 1.2345,
        "tokens_per_second": 999.6,
        "audio_seconds_per_second": 12.34,
        "data_wait_fraction": 0.256,
    }
    assert progress_bar_metrics(figures) == {
        "loss": "1.234",
        "tok/s": "1000",
        "audio-s/s": "12.3",
        "data-wait": "26%",
    }


def test_a_line_is_amended_and_stands_once(tmp_path):
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
