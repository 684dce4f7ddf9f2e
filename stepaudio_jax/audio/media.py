"""Decoding by PyAV (FFmpeg): the containers of phones, browsers and videos.

FFmpeg's answer is kept where containers speak of samples that are no sound: the encoder's delay
(MPEG-4 edit lists, Opus pre-skip) is left out, and so is the padding at the end wherever the
container tells its length. A raw AAC stream does not; its first 1024 or 2048 samples are the
encoder's delay.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.audio.input_file import COPY_AGAIN_HINT, InputFile
from stepaudio_jax.audio.media_truncation import find_media_truncation, is_fragmented
from stepaudio_jax.audio.mp3 import skip_id3
from stepaudio_jax.audio.sndfile import OPUS_PREROLL_S, can_open_sound
from stepaudio_jax.audio.waveform import check_rate
from stepaudio_jax.storage import DECODE_MEDIA, recognize

_HEAD_BYTES = 1 << 16
_BLOCK_FRAMES = 1 << 16
# Codecs whose decoder gives the same samples wherever it begins, after one frame.
_STATELESS_CODECS = {"alac", "flac", "mp3float", "mp3"}
# Other decoders begin at the start, so that a part is the whole's in every bit (AAC fills bands
# with noise from a generator, and AMR predicts from all that it has heard), unless that takes long.
_SEEK_BEHIND_S = 600
_PREROLL_S = 1.0
_MAX_MISSING_S = 0.1  # of the length that the container says, before it is called cut short
# What libsndfile decodes of Core Audio files; others (AAC, Opus) are left to FFmpeg.
_SNDFILE_CAF_CODECS = (b"", b"lpcm", b"alac", b"ulaw", b"alaw")
_INTEGER_SCALES = {"int16": 2.0**15, "int32": 2.0**31, "uint8": 2.0**7}


def find_demuxer(file: InputFile) -> str | None:
    """Returns FFmpeg's name of the file's container, by its first bytes; None if PyAV is not used.

    It is always named to FFmpeg, which might take a file for a playlist and open others.
    """
    head = file.content[:16]
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and head[:4] != b"RIFF":
        return "mov"
    signatures = {
        b"\x1a\x45\xdf\xa3": "matroska",
        b"#!AMR\n": "amr",
        b"#!AMR-WB\n": "amr",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    }
    for signature, demuxer in signatures.items():
        if head.startswith(signature):
            return demuxer
    if head[:4] == b"caff":
        codec = file.content[28:32]
        # libsndfile does not understand the cookie that some programs write of ALAC.
        is_readable = codec in _SNDFILE_CAF_CODECS and (codec != b"alac" or can_open_sound(file))
        return None if is_readable else "caf"
    if head[:2] == b"\x0b\x77":
        return "eac3" if head[5:6] > b"\x57" else "ac3"
    frame = head
    if head[:3] == b"ID3":
        start = skip_id3(file.content)
        frame = file.content[start : start + 2]
    if len(frame) >= 2 and frame[0] == 0xFF and frame[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def probe_media(file: InputFile, demuxer: str) -> tuple[int, int] | None:
    """Returns a file's samples and its rate in Hz; None if its container does not say exactly.

    Raises:
        AudioError: as of `MediaDecoder`, but only of MPEG-4 files whether they were cut short.
    """
    decoder = MediaDecoder(file, demuxer, is_scanned=demuxer == "mov")
    try:
        check_rate(file.name, decoder.rate)
        return None if decoder.frames is None else (decoder.frames, decoder.rate)
    finally:
        decoder.close()


class MediaDecoder:
    """Decodes the only audio track of a file with PyAV.

    Args:
        file: the input.
        demuxer: of its container; see `find_demuxer`.
        is_scanned: whether to look for a truncation first, which may read all of the file.

    Attributes:
        rate: Hz.
        frames: the samples of each channel; None if the container does not say exactly, until the
            end has been decoded.

    Raises:
        AudioError: PyAV is not installed; or the file is cut short, damaged, has no audio track or
            several, or one in an encoding that cannot be decoded.
    """

    def __init__(self, file: InputFile, demuxer: str, *, is_scanned: bool = True):
        try:
            import av  # an extra, and slow to import
        except ImportError:
            raise file.error(f"{_describe(file)}; {DECODE_MEDIA}") from None
        self._av = av
        self._file = file
        self._demuxer = demuxer
        reason = find_media_truncation(file.content, demuxer) if is_scanned else None
        if reason is not None:
            raise file.error(f"{_describe(file)} and {reason}; {COPY_AGAIN_HINT}")
        # The index of a fragmented file may count only what was known at its beginning.
        has_length = demuxer == "mov" and not is_fragmented(file.content)
        self.rate = self._open()
        try:
            if self._stream.codec_context.name == "aac":
                # Its header may say half the rate (HE-AAC), which the first frame corrects.
                self.rate = self._first_rate()
                self._container.close()
                self._open()
            self.frames = self._find_length() if has_length else None
        except BaseException:
            self._container.close()
            raise

    def blocks(self, first_frame: int) -> Iterator[NDArray[np.float32]]:
        """Yields the samples from `first_frame` on: [samples, channels] f32 each.

        Raises:
            AudioError: the file is damaged, or ends before its container says.
        """
        parts: list[NDArray[np.float32]] = []
        waiting = 0
        end = 0
        try:
            for position, samples in self._decode(first_frame):
                if self.frames is not None:
                    samples = samples[: max(self.frames - position, 0)]
                end = position + len(samples)
                samples = samples[max(first_frame - position, 0) :]
                if not len(samples):
                    continue
                parts.append(samples)
                waiting += len(samples)
                if waiting >= _BLOCK_FRAMES:
                    yield np.concatenate(parts)
                    parts, waiting = [], 0
        except self._av.FFmpegError as error:
            raise self._damaged(error) from None
        if parts:
            yield np.concatenate(parts)
        if self.frames is None:
            self.frames = end
        elif end < self.frames - _MAX_MISSING_S * self.rate:
            raise self._file.error(
                f"is cut short or damaged: its container says {self.frames} samples and {end} are"
                f" there; {COPY_AGAIN_HINT}"
            )

    def close(self) -> None:
        self._container.close()

    def _open(self) -> int:
        """Opens the container and its track; returns the rate that they say, in Hz."""
        try:
            self._container: Any = self._av.open(
                self._file.stream(), format=self._demuxer, metadata_errors="replace"
            )
        except self._av.FFmpegError as error:
            raise self._damaged(error) from None
        try:
            self._stream = self._find_stream()
        except BaseException:
            self._container.close()
            raise
        return int(self._stream.codec_context.sample_rate or 0)

    def _first_rate(self) -> int:
        """Returns the rate of the first decoded frame, in Hz."""
        try:
            for frame in self._container.decode(self._stream):
                return int(frame.sample_rate)
        except self._av.FFmpegError as error:
            raise self._damaged(error) from None
        return self.rate

    def _find_stream(self) -> Any:
        tracks = self._container.streams.audio
        if len(tracks) > 1:
            # To hear one of them and not the others would lose sound in silence.
            raise self._file.error(
                f"has {len(tracks)} audio tracks; write the one to be heard to a file, for example"
                " the first with `ffmpeg -i OLD -map 0:a:0 NEW.wav`"
            )
        if not tracks:
            has = "video only" if self._container.streams.video else "no sound"
            raise self._file.error(f"has no audio track ({has}); remove it")
        (stream,) = tracks
        for other in self._container.streams:
            if other is not stream:
                other.discard = self._av.stream.Discard.all  # a video's pictures are not read
        if stream.codec_context is None:
            raise self._file.error(
                f"has sound in an encoding that cannot be decoded; {DECODE_MEDIA}"
            )
        return stream

    def _find_length(self) -> int | None:
        """Returns the samples of a track whose container says its length, or None."""
        stream = self._stream
        if not stream.duration or stream.duration < 0 or not stream.time_base:
            return None
        return round(stream.duration * stream.time_base * self.rate) or None

    def _decode(self, first_frame: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields pieces and their positions, in samples, the first at or before `first_frame`."""
        stream = self._stream
        context = stream.codec_context
        position: int | None = 0
        skip_packets_before = 0
        if context.name == "opus":
            context = self._opus_context()
            skip_packets_before = first_frame - OPUS_PREROLL_S * self.rate
        elif self._demuxer == "mov" and stream.time_base * self.rate == 1:
            is_stateless = context.name in _STATELESS_CODECS or context.name.startswith("pcm_")
            target = first_frame - round(_PREROLL_S * self.rate)
            if target > 0 and (is_stateless or first_frame > _SEEK_BEHIND_S * self.rate):
                start = max(stream.start_time or 0, 0)
                self._container.seek(start + target, stream=stream, backward=True)
                position = None
        skipped = 0  # samples of the packets before the first that is decoded
        layout: tuple[int, int] | None = None
        for packet in self._container.demux(stream):
            if skip_packets_before > 0 and packet.size:
                length = _opus_samples(bytes(packet))
                if skipped + length < skip_packets_before:
                    skipped += length
                    continue
                # The decoder leaves out its delay at the start of what it is given.
                position, skip_packets_before = skipped, 0
            for frame in context.decode(packet):
                if position is None:
                    position = int(frame.pts) - max(stream.start_time or 0, 0)
                if layout is None:
                    layout = (frame.sample_rate, frame.layout.nb_channels)
                if layout != (frame.sample_rate, frame.layout.nb_channels):
                    raise self._file.error(
                        f"changes from {layout[1]} channels at {layout[0]} Hz to"
                        f" {frame.layout.nb_channels} at {frame.sample_rate} Hz; split it"
                    )
                samples = _to_float(frame)
                yield position, samples
                position += len(samples)
        if layout is None:  # the recording ends before what is wanted
            yield max(skipped - _opus_delay(stream.codec_context), 0), np.zeros((0, 1), np.float32)

    def _opus_context(self) -> Any:
        """Returns libopus as a decoder: FFmpeg's own differs audibly from the reference."""
        try:
            context = self._av.CodecContext.create("libopus", "r")
        except self._av.FFmpegError:  # a PyAV that was built without it
            return self._stream.codec_context
        context.extradata = self._stream.codec_context.extradata
        context.options = {"request_sample_fmt": "flt"}
        return context

    def _damaged(self, error: object) -> Exception:
        return self._file.error(
            f"is damaged or cannot be decoded ({' '.join(str(error).split())}); {COPY_AGAIN_HINT}"
        )


