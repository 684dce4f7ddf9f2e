"""Sound: file -> waveform -> log-mel, and how many tokens a clip takes."""

from stepaudio_jax.audio.arrays import waveform_from_array
from stepaudio_jax.audio.decoding import load_audio, probe_audio, resample
from stepaudio_jax.audio.error import AudioError, format_path
from stepaudio_jax.audio.lengths import (
    CHUNK_SAMPLES,
    MAX_CHUNK_SAMPLES,
    SAMPLE_RATE,
    LengthConvention,
    audio_token_count,
    chunk_lengths,
    chunk_token_count,
    mel_frames,
    split_chunks,
)
from stepaudio_jax.audio.log_mel import MEL_BINS, log_mel

__all__ = [
    "CHUNK_SAMPLES",
    "MAX_CHUNK_SAMPLES",
    "MEL_BINS",
    "SAMPLE_RATE",
    "AudioError",
    "LengthConvention",
    "audio_token_count",
    "chunk_lengths",
    "chunk_token_count",
    "format_path",
    "load_audio",
    "log_mel",
    "mel_frames",
    "probe_audio",
    "resample",
    "split_chunks",
    "waveform_from_array",
]
