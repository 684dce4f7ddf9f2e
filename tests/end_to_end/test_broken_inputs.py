"""Data that is cut, missing, refused or of the wrong form, through every program that reads it: one
line that names the file and the place, exit code 2, nothing written.
"""

import base64
import gzip
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from launch.data import main as data
from launch.generate import main as generate
from launch.train import main as train
from stepaudio_jax import hub
from stepaudio_jax.data.containers.example import serialize_example
from stepaudio_jax.text import Tokenizer
from tests.data.containers import records
from tests.generation.small_model import CONFIG, peaked_parameters

ROOT = pathlib.Path(__file__).resolve().parents[2]
FORMATS = ROOT / "tests" / "data" / "formats"
TFDS = "tfds/talks/plain/1.0.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    hub.save_checkpoint(
        folder, peaked_parameters(), CONFIG, Tokenizer.byte_level(), source="random"
    )
    return folder


@pytest.fixture
def work(tmp_path, folder):
    """Returns a folder with a valid configuration, and an empty folder for bad data."""
    shutil.copy(folder / "config.py", tmp_path)
    (tmp_path / "bad").mkdir()
    return tmp_path


def sound(seconds=0.3):
    content = io.BytesIO()
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, round(16_000 * seconds))
    soundfile.write(content, samples, 16_000, format="WAV", subtype="PCM_16")
    return content.getvalue()


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    return path


def sample(folder, name):
    """Copies a sample, a file or a folder; returns its path."""
    target = folder / pathlib.Path(name).name
    (shutil.copytree if (FORMATS / name).is_dir() else shutil.copy)(FORMATS / name, target)
    return target