def _describe(file: InputFile) -> str:
    """Returns what the file is, such as "is a WebM or Matroska file"."""
    finding = recognize(file.content[:_HEAD_BYTES], file.size, "sound")
    return "is a file of compressed sound" if finding is None else finding.what


def _to_float(frame: Any) -> NDArray[np.float32]:
    """Returns a frame of any sample format as [samples, channels] f32, full scale -1..1."""
    values = frame.to_ndarray()  # [channels, samples], or [1, samples * channels]
    channels = frame.layout.nb_channels
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    scale = _INTEGER_SCALES.get(values.dtype.name)
    if scale is None:
        return values.astype(np.float32)
    zero = scale if values.dtype.name == "uint8" else 0
    return ((values.astype(np.float64) - zero) / scale).astype(np.float32)


def _opus_delay(context: Any) -> int:
    """Returns the samples that an Opus stream's header says to leave out (RFC 7845, 5.1)."""
    header = bytes(context.extradata or b"")
    return int.from_bytes(header[10:12], "little") if header[:8] == b"OpusHead" else 0


def _opus_samples(packet: bytes) -> int:
    """Returns the samples of an Opus packet at 48 kHz, by its first bytes (RFC 6716, 3.1)."""
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:  # SILK
        length = (480, 960, 1920, 2880)[configuration & 3]
    elif configuration < 16:  # hybrid
        length = (480, 960)[configuration & 1]
    else:  # CELT
        length = (120, 240, 480, 960)[configuration & 3]
    if code == 3:
        return length * (packet[1] & 63 if len(packet) > 1 else 0)
    return length * (1 if code == 0 else 2)
