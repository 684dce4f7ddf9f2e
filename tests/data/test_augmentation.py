"""Random changes to the sound: each as strong as asked, and from the generator alone."""

import dataclasses

import numpy as np
import pytest

from stepaudio_jax import audio
from stepaudio_jax.audio.lengths import audio_embeddings_per_chunk
from stepaudio_jax.config import AugmentationConfig, AuxiliaryConfig
from stepaudio_jax.data import batches, evaluation_batches
from stepaudio_jax.data.augmentation import (
    augment_waveform,
    can_lengthen,
    mask_log_mel,
    without_lengthening,
)
from stepaudio_jax.errors import ConfigError
from tests.data.corpus import (
    MODEL,
    TOKENIZER,
    audio_record,
    settings,
    write_clip,
    write_records,
    write_spoken,
)

CLIP = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)


def augmented(seed: int = 0, max_shift_samples: int = 1 << 30, **changes) -> np.ndarray:
    config = AugmentationConfig(**changes)
    return augment_waveform(
        CLIP, config, np.random.default_rng(seed), max_shift_samples=max_shift_samples, rate=16_000
    )


def test_nothing_changes_by_default():
    assert np.array_equal(augmented(), CLIP)
    mel = audio.log_mel(CLIP)
    assert np.array_equal(mask_log_mel(mel, AugmentationConfig(), np.random.default_rng(0)), mel)


def test_gain_is_uniform_in_decibels():
    gains = np.array(
        [20 * np.log10(augmented(seed, gain_db=(-6, 12))[0] / CLIP[0]) for seed in range(300)]
    )
    assert -6 <= gains.min() < -5
    assert 11 < gains.max() <= 12
    assert abs(gains.mean() - 3) < 4 * 18 / np.sqrt(12 * 300)
    np.testing.assert_allclose(augmented(gain_db=(6, 6)), CLIP * 10 ** (6 / 20), rtol=1e-6)


def test_shift_is_silence_in_front_within_the_limits():
    for longest, max_shift_samples in ((0.5, 1 << 30), (0.5, 100), (0.5, 0)):
        clips = [
            augmented(seed, max_shift_samples=max_shift_samples, max_shift_s=longest)
            for seed in range(200)
        ]
        shifts = np.array([clip.size - CLIP.size for clip in clips])
        limit = min(8000, max_shift_samples)
        assert 0 <= shifts.min() <= 0.05 * limit
        assert 0.95 * limit <= shifts.max() <= limit
        assert all(
            not clip[:shift].any() and np.array_equal(clip[shift:], CLIP)
            for clip, shift in zip(clips, shifts, strict=True)
        )


@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 30.0])
def test_noise_has_the_configured_power(snr_db):
    """16 000 samples of noise: the measured ratio is within 0.15 dB (six standard deviations)."""
    noise = augmented(noise_probability=1, noise_snr_db=(snr_db, snr_db)).astype(np.float64) - CLIP
    measured = 10 * np.log10(np.mean(CLIP.astype(np.float64) ** 2) / np.mean(noise**2))
    assert abs(measured - snr_db) < 0.15
    assert abs(np.mean(noise[1:] * noise[:-1])) < 0.05 * np.mean(noise**2)


