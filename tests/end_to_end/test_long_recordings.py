"""Two hours of sound in one file: trained on in parts, refused without, and answered in parts."""

import json
import os
import re
import textwrap

import numpy as np
import pytest
import soundfile

from tests.end_to_end.runs import ROOT, metrics, run
from tests.end_to_end.tones import write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read there"),
]

HOURS, RATE = 2, 16_000
WHOLE_BYTES = HOURS * 3600 * RATE * 4  # of the waveform that a model hears

# The loader of a run, in a process whose peak of memory is its own.
LOADER = """
import json, pathlib, re, sys
from launch.train import parse_arguments
from stepaudio_jax.config import ModelConfig
from stepaudio_jax.data import batches, evaluation_batches, open_stage_sources
from stepaudio_jax.errors import DataError
from stepaudio_jax.training.initial_weights import initial_model

def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

def learnt(batch):
    return [tokenizer.decode(row[mask > 0]) for row, mask in zip(batch.targets, batch.loss_weights)]

short, *arguments = sys.argv[1:]
(warm, _), (config, _) = (parse_arguments(each) for each in ([*arguments, short], arguments))
model, tokenizer = initial_model(config)
list(evaluation_batches(warm.stages[0].data, tokenizer, model))  # loads all libraries
before, found, error = peak_bytes(), [], None
data = config.stages[0].data
try:
    (source,) = open_stage_sources(data, tokenizer, model)
    iterator = batches(data, tokenizer, model, seed=0)
    while len(found) < len(source):
        found += re.findall(r"</think>\\n(.*?)<\\|EOT", "".join(learnt(next(iterator))), re.DOTALL)
    del found[len(source):]
    in_order = [text for batch in evaluation_batches(data, tokenizer, model)
                for text in learnt(batch)]
except DataError as raised:
    error, in_order = str(raised), []
print(json.dumps({"growth": peak_bytes() - before, "found": found, "in_order": in_order,
                  "error": error}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recording of two hours with a transcript with times, and a configuration that learns it."""
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(0)
    segments, end_s = [], 0.0
    while end_s < HOURS * 3600 - 20:
        start_s = end_s + rng.uniform(0.2, 1.5)
        end_s = start_s + rng.uniform(2.0, 8.0)
        text = f" Sentence {len(segments)} of it."
        segments.append({"start": round(start_s, 2), "end": round(end_s, 2), "text": text})
    write_recording(folder / "hours.flac", segments)
    text = "".join(segment["text"] for segment in segments)
    write_lines(
        folder / "hours.jsonl", [{"audio": "hours.flac", "text": text, "segments": segments}]
    )
    soundfile.write(folder / "short.flac", rng.uniform(-0.1, 0.1, 90 * RATE), RATE)
    write_lines(folder / "short.jsonl", [{"audio": "short.flac", "text": "Noise."}])
    question = [{"type": "audio", "audio": "hours.flac"}, {"type": "text", "text": "What is it?"}]
    write_lines(folder / "ask.jsonl", [{"messages": [{"role": "user", "content": question}]}])
    write_config(folder / "config.py", folder / "hours.jsonl")
    return folder


def write_recording(path, segments):
    """Writes a tone for each segment and faint noise, minute by minute."""
    rng = np.random.default_rng(1)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for minute in range(HOURS * 60):
            time = minute * 60 + np.arange(60 * RATE) / RATE
            wave = rng.integers(-3, 4, time.size).astype(np.int16)
            for number, segment in enumerate(segments):
                first, last = np.searchsorted(time, (segment["start"], segment["end"]))
                tone = np.sin(2 * np.pi * (200 + number % 50 * 20) * time[first:last])
                wave[first:last] += (3000 * tone).astype(np.int16)
            file.write(wave)


