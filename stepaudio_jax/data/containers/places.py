"""Names of clips that lie inside containers, `FILE#PLACE`, and what the names of files tell."""

import os
import pathlib
import re
from urllib.parse import unquote

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import format_path

# Endings of sound files, and of videos whose sound is read, without the dot.
AUDIO_EXTENSIONS = frozenset(
    (
        *("wav", "wave", "flac", "mp3", "ogg", "oga", "opus", "m4a", "m4b", "aac", "mp4", "mov"),
        *("webm", "mkv", "mka", "wma", "amr", "3gp", "3g2", "aiff", "aif", "aifc", "caf", "au"),
        *("snd", "ac3", "eac3", "w64", "rf64", "mp2", "weba"),
    )
)
# How sound files begin, and no text does.
_SOUND = re.compile(
    rb"RIFF....WAVE|RF64....WAVE|fLaC|OggS|#!AMR|caff\x00|\.snd\x00|FORM....AIF[FC]"
    rb"|ID3[\x02-\x04]|\xff[\xe2\xe3\xf0-\xf5\xf8-\xfd]"  # MP3 and AAC
    rb"|....ftyp|\x1a\x45\xdf\xa3"  # MPEG-4, and Matroska or WebM
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # Windows Media
    re.DOTALL,
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)


def clip_name(path: str, place: str) -> EmbeddedClip:
    """Returns the name of a clip inside a container.

    The path becomes absolute, so that joining it to any folder leaves the name as it is.

    Args:
        path: of the container.
        place: of the clip in it; `#` and `%` are escaped as in addresses.
    """
    return EmbeddedClip(f"{absolute_path(path)}#{escape_place(place)}")


def absolute_path(path: str) -> str:
    """Returns a path from the root; addresses of buckets as they are."""
    return path if is_address(path) else os.path.join(os.getcwd(), path)


def is_address(path: str) -> bool:
    """Returns whether a path is an address, as `gs://BUCKET/FILE`, and not that of a local file."""
    return _ADDRESS.match(path) is not None


def escape_place(place: str) -> str:
    """Returns a place without `#`, so that the last `#` of a name is what separates the two."""
    return place.replace("%", "%25").replace("#", "%23")


def unescape_place(place: str) -> str:
    """Reverses `escape_place`."""
    return unquote(place)


def extension(path: str) -> str:
    """Returns the ending of a file's name in lower case, without the dot."""
    return os.path.splitext(path)[1][1:].lower()


def looks_like_sound(content: bytes | memoryview) -> bool:
    """Returns whether a file that begins with these bytes is a sound file."""
    return _SOUND.match(content) is not None


def file_stem(path: str) -> str:
    """Returns a file's name without its ending, and without `.gz` after that."""
    name = os.path.basename(path)
    return pathlib.PurePath(name[:-3] if name.lower().endswith(".gz") else name).stem


def no_clip_inside(path: str, place: str) -> DataError:
    """Returns the error of a container of text, which has no clips inside."""
    return DataError(
        f"{format_path(path)}#{format_path(place)}: the file has no clips inside;"
        " name a sound file, or FILE#PLACE of a table or archive that holds sound"
    )