def pitch(waveform: np.ndarray) -> float:
    """Returns the frequency of a tone, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(waveform.size)))
    return float(np.argmax(spectrum)) * 16_000 / waveform.size


def changed_tone(seed: int = 0, max_shift_samples: int = 1 << 30, **changes) -> np.ndarray:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
    return augment_waveform(
        tone,
        AugmentationConfig(**changes),
        np.random.default_rng(seed),
        max_shift_samples=max_shift_samples,
        rate=16_000,
    )


@pytest.mark.slow  # librosa compiles its filters
@pytest.mark.parametrize("speed", [0.8, 1.25, 2.0])
def test_speed_changes_the_length_and_keeps_the_pitch(speed):
    tone = changed_tone(speed_probability=1, speed_range=(speed, speed))
    assert tone.dtype == np.float32
    assert tone.size == round(32_000 / speed)
    assert pitch(tone) == pytest.approx(440, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize("semitones", [-3.0, 2.0])
def test_pitch_changes_by_semitones_and_keeps_the_length(semitones):
    tone = changed_tone(pitch_probability=1, pitch_semitones=(semitones, semitones))
    assert tone.dtype == np.float32
    assert tone.size == 32_000
    assert pitch(tone) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)


@pytest.mark.slow
def test_speed_and_pitch_are_uniform_in_their_ranges_and_repeatable():
    lengths = [
        changed_tone(seed, speed_probability=0.5, speed_range=(0.9, 1.1)).size for seed in range(80)
    ]
    assert 20 < lengths.count(32_000) < 60
    assert 32_000 / 1.1 - 1 <= min(lengths) < 30_000
    assert 34_500 < max(lengths) <= 32_000 / 0.9 + 1
    both = {"speed_probability": 1, "pitch_probability": 1}
    np.testing.assert_array_equal(changed_tone(3, **both), changed_tone(3, **both))
    assert not np.array_equal(changed_tone(3, **both), changed_tone(4, **both))


@pytest.mark.slow
def test_a_slower_clip_and_its_shift_stay_within_the_room():
    slow = {"speed_probability": 1, "speed_range": (0.5, 0.9), "max_shift_s": 1.0}
    for seed in range(10):
        assert changed_tone(seed, max_shift_samples=0, **slow).size == 32_000
        assert 32_000 < changed_tone(seed, max_shift_samples=1000, **slow).size <= 33_000
    longest = max(changed_tone(seed, max_shift_samples=40_000, **slow).size for seed in range(10))
    assert 50_000 < longest <= 72_000


@pytest.mark.slow
def test_a_faster_clip_can_still_be_aligned_with_its_transcript(tmp_path):
    """CTC needs an output a word, and one between equal words, of the six that 0.5 s have."""
    write_clip(tmp_path / "a.wav", 0.5, seed=0)
    auxiliary = AuxiliaryConfig(ctc_weight=1.0, ctc_words=("one", "two"))
    fast = AugmentationConfig(speed_probability=1, speed_range=(1.9, 2))
    for transcript, tokens in (("one two", 3), ("one one two", 4), ("one two one two one two", 6)):
        record = audio_record(0, "a.wav")
        record["messages"][0]["content"][1]["transcript"] = transcript
        path = write_records(tmp_path / f"{tokens}.jsonl", [record])
        config = settings(path, batch_size=1, packing_bins_per_seq=1, augmentation=fast)
        batch = next(batches(config, TOKENIZER, MODEL, seed=0, auxiliary=auxiliary))
        first = batch.segment_ids[0] == 1
        assert (batch.audio_index[0][first] >= 0).sum() == tokens


@pytest.mark.slow
def test_short_clips_keep_a_token():
    for size in (321, 500, 1700):
        config = AugmentationConfig(speed_probability=1, speed_range=(2, 2), pitch_probability=1)
        faster = augment_waveform(
            CLIP[:size], config, np.random.default_rng(0), max_shift_samples=0, rate=16_000
        )
        assert audio.audio_token_count(faster.size) > 0
        assert np.isfinite(faster).all()


def test_what_lengthens_a_clip_can_be_left_out():
    slower = AugmentationConfig(speed_probability=1, speed_range=(0.8, 1.2), max_shift_s=1)
    for config in (
        AugmentationConfig(max_shift_s=0.1),
        AugmentationConfig(speed_probability=0.5),
        slower,
    ):
        assert can_lengthen(config)
        assert not can_lengthen(without_lengthening(config))
    assert without_lengthening(slower).speed_range == (1.0, 1.2)
    assert not can_lengthen(AugmentationConfig(speed_range=(0.8, 1), pitch_probability=1))
    assert not can_lengthen(AugmentationConfig(speed_probability=1, speed_range=(1, 1.2)))


def test_noise_has_the_configured_probability():
    noisy = sum(
        not np.array_equal(augmented(seed, noise_probability=0.25), CLIP) for seed in range(400)
    )
    assert abs(noisy - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_a_silent_clip_stays_silent():
    config = AugmentationConfig(noise_probability=1, gain_db=(6, 6))
    assert not augment_waveform(
        np.zeros(800, np.float32),
        config,
        np.random.default_rng(0),
        max_shift_samples=0,
        rate=16_000,
    ).any()


def test_masks_are_bands_and_spans_of_the_minimum():
    mel = audio.log_mel(CLIP)
    floor = mel.min()
    for seed in range(40):
        config = AugmentationConfig(
            frequency_masks=1, frequency_mask_bins=20, time_masks=1, time_mask_frames=30
        )
        masked = mask_log_mel(mel, config, np.random.default_rng(seed))
        changed = masked != mel
        assert (masked[changed] == floor).all()
        rows, columns = (masked == floor).all(axis=1), (masked == floor).all(axis=0)
        assert rows.sum() <= 20
        assert columns.sum() <= 30
        assert (changed <= rows[:, None] | columns[None, :]).all()
        for masked_lines in (rows, columns):
            assert np.count_nonzero(np.diff(masked_lines.astype(int))) <= 2  # one stretch
    everything = AugmentationConfig(
        frequency_masks=1, frequency_mask_bins=1000, time_masks=1, time_mask_frames=1000
    )
    widths = [
        np.count_nonzero(
            (mask_log_mel(mel, everything, np.random.default_rng(s)) == floor).all(axis=1)
        )
        for s in range(60)
    ]
    assert max(widths) > 110


def test_the_input_log_mel_is_not_changed():
    mel = audio.log_mel(CLIP)
    before = mel.copy()
    mask_log_mel(
        mel, AugmentationConfig(time_masks=2, time_mask_frames=50), np.random.default_rng(0)
    )
    assert np.array_equal(mel, before)


STRONG = AugmentationConfig(
    max_shift_s=0.3,
    noise_probability=0.5,
    gain_db=(-6, 6),
    frequency_masks=1,
    frequency_mask_bins=10,
    time_masks=1,
    time_mask_frames=10,
)


def test_augmented_batches_keep_tokens_and_sound_together(tmp_path):
    """The clip a shift has lengthened has as many audio tokens as its own log-mel makes."""
    config = settings(write_spoken(tmp_path), augmentation=STRONG)
    plain = dataclasses.replace(config, augmentation=AugmentationConfig())
    iterator, plain_iterator = (
        batches(config, TOKENIZER, MODEL, seed=0),
        batches(plain, TOKENIZER, MODEL, seed=0),
    )
    longer, outputs = 0, audio_embeddings_per_chunk(config.mel_frames_per_chunk)
    for _ in range(5):
        batch = next(iterator)
        for row in range(4):
            slots = batch.audio_index[row][batch.audio_index[row] >= 0]
            for chunk, frames in enumerate(batch.mel_lengths[row]):
                offsets = set((slots[slots // outputs == chunk] % outputs).tolist())
                assert offsets == set(range(audio.chunk_token_count(int(frames))))
        longer += int(batch.mel_lengths.sum()) - int(next(plain_iterator).mel_lengths.sum())
    assert longer > 0


def test_an_epoch_sounds_different_from_the_last_and_the_same_when_repeated(tmp_path):
    write_clip(tmp_path / "a.wav", 1.0, seed=0)
    path = write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")])
    loud = AugmentationConfig(gain_db=(-10, 10), noise_probability=1)
    config = settings(
        path, batch_size=1, seq_len=100, packing_bins_per_seq=1, augmentation=loud
    )  # one dialogue a row

    def sounds(seed: int) -> list[bytes]:
        iterator = batches(config, TOKENIZER, MODEL, seed=seed)
        return [next(iterator).mel.tobytes() for _ in range(3)]

    assert sounds(0) == sounds(0)
    assert len({*sounds(0), *sounds(1)}) == 6


@pytest.mark.slow
def test_all_clips_of_a_dialogue_are_silenced_with_the_configured_probability(tmp_path):
    for clip in ("a.wav", "b.wav"):
        write_clip(tmp_path / clip, 0.5, seed=ord(clip[0]))
    path = write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav", "b.wav")])
    silence = audio.log_mel(np.zeros(8000, np.float32))

    def silent(probability: float) -> list[bool]:
        config = settings(
            path,
            batch_size=1,
            packing_bins_per_seq=1,
            augmentation=AugmentationConfig(silence_probability=probability),
        )
        iterator = batches(config, TOKENIZER, MODEL, seed=0)
        heard = []
        for _ in range(200):
            batch = next(iterator)
            used = batch.mel[0][batch.mel_lengths[0] > 0]
            alike = [np.array_equal(mel[:, : silence.shape[1]], silence) for mel in used]
            assert len(alike) >= 2
            assert len(set(alike)) == 1
            heard.append(alike[0])
        return heard

    assert abs(sum(silent(0.3)) - 60) < 4 * np.sqrt(200 * 0.3 * 0.7)
    assert not any(silent(0.0))


def test_a_shift_never_makes_a_dialogue_too_long(tmp_path):
    """For the row, the chunk's frames or the number of chunks: it is shortened, or left out."""
    write_clip(tmp_path / "a.wav", 1.0, seed=0)
    write_clip(tmp_path / "long.wav", 24.9, seed=0)
    shift = AugmentationConfig(max_shift_s=2.0)

    def frames(clip: str, **sizes: int) -> set[int]:
        path = write_records(tmp_path / "d.jsonl", [audio_record(0, clip)])
        iterator = batches(
            settings(path, batch_size=1, packing_bins_per_seq=1, augmentation=shift, **sizes),
            TOKENIZER,
            MODEL,
            seed=0,
        )
        return {int(next(iterator).mel_lengths.max()) for _ in range(8)}

    assert max(frames("a.wav", mel_frames_per_chunk=110)) in range(105, 111)
    plain = write_records(tmp_path / "d.jsonl", [audio_record(0, "a.wav")])
    (batch,) = evaluation_batches(settings(plain, batch_size=1), TOKENIZER, MODEL)
    exact = int(np.count_nonzero(batch.segment_ids))
    assert frames("a.wav", mel_frames_per_chunk=300, seq_len=exact) <= {
        102,
        103,
        104,
        105,
        106,
    }  # no further token
    assert max(frames("a.wav", mel_frames_per_chunk=300, seq_len=exact + 99)) > 150
    assert max(frames("long.wav", mel_frames_per_chunk=2502, audio_chunks_per_seq=1)) in range(
        2495, 2503
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"max_shift_s": -0.1},
        {"max_shift_s": float("nan")},
        {"silence_probability": 1.5},
        {"noise_probability": 1.5},
        {"noise_snr_db": (20.0, 10.0)},
        {"gain_db": (3.0, -3.0)},
        {"speed_probability": -0.1},
        {"speed_range": (1.1, 0.9)},
        {"speed_range": (0.4, 1.0)},
        {"speed_range": (1.0, 2.5)},
        {"pitch_probability": 2.0},
        {"pitch_semitones": (1.0, -1.0)},
        {"pitch_semitones": (-13.0, 0.0)},
        {"time_masks": -1},
    ],
)
def test_impossible_settings_are_errors(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        AugmentationConfig(**changes)
