"""Records that cannot be used: one line naming file, line and clip, or skipped and counted where the configuration says so."""

import dataclasses
import logging

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import log_mel
from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data import BadAudioError, DataError, TooLongError, batches, check_sources, evaluation_batches
from tests.data.corpus import (
    MODEL,
    TOKENIZER,
    audio_record,
    settings,
    text_record,
    write_clip,
    write_records,
    write_spoken,
    write_written,
)


def bad_clip(folder, kind: str) -> str:
    path = folder / "bad.wav"
    if kind == "text":
        path.write_text("This is no sound.\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "NaN":
        soundfile.write(path, np.full(200 * 160, np.nan, np.float32), 16_000, subtype="FLOAT")
    elif kind == "cut short":
        whole = write_clip(path, 1.0, seed=0).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "too short":
        write_clip(path, 0.01, seed=0)
    elif kind == "silent first channel":
        right = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
        soundfile.write(path, np.stack([np.zeros(8000), right], axis=1), 16_000)
    elif kind == "folder":
        path.mkdir()
    return path.name


KINDS = ["missing", "text", "empty", "NaN", "cut short", "too short", "silent first channel", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_audio_is_named_with_file_line_and_clip(tmp_path, kind):
    write_clip(tmp_path / "good.wav", 0.5, seed=0)
    records = [audio_record(0, "good.wav"), audio_record(1, "good.wav", bad_clip(tmp_path, kind)), audio_record(2, "good.wav")]
    path = write_records(tmp_path / "d.jsonl", records)
    for read in (
        lambda: list(evaluation_batches(settings(path), TOKENIZER, MODEL)),
        lambda: [next(batches(settings(path, rows=1, packing_rows=1), TOKENIZER, MODEL, seed=0)) for _ in range(4)],
        lambda: check_sources(settings(path), TOKENIZER, MODEL),
    ):
        with pytest.raises(BadAudioError) as error:
            read()
        assert str(error.value).startswith(f"{path}:2: audio {tmp_path / 'bad.wav'}: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_audio_is_skipped_and_counted_where_asked(tmp_path, caplog, kind):
    write_clip(tmp_path / "good.wav", 0.5, seed=0)
    bad = bad_clip(tmp_path, kind)
    records = [audio_record(number, bad if number in (1, 4) else "good.wav") for number in range(6)]
    path = write_records(tmp_path / "d.jsonl", records)
    config = settings(path, on_bad_audio="skip")
    iterator = evaluation_batches(config, TOKENIZER, MODEL)
    with caplog.at_level(logging.WARNING):
        seen = sum(int(batch.segment_ids.max(axis=1).sum()) for batch in iterator)
    assert seen == 4
    assert iterator.counts == {"records": 4, "records/d": 4, "skipped_bad_audio": 2}
    assert [f"{path}:{line}: audio" in caplog.text for line in range(1, 7)] == [False, True, False, False, True, False]
    (report,) = check_sources(config, TOKENIZER, MODEL)
    assert (report.records, report.read, report.prepared, report.skipped) == (6, 6, 6, 2)


def test_a_model_learns_from_the_first_channel_or_from_the_mean(tmp_path):
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels.T, 16_000, subtype="FLOAT")
    path = write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")])
    for channel, heard in (("first", channels[0]), ("mix", (channels[0] + channels[1]) / 2)):
        batch = next(evaluation_batches(settings(path, channel=channel), TOKENIZER, MODEL))
        mel = log_mel(heard)
        np.testing.assert_array_equal(np.asarray(batch.mel)[0, 0, :, : mel.shape[1]], mel)
    (tmp_path / "a.wav").unlink()
    bad_clip(tmp_path, "silent first channel")
    path = write_records(tmp_path / "d.jsonl", [audio_record(0, "bad.wav")])
    assert next(evaluation_batches(settings(path, channel="mix"), TOKENIZER, MODEL)).mel.any()


def test_a_run_does_not_go_on_with_another_channel(tmp_path):
    config = settings(write_records(tmp_path / "d.jsonl", [text_record(0, 3)]))
    state = batches(config, TOKENIZER, MODEL, seed=0).get_state()
    with pytest.raises(DataError, match="cannot resume: the data's channel was first and is now mix"):
        batches(dataclasses.replace(config, channel="mix"), TOKENIZER, MODEL, seed=0).set_state(state)


def test_how_short_a_clip_may_be_is_the_models_convention(tmp_path):
    """10 ms: no audio token under "hf", one under "vllm"."""
    write_clip(tmp_path / "a.wav", 0.01, seed=0)
    config = settings(write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")]))
    model = dataclasses.replace(MODEL, length_convention="vllm")
    assert np.count_nonzero(next(evaluation_batches(config, TOKENIZER, model)).audio_slot == 0) == 1
    with pytest.raises(BadAudioError, match="too short"):
        next(evaluation_batches(config, TOKENIZER, MODEL))


def too_long_cases(folder):
    write_clip(folder / "a.wav", 1.0, seed=0)
    write_clip(folder / "b.wav", 1.0, seed=1)
    write_clip(folder / "long.wav", 2.0, seed=1)
    return {
        "tokens_per_row=512": text_record(0, 150),
        "chunks_per_row=1": audio_record(0, "a.wav", "b.wav"),
        "frames_per_chunk=160": audio_record(0, "long.wav"),
    }


@pytest.mark.parametrize("limit", ["tokens_per_row=512", "chunks_per_row=1", "frames_per_chunk=160"])
def test_a_dialogue_too_long_is_an_error_or_counted(tmp_path, limit):
    case = too_long_cases(tmp_path)[limit]
    path = write_records(tmp_path / "d.jsonl", [text_record(1, 3), case, text_record(2, 3)])
    with pytest.raises(TooLongError, match=f"more than {limit}") as error:
        list(evaluation_batches(settings(path, chunks_per_row=1), TOKENIZER, MODEL))
    assert str(error.value).startswith(f"{path}:2: ")
    assert "on_too_long" in str(error.value)
    iterator = evaluation_batches(settings(path, chunks_per_row=1, on_too_long="skip"), TOKENIZER, MODEL)
    assert sum(int(batch.segment_ids.max(axis=1).sum()) for batch in iterator) == 2
    assert iterator.counts == {"records": 2, "records/d": 2, "skipped_too_long": 1}


def test_a_dialogue_that_just_fits_is_used(tmp_path):
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 20)])
    (batch,) = evaluation_batches(settings(path, rows=1), TOKENIZER, MODEL)
    length = int(np.count_nonzero(batch.segment_ids))
    (exact,) = evaluation_batches(settings(path, rows=1, tokens_per_row=length), TOKENIZER, MODEL)
    assert exact.segment_ids.all()
    with pytest.raises(TooLongError, match=f"takes {length} tokens, more than tokens_per_row={length - 1}"):
        next(evaluation_batches(settings(path, rows=1, tokens_per_row=length - 1), TOKENIZER, MODEL))


