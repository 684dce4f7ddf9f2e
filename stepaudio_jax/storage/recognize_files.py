"""Recognises what a file is instead of what it should be, from its beginning.

Signatures are those of the formats' specifications, as in the magic database of `file`. Responses
of servers that were saved as a file (a web page, an error in JSON or XML, a line of text) and
placeholders (pointers, links) have no signature and are recognised by their form.
"""

import codecs
import dataclasses
import html
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from stepaudio_jax.storage.files import file_size, open_read
from stepaudio_jax.storage.messages import truncate
from stepaudio_jax.storage.paths import PathLike, to_path
from stepaudio_jax.storage.uris import is_bucket_path

Purpose = Literal["weights", "tokenizer", "sound"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Says what a file or folder is, and what to do about it.

    Attributes:
        what: the rest of a sentence that begins with "it", such as "is a Git LFS pointer".
        remedy: advice to the user, without a capital and a full stop.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


HEAD_BYTES = 1 << 16  # enough for every signature, and for the title of a web page
CONVERT_SOUND = "convert it to WAV, FLAC, MP3 or OGG, for example with `ffmpeg -i OLD NEW.wav`"
DECODE_MEDIA = (
    f"install the extra that decodes it, pip install 'stepaudio-jax[audio]', or {CONVERT_SOUND}"
)
COPY_AGAIN = "download or copy it again"
# Suffixes of files that browsers, the Hub's client and other programs have not yet completed.
UNFINISHED_SUFFIXES = (".incomplete", ".crdownload", ".part", ".partial", ".aria2", ".download")
_MAX_SHOWN_CHARACTERS = 80

_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
}
# Sound and video that the extra `audio` decodes.
_DECODABLE_MEDIA = {
    b"\x1a\x45\xdf\xa3": "a WebM or Matroska file",
    b"#!AMR": "an AMR recording",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "a Windows Media file (WMA, WMV)",
    b"\xff\xf0": "an AAC stream",
    b"\xff\xf1": "an AAC stream",
    b"\xff\xf8": "an AAC stream",
    b"\xff\xf9": "an AAC stream",
    b"\x0b\x77": "an AC-3 stream",
}
_MEDIA = {
    b"#!SILK_V3": "a SILK recording",
    b"\x02#!SILK_V3": "a SILK recording",
    b"ADIF": "an AAC file",
    b"caff": "a Core Audio file (CAF)",
    b".snd": "a Sun audio file (AU)",
    b"NIST_1A": "a NIST SPHERE file",
    b"wvpk": "a WavPack file",
    b"MAC ": "a Monkey's Audio file",
    b"MPCK": "a Musepack file",
    b"MP+": "a Musepack file",
    b"TTA1": "a True Audio file",
    b"DSD ": "a DSD file",
    b".RMF": "a RealMedia file",
    b".ra\xfd": "a RealAudio file",
    b"FLV\x01": "a Flash video",
    b"MThd": "a MIDI file, which holds notes and no sound",
    b"\0\0\x01\xba": "an MPEG video",
}
_FOREIGN_WEIGHTS = {
    b"GGUF": ("a GGUF file of llama.cpp", "get the model's safetensors weights"),
    b"lmgg": ("a GGML file of llama.cpp", "get the model's safetensors weights"),
    b"tjgg": ("a GGML file of llama.cpp", "get the model's safetensors weights"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", "save what it holds as safetensors"),
    b"\x93NUMPY": ("an array of NumPy", "save what it holds as safetensors"),
}
_TABLES = {
    b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\0": "an SQLite database",
}
_DOCUMENTS = {
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
    b"\0\5\x16\7": "the file of attributes that macOS puts beside a file (`._NAME`)",
}
_PICKLE_REMEDY = (
    "save the model again as safetensors, with transformers' `model.save_pretrained(NEW)`"
)
_ERROR_KEYS = {
    "error",
    "errors",
    "message",
    "detail",
    "details",
    "error_description",
    "msg",
    "reason",
}
_ERROR_METADATA_KEYS = {
    *(
        "code",
        "status",
        "statuscode",
        "status_code",
        "success",
        "type",
        "title",
        "documentation_url",
    ),
    *("requestid", "request_id", "timestamp", "path", "url"),
}


def recognize_file(path: PathLike, purpose: Purpose, *, is_text: bool = False) -> Finding | None:
    """Returns what a file is instead of what it should be; None if that is unknown.

    Args:
        path: a file that could not be read.
        purpose: what the file should be.
        is_text: whether it should be a text, so that plain text is no finding.
    """
    path = os.fspath(path)
    if not to_path(path).exists():
        return _missing(path)
    try:
        with open_read(path) as file:
            content = file.read(HEAD_BYTES)
        size = file_size(path)
    except (OSError, ValueError):
        return None
    return recognize(content, size, purpose, is_text=is_text)


def recognize(
    content: bytes, size: int, purpose: Purpose, *, is_text: bool = False
) -> Finding | None:
    """Returns what a file of this content is instead of what it should be; None if unknown.

    Args:
        content: the file's beginning, `HEAD_BYTES` or all of it.
        size: of the file, in bytes.
        purpose, is_text: as in `recognize_file`.
    """
    content = content[:HEAD_BYTES]
    if not size:
        return Finding("is empty (0 bytes)", COPY_AGAIN)
    finding = _placeholder(content, size) or _server_response(content) or _binary(content, purpose)
    return finding or (None if is_text else _text(content))


def recognize_values(values: Any) -> Finding | None:
    """Recognises a server's error in JSON, which has no keys but an error's."""
    if not isinstance(values, Mapping):
        return None
    keys = {str(key).lower() for key in values}
    if not keys & _ERROR_KEYS or not keys <= _ERROR_KEYS | _ERROR_METADATA_KEYS:
        return None
    value = next(value for key, value in values.items() if str(key).lower() in _ERROR_KEYS)
    return _server_message(
        _one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)),
        "JSON",
    )


