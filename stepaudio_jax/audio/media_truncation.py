"""Detects that a file which PyAV decodes was cut short; see `truncation`.

What each container reveals:

* MPEG-4 and QuickTime: every box has a size, and the index (`moov`) must be there. In a fragmented
  file, as browsers record, a cut between two fragments cannot be detected.
* Matroska and WebM: every element has a size. Browsers leave it open as they record ("live"): then
  only a cut inside a block is seen, and nothing tells where the recording should end.
* AAC streams, AMR, AC-3: the last frame must be complete; nothing counts the frames.
* Windows Media: the objects have sizes, unless it was written as a broadcast.
"""

import struct
from collections.abc import Callable

from stepaudio_jax.audio.input_file import Content
from stepaudio_jax.audio.mp3 import skip_id3
from stepaudio_jax.audio.truncation import find_truncation

_BOX_HEADER = 8
_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_BLOCK_GROUP = b"\xa0"
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_FLAGS_OFFSET, _ASF_BROADCAST = 88, 1
# Bytes of a frame by its type, the header byte included (3GPP TS 26.101 and 26.201).
_AMR_FRAMES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)
_AMR_WIDE_FRAMES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)
# kbit/s of AC-3 by the upper bits of its frame size code (ATSC A/52, table 5.18).
_AC3_BITRATES = (
    *(32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640),
)


def find_media_truncation(content: Content, demuxer: str) -> str | None:
    """Returns why a file would be decoded only in part, or None if no reason is known.

    Args:
        content: of the file.
        demuxer: FFmpeg's name of its container; see `media.find_demuxer`.
    """
    find = {
        "mov": _find_mp4_truncation,
        "matroska": _find_matroska_truncation,
        "asf": _find_asf_truncation,
        "aac": lambda content: _find_frame_truncation(content, _adts_frame, "AAC"),
        "ac3": lambda content: _find_frame_truncation(content, _ac3_frame, "AC-3"),
        "eac3": lambda content: _find_frame_truncation(content, _ac3_frame, "AC-3"),
        "amr": _find_amr_truncation,
        "caf": find_truncation,
    }.get(demuxer)
    return None if find is None else find(content)


def _find_mp4_truncation(content: Content) -> str | None:
    position, has_index = 0, False
    while position + _BOX_HEADER <= len(content):
        size, name = struct.unpack(">I4s", content[position : position + _BOX_HEADER])
        header = _BOX_HEADER
        if size == 1 and position + 16 <= len(content):
            (size,) = struct.unpack(">Q", content[position + 8 : position + 16])
            header = 16
        elif size == 0:  # to the end of the file
            size = len(content) - position
        if size < header:
            return f"is damaged: a box at byte {position} has the size {size}"
        if position + size > len(content):
            return (
                f"is cut short: its {name.decode('latin-1')!r} box has {size} bytes and"
                f" {len(content) - position} are there"
            )
        has_index |= name in (b"moov", b"moof")
        position += size
    if content[position:].strip(b"\0"):
        return "is cut short: its last box is incomplete"
    return None if has_index else "is cut short or was never finished: its index (moov) is missing"


def is_fragmented(content: Content) -> bool:
    """Returns whether an MPEG-4 file holds its samples in fragments, each with an index."""
    position = 0
    while position + _BOX_HEADER <= len(content):
        size, name = struct.unpack(">I4s", content[position : position + _BOX_HEADER])
        if name == b"moof":
            return True
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16], "big")
        if size < _BOX_HEADER:
            return False
        position += size
    return False


