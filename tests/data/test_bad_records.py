"""Records that cannot be used: an error that names file, line and clip, or skipped and counted."""

import dataclasses
import logging

import numpy as np
import pytest
import soundfile

from stepaudio_jax.audio import log_mel
from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data import (
    Preprocessor,
    Source,
    batches,
    check_records,
    evaluation_batches,
    raise_for_bad_records,
)
from stepaudio_jax.errors import DataError
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


def check(config):
    """Checks all records as a run does before it begins; returns those that will be skipped."""
    sources = [Source(source) for source in config.sources]
    preparation = Preprocessor(config, TOKENIZER, MODEL, None, sources, seed=0)
    bad = check_records(sources, config, preparation.check).bad
    raise_for_bad_records(bad, sources, config)
    return bad


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


KINDS = [
    "missing",
    "text",
    "empty",
    "NaN",
    "cut short",
    "too short",
    "silent first channel",
    "folder",
]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_audio_is_named_with_file_line_and_clip(tmp_path, kind):
    write_clip(tmp_path / "good.wav", 0.5, seed=0)
    records = [
        audio_record(0, "good.wav"),
        audio_record(1, "good.wav", bad_clip(tmp_path, kind)),
        audio_record(2, "good.wav"),
    ]
    path = write_records(tmp_path / "d.jsonl", records)
    for read in (
        lambda: list(evaluation_batches(settings(path), TOKENIZER, MODEL)),
        lambda: [
            next(
                batches(
                    settings(path, batch_size=1, packing_bins_per_seq=1), TOKENIZER, MODEL, seed=0
                )
            )
            for _ in range(4)
        ],
        lambda: check(settings(path)),
    ):
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value).startswith(f"{path}:2: audio {tmp_path / 'bad.wav'}: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_audio_is_skipped_and_counted_if_configured(tmp_path, caplog, kind):
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
    assert [f"{path}:{line}: audio" in caplog.text for line in range(1, 7)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [(record.record, record.skipped) for record in check(config)] == [
        (1, "bad_audio"),
        (4, "bad_audio"),
    ]


def test_batches_hold_the_first_channel_or_the_mean(tmp_path):
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


def test_a_state_of_another_channel_is_refused(tmp_path):
    config = settings(write_records(tmp_path / "d.jsonl", [text_record(0, 3)]))
    state = batches(config, TOKENIZER, MODEL, seed=0).get_state()
    with pytest.raises(
        DataError, match="cannot resume: the data's channel was first and is now mix"
    ):
        batches(dataclasses.replace(config, channel="mix"), TOKENIZER, MODEL, seed=0).set_state(
            state
        )


def test_the_shortest_clip_depends_on_the_length_convention(tmp_path):
    """10 ms: no audio token under "hf", one under "vllm"."""
    write_clip(tmp_path / "a.wav", 0.01, seed=0)
    config = settings(write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")]))
    model = dataclasses.replace(MODEL, length_convention="vllm")
    assert (
        np.count_nonzero(next(evaluation_batches(config, TOKENIZER, model)).audio_index == 0) == 1
    )
    with pytest.raises(DataError, match="too short"):
        next(evaluation_batches(config, TOKENIZER, MODEL))


def too_long_cases(folder):
    write_clip(folder / "a.wav", 1.0, seed=0)
    write_clip(folder / "b.wav", 1.0, seed=1)
    write_clip(folder / "long.wav", 2.0, seed=1)
    return {
        "seq_len=512": text_record(0, 150),
        "audio_chunks_per_seq=1": audio_record(0, "a.wav", "b.wav"),
        "mel_frames_per_chunk=160": audio_record(0, "long.wav"),
    }


@pytest.mark.parametrize(
    "limit", ["seq_len=512", "audio_chunks_per_seq=1", "mel_frames_per_chunk=160"]
)
def test_a_dialogue_too_long_is_an_error_or_counted(tmp_path, limit):
    case = too_long_cases(tmp_path)[limit]
    path = write_records(tmp_path / "d.jsonl", [text_record(1, 3), case, text_record(2, 3)])
    with pytest.raises(DataError, match=f"more than {limit}") as error:
        list(evaluation_batches(settings(path, audio_chunks_per_seq=1), TOKENIZER, MODEL))
    assert str(error.value).startswith(f"{path}:2: ")
    assert "on_too_long" in str(error.value)
    iterator = evaluation_batches(
        settings(path, audio_chunks_per_seq=1, on_too_long="skip"), TOKENIZER, MODEL
    )
    assert sum(int(batch.segment_ids.max(axis=1).sum()) for batch in iterator) == 2
    assert iterator.counts == {"records": 2, "records/d": 2, "skipped_too_long": 1}


def test_a_dialogue_that_just_fits_is_used(tmp_path):
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 20)])
    (batch,) = evaluation_batches(settings(path, batch_size=1), TOKENIZER, MODEL)
    length = int(np.count_nonzero(batch.segment_ids))
    (exact,) = evaluation_batches(settings(path, batch_size=1, seq_len=length), TOKENIZER, MODEL)
    assert exact.segment_ids.all()
    with pytest.raises(DataError, match=f"takes {length} tokens, more than seq_len={length - 1}"):
        next(evaluation_batches(settings(path, batch_size=1, seq_len=length - 1), TOKENIZER, MODEL))


