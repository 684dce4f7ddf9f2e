"""Decodes a sound file into the waveform that a model hears: one channel, at 16 kHz."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.arrays import SampledSound, waveform_from_samples
from stepaudio_jax.audio.input_file import InputFile, open_input
from stepaudio_jax.audio.media import MediaDecoder, find_demuxer, probe_media
from stepaudio_jax.audio.sndfile import SndfileDecoder, probe_sound
from stepaudio_jax.audio.waveform import Part, WaveformStream, check_not_too_short, check_part, join
from stepaudio_jax.config import AudioChannel, DataConfig, LengthConvention
from stepaudio_jax.storage import PathLike


def load_audio(
    source: PathLike | bytes | SampledSound,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> NDArray[np.float32]:
    """Decodes a clip, or a part of a recording, to one channel at 16 kHz.

    Formats are recognised by their content: WAV, FLAC, MP3, Ogg, AIFF, CAF and AU; and with the
    extra `audio` (PyAV) also MPEG-4 (M4A, MP4, MOV, 3GP), WebM and Matroska, AAC, AMR, Windows
    Media and AC-3.

    A file of any length is decoded in blocks, so that no more than the result is held in memory. A
    part is cut at the samples `round(start_s * 16000)` and `round(end_s * 16000)`; where a format
    allows it, nothing else is decoded. Its samples are those of the whole recording, except far
    inside a file: behind 30 s of an MP3 file last bits differ, and behind 10 minutes of an MPEG-4
    file with AAC the noise that its decoder makes up.

    Args:
        source: a path, a file's content, or samples and their rate.
        start_s: where the part begins, in seconds; None for the beginning.
        end_s: where it ends; None for the end. It may lie up to 10 ms behind the end of the
            recording, since people round times.
        length_convention: of the model. A clip is too short if it has no audio token: under "hf",
            at 320 samples (20 ms) or fewer.
        channel: of a clip with several channels, the "first" (as in the released front end) or the
            "mix" (mean) of all.

    Returns:
        [samples] f32, full scale -1..1.

    Raises:
        AudioError: names the file and the reason: it is missing, a folder, empty, not sound, in
            another format, cut short (`truncation`, `mp3` and `media_truncation` say what can be
            detected; of a live WebM recording almost nothing), damaged, without samples, not
            finite, far beyond full scale, or too short; it needs an extra that is not installed; it
            has no audio track, or several; the part is not within it; or it has sound and the model
            would hear silence (in its first channel, or in a mix that cancels).
    """
    return join(
        iter_audio(
            source,
            start_s=start_s,
            end_s=end_s,
            length_convention=length_convention,
            channel=channel,
        )
    )


def iter_audio(
    source: PathLike | bytes | SampledSound,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    length_convention: LengthConvention = "hf",
    channel: AudioChannel = DataConfig.channel,
) -> Iterator[NDArray[np.float32]]:
    """Yields the samples of `load_audio` piece by piece, and holds only one piece.

    Arguments and errors are those of `load_audio`; what only the end of a recording shows (that it
    is damaged, cut short, silent or too short) is raised there.

    Yields:
        [samples] f32 at 16 kHz, of any length, also 0.
    """
    if not isinstance(source, bytes) and isinstance(source, SampledSound):
        yield waveform_from_samples(
            source,
            start_s=start_s,
            end_s=end_s,
            length_convention=length_convention,
            channel=channel,
        )
        return
    with open_input(source) as file:
        part = check_part(file.name, start_s, end_s)
        with _open_decoder(file, part) as decoder:
            if decoder.frames is not None and not part.is_all:
                part.within(file.name, decoder.frames, decoder.rate)
            stream = WaveformStream(
                file.name,
                decoder.rate,
                part=part,
                channel=channel,
                length_convention=length_convention,
            )
            for block in decoder.blocks(stream.first_frame):
                yield stream.add(block, is_bounded=decoder.is_bounded)
                if stream.is_complete:
                    break
            yield stream.finish(decoder.frames)


def probe_audio(
    source: PathLike | bytes,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    length_convention: LengthConvention = "hf",
) -> int | None:
    """Returns a clip's length from its header: a quick check of many clips.

    Args:
        source: a path, of whose file only headers are read; or its content.
        start_s, end_s, length_convention: as in `load_audio`.

    Returns:
        The length of the clip or its part in samples at 16 kHz, as `load_audio` would return it;
        None if the header does not say it exactly (MP3, WebM, Matroska, AAC streams, AMR, AC-3,
        Windows Media, fragmented MPEG-4).

    Raises:
        AudioError: for what the header shows and `load_audio` would reject too: the file is
            missing, a folder, empty, not sound, in another format, a WAV file cut short, too short,
            or shorter than its part. Damage further in is found only by decoding.
    """
    with open_input(source, in_memory=False) as file:
        part = check_part(file.name, start_s, end_s)
        demuxer = find_demuxer(file)
        length = probe_sound(file) if demuxer is None else probe_media(file, demuxer)
        if length is None:
            return None if part.last is None else part.last - part.first
        frames, rate = length
        first, last = part.within(file.name, frames, rate)
        check_not_too_short(file.name, last - first, frames, rate, part, length_convention)
        return last - first


class _Decoder(Protocol):
    """Decodes a file block by block.

    Attributes:
        rate: Hz.
        frames: the samples of each channel; None if that is not known before decoding.
        is_bounded: whether samples cannot exceed full scale, since they are stored as integers.
    """

    rate: int
    frames: int | None
    is_bounded: bool

    def blocks(self, first_frame: int) -> Iterator[NDArray[np.float32]]:
        """Yields the samples from `first_frame` on: [samples, channels] f32 each."""
        ...

    def close(self) -> None: ...


@contextlib.contextmanager
def _open_decoder(file: InputFile, part: Part) -> Iterator[_Decoder]:
    demuxer = find_demuxer(file)
    decoder: _Decoder
    if demuxer is not None:
        decoder = MediaDecoder(file, demuxer)
    else:
        decoder = SndfileDecoder(file, is_part=not part.is_all)
        if not part.is_all and not part.is_within(decoder.frames or 0, decoder.rate):
            decoder.close()
            decoder = SndfileDecoder(file, is_part=False)  # which says so if it is cut short
    try:
        yield decoder
    finally:
        decoder.close()