def test_counts_go_on_through_a_resume_and_count_nothing_twice(tmp_path):
    records = [text_record(number, 150 if number % 5 == 0 else 5) for number in range(50)]
    config = settings(write_records(tmp_path / "d.jsonl", records), rows=2, on_too_long="skip", threads=4)
    straight = batches(config, TOKENIZER, MODEL, seed=0)
    for _ in range(12):
        next(straight)
    stopped = batches(config, TOKENIZER, MODEL, seed=0)
    for _ in range(5):
        next(stopped)
    resumed = batches(config, TOKENIZER, MODEL, seed=0)
    resumed.set_state(stopped.get_state())
    for _ in range(7):
        next(resumed)
    assert resumed.counts == straight.counts
    assert straight.counts["skipped_too_long"] == pytest.approx(straight.counts["records"] / 4, rel=0.3)


def test_skipping_everything_ends_in_an_error_not_in_an_endless_search(tmp_path):
    path = write_records(tmp_path / "d.jsonl", [text_record(number, 150) for number in range(3)])
    with pytest.raises(DataError, match=rf"last 100 records were all skipped.*{path}:\d"):
        next(batches(settings(path, on_too_long="skip"), TOKENIZER, MODEL, seed=0))


def test_a_clip_lost_since_the_checkpoint_is_an_error_even_where_bad_audio_is_skipped(tmp_path):
    clip = write_clip(tmp_path / "a.wav", 0.5, seed=0)
    config = settings(write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")]), on_bad_audio="skip")
    iterator = batches(config, TOKENIZER, MODEL, seed=0)
    next(iterator)
    state = iterator.get_state()
    iterator.close()
    clip.unlink()
    with pytest.raises(DataError, match=r"cannot resume: .*d.jsonl:1: audio .*a.wav: does not exist"):
        batches(config, TOKENIZER, MODEL, seed=0).set_state(state)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"messages": [{"role": "user", "content": "Hello?"}]}, "no assistant turn is learnt"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "loss": False}]}, "is learnt"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "no user turn"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a </think> b"}]}, "</think>"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "unknown role"),
    ],
)
def test_an_unusable_dialogue_is_an_error_also_where_bad_ones_are_skipped(tmp_path, record, complaint):
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 3), record])
    config = settings(path, on_bad_audio="skip", on_too_long="skip")
    for read in (
        lambda: list(evaluation_batches(config, TOKENIZER, MODEL)),
        lambda: check_sources(config, TOKENIZER, MODEL),
    ):
        with pytest.raises(DataError, match=complaint) as error:
            read()
        assert str(error.value).startswith(f"{path}:2: ")