def test_counts_continue_after_a_resume(tmp_path):
    records = [text_record(number, 150 if number % 5 == 0 else 5) for number in range(50)]
    config = settings(
        write_records(tmp_path / "d.jsonl", records), batch_size=2, on_too_long="skip", threads=4
    )
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
    assert straight.counts["skipped_too_long"] == pytest.approx(
        straight.counts["records"] / 4, rel=0.3
    )


def test_skipping_every_record_is_an_error(tmp_path):
    path = write_records(tmp_path / "d.jsonl", [text_record(number, 150) for number in range(3)])
    with pytest.raises(DataError, match=rf"last 100 records were all skipped.*{path}:\d"):
        next(batches(settings(path, on_too_long="skip"), TOKENIZER, MODEL, seed=0))


def test_a_clip_lost_since_the_checkpoint_is_an_error_even_where_bad_audio_is_skipped(tmp_path):
    clip = write_clip(tmp_path / "a.wav", 0.5, seed=0)
    config = settings(
        write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")]), on_bad_audio="skip"
    )
    iterator = batches(config, TOKENIZER, MODEL, seed=0)
    next(iterator)
    state = iterator.get_state()
    iterator.close()
    clip.unlink()
    with pytest.raises(
        DataError, match=r"cannot resume: .*d.jsonl:1: audio .*a.wav: does not exist"
    ):
        batches(config, TOKENIZER, MODEL, seed=0).set_state(state)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"messages": [{"role": "user", "content": "Hello?"}]}, "no assistant turn is in the loss"),
        (
            {
                "messages": [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": "!", "loss": False},
                ]
            },
            "is in the loss",
        ),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "no user turn"),
        (
            {
                "messages": [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": "a </think> b"},
                ]
            },
            "</think>",
        ),
        ({"messages": [{"role": "robot", "content": "?"}]}, "unknown role"),
    ],
)
def test_an_unusable_dialogue_is_an_error_also_where_bad_ones_are_skipped(
    tmp_path, record, complaint
):
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 3), record])
    config = settings(path, on_bad_audio="skip", on_too_long="skip")
    for read in (
        lambda: list(evaluation_batches(config, TOKENIZER, MODEL)),
        lambda: check(config),
    ):
        with pytest.raises(DataError, match=complaint) as error:
            read()
        assert str(error.value).startswith(f"{path}:2: ")