def _find_matroska_truncation(content: Content) -> str | None:
    position = 0
    while position < len(content):
        head = content[position : position + 12]
        id_length = 9 - head[0].bit_length()
        if id_length > 4:
            return f"is damaged: no Matroska element begins at byte {position}"
        size_length = 9 - head[id_length].bit_length() if id_length < len(head) else 0
        if size_length > 8:
            return f"is damaged: the element at byte {position} has no size"
        name, start = head[:id_length], id_length + size_length
        if start > len(head) or not size_length:
            return "is cut short: its last element is incomplete"
        unknown = (1 << 7 * size_length) - 1
        size = int.from_bytes(head[id_length:start], "big") & unknown
        if name == _EBML and position:
            return (
                "holds several WebM recordings one after another, of which only the first would be"
                " heard: split it"
            )
        if size != unknown and position + start + size > len(content):
            return (
                f"is cut short: an element at byte {position} has {size} bytes and"
                f" {len(content) - position - start} are there"
            )
        # Elements of unknown size end where their parent's next child begins.
        is_entered = name == _SEGMENT or size == unknown
        if size == unknown and name not in (_SEGMENT, _CLUSTER, _BLOCK_GROUP):
            return f"is damaged: the element at byte {position} has no size"
        position += start if is_entered else start + size
    return None


def _find_asf_truncation(content: Content) -> str | None:
    position, is_broadcast = 0, False
    while position + 24 <= len(content):
        name = content[position : position + 16]
        (size,) = struct.unpack("<Q", content[position + 16 : position + 24])
        if name == _ASF_HEADER:
            header = content[position : position + min(size, 1 << 20)]
            properties = header.find(_ASF_PROPERTIES)
            flags = header[properties + _ASF_FLAGS_OFFSET :][:1]
            is_broadcast = properties >= 0 and bool(flags) and bool(flags[0] & _ASF_BROADCAST)
        if name == _ASF_DATA and is_broadcast:
            return None
        if size < 24:
            return f"is damaged: an object at byte {position} has the size {size}"
        if position + size > len(content):
            return (
                f"is cut short: an object at byte {position} has {size} bytes and"
                f" {len(content) - position} are there"
            )
        if name == _ASF_DATA:
            return None
        position += size
    return "is cut short: it ends before its samples begin"


def _find_frame_truncation(
    content: Content, frame_length: Callable[[bytes], int | None], what: str
) -> str | None:
    """Walks over frames that follow each other; a tag may lie before and behind them."""
    position = skip_id3(content)
    frames = 0
    while position < len(content):
        head = content[position : position + 8]
        if head[:3] == b"TAG" or head == b"APETAGEX":
            break
        length = frame_length(head)
        if length is None and len(head) < 8:
            return f"is cut short: its last {what} frame is incomplete"
        if length is None:
            return f"is damaged: no {what} frame begins at byte {position}"
        if position + length > len(content):
            return f"is cut short: its last {what} frame is incomplete"
        position += length
        frames += 1
    return None if frames else f"is cut short: it has no {what} frame"


def _adts_frame(head: bytes) -> int | None:
    """Returns the length of the AAC frame with this header, or None."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length >= 7 else None


def _ac3_frame(head: bytes) -> int | None:
    """Returns the length of the AC-3 or E-AC-3 frame with this header, or None."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return None
    if head[5] >> 3 > 10:  # E-AC-3
        return 2 * (((head[2] & 7) << 8 | head[3]) + 1)
    rate_code, size_code = head[4] >> 6, head[4] & 63
    if rate_code == 3 or size_code >> 1 >= len(_AC3_BITRATES):
        return None
    bitrate = _AC3_BITRATES[size_code >> 1]
    words = (2 * bitrate, 320 * bitrate // 147 + (size_code & 1), 3 * bitrate)[rate_code]
    return 2 * words


def _find_amr_truncation(content: Content) -> str | None:
    is_wide = content[:9] == b"#!AMR-WB\n"
    sizes = _AMR_WIDE_FRAMES if is_wide else _AMR_FRAMES
    position = 9 if is_wide else 6
    while position < len(content):
        kind = content[position : position + 1][0]
        position += sizes[kind >> 3 & 15]
    return "is cut short: its last AMR frame is incomplete" if position > len(content) else None
