"""A small corpus is read back: its records are valid, and their answers and labels are true."""

import collections
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from examples.spoken_corpus import (
    ATTRIBUTES,
    TASKS,
    CorpusError,
    ensure_corpus,
    tasks,
    vocabulary,
    write_corpus,
)
from examples.spoken_corpus import corpus as corpus_module
from examples.spoken_corpus.dialogues import QUESTIONS, WORD_LISTS
from examples.spoken_corpus.measurement import pitch_label, pitch_range
from examples.spoken_corpus.phrases import ANIMALS, COLOURS, DIGITS, KEYWORDS
from examples.spoken_corpus.sessions import training_sessions
from examples.spoken_corpus.voices import speakers
from stepaudio_jax.audio import audio_token_count, load_audio, mel_frame_count, probe_audio
from stepaudio_jax.config import AuxiliaryConfig
from stepaudio_jax.data import read_records
from stepaudio_jax.data.labels import LabelEncoder
from stepaudio_jax.errors import OutputError
from stepaudio_jax.text import Tokenizer, render_prompt, render_training, training_views

CLIPS, PER_TASK = 240, 16


@pytest.fixture(scope="module", params=[pytest.param("base", marks=pytest.mark.slow), "quickstart"])
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "corpus"
    write_corpus(folder, request.param, clips=CLIPS, per_task=PER_TASK, threads=2)
    return folder


def _records(corpus, pattern):
    return [record for path in sorted(corpus.glob(pattern)) for record in read_records(path)]


def _clips(records):
    return [clip for record in records for message in record.messages for clip in message.audio]


def _variant(clip):
    return clip.path.rsplit("audio/", 1)[1].split("/")[0].split("-")[1]


def test_every_record_is_valid_and_renders(corpus):
    tokenizer = Tokenizer.byte_level()
    for record in _records(corpus, "*/*.jsonl"):
        for message in record.messages:
            for clip in message.audio:
                assert probe_audio(clip.path) == len(load_audio(clip.path))
        if record.answer is None:
            for view in training_views(record.messages):
                render_training(view, tokenizer)
        else:
            render_prompt(record.messages, tokenizer)