AUXILIARY = AuxiliaryConfig(
    ctc_weight=1.0,
    ctc_words=("seven", "eight"),
    attribute_weight=1.0,
    attributes={"gender": ("male", "female")},
)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([{"transcript": "seven sevven"}], "the word 'sevven'.*did you mean 'seven'"),
        (
            [{"attributes": {"gender": "femal"}}],
            r"gender='femal'.*did you mean 'female'.*\(allowed: male, female\)",
        ),
        ([{"transcript": "seven " * 11}], "11 words, too many"),
        (
            [{"transcript": "seven seven seven seven"}],
            "4 words, too many for its 6",
        ),  # three blanks between, seven in all
        ([{"transcript": "seven"}, {"transcript": "eight"}], "different labels"),
        (
            [{"attributes": {"gender": "male"}}, {"attributes": {"gender": "female"}}],
            "different labels",
        ),
    ],
)
def test_labels_outside_their_vocabulary_are_errors(tmp_path, labels, complaint):
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
    config = settings(write_records(tmp_path / "d.jsonl", [record]), mel_frames_per_chunk=2502)
    with pytest.raises(DataError, match="spans 2 chunks"):
        next(evaluation_batches(config, TOKENIZER, MODEL, auxiliary=AUXILIARY))


SKIPPING = "data.on_bad_record, on_bad_audio and on_too_long can say 'skip'"


def late_records(folder):
    """Eighty records; three of the last ten, whose clips are not decoded, are bad."""
    write_clip(folder / "a.wav", 0.5, seed=0)
    records = [text_record(number, 3) for number in range(80)]
    records[70]["messages"][-1]["content"] = "a </think> b"
    records[73] = audio_record(73, "missing.wav")
    records[75] = audio_record(75, "a.wav", "a.wav", "a.wav", "a.wav")
    records[75]["messages"][0]["content"] = "word " * 150
    return write_records(folder / "d.jsonl", records)


def test_check_covers_the_configured_number_of_records(tmp_path):
    path = late_records(tmp_path)
    with pytest.raises(DataError) as error:
        check(settings(path))
    assert str(error.value).startswith(
        f"{path}:71: message 2 (assistant) has </think> in its reply"
    )
    assert str(error.value).endswith(
        f"(and 2 more that cannot be used: {path}:74, {path}:76; {SKIPPING})"
    )
    assert check(settings(path, check=70)) == check(settings(path, check=0)) == []
    with pytest.raises(DataError, match=f"{path}:74: audio .*missing.wav: does not exist"):
        check(settings(path, check=75, on_bad_record="skip"))
    skip = {"on_bad_record": "skip", "on_bad_audio": "skip", "on_too_long": "skip"}
    found = check(settings(path, **skip))
    assert [(record.record, record.skipped) for record in found] == [
        (70, "bad_record"),
        (73, "bad_audio"),
        (75, "too_long"),
    ]


def test_shards_of_a_check_cover_all_records(tmp_path):
    records = [text_record(number, 3) for number in range(700)]
    for number in (0, 127, 128, 300, 699):
        records[number] = {"messages": []}
    config = settings(write_records(tmp_path / "d.jsonl", records), on_bad_record="skip")
    sources = [Source(source) for source in config.sources]
    preparation = Preprocessor(config, TOKENIZER, MODEL, None, sources, seed=0)
    shares = [
        check_records(sources, config, preparation.check, shard=(index, 3)).bad
        for index in range(3)
    ]
    assert [[record.record for record in share] for share in shares] == [
        [0, 127],
        [128],
        [300, 699],
    ]


def test_a_source_without_a_usable_record_is_an_error(tmp_path):
    path = write_records(
        tmp_path / "d.jsonl", [audio_record(number, "missing.wav") for number in range(3)]
    )
    with pytest.raises(
        DataError, match=f"{path}: all 3 records would be skipped; the first: {path}:1: audio"
    ):
        check(settings(path, write_written(tmp_path), on_bad_audio="skip"))


def test_bad_records_are_skipped_and_counted_if_configured(tmp_path):
    records = [text_record(number, 3) for number in range(6)]
    records[1] = {"messages": [{"role": "user", "content": "Hello?"}]}
    path = write_records(tmp_path / "d.jsonl", records)
    path.write_text(path.read_text() + "{not JSON\n")
    iterator = evaluation_batches(settings(path, on_bad_record="skip"), TOKENIZER, MODEL)
    assert sum(int(batch.segment_ids.max(axis=1).sum()) for batch in iterator) == 5
    assert iterator.counts == {"records": 5, "records/d": 5, "skipped_bad_record": 2}


def test_check_finds_nothing_wrong_with_good_data(tmp_path):
    assert check(settings(write_spoken(tmp_path), write_written(tmp_path))) == []