def lines(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# What cannot be opened: (folder) -> the path of a source.


def cut_parquet(folder):
    return cut(sample(folder, "hf_parquet/train-00000-of-00001.parquet"))


def cut_tar(folder):
    return cut(sample(folder, "webdataset/talks-000000.tar"))


def cut_array_record(folder):
    return cut(sample(folder, "array_record/examples-00000-of-00001.array_record"), 0.5)


def cut_tf_record(folder):
    return cut(sample(folder, "tfrecord/talks-00000-of-00001.tfrecord"))


def cut_json_array(folder):
    return cut(sample(folder, "llama_factory/talks.json"))


def cut_gzip(folder):
    path = folder / "rows.jsonl.gz"
    rows = [json.dumps({"messages": [{"role": "user", "content": str(n)}]}) for n in range(500)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    return cut(path)


def gzip_of_a_tar(folder):
    path = folder / "talks.tar.gz"
    path.write_bytes(gzip.compress((FORMATS / "webdataset/talks-000000.tar").read_bytes()))
    return path


def tfds_without_features(folder):
    path = sample(folder, TFDS)
    (path / "features.json").unlink()
    return path


def tfds_without_a_shard(folder):
    path = sample(folder, TFDS)
    (path / "talks-train.array_record-00000-of-00001").unlink()
    return path


def shards_with_a_gap(folder):
    for number in (0, 2):
        lines(folder, {"messages": []}, name=f"rows-{number:05}-of-00003.jsonl")
    return folder


def empty_file(folder):
    (folder / "rows.jsonl").touch()
    return folder / "rows.jsonl"


def empty_file_of_sound(folder):
    (folder / "a.wav").touch()
    return folder / "a.wav"


def web_page(folder):
    path = folder / "rows.jsonl"
    path.write_text("<!DOCTYPE html><html><title>Sign in</title></html>")
    return path


def llama_factory_file_that_is_missing(folder):
    info = {"talks": {"file_name": "talks.json", "formatting": "sharegpt"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def recordings_without_supervisions(folder):
    return sample(folder, "lhotse/recordings.jsonl.gz")


def kaldi_without_wav_scp(folder):
    (folder / "text").write_text("a the meeting\n")
    (folder / "utt2spk").write_text("a spk1\n")
    return folder


UNOPENED = {
    cut_parquet: "{path}: is no Parquet file, or is cut off or damaged",
    cut_tar: "{path}: is (no tar archive, or is )?cut off",
    cut_array_record: "{path}: is cut short",
    cut_tf_record: "{path}#[0-9]+: the file is cut short",
    cut_json_array: "{path}#1: the file ends inside this element, which begins in line [0-9]+",
    cut_gzip: "{path}: is cut off or damaged: its compressed content has no end",
    gzip_of_a_tar: "{path}: is a compressed archive, .* unpack it",
    tfds_without_features: "{path}: is not a prepared TFDS folder: it has no features.json",
    tfds_without_a_shard: "{path}/talks-train.array_record-00000-of-00001: cannot be read",
    shards_with_a_gap: "{path}: files are missing: .* without number 1",
    empty_file: "{path}: has no records",
    empty_file_of_sound: "{path}: is empty .0 bytes.",
    lambda folder: folder: "{path}: is no folder of data that is understood; it is empty",
    web_page: "{path}: is a web page .HTML. .'Sign in'. and not the file",
    llama_factory_file_that_is_missing: "{path}/talks.json: .*dataset_info.json names it",
    recordings_without_supervisions: "{path}: .* manifest of recordings, which needs",
    kaldi_without_wav_scp: "{path}: .* wav.scp",
    lambda folder: folder / "none.jsonl": "{path}: no such file, and no file matches it",
    lambda folder: "tfds:talks/plain:test": "{tfds}: has no split 'test'; it has train",
    lambda folder: "tfds:talk": "tfds:talk: .* does not exist; did you mean 'talks'",
    lambda folder: "ftp://host/rows.jsonl": "{path}: ftp:// is not read; paths are local, gs://",
}


def programs_of(work, path, model, *, flags=()):
    """Returns what reads a source: the program, its name and its arguments."""
    source = "--config.stages.mid.data.sources.0.path"
    urls = bool(flags)
    return {
        "train": (
            train,
            [
                f"--config={work / 'config.py'}",
                f"--config.run_dir={work / 'run'}",
                f"{source}={path}",
                *([f"--config.stages.mid.data.allow_urls={urls}"] if urls else []),
            ],
        ),
        "inspect": (data, ["inspect", path, *flags]),
        "convert": (data, ["convert", path, "--output", work / "new" / "converted", *flags]),
        "generate": (
            generate,
            [
                *("--model", model, "--input", path, "--output", work / "answered" / "new.jsonl"),
                *("--max-new-tokens", 8, *flags),
            ],
        ),
    }


def refusal(program, arguments, capsys, folder):
    """Runs a program that must exit with code 2 and write nothing; returns its line of error."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        sys.exit(program([str(argument) for argument in arguments]))
    output, errors = capsys.readouterr()
    errors = errors.rpartition("\r")[2].lstrip()  # behind a progress bar, on a slow machine
    assert ended.value.code == 2
    assert re.fullmatch("error: [^\n]+\n", errors), errors
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    if program is not data:
        assert output == ""
    return errors.removeprefix("error: ").rstrip("\n")


def expected(message, path):
    shown = {"path": path, "folder": pathlib.Path(path).parent, "tfds": FORMATS / TFDS}
    return message.format(**{name: re.escape(str(value)) for name, value in shown.items()})


@pytest.mark.parametrize("program", ["train", "inspect", "convert", "generate"])
@pytest.mark.parametrize("write", UNOPENED, ids=lambda write: write.__name__)
def test_what_cannot_be_opened_is_named(work, capsys, monkeypatch, model, write, program):
    monkeypatch.setenv("TFDS_DATA_DIR", str(FORMATS / "tfds"))
    path = write(work / "bad")
    run, arguments = programs_of(work, path, model)[program]
    error = refusal(run, arguments, capsys, work)
    assert re.match(expected(UNOPENED[write], path), error), error


# Rows that cannot be read: (folder) -> the path of a source of one row.


def tar_without_text(folder):
    path = folder / "rows.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.wav")
        member.size = len(sound())
        archive.addfile(member, io.BytesIO(sound()))
    return path


def parquet_without_the_columns(folder):
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"sound": [17], "seconds": [0.3]}), path)
    return path


def parquet_of_a_clip_without_text(folder):
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"audio": [{"bytes": sound(), "path": "a.wav"}]}), path)
    return path


def csv_with_too_many_fields(folder):
    (folder / "a.wav").write_bytes(sound())
    (folder / "rows.csv").write_text("file,text\na.wav,yes, of course\n")
    return folder / "rows.csv"


def metadata_of_a_missing_file(folder):
    (folder / "a.wav").write_bytes(sound())
    (folder / "metadata.csv").write_text("file_name,text\nb.wav,no\na.wav,yes\n")
    return folder


def kaldi_with_a_command(folder):
    (folder / "wav.scp").write_text("u1 sox a.flac -t wav - |\n")
    (folder / "text").write_text("u1 yes\n")
    return folder


def lhotse_cut_past_the_end(folder):
    (folder / "a.wav").write_bytes(sound())
    cut = json.loads((FORMATS / "lhotse/cuts.jsonl").read_text().partition("\n")[0])
    cut["recording"] |= {"num_samples": 4800, "duration": 0.3}
    cut["recording"]["sources"][0]["source"] = "a.wav"
    cut["supervisions"][0] |= {"duration": 0.4}
    return lines(folder, cut | {"start": 0.2, "duration": 0.4}, name="cuts.jsonl")


def line_in_another_encoding(folder):
    path = folder / "rows.jsonl"
    path.write_bytes('{"messages": [{"role": "user", "content": "Grün?"}]}'.encode("latin-1"))
    return path


def negative_offset(folder):
    (folder / "a.wav").write_bytes(sound())
    row = {"audio_filepath": "a.wav", "text": "yes", "offset": -0.1, "duration": 0.2}
    return lines(folder, row, name="manifest.json")


def tf_record_of_something_else(folder):
    return records.write_tfrecord(folder / "rows.tfrecord", [b"\x08\x96\x01 no Example"])


def array_record_without_text(folder):
    record = serialize_example({"audio": [sound()]})
    return records.write_array_record(folder / "rows.array_record", [record])


def llama_factory_without_its_column(folder):
    columns = {"messages": "dialogue"}
    info = {"talks": {"file_name": "talks.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "talks.json").write_text(
        json.dumps([{"conversations": [{"from": "human", "value": "Hi"}]}])
    )
    return folder / "talks.json"


def one_placeholder_too_many(folder):
    (folder / "a.wav").write_bytes(sound())
    turns = [{"role": "user", "content": "<audio><audio>Which?"}]
    return lines(folder, {"messages": turns, "audios": ["a.wav"]})


BAD_ROWS = {
    tar_without_text: "{path}#a: has a clip and no text for it",
    parquet_without_the_columns: "{path}#0: is in no form that is known .keys: 'sound', 'seconds'",
    parquet_of_a_clip_without_text: "{path}#0: has a clip and no text for it .columns: 'audio'.",
    csv_with_too_many_fields: "{path}:2: has 3 fields, and the header has 2",
    metadata_of_a_missing_file: "{path}/metadata.csv:2: names b.wav, which is not in the folder",
    kaldi_with_a_command: "{path}/wav.scp:1: is a command .*, and commands are not run",
    lhotse_cut_past_the_end: "{path}:1: audio {folder}/a.wav( .0.2 s to 0.6 s.)?: is 0.300 s long, "
    "and end_s=0.6 lies behind its end",
    line_in_another_encoding: "{path}:1: is not UTF-8 .byte 45.; save the file as UTF-8",
    negative_offset: "{path}:1: the part of the file from -0.1 s to 0.1 s .* begins before",
    tf_record_of_something_else: "{path}#0: is not a tf.train.Example",
    array_record_without_text: "{path}#0: has a clip and no text for it",
    llama_factory_without_its_column: "{path}#0: has no 'dialogue', which dataset_info.json names",
    one_placeholder_too_many: "{path}:1: .* the placeholder .* only 1 clip for it",
}


def reported(work, path, capsys, model, flags=(), *, is_seen=True):
    """Returns what programs say of a source that has a row which cannot be read; each exits with 2.

    An inspection, which decodes nothing, says so only where headers do (`is_seen`).
    """
    said = {}
    for name in ("train", "inspect") if is_seen else ("train",):
        run, arguments = programs_of(work, path, model, flags=flags)[name]
        said[name] = refusal(run, arguments, capsys, work)
    _, arguments = programs_of(work, path, model, flags=flags)["convert"]
    assert data([str(argument) for argument in arguments]) == 2
    skipped, error = capsys.readouterr().err.rpartition("\r")[2].splitlines()
    assert error.startswith("error: 1 row could not be read; listed in ")
    listed = work / "new" / "converted" / "skipped.jsonl"
    (row,) = map(json.loads, listed.read_text(encoding="utf-8").splitlines())
    said["convert"] = skipped.removeprefix("skipped: ")
    said["list"] = f"{row['place']}: {row['reason']}"
    return said


@pytest.mark.parametrize("write", BAD_ROWS, ids=lambda write: write.__name__)
def test_a_row_that_cannot_be_read_is_named(work, capsys, model, write):
    path = write(work / "bad")
    message = expected(BAD_ROWS[write], path)
    said = reported(work, path, capsys, model)
    assert re.match(message, said["train"]), said
    assert re.match(message, said["convert"]), said
    assert re.match(message, said["list"]), said
    assert re.match(f"1 of [12] rows cannot be read; the first: {message}", said["inspect"]), said


# Clips that cannot be read: (folder) -> how a row names the clip; and the message.
CLIPS: dict[str, tuple[Callable[..., str], str]] = {
    "cut m4a": (
        lambda folder: cut(sample(folder, "media/speech.m4a")).name,
        "audio {folder}/speech.m4a: .*cut short",
    ),
    "cut webm": (
        lambda folder: cut(sample(folder, "media/speech.webm")).name,
        "audio {folder}/speech.webm: .*cut short",
    ),
    "cut mp3": (
        lambda folder: cut(sample(folder, "media/speech_vbr.mp3")).name,
        "audio {folder}/speech_vbr.mp3: .*cut short",
    ),
    "cut wav": (
        lambda folder: cut(sample(folder, "clips/a.wav")).name,
        "audio {folder}/a.wav: .*cut short",
    ),
    "broken base64": (
        lambda folder: "data:audio/wav;base64," + base64.b64encode(sound()).decode()[:-7] + "*",
        "audio data:audio/wav;base64,..: is not base64",
    ),
    "a data: URI of no sound": (
        lambda folder: "data:audio/wav;base64," + base64.b64encode(b"no sound").decode(),
        "audio data:audio/wav;base64,.*: is not a sound file",
    ),
    "no such member of a tar": (
        lambda folder: sample(folder, "webdataset/talks-000000.tar").name + "#none.wav",
        "audio {folder}/talks-000000.tar#none.wav: .* the archive has no such member",
    ),
    "an address that is not allowed": (
        lambda folder: "https://example.com/a.wav",
        "audio https://example.com/a.wav: is a URL, which is not read unless data.allow_urls=true",
    ),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_a_clip_that_cannot_be_read_is_named(work, capsys, model, kind):
    is_seen = kind not in ("cut webm", "cut mp3")  # their headers do not say how long they are
    check_clip(work, capsys, model, *CLIPS[kind], is_seen=is_seen)


def check_clip(work, capsys, model, name_clip, message, *, is_seen=True):
    """Checks what is said of a row whose clip cannot be read, and with a reply, and without."""
    folder = work / "bad"
    asked = [{"role": "user", "content": [{"type": "audio", "audio": name_clip(folder)}]}]
    path = lines(folder, {"messages": [*asked, {"role": "assistant", "content": "yes"}]})
    message = f"{re.escape(str(path))}:1: {message.format(folder=re.escape(str(folder)))}"
    said = reported(work, path, capsys, model, is_seen=is_seen)
    if is_seen:
        said["inspect"] = said["inspect"].removeprefix("1 of 1 rows cannot be read; the first: ")
    path = lines(folder, {"messages": asked})
    program, arguments = programs_of(work, path, model)["generate"]
    said["generate"] = refusal(program, arguments, capsys, work)
    assert all(re.match(message, line) for line in said.values()), said


BUCKETS = {
    "gs://nowhere/rows.jsonl": "gs://nowhere/rows.jsonl: .*there is no bucket gs://nowhere",
    "gs://other/rows.jsonl": "gs://other/rows.jsonl: .*access is refused .403: the caller does not",
    "gs://bucket/none.jsonl": "gs://bucket/none.jsonl: no such file",
    "gs://bucket/rows.jsonl": "gs://bucket/rows.jsonl: .*the bucket's server failed .*500",
    "gs://Bucket/rows.jsonl": "'gs://Bucket/rows.jsonl' names no bucket",
}


@pytest.mark.parametrize("program", ["train", "inspect", "convert", "generate"])
@pytest.mark.parametrize("path", BUCKETS)
def test_a_bucket_that_cannot_be_used_is_named(work, capsys, model, gcs, no_waiting, path, program):
    gcs.put("bucket", "rows.jsonl", b'{"messages": [{"role": "user", "content": "Hi"}]}\n')
    gcs.forbidden.add("other")
    if path == "gs://bucket/rows.jsonl":
        gcs.fail(*[500] * 1000)
    run, arguments = programs_of(work, path, model)[program]
    error = refusal(run, arguments, capsys, work)
    assert re.match(BUCKETS[path], error), error
    assert list(gcs.buckets["bucket"]) == ["rows.jsonl"]


@pytest.mark.parametrize("program", ["train", "inspect", "convert", "generate"])
@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ("gs://nowhere/a.wav", "there is no bucket gs://nowhere"),
        ("gs://other/a.wav", "access is refused"),
        ("gs://bucket/a.wav", "the bucket's server failed .*500"),
    ],
)
def test_a_bucket_of_clips_that_cannot_be_used_ends_a_program(
    work, capsys, model, gcs, no_waiting, clip, message, program
):
    """At once: it is not the row's fault, and the next one would fail too."""
    gcs.forbidden.add("other")
    gcs.put("bucket", "a.wav", sound())
    gcs.fail(*[500] * 1000, matching="/b/bucket/o/a.wav")
    turns = [{"role": "user", "content": [{"type": "audio", "audio": clip}]}]
    if program != "generate":
        turns.append({"role": "assistant", "content": "yes"})
    path = lines(work / "bad", {"messages": turns})
    run, arguments = programs_of(work, path, model)[program]
    (work / "new").mkdir()
    with pytest.raises(SystemExit) as ended:
        sys.exit(run([str(argument) for argument in arguments]))
    assert ended.value.code == 2
    error = capsys.readouterr().err.rpartition("\r")[2]
    assert re.fullmatch(f"error: .*{clip}: {message}[^\n]*\n", error), error
    assert not list((work / "new").rglob("[!.]*.jsonl"))
    assert not (work / "run").exists()


def test_a_clip_that_is_not_in_its_bucket_is_named(work, capsys, model, gcs):
    name = "gs://bucket/none.wav"
    check_clip(work, capsys, model, lambda *_: name, f"audio {name}: does not exist")


@pytest.mark.parametrize("faults", [(500, 500), (503, None), (429,)])
def test_a_bucket_that_works_after_failures_is_read(work, capsys, gcs, no_waiting, faults):
    """Failures of the server, and answers that break off, at the source and at its clips."""
    clip = {"type": "audio", "audio": "clips/a.wav"}
    turns = [{"role": "user", "content": [clip]}, {"role": "assistant", "content": "yes"}]
    gcs.put("bucket", "rows.jsonl", json.dumps({"messages": turns}).encode())
    gcs.put("bucket", "clips/a.wav", sound())
    programs = programs_of(work, "gs://bucket/rows.jsonl", "")
    check = ["check", *(flag for flag in programs["train"][1] if "run_dir" not in flag)]
    for arguments in (programs["inspect"][1], programs["convert"][1], check):
        for name in ("rows.jsonl", "clips/a.wav", "clips%2Fa.wav"):
            gcs.fail(*faults, matching=name)
        assert data([str(argument) for argument in arguments]) == 0
        assert capsys.readouterr().err == ""
    (copied,) = (work / "new" / "converted" / "clips").rglob("*.wav")
    assert copied.read_bytes() == sound()


@pytest.mark.parametrize(
    ("path", "message"),
    [("404-999", "the server answers 404"), ("500-999", "the server answers 500")],
)
def test_a_url_that_gives_no_clip_is_named(work, capsys, model, web, path, message):
    """Where it is read: an inspection only says that its length is not known."""
    address, _ = web
    asked = [{"role": "user", "content": [{"type": "audio", "audio": f"{address}/{path}"}]}]
    answered = [*asked, {"role": "assistant", "content": "yes"}]
    for program, messages in (("train", answered), ("generate", asked)):
        rows = lines(work / "bad", {"messages": messages})
        run, arguments = programs_of(work, rows, model, flags=["--allow-urls"])[program]
        error = refusal(run, arguments, capsys, work)
        assert re.match(f"{rows}:1: audio {address}/{path}: cannot be read: {message}", error)


@pytest.mark.slow  # starts programs
@pytest.mark.parametrize(
    ("module", "write"),
    [
        ("launch.data", cut_gzip),
        ("launch.train", cut_tar),
        ("launch.generate", cut_parquet),
    ],
)
def test_a_process_says_it_in_one_line(work, model, module, write):
    """No library logs, warns or prints a traceback beside it."""
    path = write(work / "bad")
    name = {"launch.data": "convert"}.get(module, module.rpartition(".")[2])
    _, arguments = programs_of(work, path, model)[name]
    before = sorted(work.rglob("*"))
    ended = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(f"error: {expected(UNOPENED[write], path)}[^\n]*\n", ended.stderr)
    assert sorted(work.rglob("*")) == before
