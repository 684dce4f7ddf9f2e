"""Packed rows, taken apart again, are the dialogues one by one."""

import collections
import dataclasses
import hashlib
import pathlib

import numpy as np
import pytest

from stepaudio_jax import audio
from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import AuxiliaryConfig, DataConfig, ModelConfig
from stepaudio_jax.data import (
    Batch,
    batches,
    evaluation_batches,
    read_records,
)
from stepaudio_jax.text import render_training, training_views
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

Dialogue = tuple[tuple, ...]


def fingerprint(mel: np.ndarray) -> bytes:
    """Of all its bits."""
    return hashlib.sha256(np.ascontiguousarray(mel).tobytes() + str(mel.shape).encode()).digest()


def alone(
    path: pathlib.Path, convention: str = "hf", **rendering: bool
) -> collections.Counter[Dialogue]:
    """Each view of a file's records by token: (token, target, weight, position, log-mel)."""
    special = TOKENIZER.special
    dialogues: collections.Counter[Dialogue] = collections.Counter()
    for record in read_records(path):
        history = rendering.get("history_reasoning", False)
        for view in training_views(record.messages, history_reasoning=history):
            stream: list[tuple[int, bool, tuple | None]] = []
            for segment in render_training(view, TOKENIZER, **rendering):
                stream += [(token, segment.in_loss, None) for token in segment.tokens]
                if segment.audio is not None:
                    for chunk in audio.split_chunks(audio.load_audio(segment.audio.path)):
                        mel = audio.log_mel(chunk)
                        sound = fingerprint(mel)
                        stream.append((special.audio_start, False, None))
                        for offset in range(audio.chunk_token_count(mel.shape[1], convention)):
                            stream.append((special.audio_patch, False, (sound, offset)))
                        stream.append((special.audio_end, False, None))
            following = [*stream[1:], (special.pad, False, None)]
            dialogues[
                tuple(
                    (token, target, float(learnt), position, heard)
                    for position, ((token, _, heard), (target, learnt, _)) in enumerate(
                        zip(stream, following, strict=True)
                    )
                )
            ] += 1
    return dialogues


def unpacked(batch: Batch, outputs: int) -> list[Dialogue]:
    """The dialogues of a batch in the same form, each audio index replaced by its log-mel."""
    found = []
    for row in range(batch.tokens.shape[0]):
        ids = batch.segment_ids[row]
        used = int(np.count_nonzero(ids))
        assert (ids[:used] > 0).all()
        assert (np.diff(ids[:used]) >= 0).all(), "a dialogue is not in one piece"
        assert sorted(set(ids[:used].tolist())) == list(range(1, ids.max() + 1))
        lengths = batch.mel_lengths[row]
        sounds = [
            fingerprint(mel[:, :length])
            for mel, length in zip(batch.mel[row], lengths, strict=True)
        ]
        for mel, length in zip(batch.mel[row], lengths, strict=True):
            assert not mel[:, length:].any(), "log-mel beyond its length"
        for segment in range(1, ids.max() + 1):
            dialogue = []
            for place in np.flatnonzero(ids == segment):
                slot, heard = int(batch.audio_index[row, place]), None
                if slot >= 0:
                    chunk, offset = divmod(slot, outputs)
                    heard = (sounds[chunk], offset)
                dialogue.append(
                    (
                        int(batch.tokens[row, place]),
                        int(batch.targets[row, place]),
                        float(batch.loss_weights[row, place]),
                        int(batch.positions[row, place]),
                        heard,
                    )
                )
            found.append(tuple(dialogue))
    return found


def check_padding(batch: Batch) -> None:
    """Padding has no loss, no audio and no segment."""
    empty = batch.segment_ids == 0
    assert (batch.tokens[empty] == TOKENIZER.special.pad).all()
    assert not batch.loss_weights[empty].any()
    assert not batch.positions[empty].any()
    assert (batch.audio_index[empty] == -1).all()
    assert not batch.mel[batch.mel_lengths == 0].any()


def check_static(batch: Batch, config: DataConfig, rows: int) -> None:
    """The shapes and types that the train step is compiled for."""
    grid = (rows, config.seq_len)
    for name, dtype in {
        "tokens": np.int32,
        "targets": np.int32,
        "loss_weights": np.float32,
        "positions": np.int32,
        "segment_ids": np.int32,
        "audio_index": np.int32,
    }.items():
        assert (getattr(batch, name).shape, getattr(batch, name).dtype) == (grid, dtype), name
    chunks = (rows, config.audio_chunks_per_seq)
    assert (batch.mel.shape, batch.mel.dtype) == (
        (*chunks, 128, config.mel_frames_per_chunk),
        np.float32,
    )
    assert (batch.mel_lengths.shape, batch.mel_lengths.dtype) == (chunks, np.int32)


