"""Whether a sound file was cut short, told from its bytes: decoders play what is there and say nothing.

What each container gives away, and what it cannot:

* WAV: the `data` chunk says how many bytes it has. Programs that write to a pipe leave a
  placeholder there (at least 2 GiB - 64 KiB) and then nothing can be told.
* FLAC: its header counts the samples, and whoever decodes it compares (`decoding`).
* Ogg: the last page of each stream is marked.
* MP3 (`mpeg`): the last frame must be whole; a Xing or Info header, where the encoder wrote one,
  counts the frames (some encoders count the header itself, so one missing frame passes). Without it
  a cut exactly between two frames cannot be seen.
"""

import mmap
import struct

_WAV_PLACEHOLDER = 0x7FFF0000
_OGG_PAGE_HEADER = 27
_OGG_BEGIN_OF_STREAM, _OGG_END_OF_STREAM = 2, 4


def find_truncation(content: bytes | mmap.mmap) -> str | None:
    """Returns why a WAV or Ogg file would be heard only in part, or None where no reason is known."""
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
                return f"was never finished: its header says 0 bytes of samples and {present} are there"
            return None
        position += size + size % 2
    return "is cut short: it ends before its samples begin"


def _is_riff_chunks(content: bytes, order: str) -> bool:
    """Whether bytes are whole RIFF chunks one after another, or nothing."""
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
            return "holds several Ogg streams one after another, of which only the first would be heard: split it"
        ended = bool(flags & _OGG_END_OF_STREAM)
    if not ended:
        return (
            "is cut short: its last Ogg page, the one marked as the end of the stream, is missing"
        )
    return None
