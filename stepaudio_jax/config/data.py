"""What a stage reads: its sources, the static shape of a batch, and changes to the sound."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from stepaudio_jax.config.checks import (
    check_floats,
    check_fractions,
    check_not_empty,
    check_not_negative,
    check_positive,
    expand_paths,
)
from stepaudio_jax.errors import ConfigError

AudioChannel = Literal["first", "mix"]
OnBadRecord = Literal["error", "skip"]
OnTooLong = Literal["error", "skip", "split"]

# Beyond them speech is no longer understood.
SPEED_LIMITS = (0.5, 2.0)
MAX_PITCH_SEMITONES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of dialogues and its share of the mixture; docs/data.md lists what is read."""

    # A file (JSONL, JSON, CSV, Parquet, tar, ArrayRecord, TFRecord), a glob of them, a folder, or
    # tfds:NAME/CONFIG:SPLIT.
    path: str
    weight: float = 1.0  # share of the mixture, relative to the other sources' weights
    # Shown in metrics and named by rewards. None: the file's stem, with as many of the folders
    # above it as distinguish it from the stage's other sources.
    name: str | None = None
    # The form of its rows: "auto" finds it out of each row, a name of docs/data.md states it.
    format: str = "auto"
    # Where the rows have keys of their own: the row's key for each of ours, as
    # {"audio": "speech", "text": "sentence"}.
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt: str | None = None  # of rows that hold a clip and its text only: the user's request
    split: str | None = None  # which part of a dataset with several: train, train[:10%], ..

    def __post_init__(self) -> None:
        check_not_empty(self, "name", "format", "prompt", "split")
        check_floats(self)
        expand_paths(self, "path")
        if self.weight <= 0:
            raise ConfigError(f"weight={self.weight} of source {self.path!r} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes to the sound and its log-mel, in training only; 0 switches each one off."""

    # Of a dialogue: all its clips are silent, so that the model learns to say what it cannot hear.
    silence_probability: float = 0.0
    speed_probability: float = 0.0  # of a clip: it is faster or slower, at the same pitch
    # Of its speed; 1.1 is a tenth faster. A clip stays long enough for CTC to align its transcript.
    speed_range: tuple[float, float] = (0.9, 1.1)
    pitch_probability: float = 0.0  # of a clip: it is higher or lower, of the same length
    pitch_semitones: tuple[float, float] = (-2.0, 2.0)  # range of the change of its pitch
    max_shift_s: float = 0.0  # longest silence put in front of a clip, in seconds
    noise_probability: float = 0.0  # of a clip: white noise is added
    noise_snr_db: tuple[float, float] = (10.0, 40.0)  # range of its signal-to-noise ratio, in dB
    gain_db: tuple[float, float] = (0.0, 0.0)  # range of the gain of a clip, in dB
    frequency_masks: int = 0  # masked bands of a clip's log-mel (SpecAugment)
    frequency_mask_bins: int = 0  # widest band, in mel bins
    time_masks: int = 0  # masked spans of a clip's log-mel (SpecAugment)
    time_mask_frames: int = 0  # longest span, in mel frames

    def __post_init__(self) -> None:
        check_floats(self)
        check_not_negative(self, "max_shift_s", "frequency_masks", "frequency_mask_bins")
        check_not_negative(self, "time_masks", "time_mask_frames")
        check_fractions(self, "silence_probability", "noise_probability")
        check_fractions(self, "speed_probability", "pitch_probability")
        for name in ("noise_snr_db", "gain_db", "speed_range", "pitch_semitones"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ConfigError(f"{name}=({low}, {high}) must be (least, greatest)")
        slowest, fastest = SPEED_LIMITS
        if not slowest <= self.speed_range[0] <= self.speed_range[1] <= fastest:
            raise ConfigError(
                f"speed_range={self.speed_range} must lie within {slowest} and {fastest}"
            )
        if max(map(abs, self.pitch_semitones)) > MAX_PITCH_SEMITONES:
            raise ConfigError(
                f"pitch_semitones={self.pitch_semitones} must lie within"
                f" -{MAX_PITCH_SEMITONES} and {MAX_PITCH_SEMITONES}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The sources of a stage and the static shape of its batches (see `data.Batch`)."""

    sources: tuple[SourceConfig, ...] = ()  # the mixture
    batch_size: int = 8  # B: sequences of the global batch, each packed with several dialogues
    seq_len: int = 4096  # T: tokens of a sequence
    audio_chunks_per_seq: int = 4  # C: audio chunks (of at most 25 s) that a sequence can hold
    mel_frames_per_chunk: int = 2504  # F: mel frames that a chunk is padded to; 25 s have 2502
    # Of a clip with several channels: "first", as the released front end takes it, or their mean.
    channel: AudioChannel = "first"
    allow_urls: bool = False  # clips may be https:// URLs, which are read whenever they are needed
    # A folder on each host's disk for clips that were read from gs://, s3:// and https://, so that
    # later epochs and runs need not fetch them. None: nothing is kept.
    clip_cache_dir: str | None = None
    clip_cache_gb: float = 50.0  # most that is kept there by all processes of a host, in 10^9 bytes
    augmentation: AugmentationConfig = AugmentationConfig()  # of the sound, in training only
    loss_on_reasoning: bool = True  # the loss counts reasoning tokens as well as replies
    # Later turns see the reasoning of earlier ones (see text.training_views).
    history_reasoning: bool = False
    check: Literal["all"] | int = "all"  # records of each source checked before a run begins
    on_bad_audio: OnBadRecord = "error"  # a clip cannot be decoded; "skip" drops and counts it
    # A dialogue does not fit an empty sequence; "split" makes several of it where its turns or
    # segments carry times, for objective=next_token.
    on_too_long: OnTooLong = "error"
    on_bad_record: OnBadRecord = "error"  # a record cannot be read or rendered
    # Sequences kept open for each one of the batch: more pack a little tighter and cost memory.
    packing_bins_per_seq: int = 4
    threads: int = 2  # threads that read and prepare records; of each worker, if there are some
    # Processes that read and prepare records, where the threads of one process do not keep up with
    # the step. They start with the stage (each evaluation starts its own), and each of them keeps
    # the index of the sources in memory. 0: the training process does it itself.
    workers: int = 0
    prefetch_batches: int = 2  # batches prepared ahead of the step

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "seq_len", "mel_frames_per_chunk")
        check_positive(self, "packing_bins_per_seq", "threads", "prefetch_batches")
        check_not_empty(self, "clip_cache_dir")
        expand_paths(self, "clip_cache_dir")
        check_floats(self)
        check_positive(self, "clip_cache_gb")
        if "://" in (self.clip_cache_dir or ""):
            raise ConfigError(
                f"clip_cache_dir={self.clip_cache_dir!r} must be a folder on the host's own disk"
            )
        check_not_negative(self, "audio_chunks_per_seq", "workers")
        if self.check != "all" and self.check < 0:
            raise ConfigError(f"check={self.check} must be 'all' or a number of records")
