"""Detects from its bytes that a sound file was cut short: decoders play what is left, silently.

What each container reveals:

* WAV: the `data` chunk says how many bytes it has. Programs that write to a pipe leave a
  placeholder there (at least 2 GiB - 64 KiB), and then nothing is known.
* FLAC: the header counts the samples; `decoding` compares after decoding.
* Ogg: the last page of each stream is marked.
* MP3 (module `mp3`): the last frame must be complete. A Xing or Info header, if the encoder wrote
  one, counts the frames (some encoders count the header itself, so one missing frame passes).
  Without it a cut exactly between two frames cannot be detected.
"""

import mmap
import struct

_WAV_PLACEHOLDER = 0x7FFF0000
_OGG_PAGE_HEADER = 27
_OGG_BEGIN_OF_STREAM, _OGG_END_OF_STREAM = 2, 4


def find_truncation(content: bytes | mmap.mmap) -> str | None:
    """Returns why a WAV or Ogg file would be decoded only in part, or None if it would not."""
    if content[:4] in (b"RIFF", b"RIFX", b"RF64") and content[8:12] == b"WAVE":
        return _find_wav_truncation(content)
    if content[:4] == b"OggS":
        return _find_ogg_truncation(content)
    return None


def _find_wav_truncation(content: bytes | mmap.mmap) -> str | None:
    order = ">" if content[:4] == b"RIFX" else "<"
    position, size_64 = 12, None
    while position + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, position)
        position += 8
        if name == b"ds64" and position + 16 <= len(content):
            size_64 = struct.unpack_from("<8xQ", content, position)[0]
        if name == b"data":
            size = size_64 if size_64 is not None and size == 0xFFFFFFFF else size
            present = len(content) - position
            if present < size and (size < _WAV_PLACEHOLDER or size_64 is not None):
                return (
                    f"is cut short: its header says {size} bytes of samples and {present} are there"
                )
            if size == 0 and not _is_riff_chunks(content[position:], order):
                return (
                    "was never finished: its header says 0 bytes of samples and"
                    f" {present} are there"
                )
            return None
        position += size + size % 2
    return "is cut short: it ends before its samples begin"


def _is_riff_chunks(content: bytes, order: str) -> bool:
    """Returns whether these bytes are a sequence of complete RIFF chunks, possibly empty."""
    position = 0
    while position + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, position)
        if not (name.isascii() and name.decode().isprintable()):
            return False
        position += 8 + size + size % 2
    return position == len(content)


def _find_ogg_truncation(content: bytes | mmap.mmap) -> str | None:
    position, ended = 0, False
    while (position := content.find(b"OggS", position)) >= 0:
        header_end = position + _OGG_PAGE_HEADER
        body = header_end + (content[header_end - 1] if header_end <= len(content) else 0)
        end = body + sum(content[header_end:body])
        if header_end > len(content) or body > len(content) or end > len(content):
            return "is cut short: its last Ogg page is incomplete"
        flags, position = content[position + 5], end
        if ended and flags & _OGG_BEGIN_OF_STREAM:
            return (
                "holds several Ogg streams one after another, of which only the first would be"
                " heard: split it"
            )
        ended = bool(flags & _OGG_END_OF_STREAM)
    if not ended:
        return (
            "is cut short: its last Ogg page, the one marked as the end of the stream, is missing"
        )
    return None
