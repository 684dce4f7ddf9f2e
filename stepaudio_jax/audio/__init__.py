"""Sound: file -> waveform -> log-mel spectrogram, and the number of audio tokens of a clip."""

from stepaudio_jax.audio.arrays import waveform_from_array
from stepaudio_jax.audio.decoding import iter_audio, load_audio, probe_audio
from stepaudio_jax.audio.lengths import (
    CHUNK_SAMPLES,
    MAX_CHUNK_SAMPLES,
    SAMPLE_RATE,
    audio_token_count,
    chunk_token_count,
    clip_chunks,
    mel_frame_count,
    split_chunks,
)
from stepaudio_jax.audio.log_mel import MEL_BINS, log_mel
from stepaudio_jax.audio.resampling import resample
from stepaudio_jax.audio.splitting import find_split_points

__all__ = [
    "CHUNK_SAMPLES",
    "MAX_CHUNK_SAMPLES",
    "MEL_BINS",
    "SAMPLE_RATE",
    "audio_token_count",
    "chunk_token_count",
    "clip_chunks",
    "find_split_points",
    "iter_audio",
    "load_audio",
    "log_mel",
    "mel_frame_count",
    "probe_audio",
    "resample",
    "split_chunks",
    "waveform_from_array",
]