def _server_message(message: str, kind: str) -> Finding:
    return Finding(
        f"holds a server's message in {kind} and not the file: {message!r}",
        "download the file again, and see that the download succeeds (a private or gated repository"
        " needs `hf auth login`)",
    )


def _missing(path: str) -> Finding | None:
    """Returns why a file does not exist: a broken link, or an unfinished download of it."""
    if os.path.islink(path):
        target = os.readlink(path)
        what = f"is a link to {target}, which does not exist"
        if "annex/objects/" in target:
            return Finding(what, "run `git annex get` in its repository")
        return Finding(what, "correct the link, or copy the files themselves with `cp -rL`")
    if is_bucket_path(path):
        return None
    beside = [ending for ending in UNFINISHED_SUFFIXES if os.path.exists(path + ending)]
    if beside:
        return Finding(
            f"is not there, and {os.path.basename(path)}{beside[0]} is: an unfinished download",
            COPY_AGAIN,
        )
    return None


def _placeholder(content: bytes, size: int) -> Finding | None:
    """Recognises a placeholder: a pointer to a file elsewhere, or zeros not yet filled in."""
    text = (
        content[:1024].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
        if size <= 1024
        else ""
    )
    if re.match(r"version https://(git-lfs|hawser)\.github\.com/spec/", text):
        stored = re.search(r"^size (\d+)", text, re.MULTILINE)
        of = f" (of {int(stored[1]):,} bytes)" if stored else ""
        return Finding(
            f"is a Git LFS pointer, and not the file itself{of}",
            "run `git lfs install && git lfs pull` in its repository, or download it with"
            " `hf download`",
        )
    if text.startswith("# xet version"):
        return Finding(
            "is a pointer of git-xet, and not the file itself", "download it with `hf download`"
        )
    if text and "\n" not in text:
        if re.match(r"(\.\./|/|\.git/).*annex/objects/", text):
            return Finding(
                "is a pointer of git-annex, and not the file itself",
                "run `git annex get` in its repository",
            )
        if re.fullmatch(r"(\.\./)+blobs/[0-9a-f]+", text):
            return Finding(
                f"is a link of the Hub's cache written as text ({text})",
                "download the files with `hf download REPO --local-dir DIR`",
            )
    if not content.strip(b"\0"):
        return Finding(
            f"begins with {len(content)} zero bytes: a download that did not finish", COPY_AGAIN
        )
    return None