def write_config(path, data):
    path.write_text(
        textwrap.dedent(
            f"""
            from stepaudio_jax.config import *

            def get_config():
                return Config(
                    run_dir="none",
                    initial=InitialWeights(model={str(ROOT / "models" / "tiny_base")!r}),
                    stages=(
                        StageConfig(
                            name="sft",
                            steps=3,
                            data=DataConfig(
                                sources=(SourceConfig(path={str(data)!r}),),
                                batch_size=2,
                                seq_len=2048,
                                audio_chunks_per_seq=4,
                                packing_bins_per_seq=1,
                            ),
                        ),
                    ),
                    compute=ComputeConfig(dtype="float32", remat="none"),
                    log_every_steps=1,
                )
            """
        ).lstrip(),
        encoding="utf-8",
    )


def setting(key, value):
    return f"--config.stages.sft.data.{key}={value}"


def arguments(folder, *settings):
    return [f"--config={folder / 'config.py'}", *settings]


SPLIT = setting("on_too_long", "split")


def loaded(folder, *settings):
    """What the loader of a run has given, and by how much its memory grew."""
    short = setting("sources.0.path", folder / "short.jsonl")
    ended = run("-c", LOADER, short, *arguments(folder, *settings))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def sentences(texts):
    return [int(number) for text in texts for number in re.findall(r"Sentence (\d+) of it", text)]


def num_parts(folder):
    ended = run("-m", "launch.data", "check", *arguments(folder, SPLIT))
    assert ended.returncode == 0, ended.stderr
    assert f"{HOURS:.2f} h of sound" in ended.stdout
    match = re.search(r"1 dialogue is too long and read in (\d+) parts", ended.stdout)
    return int(match[1])


def test_an_epoch_has_every_part_once_in_little_memory(folder):
    parts = num_parts(folder)
    assert HOURS * 3600 / 100 <= parts < 2 * HOURS * 3600 / 100  # a row holds 100 s
    got = loaded(folder, SPLIT, setting("batch_size", 1))
    (line,) = [json.loads(text) for text in (folder / "hours.jsonl").read_text().splitlines()]
    every = list(range(len(line["segments"])))
    assert len(got["found"]) == parts
    assert sentences(got["in_order"]) == every
    assert sorted(sentences(got["found"])) == every
    assert sentences(got["found"]) != every
    assert got["growth"] < WHOLE_BYTES / 2


def test_a_run_learns_the_parts(folder):
    run_dir = folder / "run"
    ended = run("-m", "launch.train", *arguments(folder, SPLIT, f"--config.run_dir={run_dir}"))
    assert ended.returncode == 0, ended.stderr
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["records"] == lines[-1]["records/hours"] >= 6
    assert lines[0]["audio_seconds_per_second"] > 0
    checked = json.loads((run_dir / "data_check.json").read_text())
    (contents,) = checked["stage 'sft'"]["contents"].values()
    assert contents["samples"] == HOURS * 3600 * RATE


def test_without_split_the_error_says_by_how_much_and_what_to_do(folder):
    run_dir = folder / "refused"
    ended = run("-m", "launch.train", *arguments(folder, f"--config.run_dir={run_dir}"))
    assert ended.returncode == 2
    place = re.escape(str(folder / "hours.jsonl"))
    assert re.fullmatch(
        rf"error: {place}:1: the dialogue takes \d{{6}} tokens, more than seq_len=2048; raise it,"
        r" or set on_too_long='split', which splits it at its times, or 'skip'",
        ended.stderr.splitlines()[-1],  # behind the progress bar of the check
    )
    assert ended.stderr.count("error") == 1
    assert ended.stdout == ""
    assert not run_dir.exists()
    got = loaded(folder)
    assert "raise it, or set on_too_long='split'" in got["error"]
    assert got["growth"] < WHOLE_BYTES / 2


def test_it_is_answered_in_parts(folder):
    output = folder / "answers.jsonl"
    model = str(ROOT / "models" / "tiny_base")
    ended = run(
        *("-m", "launch.generate", "--model", model, "--input", str(folder / "ask.jsonl")),
        *("--output", str(output), "--temperature", "0"),
        *("--on-too-long", "split", "--max-new-tokens", "8", "--slots", "2"),
    )
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    times = [(line["start_s"], line["end_s"]) for line in lines]
    assert times[0][0] == 0
    assert times[-1][1] == HOURS * 3600
    assert [start for start, _ in times[1:]] == [end for _, end in times[:-1]]
    assert not any("error" in line for line in lines)
