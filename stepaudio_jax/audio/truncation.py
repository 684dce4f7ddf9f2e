"""Detects from its bytes that a sound file was cut short: decoders play what is left, silently.

What each container reveals (`media_truncation` says it of those that libsndfile cannot decode):

* WAV, AIFF, CAF, AU: a chunk, or AU's header, says how many bytes of samples there are. Programs
  that write to a pipe leave a placeholder there (in a WAV file at least 2 GiB - 64 KiB), and then
  nothing is known.
* FLAC: the header counts the samples; `sndfile` compares after decoding.
* Ogg: the last page of each stream is marked.
* MP3 (module `mp3`): the last frame must be complete. A Xing or Info header, if the encoder wrote
  one, counts the frames (some encoders count the header itself, so one missing frame passes).
  Without it a cut exactly between two frames cannot be detected.
"""

import struct

from stepaudio_jax.audio.input_file import Content

_WAV_PLACEHOLDER = 0x7FFF0000
_AU_PLACEHOLDER = 0xFFFFFFFF
_OGG_PAGE_HEADER = 27
_OGG_BEGIN_OF_STREAM, _OGG_END_OF_STREAM = 2, 4
_ENDS_BEFORE_SAMPLES = "is cut short: it ends before its samples begin"


def find_truncation(content: Content) -> str | None:
    """Returns why a file that is no MP3 would be decoded only in part, or None if it would not."""
    start = content[:12]
    if start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:] == b"WAVE":
        return _find_wav_truncation(content)
    if start[:4] == b"OggS":
        return _find_ogg_truncation(content)
    if start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC"):
        return _find_aiff_truncation(content)
    if start[:4] == b"caff":
        return _find_caf_truncation(content)
    if start[:4] in (b".snd", b"dns."):
        return _find_au_truncation(content)
    return None


def _find_wav_truncation(content: Content) -> str | None:
    order = ">" if content[:4] == b"RIFX" else "<"
    position, size_64 = 12, None
    while position + 8 <= len(content):
        name, size = struct.unpack(f"{order}4sI", content[position : position + 8])
        position += 8
        if name == b"ds64" and position + 16 <= len(content):
            (size_64,) = struct.unpack("<Q", content[position + 8 : position + 16])
        if name == b"data":
            size = size_64 if size_64 is not None and size == 0xFFFFFFFF else size
            present = len(content) - position
            if present < size and (size < _WAV_PLACEHOLDER or size_64 is not None):
                return _missing_samples(size, present)
            if size == 0 and not _is_riff_chunks(content, position, order):
                return (
                    "was never finished: its header says 0 bytes of samples and"
                    f" {present} are there"
                )
            return None
        position += size + size % 2
    return _ENDS_BEFORE_SAMPLES


def _is_riff_chunks(content: Content, position: int, order: str) -> bool:
    """Returns whether the bytes from `position` on are complete RIFF chunks, possibly none."""
    while position + 8 <= len(content):
        name, size = struct.unpack(f"{order}4sI", content[position : position + 8])
        if not (name.isascii() and name.decode().isprintable()):
            return False
        position += 8 + size + size % 2
    return position == len(content)


def _find_aiff_truncation(content: Content) -> str | None:
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack(">4sI", content[position : position + 8])
        position += 8
        if name == b"SSND" and len(content) - position < size:
            return _missing_samples(size, len(content) - position)
        if name == b"SSND":
            return None
        position += size + size % 2
    return _ENDS_BEFORE_SAMPLES


def _find_caf_truncation(content: Content) -> str | None:
    position = 8
    while position + 12 <= len(content):
        name, size = struct.unpack(">4sq", content[position : position + 12])
        position += 12
        present = len(content) - position
        if size < 0:  # the samples reach to the end of the file
            return None if name == b"data" else "is damaged: a chunk has a negative size"
        if name == b"data" and present < size:
            return _missing_samples(size, present)
        if name == b"data":
            return None
        position += size
    return _ENDS_BEFORE_SAMPLES


def _find_au_truncation(content: Content) -> str | None:
    if len(content) < 24:
        return _ENDS_BEFORE_SAMPLES
    order = ">" if content[:4] == b".snd" else "<"
    offset, size = struct.unpack(f"{order}II", content[4:12])
    present = max(len(content) - offset, 0)
    if size != _AU_PLACEHOLDER and present < size:
        return _missing_samples(size, present)
    return None


def _missing_samples(size: int, present: int) -> str:
    return f"is cut short: its header says {size} bytes of samples and {present} are there"


def _find_ogg_truncation(content: Content) -> str | None:
    position, ended = 0, False
    while (position := content.find(b"OggS", position)) >= 0:
        header = content[position : position + _OGG_PAGE_HEADER]
        lengths_start = position + _OGG_PAGE_HEADER
        body = lengths_start + (header[-1] if len(header) == _OGG_PAGE_HEADER else 0)
        lengths = content[lengths_start:body]
        end = body + sum(lengths)
        if len(header) < _OGG_PAGE_HEADER or body > len(content) or end > len(content):
            return "is cut short: its last Ogg page is incomplete"
        flags, position = header[5], end
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
