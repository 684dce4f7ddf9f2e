"""Sources whose long recordings are read in parts: batches, order, resume, checks and reports."""

import collections
import dataclasses
import itertools
import json
import pickle
import re

import jax
import numpy as np
import pytest
import soundfile

from stepaudio_jax.data import (
    Preprocessor,
    batches,
    check_records,
    evaluation_batches,
    merge_states,
    open_source,
    open_stage_sources,
    raise_for_bad_records,
)
from stepaudio_jax.data.check_report import describe_check
from stepaudio_jax.data.checking import CheckedData
from stepaudio_jax.data.clips import load_clip, load_clip_within, measure_clip
from stepaudio_jax.data.inspection import inspect_source
from stepaudio_jax.data.inspection_report import describe
from stepaudio_jax.data.record import Visit
from stepaudio_jax.data.splitting import Splitter
from stepaudio_jax.errors import DataError
from stepaudio_jax.text import AudioPart
from tests.data.corpus import MODEL, TOKENIZER, settings, text_record, write_records
from tests.data.test_loader import same, take

SECONDS = 30
SAID = [
    {"start": round(1.1 * number, 2), "end": round(1.1 * number + 1, 2), "text": f" said{number}."}
    for number in range(27)
]
TEXT = "".join(segment["text"] for segment in SAID)


def write_sound(path, seconds=SECONDS):
    """Noise, in a file of any format."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * 16_000).astype(np.float32)
    soundfile.write(path, noise, 16_000)
    return path


def long_row(name="a.flac", **keys):
    return {"audio": name, "text": TEXT, "segments": SAID, **keys}


def split_settings(*paths, **changes):
    """A row holds 12 s of sound and what is said in them."""
    small = {"audio_chunks_per_seq": 1, "seq_len": 300, "mel_frames_per_chunk": 2504}
    return settings(*paths, **{"on_too_long": "split", **small, **changes})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Two recordings of 30 s between short dialogues."""
    folder = tmp_path_factory.mktemp("long")
    write_sound(folder / "a.flac")
    rows = [text_record(0, 3), long_row(id="a"), text_record(1, 3), long_row(id="b")]
    return write_records(folder / "d.jsonl", [*rows, text_record(2, 3)])


def learnt(batch):
    """The texts in the loss of a batch."""
    return [
        TOKENIZER.decode(targets[weights > 0])
        for targets, weights in zip(batch.targets, batch.loss_weights, strict=True)
    ]


def numbers_said(found):
    return collections.Counter(map(int, re.findall(r"said(\d+)", " ".join(found))))