def test_clips_have_the_same_number_of_audio_tokens(corpus):
    tokens = set()
    for clip in _clips(_records(corpus, "*/*.jsonl")):
        info = soundfile.info(clip.path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 33_600 <= info.frames <= 35_200
        assert mel_frame_count(info.frames) <= 224
        tokens.add(audio_token_count(info.frames))
    assert tokens <= {26, 27, 28}


def test_labels_are_valid_for_the_auxiliary_losses(corpus):
    config = AuxiliaryConfig(
        ctc_weight=1, ctc_words=vocabulary(), attribute_weight=1, attributes=ATTRIBUTES
    )
    label_encoder = LabelEncoder(config, audio_embeddings_per_chunk=28)
    for clip in _clips(_records(corpus, "*/*.jsonl")):
        (label,) = label_encoder.label(clip, (26,))
        assert label.words
        assert label.attributes[list(ATTRIBUTES).index("gender")] >= 0


def test_labels_of_held_out_clips_agree_with_measurements(corpus):
    genders = {speaker.variant: speaker.gender for speaker in speakers(held_out=True)}
    pitches = collections.Counter()
    for clip in _clips(_records(corpus, "evaluation/*.jsonl")):
        waveform = load_audio(clip.path)
        assert 0.2 < np.abs(waveform).max() < 0.96
        assert not waveform[:300].any(), "silence in front"
        assert clip.attributes["gender"] == genders[_variant(clip)]
        measured = pitch_label(pitch_range(waveform))
        pitches[measured == clip.attributes.get("pitch")] += 1
        is_mandarin = any(ord(character) > 0x3000 for character in clip.transcript)
        assert clip.attributes["language"] == ("Mandarin" if is_mandarin else "English")
    assert pitches[True] >= 0.97 * pitches.total(), (
        "frames of the padded clip start elsewhere, so a few clips cross a bound"
    )


def test_faster_clips_of_a_phrase_are_shorter(corpus):
    seconds = collections.defaultdict(list)
    for clip in _clips(_records(corpus, "*/audio_qa.jsonl")):
        if "rate" in clip.attributes and clip.attributes["language"] == "English":
            sound = np.flatnonzero(load_audio(clip.path))
            seconds[clip.attributes["rate"]].append(
                (sound[-1] - sound[0]) / 16_000 / len(clip.transcript)
            )
    slow, normal, fast = (np.median(seconds[rate]) for rate in ATTRIBUTES["rate"])
    assert slow > 1.2 * normal > 1.2 * 1.2 * fast


def test_the_evaluation_is_balanced_held_out_and_correct(corpus):
    trained = _clips(_records(corpus, "train/*.jsonl"))
    training_transcripts = {clip.transcript for clip in trained}
    held_out = {speaker.variant for speaker in speakers(held_out=True)}
    assert not {_variant(clip) for clip in trained} & held_out
    for name, task in TASKS.items():
        records = _records(corpus, f"evaluation/{name}.jsonl")
        counts = collections.Counter(record.answer for record in records)
        assert set(counts) == set(task.answers)
        assert set(counts.values()) == {-(-PER_TASK // len(task.answers))}
        assert len({record.id for record in records}) == len(records)
        for record in records:
            assert record.source == name
            assert record.messages[-1].role == "user"
            clips = _clips([record])
            assert len(clips) == (2 if name == "two_turn" else int(task.spoken))
            assert all(
                _variant(clip) in held_out and clip.transcript not in training_transcripts
                for clip in clips
            )
            assert record.answer == _true_answer(name, record, clips)


def _true_answer(task, record, clips):
    spoken = [clip.transcript.split() for clip in clips]
    if task in ATTRIBUTES:
        return clips[0].attributes[task]
    if task == "keyword":
        (keyword,) = set(spoken[0]) & set(KEYWORDS)
        return keyword
    if task == "sum":
        return str(sum(DIGITS.index(word) + 1 for word in spoken[0] if word in DIGITS))
    if task == "text_sum":
        return str(
            sum(int(character) for character in record.messages[0].text if character.isdigit())
        )
    (asked,) = set(spoken[1]) & {"colour", "animal"}
    (word,) = set(spoken[0]) & set(COLOURS if asked == "colour" else ANIMALS)
    assert word not in record.messages[1].text, "the first reply does not contain the answer"
    assert record.messages[1].reasoning is None
    assert _variant(clips[0]) == _variant(clips[1])
    return word


def test_training_replies_are_short_and_correct_and_have_reasoning(corpus):
    recipe = json.loads((corpus / "corpus.json").read_text())["recipe"]
    topics, sums, numbers = collections.Counter(), 0, 0
    for record in _records(corpus, "train/*.jsonl"):
        for question, answer in zip(record.messages[::2], record.messages[1::2], strict=True):
            assert len(question.text) <= 80
            assert len((answer.reasoning or "") + answer.text) <= 100
            figures = re.findall(r"(\d)\+(\d)=(\d+)\.", answer.reasoning or "")
            assert all(int(a) + int(b) == int(total) for a, b, total in figures)
            assert not figures or figures[-1][2] == answer.text
            sums += len(figures)
            if written := re.fullmatch(
                r"I read ((?:\w+(?:, | and ))+\w+)\.", answer.reasoning or ""
            ):
                assert written[1] in question.text
                assert answer.text == _in_figures(re.split(", | and ", written[1]))
                numbers += 1
            elif answer.in_loss and not figures and (clips := _clips([record])):
                reasoned = recipe == "quickstart" and question.text not in QUESTIONS["words"]
                assert (answer.reasoning is not None) == reasoned
                if answer.text in clips[0].attributes.values():
                    topics[answer.text] += 1
                    assert answer.reasoning is None or answer.text in answer.reasoning
                for topic, listed in WORD_LISTS.items():
                    if question.text in QUESTIONS[topic]:
                        topics[topic] += 1
                        listed_words = [
                            word for word in clips[0].transcript.split() if word in listed
                        ]
                        assert (
                            answer.text
                            == (
                                _in_figures(listed_words)
                                if topic == "digit"
                                else ", ".join(listed_words)
                            )
                            != ""
                        )
    assert sums > 20
    assert numbers > 20
    assert {topic for topic in WORD_LISTS if topics.pop(topic, 0)} == {*WORD_LISTS}
    assert set(topics) == {value for values in ATTRIBUTES.values() for value in values}


def _in_figures(digits):
    return ", ".join(str(DIGITS.index(digit) + 1) for digit in digits)


def test_a_corpus_depends_on_its_arguments_only(corpus, tmp_path):
    def digests(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    facts = json.loads((corpus / "corpus.json").read_text())
    again = write_corpus(
        tmp_path / "again", facts["recipe"], clips=CLIPS, per_task=PER_TASK, threads=3
    )
    assert again == facts
    assert digests(tmp_path / "again") == digests(corpus)
    assert len(digests(corpus)) > CLIPS


def test_another_seed_draws_other_phrases_and_sessions():
    groups = [tasks.phrase_groups(PER_TASK, np.random.default_rng(seed)) for seed in (0, 1)]
    assert len(groups[0]) == len(groups[1])
    assert groups[0] != groups[1]
    sessions = [training_sessions(CLIPS, {"keyword": 0.5, "random": 0.5}, seed) for seed in (0, 1)]
    assert sessions[0] != sessions[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "sft"}, "recipe='sft' is not one of base, quickstart"),
        ({"clips": 99}, "clips=99 must be at least 100"),
        ({"per_task": 3}, "per_task=3 must be at least 16"),
        ({"seed": -1}, "seed=-1"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_arguments_out_of_range_are_errors_and_nothing_is_written(tmp_path, arguments, message):
    with pytest.raises(CorpusError, match=message):
        write_corpus(tmp_path / "corpus", **{"recipe": "base", **arguments})
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_changed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        write_corpus(tmp_path, "base")
    with pytest.raises(OutputError, match="already exists"):
        write_corpus(tmp_path / "mine", "base")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_failure_leaves_no_files(tmp_path, monkeypatch):
    def fail(session, folder):
        raise CorpusError("espeak-ng is not installed")

    monkeypatch.setattr(corpus_module, "record", fail)
    with pytest.raises(CorpusError):
        write_corpus(tmp_path / "corpus", "quickstart", clips=100, per_task=16)
    assert not list(tmp_path.iterdir())


def test_the_program_prints_an_error_in_one_line(tmp_path):
    (tmp_path / "mine").write_text("precious")
    command = [sys.executable, "-m", "examples.spoken_corpus", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} already exists")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_is_not_a_corpus_of_this_version_is_an_error(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "heard.jsonl").touch()
    with pytest.raises(CorpusError, match=r"has no train/audio_qa\.jsonl: .* remove it"):
        ensure_corpus(tmp_path, "quickstart")