@pytest.mark.parametrize(
    "options",
    [{}, {"loss_on_reasoning": False}, {"history_reasoning": True}, {"packing_bins_per_seq": 1}],
)
def test_unpacked_rows_equal_the_dialogues(tmp_path, options):
    spoken, written = write_spoken(tmp_path), write_written(tmp_path)
    config = settings(spoken, written, **options)
    rendering = {name: value for name, value in options.items() if name != "packing_bins_per_seq"}
    expected = alone(spoken, **rendering) + alone(written, **rendering)
    found: collections.Counter[Dialogue] = collections.Counter()
    for batch in evaluation_batches(config, TOKENIZER, MODEL):
        check_static(batch, config, rows=4)
        check_padding(batch)
        found.update(unpacked(batch, audio_embeddings_per_chunk(config.mel_frames_per_chunk)))
    assert found == expected


def test_training_rows_hold_complete_dialogues(tmp_path):
    """Over several epochs, and for the other convention of length."""
    path = write_spoken(tmp_path)
    model = dataclasses.replace(MODEL, length_convention="vllm")
    expected = alone(path, "vllm")
    config = settings(path)
    iterator = batches(config, TOKENIZER, model, seed=0)
    seen: collections.Counter[Dialogue] = collections.Counter()
    for _ in range(12):
        seen.update(
            unpacked(next(iterator), audio_embeddings_per_chunk(config.mel_frames_per_chunk))
        )
    assert set(seen) == set(expected)
    assert max(seen.values()) >= 2
    assert expected != alone(path, "hf")  # the convention makes a difference for these clips


def test_no_target_crosses_into_a_neighbour(tmp_path):
    config = settings(write_written(tmp_path), audio_chunks_per_seq=0)
    for batch in evaluation_batches(config, TOKENIZER, MODEL):
        row, place = np.nonzero(batch.loss_weights)
        assert place.max() < config.seq_len - 1
        assert (batch.segment_ids[row, place] == batch.segment_ids[row, place + 1]).all()
        assert (batch.targets[row, place] == batch.tokens[row, place + 1]).all()
        assert (batch.positions[row, place] + 1 == batch.positions[row, place + 1]).all()


def test_views_and_turns_share_the_chunks_of_a_clip(tmp_path):
    """Two turns about one clip, two views: one chunk. A third turn about another: two."""
    write_clip(tmp_path / "a.wav", 0.5, seed=1)
    write_clip(tmp_path / "b.wav", 0.5, seed=2)
    path = write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav", "a.wav", "b.wav")])
    config = settings(path, batch_size=1, seq_len=1024)
    (batch,) = evaluation_batches(config, TOKENIZER, MODEL)
    assert batch.segment_ids.max() == 3
    assert np.count_nonzero(batch.mel_lengths) == 2
    # Views that do not fit one row together are packed apart, each with the chunks it needs.
    lengths = sorted(len(dialogue) for dialogue in alone(path))
    config = settings(
        path, batch_size=1, seq_len=max(lengths[0] + lengths[1], lengths[2]), packing_bins_per_seq=1
    )
    split = list(evaluation_batches(config, TOKENIZER, MODEL))
    assert len(split) == 2
    assert [np.count_nonzero(batch.mel_lengths) for batch in split] == [1, 2]


def test_views_without_audio_are_packed_separately(tmp_path):
    """They share nothing, and smaller examples pack tighter: the first view shares another row."""
    turns = [
        {"role": role, "content": f"{role} " + "word " * 20} for role in ("user", "assistant")
    ] * 2
    path = write_records(tmp_path / "d.jsonl", [text_record(0, 1), {"messages": turns}])
    _, first, second = sorted(len(dialogue) for dialogue in alone(path))
    config = settings(
        path, batch_size=1, seq_len=first + second, audio_chunks_per_seq=0, packing_bins_per_seq=1
    )
    assert [batch.segment_ids.max() for batch in evaluation_batches(config, TOKENIZER, MODEL)] == [
        2,
        1,
    ]


