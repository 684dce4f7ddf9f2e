"""Addresses of objects in buckets, `gs://BUCKET/KEY` and `s3://BUCKET/KEY`, told from paths."""

import os
import re

from stepaudio_jax.errors import StorageError

SCHEMES = ("gs", "s3")
# Addresses that are not of buckets: whoever reads them says what to do about them.
_WEB_SCHEMES = ("http", "https", "hf")


def is_bucket_path(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is in a bucket.

    Raises:
        StorageError: it is an address of another kind (`az://..`), or one whose slashes were lost.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)", os.fspath(path))
    if match is None or match[1].lower() in _WEB_SCHEMES:
        return False
    if match[1] in SCHEMES:
        split(path)
        return True
    if match[2]:
        raise StorageError(
            f"{os.fspath(path)}: {match[1]}:// is not read; paths are local, gs://BUCKET/.. or "
            "s3://BUCKET/.."
        )
    return False


def split(path: str | os.PathLike[str]) -> tuple[str, str, str]:
    """Returns scheme, bucket and key of a path in a bucket, `.` and `..` resolved.

    Raises:
        StorageError: it names no bucket.
    """
    text = os.fspath(path)
    match = re.fullmatch(r"(gs|s3)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?", text, re.S)
    if match is None:
        raise StorageError(
            f"{text!r} names no bucket: write gs://BUCKET/FOLDER/.. or s3://BUCKET/FOLDER/.., the "
            "bucket's name in small letters"
        )
    scheme, bucket, key = match[1], match[2], (match[3] or "").rstrip("/")
    if not re.search(r"(^|/)\.\.?(/|$)", key):
        return scheme, bucket, key
    parts: list[str] = []
    for part in key.split("/"):
        if part == "..":
            if not parts:
                raise StorageError(f"{text!r} leaves its bucket")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return scheme, bucket, "/".join(parts)
