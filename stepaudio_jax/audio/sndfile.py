"""Decoding by libsndfile: WAV, FLAC, MP3, Ogg, AIFF, Core Audio and Sun audio files."""

import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from stepaudio_jax.audio import mp3, truncation
from stepaudio_jax.audio.decoder_messages import suppress_decoder_messages
from stepaudio_jax.audio.input_file import COPY_AGAIN_HINT, FileBytes, InputFile
from stepaudio_jax.audio.waveform import check_rate
from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import CONVERT_SOUND, recognize

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "OGG", "AIFF", "CAF", "AU")
_UNKNOWN_LENGTH = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX
_BLOCK_FRAMES = 1 << 16
_HEAD_BYTES = 1 << 16
_MP3_HEAD_BYTES = 1 << 14
# An Opus decoder that begins anywhere agrees in every bit with one that began at the start only
# after a while: 10 s were too few for 4 of 100 parts of speech and music, 20 s for none.
OPUS_PREROLL_S = 20
# libsndfile is wrong about where it is after it has sought into the last page of an Ogg Vorbis
# file, of whose last packet only a part counts. A page has at most 255 packets: of 2048 samples at
# 44.1 kHz, 12 s.
_VORBIS_LAST_PAGE_S = 20
# libmpg123 adds in another order where it begins at another frame, so that last bits differ: it
# begins at the start unless that takes long. A second fills its bit reservoir.
_MP3_SEEK_BEHIND_S = 30
_MP3_PREROLL_S = 1


class SndfileDecoder:
    """Decodes a file that libsndfile can.

    Args:
        file: the input.
        is_part: whether only a part of it will be read. Then what a scan of the whole file would
            find (an MP3 or Ogg file that ends too early) is looked for only by `find_truncation`.

    Attributes:
        rate: Hz.
        frames: the samples of each channel, as the header says; None if it says only about how
            many they are (MP3 in a WAV file), until the end has been decoded.

    Raises:
        AudioError: it is no such file, or cut short.
    """

    def __init__(self, file: InputFile, *, is_part: bool):
        self._file = file
        self._is_scanned = False
        self._mp3: mp3.Mp3Frames | None = None
        stream = None
        if is_part:
            stream = self._open_without_scan()
        if stream is None:
            if (reason := self.find_truncation()) is not None:
                raise file.error(f"{reason}; {COPY_AGAIN_HINT}")
            stream = self._open_scanned()
        with suppress_decoder_messages():
            self._sound = open_sound(file, stream)
        self.rate: int = self._sound.samplerate
        self.frames: int | None = None if _is_mp3_in_wav(self._sound) else self._sound.frames

    def find_truncation(self) -> str | None:
        """Returns why the file would be decoded only in part, or None; reads all of it."""
        if self._is_scanned:
            return None
        self._is_scanned = True
        content = self._file.content
        self._mp3 = mp3.scan_frames(content)
        if self._mp3 is None:
            return truncation.find_truncation(content)
        return mp3.find_truncation(content, self._mp3)

    def blocks(self, first_frame: int) -> Iterator[NDArray[np.float32]]:
        """Yields the samples from `first_frame` on: [samples, channels] f32 each.

        Raises:
            AudioError: the file is damaged, or ends before its header says.
        """
        sound = self._sound
        declared = sound.frames - first_frame
        drop = self._preroll(first_frame)
        try:
            with suppress_decoder_messages():
                if first_frame > drop:
                    sound.seek(first_frame - drop)
            while True:
                # In blocks, since a damaged header can promise any number of samples.
                with suppress_decoder_messages():
                    block = sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
                if not len(block):
                    break
                kept, drop = block[drop:], max(drop - len(block), 0)
                declared -= len(kept)
                if len(kept):
                    yield kept
        except soundfile.SoundFileError as error:
            raise self._file.error(
                f"is cut short or damaged ({_one_line(error)}); {COPY_AGAIN_HINT}"
            ) from None
        if self.frames is None:
            self.frames = sound.frames - declared
        elif declared > 0 and (sound.format == "FLAC" or not self._is_scanned):
            reason = self.find_truncation() or (
                f"is cut short: its header says {sound.frames} samples and"
                f" {sound.frames - declared} are there"
            )
            raise self._file.error(f"{reason}; {COPY_AGAIN_HINT}")

    def close(self) -> None:
        self._sound.close()

    def _preroll(self, first_frame: int) -> int:
        """Returns how many samples before a part the decoder must begin to agree with the whole."""
        if not soundfile.SoundFile.seekable(self._sound):  # as GSM in a WAV file
            return first_frame
        if self._sound.subtype == "OPUS":
            return min(first_frame, OPUS_PREROLL_S * self.rate)
        if self._sound.subtype == "VORBIS":
            before_last_page = self._sound.frames - _VORBIS_LAST_PAGE_S * self.rate
            return max(first_frame - max(before_last_page, 0), 0)
        if self._sound.format == "MP3":
            is_far = first_frame > _MP3_SEEK_BEHIND_S * self.rate
            return _MP3_PREROLL_S * self.rate if is_far else first_frame
        return 0

    def _open_without_scan(self) -> BinaryIO | None:
        """Returns the file as a stream if libsndfile is right about its length without a scan."""
        head = self._file.content[:_MP3_HEAD_BYTES]
        if head[:4] != b"OggS" and (reason := truncation.find_truncation(self._file.content)):
            raise self._file.error(f"{reason}; {COPY_AGAIN_HINT}")
        if head[:3] != b"ID3" and (mp3.scan_frames(head)) is None:
            return self._file.stream()
        # An ID3 tag may be longer than the head, so that its frames are found by a scan only.
        frames = mp3.scan_frames(head)
        return self._file.stream() if frames is not None and frames.declared else None

    def _open_scanned(self) -> BinaryIO:
        if self._mp3 is None:
            return self._file.stream()
        patch = mp3.find_frame_count_patch(self._file.content, self._mp3)
        if patch is None:
            return self._file.stream()
        if isinstance(self._file.content, bytes):
            content = self._file.content
            return io.BytesIO(content[: patch.start] + patch.insert + content[patch.stop :])
        return io.BufferedReader(_PatchedFile(self._file.content, patch), _BLOCK_FRAMES)