def test_clips_of_several_chunks(tmp_path):
    """26 s: two chunks. 25.02 s: a last chunk without tokens, which is no chunk of the row."""
    write_clip(tmp_path / "a.wav", 26, seed=1)
    write_clip(tmp_path / "b.wav", 25.02, seed=2)
    path = write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav"), audio_record(1, "b.wav")])
    config = settings(path, batch_size=1, seq_len=1024, mel_frames_per_chunk=2502)
    (batch,) = evaluation_batches(config, TOKENIZER, MODEL)
    assert batch.mel_lengths.tolist() == [[2502, 102, 2502]]
    assert collections.Counter(unpacked(batch, audio_embeddings_per_chunk(2502))) == alone(path)
    starts = np.count_nonzero(batch.tokens == TOKENIZER.special.audio_start)
    assert starts == np.count_nonzero(batch.tokens == TOKENIZER.special.audio_end) == 4


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 17, 100, 103, 104, 333, 1501, 2502, 3000])
def test_audio_embeddings_per_chunk_is_the_model_s_output_size(frames):
    """By the shapes: k3 s2 p1, average pool 2, k3 s2 p1; enough for all shorter chunks' tokens."""
    first = (frames + 2 - 3) // 2 + 1
    pooled = first // 2
    assert audio_embeddings_per_chunk(frames) == ((pooled + 2 - 3) // 2 + 1 if pooled else 0)
    for convention in ("hf", "vllm"):
        assert max(
            audio.chunk_token_count(shorter, convention) for shorter in range(frames + 1)
        ) <= audio_embeddings_per_chunk(frames)


def test_packing_is_tight(tmp_path):
    """Dialogues of 30 to 330 tokens in rows of 2048: finished rows are at least 93 % full."""
    lengths = np.random.default_rng(5).integers(1, 60, 400)
    path = write_records(
        tmp_path / "d.jsonl", [text_record(n, int(words)) for n, words in enumerate(lengths)]
    )
    config = settings(
        path, batch_size=2, seq_len=2048, audio_chunks_per_seq=0, packing_bins_per_seq=2
    )
    iterator = batches(config, TOKENIZER, MODEL, seed=0)
    filled = [np.count_nonzero(next(iterator).segment_ids) / (2 * 2048) for _ in range(20)]
    assert np.mean(filled) > 0.93


def test_auxiliary_labels_follow_their_chunks(tmp_path):
    for clip in range(3):
        write_clip(tmp_path / f"{clip}.wav", 0.5 + clip / 4, seed=clip)
    labels = [
        {"transcript": "one two", "attributes": {"gender": "female", "mood": "glad"}},
        {"attributes": {"gender": "male"}},
        {"transcript": ""},
    ]
    records = [audio_record(number, f"{number}.wav", f"{number}.wav") for number in range(3)]
    for record, label in zip(records, labels, strict=True):
        record["messages"][0]["content"][1].update(
            label
        )  # only the first of the two occurrences has them
    config = settings(write_records(tmp_path / "d.jsonl", records), batch_size=1, seq_len=1024)
    auxiliary = AuxiliaryConfig(
        ctc_weight=1,
        ctc_words=("two", "one"),
        attribute_weight=1,
        attributes={"speed": ("slow",), "gender": ("male", "female")},
    )
    (batch,) = evaluation_batches(config, TOKENIZER, MODEL, auxiliary=auxiliary)
    by_frames = {0: 50, 1: 75, 2: 100}
    where = {clip: batch.mel_lengths[0].tolist().index(by_frames[clip] + 2) for clip in by_frames}
    auxiliary_labels = batch.auxiliary
    assert auxiliary_labels is not None
    words = auxiliary_labels.ctc_words[0]
    assert words.shape == (3, audio_embeddings_per_chunk(160) // 2)
    assert words[where[0]].tolist() == [2, 1] + [0] * 8
    assert not words[where[1]].any()
    assert {clip: auxiliary_labels.ctc_weight[0, place] for clip, place in where.items()} == {
        0: 1,
        1: 0,
        2: 1,
    }
    attributes = {
        clip: auxiliary_labels.attributes[0, place].tolist() for clip, place in where.items()
    }
    assert attributes == {0: [-1, 1], 1: [-1, 0], 2: [-1, -1]}


def test_real_clips(shared_audio, tmp_path):
    """All eight: MP3 among them, stereo, two chunks."""
    clips = sorted(str(path) for path in shared_audio.glob("*.wav"))
    path = write_records(
        tmp_path / "d.jsonl", [audio_record(number, clip) for number, clip in enumerate(clips)]
    )
    config = settings(
        path, batch_size=2, seq_len=1024, mel_frames_per_chunk=2502, audio_chunks_per_seq=4
    )
    found: collections.Counter[Dialogue] = collections.Counter()
    for batch in evaluation_batches(config, TOKENIZER, ModelConfig.presets()["tiny"]):
        found.update(unpacked(batch, audio_embeddings_per_chunk(2502)))
    assert sum(found.values()) == 8
    assert found == alone(path)
