"""Tells one model folder from another by what it holds."""

import hashlib
import os
import pathlib

_EDGE_BYTES = (
    1 << 16
)  # of each file, at its beginning and at its end: a model trained anew differs in them


def fingerprint_folder(folder: str | os.PathLike[str]) -> str:
    """Returns a hash of a folder's file names and sizes, and of the first and last 64 KiB of each file.

    A model that was trained anew into the same folder has another; a copy of the folder has the
    same. Empty where there is no such folder.
    """
    root = pathlib.Path(folder)
    digest = hashlib.sha256()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(size - _EDGE_BYTES, 0))
            digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest() if files else ""