def test_parts_are_records_of_the_source(path):
    (source,) = open_stage_sources(split_settings(path), TOKENIZER, MODEL)
    assert source.num_split == 2
    assert len(source) == 3 + source.num_parts
    ids = [source[index].id for index in range(len(source))]
    assert ids == [
        "text0",
        *(f"a-{number}" for number in range(1, source.num_parts // 2 + 1)),
        "text1",
        *(f"b-{number}" for number in range(1, source.num_parts // 2 + 1)),
        "text2",
    ]
    assert source.num_parts >= 2 * 3
    lines = [int(source.origin(index).rpartition(":")[2]) for index in range(len(source))]
    assert collections.Counter(lines) == {
        1: 1,
        3: 1,
        5: 1,
        2: len(ids) // 2 - 1,
        4: len(ids) // 2 - 1,
    }
    assert source.block_lengths() is None


def test_no_sound_is_lost_or_doubled(path):
    (source,) = open_stage_sources(split_settings(path), TOKENIZER, MODEL)
    clips = [source[index].messages[0].audio for index in range(len(source))]
    heard = [load_clip(clip) for of_record in clips for clip in of_record]
    whole = load_clip(AudioPart(str(path.parent / "a.flac")))
    np.testing.assert_array_equal(np.concatenate(heard), np.concatenate([whole, whole]))
    assert max(map(len, heard)) < 14 * 16_000


def test_evaluation_has_every_part_once(path):
    config = split_settings(path)
    iterator = evaluation_batches(config, TOKENIZER, MODEL)
    found = [text for batch in iterator for text in learnt(batch)]
    assert numbers_said(found) == dict.fromkeys(range(27), 2)
    (source,) = open_stage_sources(config, TOKENIZER, MODEL)
    assert iterator.counts == {"records": len(source), "records/d": len(source)}
    again = evaluation_batches(config, TOKENIZER, MODEL, sources=[source])
    assert [text for batch in again for text in learnt(batch)] == found


def test_an_epoch_has_every_part_once_in_another_order(path):
    config = split_settings(path, batch_size=1, packing_bins_per_seq=1)
    (source,) = open_stage_sources(config, TOKENIZER, MODEL)
    iterator = batches(config, TOKENIZER, MODEL, seed=0)
    found: list[str] = []
    while len(found) < 2 * len(source):
        (text,) = learnt(next(iterator))
        found += re.findall(r"</think>\n(.*?)<\|EOT\|>", text, re.DOTALL)
    epochs = found[: len(source)], found[len(source) : 2 * len(source)]
    for epoch in epochs:
        assert numbers_said(epoch) == dict.fromkeys(range(27), 2)
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("done", [1, 3])
def test_a_run_resumes_in_the_middle_of_a_recording(path, done):
    config = split_settings(path)
    iterator = batches(config, TOKENIZER, MODEL, seed=1)
    take(iterator, done)
    state = json.dumps(iterator.get_state())
    expected, counts = take(iterator, 3), iterator.counts
    resumed = batches(config, TOKENIZER, MODEL, seed=1)
    resumed.set_state(json.loads(state))
    assert all(map(same, expected, take(resumed, 3)))
    assert resumed.counts == counts


def test_processes_share_the_parts_and_resume_from_their_merged_state(path):
    config = split_settings(path)
    alone = batches(config, TOKENIZER, MODEL, seed=2)
    held = [batches(config, TOKENIZER, MODEL, seed=2, rows=rows) for rows in ((0, 1), (2, 3))]
    for expected, *of_processes in zip(
        take(alone, 3), *(take(each, 3) for each in held), strict=True
    ):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *of_processes)
        assert same(joined, expected)
    merged = merge_states([each.get_state() for each in held])
    assert merged["counts"] == alone.counts
    resumed = batches(config, TOKENIZER, MODEL, seed=2)
    resumed.set_state(merged)
    assert all(map(same, take(alone, 2), take(resumed, 2)))


def test_a_run_that_begins_to_split_does_not_resume(path):
    state = batches(split_settings(path, on_too_long="skip"), TOKENIZER, MODEL, seed=0).get_state()
    with pytest.raises(DataError, match=r"cannot resume: the data's sources was .*'records': 5"):
        batches(split_settings(path), TOKENIZER, MODEL, seed=0).set_state(state)


def checked(config):
    sources = open_stage_sources(config, TOKENIZER, MODEL)
    check = Preprocessor(config, TOKENIZER, MODEL, None, sources, seed=0).check
    result = check_records(sources, config, check)
    return CheckedData("stage 'sft'", sources, config, result)


def test_the_check_says_what_is_split(path):
    found = checked(split_settings(path))
    assert not found.result.bad
    assert found.result.contents[0].samples == 2 * SECONDS * 16_000
    (source,) = found.sources
    assert (
        f"    2 dialogues are too long and read in {source.num_parts} parts"
        ", which count as records (on_too_long='split')" in describe_check(found)
    )
    unsplit = checked(split_settings(path, on_too_long="skip"))
    assert [record.skipped for record in unsplit.result.bad] == ["too_long", "too_long"]
    assert not any("parts" in line for line in describe_check(unsplit))


def test_what_is_too_long_says_by_how_much_and_what_to_do(path):
    whole = "the dialogue takes 624 tokens, more than seq_len=300; raise it, or set on_too_long="
    with pytest.raises(DataError) as error:
        next(batches(split_settings(path, on_too_long="error"), TOKENIZER, MODEL, seed=0))
    assert str(error.value).endswith(f"{whole}'split', which splits it at its times, or 'skip'")
    assert re.match(rf"{path}:[24]: ", str(error.value))

    rows = [
        long_row(segments=None),
        long_row(segments=[{**SAID[0], "end": 30.0, "text": TEXT}]),
        long_row(segments=[*SAID[:-1], {**SAID[-1], "end": 40.0}]),
        text_record(0, 200),
        {**long_row(), "answer": "7"},
    ]
    bad = write_records(path.parent / "bad.jsonl", rows)
    config = split_settings(bad)
    found = checked(config)
    messages = [record.message for record in found.result.bad]
    assert messages[0] == (
        f"{bad}:1: {whole}'skip'; it cannot be split: its audio part has no 'segments' with times;"
        " give it some, or a row for each part of the recording ('start_s' and 'end_s')"
    )
    assert messages[1].startswith(
        f"{bad}:2: the dialogue takes 624 tokens, more than seq_len=300; raise it; of its"
        " segments, number 1 is too long for a part, from 0.00 s to 30.00 s: a row holds 4.42 s"
    )
    assert messages[1].endswith("tokens of text; divide it, or set on_too_long='skip'")
    assert messages[2] == (
        f"{bad}:3: segment 27 of 27 is from 28.60 s to 40.00 s, and its recording ends at 30.00 s;"
        " correct its times"
    )
    assert messages[3].endswith("or set on_too_long='skip'; it cannot be split: it has no sound")
    assert messages[4].endswith("it cannot be split: it has 'answer', which is about all of it")
    assert all(record.skipped is None for record in found.result.bad)
    with pytest.raises(DataError, match="and 4 more that cannot be used"):
        raise_for_bad_records(found.result.bad, found.sources, config)
    for index, message in enumerate(messages[:3]):
        (source,) = found.sources
        if index:  # what was found out when the source was opened is raised again
            with pytest.raises(DataError, match=re.escape(message)):
                source[index]


def test_a_recording_that_is_too_long_is_not_held_in_memory(path):
    clip = AudioPart(str(path.parent / "a.flac"))
    waveform, samples = load_clip_within(clip, 16_000)
    assert (len(waveform), samples) == (0, SECONDS * 16_000)
    waveform, samples = load_clip_within(clip, SECONDS * 16_000)
    np.testing.assert_array_equal(waveform, load_clip(clip))
    assert samples == len(waveform)


def test_lengths_that_headers_do_not_say_are_measured(path):
    write_sound(path.parent / "a.mp3")
    rows = write_records(path.parent / "mp3.jsonl", [long_row("a.mp3")])
    clip = open_source(rows)[0].messages[0].audio[0]
    assert measure_clip(clip) == len(load_clip(clip))
    part = AudioPart(clip.path, start_s=10.0, segments=clip.segments[15:])
    assert measure_clip(part) == len(load_clip(part))
    late = AudioPart(clip.path, segments=(clip.segments[0], *clip.segments[-1:]))
    assert measure_clip(late) == measure_clip(clip)
    found = checked(split_settings(rows))
    assert not found.result.bad
    assert found.sources[0].num_split == 1
    wrong = [*SAID[:-1], {**SAID[-1], "start": 70.0, "end": 71.0}]
    rows = write_records(path.parent / "mp3.jsonl", [long_row("a.mp3", segments=wrong)])
    assert "segment 27 of 27 is from 70.00 s to 71.00 s, and its recording ends at 30." in (
        checked(split_settings(rows)).result.bad[0].message
    )


def test_a_clip_that_is_missing_is_named_as_ever(path):
    rows = write_records(path.parent / "missing.jsonl", [long_row("none.flac"), {"audio": 1}])
    bad = checked(split_settings(rows, on_bad_audio="skip")).result.bad
    assert bad[0].message.startswith(f"{rows}:1: audio {path.parent}/none.flac: does not exist")
    assert [record.skipped for record in bad] == ["bad_audio", None]


def test_blocks_of_a_table_grow_with_the_parts_in_them(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [
            {"audio": "a.flac", "text": TEXT if number == 2 else " said0.", "segments": said}
            for number, said in enumerate([SAID[:1], SAID[:1], SAID, SAID[:1], SAID[:1]])
        ]
    )
    parquet.write_table(table, path.parent / "t.parquet", row_group_size=2)
    config = split_settings(path.parent / "t.parquet", seq_len=600, audio_chunks_per_seq=2)
    (source,) = open_stage_sources(config, TOKENIZER, MODEL)
    assert source.num_split == 1
    assert source.block_lengths() == [2, 1 + source.num_parts, 1]
    assert len(source) == 4 + source.num_parts
    texts = [source[index].messages[1].text for index in range(len(source))]
    assert numbers_said(texts) == {0: 5, **dict.fromkeys(range(1, 27), 1)}
    first = next(batches(config, TOKENIZER, MODEL, seed=0))
    assert any(text.strip() for text in learnt(first))


def test_inspect_says_into_how_many_parts_dialogues_would_be_split(path):
    source = open_source(path)
    inspection = inspect_source(source, show_progress=False, seq_len=300)
    assert (inspection.too_long, inspection.split) == (2, 2)
    (split,) = open_stage_sources(split_settings(path), TOKENIZER, MODEL)
    assert inspection.parts == split.num_parts
    text = "\n".join(describe(source, inspection, seq_len=300))
    assert "54 segments with times in 2 of them" in text
    assert (
        "2 dialogues longer than --seq-len 300, 2 of which data.on_too_long='split' reads in"
        f" {split.num_parts} parts; the longest dialogue has 624 tokens" in text
    )
    (line,) = [line for line in describe(source, inspect_source(source)) if " length " in line]
    assert "parts" not in line


def test_parts_are_read_side_by_side_as_they_are_alone(path):
    (source,) = open_stage_sources(split_settings(path), TOKENIZER, MODEL)
    (other,) = open_stage_sources(split_settings(path, threads=7), TOKENIZER, MODEL)
    for index in itertools.chain(range(len(source)), reversed(range(len(source)))):
        assert source[index] == other[index]


def test_another_process_prepares_the_same_parts_and_need_not_find_them(path, monkeypatch):
    config = split_settings(path, write_broken(path))
    sources = open_stage_sources(config, TOKENIZER, MODEL)
    prepare = Preprocessor(config, TOKENIZER, MODEL, None, sources, seed=0)
    content = pickle.dumps(prepare.opener())
    monkeypatch.delattr(Splitter, "split")
    again = pickle.loads(content)()
    for record in (0, 2, len(sources[0]) - 1):
        visit = Visit(0, record, 0)
        jax.tree.map(
            np.testing.assert_array_equal,
            *(
                [dataclasses.astuple(example) for example in each(visit).examples]
                for each in (prepare, again)
            ),
        )
    with pytest.raises(DataError, match="number 1 is too long") as error:
        again(Visit(1, 0, 0))
    assert error.value.kind == "too_long"


def write_broken(path):
    """A recording with a segment that is too long by itself."""
    return write_records(
        path.parent / "broken.jsonl", [long_row(segments=[{**SAID[0], "text": TEXT}])]
    )