AUXILIARY = AuxiliaryConfig(
    ctc_weight=1.0, ctc_words=("seven", "eight"), attribute_weight=1.0, attributes={"gender": ("male", "female")}
)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([{"transcript": "seven sevven"}], "the word 'sevven'.*did you mean 'seven'"),
        ([{"attributes": {"gender": "femal"}}], r"gender='femal'.*did you mean 'female'.*\(allowed: male, female\)"),
        ([{"transcript": "seven " * 11}], "11 words, too many"),
        ([{"transcript": "seven seven seven seven"}], "4 words, too many for its 6"),  # three blanks between, seven in all
        ([{"transcript": "seven"}, {"transcript": "eight"}], "different labels"),
        ([{"attributes": {"gender": "male"}}, {"attributes": {"gender": "female"}}], "different labels"),
    ],
)
def test_labels_that_cannot_be_learnt_are_errors(tmp_path, labels, complaint):
    write_clip(tmp_path / "a.wav", 0.5, seed=0)
    record = audio_record(0, *["a.wav"] * len(labels))
    for turn, label in enumerate(labels):
        record["messages"][2 * turn]["content"][1].update(label)
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 3), record])
    with pytest.raises(DataError, match=complaint) as error:
        list(evaluation_batches(settings(path), TOKENIZER, MODEL, auxiliary=AUXILIARY))
    assert str(error.value).startswith(f"{path}:2: ")
    assert str(tmp_path / "a.wav") in str(error.value)


def test_a_transcript_of_a_clip_of_two_chunks_is_an_error(tmp_path):
    write_clip(tmp_path / "a.wav", 26.0, seed=0)
    record = audio_record(0, "a.wav")
    record["messages"][0]["content"][1]["transcript"] = "seven"
    config = settings(write_records(tmp_path / "d.jsonl", [record]), frames_per_chunk=2502)
    with pytest.raises(DataError, match="spans 2 chunks"):
        next(evaluation_batches(config, TOKENIZER, MODEL, auxiliary=AUXILIARY))


def test_check_looks_as_far_as_it_is_told(tmp_path):
    records = [text_record(number, 3) for number in range(20)]
    records[12] = audio_record(12, "missing.wav")
    path = write_records(tmp_path / "d.jsonl", records)
    (report,) = check_sources(settings(path), TOKENIZER, MODEL, read=12, prepare=2)
    assert (report.records, report.read, report.prepared, report.skipped) == (20, 12, 2, 0)
    with pytest.raises(DataError, match=f"{path}:13: audio .*missing.wav: does not exist"):
        check_sources(settings(path), TOKENIZER, MODEL, prepare=2)
    (report,) = check_sources(settings(path, on_bad_audio="skip"), TOKENIZER, MODEL, prepare=2)
    assert (report.read, report.skipped) == (20, 1)


def test_check_finds_nothing_wrong_with_good_data(tmp_path):
    reports = check_sources(settings(write_spoken(tmp_path), write_written(tmp_path)), TOKENIZER, MODEL)
    assert [(report.name, report.records, report.prepared, report.skipped) for report in reports] == [
        ("spoken", 24, 24, 0),
        ("written", 40, 40, 0),
    ]
