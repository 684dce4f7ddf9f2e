"""MP3 frames: whether a file was cut short, and how many it has (ISO 11172-3, ISO 13818-3)."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from stepaudio_jax.audio.input_file import Content

# kbit/s by (version, layer) and the header's four bits, from 1 to 14; 0 is "free format", 15 is
# invalid.
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = (44_100, 48_000, 32_000)  # of version 1; a half in version 2, a quarter in 2.5
# Header bits -> (version in `_BITRATES`, divisor of the sample rate).
_VERSIONS = {3: (1, 1), 2: (2, 2), 0: (2, 4)}
_HEADER_BYTES = 4
# AAC frames begin like MP3's, with layer 0; sync words inside them mean nothing.
_AAC = (b"\xff\xf1", b"\xff\xf9")
_SAME_IN_ALL_FRAMES = 0xFFFE0C00  # sync word, version, layer, sample rate
_LAYER_3 = 1  # header bits
_BITRATE_AND_PADDING = 0xF200
_NO_CHECKSUM = 1 << 16
# A frame of at least 192 bytes; decoders look for a frame count in those of 152 bytes or more.
_HEADER_BITRATE = 9 << 12
_XING_HAS_FRAMES = 1


class _Frame(NamedTuple):
    start: int
    length: int
    kind: int
    bits_per_s: int


class Mp3Frames(NamedTuple):
    """Describes the frames of an MP3 file.

    Attributes:
        first: the first frame.
        frames: how many there are, a header frame included.
        end: where the last one ends; may be beyond the end of the file.
        count_offset: where a Xing or Info header holds the number of frames; None without one.
        declared: that number.
        constant_bit_rate: whether all frames have the same bit rate.
    """

    first: _Frame
    frames: int
    end: int
    count_offset: int | None
    declared: int
    constant_bit_rate: bool


def scan_frames(content: Content) -> Mp3Frames | None:
    """Scans all frames of a file; returns None if it has none."""
    if not (content[:3] == b"ID3" or content[:1] == b"\xff"):
        return None  # libsndfile recognises MP3 only by these bytes
    if content[:2] in _AAC:
        return None
    first, frames, end, bit_rates = None, 0, 0, set()
    for frame in _iter_frames(content):
        if first is None:
            first = frame
        frames += 1
        bit_rates.add(frame.bits_per_s)
        end = frame.start + frame.length
    if first is None:
        return None
    count_offset = _find_frame_count(content, first)
    declared = 0 if count_offset is None else _header_at(content, count_offset)
    return Mp3Frames(first, frames, end, count_offset, declared, len(bit_rates) == 1)


def skip_id3(content: Content) -> int:
    """Returns where the sound begins, behind ID3v2 tags (their sizes have seven bits a byte)."""
    position = 0
    while content[position : position + 3] == b"ID3" and position + 10 <= len(content):
        size = 0
        for byte in content[position + 6 : position + 10]:
            size = size << 7 | byte & 0x7F
        position += 10 + size
    return position


def find_truncation(content: Content, stream: Mp3Frames) -> str | None:
    """Returns why the file would be decoded only in part, or None if no reason is known."""
    if stream.end > len(content) or _is_part_of_header(
        content[stream.end : stream.end + _HEADER_BYTES], stream.first
    ):
        return "is cut short: its last MP3 frame is incomplete"
    if stream.frames < stream.declared:
        return (
            f"is cut short: its header counts {stream.declared} MP3 frames and"
            f" {stream.frames - 1} are there"
        )
    return None


class Patch(NamedTuple):
    """Describes a change to a file: the bytes from `start` to `stop` become `insert`."""

    start: int
    stop: int
    insert: bytes


def find_frame_count_patch(content: Content, stream: Mp3Frames) -> Patch | None:
    """Returns the change that gives a file a header frame with the right count of frames, or None.

    libsndfile reads as many frames as the header says, and without a header as many as it guesses
    from the first bit rate: it would drop the end of a file of variable bit rate, and all but the
    first of several concatenated files. If a header is added, the decoder leaves out its own delay
    (529 samples), as it does for any file that has one.
    """
    audio_frames = stream.frames - (stream.count_offset is not None)
    if stream.count_offset is not None:
        if stream.declared >= audio_frames:
            return None
        count = struct.pack(">I", audio_frames)
        return Patch(stream.count_offset, stream.count_offset + len(count), count)
    header = _header_at(content, stream.first.start)
    if stream.constant_bit_rate or header >> 17 & 3 != _LAYER_3:
        return None  # the guess is right, or decoders do not look for a count
    header = header & ~_BITRATE_AND_PADDING | _NO_CHECKSUM | _HEADER_BITRATE
    offset = stream.first.start
    frame = _frame_at(struct.pack(">I", header), 0, None)
    assert frame is not None
    info = (
        struct.pack(">I", header)
        + bytes(_side_info_bytes(header))
        + struct.pack(">4sII", b"Info", _XING_HAS_FRAMES, audio_frames)
    )
    return Patch(offset, offset, info.ljust(frame.length, b"\0"))


def _iter_frames(content: Content) -> Iterator[_Frame]:
    """Yields the frames, the last perhaps incomplete; skips bytes between them, as decoders do."""
    position, kind = skip_id3(content), None
    while position + _HEADER_BYTES <= len(content):
        frame = _frame_at(content, position, kind)
        if frame is None:
            frame = _resync(content, position + 1, kind)
            if frame is None:
                return
        yield frame
        kind, position = frame.kind, frame.start + frame.length


def _resync(content: Content, position: int, kind: int | None) -> _Frame | None:
    """Returns the next frame that is followed by another: any tag can contain a lone sync word."""
    while (position := content.find(b"\xff", position)) >= 0:
        frame = _frame_at(content, position, kind)
        if (
            frame is not None
            and _frame_at(content, frame.start + frame.length, frame.kind) is not None
        ):
            return frame
        position += 1
    return None


def _frame_at(content: Content, position: int, kind: int | None) -> _Frame | None:
    """Returns the frame with a header at `position`; None without one of this `kind`."""
    if position + _HEADER_BYTES > len(content):
        return None
    header = _header_at(content, position)
    if header >> 21 != 0x7FF or (kind is not None and header & _SAME_IN_ALL_FRAMES != kind):
        return None
    version, layer, bitrate_bits, rate_bits = (
        header >> 19 & 3,
        4 - (header >> 17 & 3),
        header >> 12 & 15,
        header >> 10 & 3,
    )
    if version not in _VERSIONS or layer == 4 or bitrate_bits in (0, 15) or rate_bits == 3:
        return None
    row, divisor = _VERSIONS[version]
    bits_per_s = 1000 * _BITRATES[row, layer][bitrate_bits - 1]
    rate = _SAMPLE_RATES[rate_bits] // divisor
    padding = header >> 9 & 1
    if layer == 1:
        length = (12 * bits_per_s // rate + padding) * 4
    else:
        length = (72 if layer == 3 and row == 2 else 144) * bits_per_s // rate + padding
    return _Frame(position, length, header & _SAME_IN_ALL_FRAMES, bits_per_s)


def _header_at(content: Content, position: int) -> int:
    """Returns the four bytes at `position` as an integer."""
    return int.from_bytes(content[position : position + _HEADER_BYTES], "big")


def _is_part_of_header(rest: bytes, frame: _Frame) -> bool:
    """Returns whether the last bytes are the beginning of a frame header."""
    missing_bits = 8 * (_HEADER_BYTES - len(rest))
    if not 0 < missing_bits < 32:
        return False
    return (
        int.from_bytes(rest, "big") << missing_bits ^ frame.kind
    ) & _SAME_IN_ALL_FRAMES >> missing_bits << missing_bits == 0


def _find_frame_count(content: Content, frame: _Frame) -> int | None:
    """Returns the offset of the frame count in this frame's Xing or Info header, or None."""
    header = _header_at(content, frame.start)
    offset = frame.start + _HEADER_BYTES + _side_info_bytes(header)
    if offset + 12 > min(frame.start + frame.length, len(content)) or content[
        offset : offset + 4
    ] not in (b"Xing", b"Info"):
        return None
    flags = _header_at(content, offset + 4)
    return offset + 8 if flags & _XING_HAS_FRAMES else None


def _side_info_bytes(header: int) -> int:
    """Returns the bytes of a layer III frame between its header and the place of a Xing header."""
    mono, version_1 = header >> 6 & 3 == 3, header >> 19 & 3 == 3
    return (17 if mono else 32) if version_1 else (9 if mono else 17)