class SequentialSoundFile(soundfile.SoundFile):
    """Reads on from where the last block has ended, without seeking there.

    soundfile seeks to that place after each block of a file that is seekable. libmpg123 then
    begins anew: it lacks the bits that an MP3 frame takes from those before it, and the first
    milliseconds of a block are wrong.
    """

    def seekable(self) -> bool:
        return False


def probe_sound(file: InputFile) -> tuple[int, int] | None:
    """Returns a file's samples and its rate in Hz from its header; None if it does not say them.

    Raises:
        AudioError: it is no sound file, or its header shows that it was cut short.
    """
    head = file.content[:_MP3_HEAD_BYTES]
    if head[:3] == b"ID3" or mp3.scan_frames(head) is not None:
        return None
    # All pages of an Ogg file would have to be read.
    if head[:4] != b"OggS" and (reason := truncation.find_truncation(file.content)) is not None:
        raise file.error(f"{reason}; {COPY_AGAIN_HINT}")
    with suppress_decoder_messages(), open_sound(file, file.stream()) as sound:
        check_rate(file.name, sound.samplerate)
        # A FLAC header may leave its length open.
        is_exact = sound.frames > 0 and not _is_mp3_in_wav(sound)
        return (sound.frames, sound.samplerate) if is_exact else None


def can_open_sound(file: InputFile) -> bool:
    """Returns whether libsndfile can decode a file."""
    try:
        open_sound(file, file.stream()).close()
    except AudioError:
        return False
    return True


def open_sound(file: InputFile, stream: BinaryIO) -> SequentialSoundFile:
    """Opens a file that libsndfile can decode, and checks its header.

    Args:
        file: the input; an error says what it is if it is not sound.
        stream: what libsndfile reads of it.
    """
    try:
        sound = SequentialSoundFile(stream)
    except (soundfile.SoundFileError, TypeError, ValueError):
        finding = recognize(file.content[:_HEAD_BYTES], file.size, "sound")
        why = f"({file.size} bytes); {CONVERT_SOUND}" if finding is None else f"- it {finding}"
        raise file.error(f"is not a sound file that can be decoded {why}") from None
    reason = None
    if sound.format not in FORMATS:
        reason = f"is in the format {sound.format}; {CONVERT_SOUND}"
    elif sound.frames == _UNKNOWN_LENGTH:
        reason = f"does not say how many samples it has (written to a pipe?); {CONVERT_SOUND}"
    if reason is not None:
        sound.close()
        raise file.error(reason)
    return sound


class _PatchedFile(io.RawIOBase):
    """Reads a file as if some of its bytes were replaced."""

    def __init__(self, content: FileBytes, patch: mp3.Patch):
        self._content = content
        self._patch = patch
        self._growth = len(patch.insert) - (patch.stop - patch.start)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(
            whence, len(self._content) + self._growth
        )
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        patch, position, count = self._patch, self._position, len(buffer)
        patch_end = patch.start + len(patch.insert)
        if position < patch.start:
            piece = self._content[position : min(position + count, patch.start)]
        elif position < patch_end:
            piece = patch.insert[position - patch.start :][:count]
        else:
            start = position - self._growth
            piece = self._content[start : start + count]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _is_mp3_in_wav(sound: soundfile.SoundFile) -> bool:
    return bool(sound.format.startswith("WAV") and sound.subtype.startswith("MPEG"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