def _server_response(content: bytes) -> Finding | None:
    """Recognises a web page, or an error in JSON or XML."""
    start = content[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        start = start.decode("utf-16", "replace").encode()
    start = start.lstrip()
    if not start.startswith((b"<", b"{", b"[")):
        return None
    text = start.decode("utf-8", "replace")
    lower = re.sub(r"^(<\?xml.*?\?>|<!--.*?-->|\s)+", "", text.lower(), flags=re.DOTALL)
    if lower.startswith(
        ("<!doctype html", "<html", "<head", "<body", "<title", "<script", "<meta")
    ):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        of = f" ({_one_line(html.unescape(title[1]))!r})" if title and title[1].strip() else ""
        return Finding(
            f"is a web page (HTML){of} and not the file",
            "download the file itself, with `hf download` or from the address with /resolve/ in"
            " place of /blob/ (a private or gated repository needs `hf auth login`)",
        )
    if text.startswith("<") and re.match(r"<[a-z_]", lower):
        code = re.search(r"<code>(.*?)</code>", text, re.DOTALL | re.IGNORECASE)
        message = re.search(r"<message>(.*?)</message>", text, re.DOTALL | re.IGNORECASE)
        said = ": ".join(_one_line(match[1]) for match in (code, message) if match)
        return _server_message(said or _one_line(text), "XML")
    if text.startswith(("{", "[")):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return recognize_values(values) or Finding(
            f"holds JSON ({_one_line(text)!r})", "name the right file, or download it again"
        )
    return None


def _binary(content: bytes, purpose: Purpose) -> Finding | None:
    """Recognises a file of another kind by its signature."""
    name_right = {
        "sound": "name a sound file (WAV, FLAC, MP3 or OGG)",
        "weights": "name the folder of the model's safetensors weights",
        "tokenizer": "name a folder with tokenizer.json, or vocab.json and merges.txt",
    }[purpose]

    def begins(table: Mapping[bytes, Any]) -> Any:
        return next(
            (value for signature, value in table.items() if content.startswith(signature)), None
        )

    if content.startswith((b"PK\3\4", b"PK\5\6")):
        if b"/data.pkl" in content[:512]:
            return Finding(
                "is a PyTorch pickle", _PICKLE_REMEDY if purpose == "weights" else name_right
            )
        if re.match(rb"PK\x03\x04.{26}[^/]{1,200}?\.npy", content[:512], re.DOTALL):
            return Finding("is an archive of NumPy arrays (npz)", name_right)
        return Finding("is a zip archive", "unpack it, and name what it holds")
    if re.match(rb"\x80[\x02-\x05]", content):
        return Finding("is a pickle", _PICKLE_REMEDY if purpose == "weights" else name_right)
    if archive := begins(_ARCHIVES):
        return Finding(f"is compressed ({archive})", "unpack it, and name what it holds")
    if content[257:262] == b"ustar":
        return Finding("is a tar archive", "unpack it, and name what it holds")
    if weights := begins(_FOREIGN_WEIGHTS):
        return Finding(f"is {weights[0]}", weights[1] if purpose == "weights" else name_right)
    if purpose != "weights" and re.match(rb".{6}\0\0\{\s*\"", content, re.DOTALL):
        return Finding("is a file of weights (safetensors)", name_right)
    if table := begins(_TABLES):
        files = "write the clips it holds out as sound files" if purpose == "sound" else name_right
        return Finding(f"is {table}", files)
    if document := begins(_DOCUMENTS):
        return Finding(f"is {document}", name_right)
    if media := begins(_DECODABLE_MEDIA) or _mpeg_4(content):
        return Finding(f"is {media}", DECODE_MEDIA if purpose == "sound" else name_right)
    if media := begins(_MEDIA) or _container(content):
        return Finding(f"is {media}", CONVERT_SOUND if purpose == "sound" else name_right)
    return None


def _mpeg_4(content: bytes) -> str | None:
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("latin-1").strip()
        return f"an MPEG-4 file (M4A, MP4, MOV or 3GP; brand {brand!r})"
    if content[4:8] in (b"moov", b"mdat", b"wide") and content[:4] != b"RIFF":
        return "a QuickTime file"
    return None


def _container(content: bytes) -> str | None:
    """Recognises containers of sound or video whose signature is not at the beginning."""
    if content[:4] == b"RIFF" and content[8:12] in (b"AVI ", b"WEBP", b"RMID"):
        return {b"AVI ": "an AVI video", b"WEBP": "a WebP image", b"RMID": "a MIDI file"}[
            content[8:12]
        ]
    if content[:4] == b"FORM" and content[8:12] in (b"AIFF", b"AIFC"):
        return "an AIFF file"
    if content[:4] == b"OggS":
        for codec, name in ((b"Speex   ", "Speex"), (b"\x80theora", "Theora video")):
            if content.startswith(codec, 28):  # the first packet of a stream
                return f"an Ogg file of {name}"
    if content[:1] == b"G" and content[188:189] == b"G" and content[376:377] == b"G":
        return "an MPEG transport stream"
    return None


def _text(content: bytes) -> Finding | None:
    """Recognises any other text: a server's message, a list of files, a script."""
    try:
        # A character that is cut off at the end is dropped.
        text = codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return None
    if any(not character.isprintable() and not character.isspace() for character in text):
        return None
    return Finding(f"holds text ({_one_line(text)!r})", "name the right file, or download it again")


def _one_line(text: str) -> str:
    """Returns a text on one line, of a readable length."""
    return truncate(" ".join(text.split()), _MAX_SHOWN_CHARACTERS, count=False)
