"""Opens whatever holds rows: finds out what a file or folder is, by content first, then by name.

Containers stay open as long as something uses them, and those used last a while longer, so that a
clip named `FILE#PLACE` is read without reading the index of its file again.
"""

import collections
import os
import threading
import weakref
from collections.abc import Callable, Hashable

from stepaudio_jax.data.containers.base import Container, EmbeddedClip, Samples
from stepaudio_jax.data.containers.folders import exists, is_folder, signature
from stepaudio_jax.data.containers.open_file import open_file
from stepaudio_jax.data.containers.open_folder import open_folder
from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS, absolute_path, is_address
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, format_path

_MAX_UNUSED = 64


def open_container(path: PathLike) -> Container:
    """Opens a file or folder of rows; one that is open and has not changed is not read again.

    Args:
        path: of the file or folder.

    Raises:
        DataError: there is no such file, it is damaged, or it is of no kind that is understood.
    """
    name = expand_home(os.fspath(path))
    name = name.rstrip("/") or name
    with reading(name, "a file or folder of data"):
        key = signature(name, AUDIO_EXTENSIONS)
    opened = open_folder if is_folder(name) else open_file
    return _open.get(absolute_path(name), key, lambda: opened(name))


def read_embedded_clip(name: str) -> bytes | Samples:
    """Reads a clip that lies inside a container.

    Args:
        name: `FILE#PLACE`, the file absolute or relative to the working directory.

    Raises:
        DataError: the name has no place, the file cannot be opened, or there is no such clip.
    """
    file, place = split_clip_name(name)
    if place is None:
        raise DataError(
            f"{format_path(name)}: names no clip inside a file; write FILE#PLACE, as in x.tar#a.wav"
        )
    container = _open.find(absolute_path(file))
    return (open_container(file) if container is None else container).read_clip(place)


def split_clip_name(name: str) -> tuple[str, str | None]:
    """Returns the file and the place of a clip's name; no place where the name is a file's.

    An existing file whose name has a `#` is a file; in a bucket, this is not asked again once the
    file before the `#` is open. Where no file before a `#` exists either, the name is a file's as
    well, so that the error names all of it.
    """
    file, separator, place = name.rpartition("#")
    if isinstance(name, EmbeddedClip):
        return file, place
    if not separator or name.startswith("data:"):
        return name, None
    if _open.find(absolute_path(file)) is None:
        if not exists(file):
            return name, None
    elif is_address(file):  # where asking for a file of the whole name takes as long as reading
        return file, place
    return (name, None) if exists(name) else (file, place)


class _OpenContainers:
    """Finds containers that something still uses, or that were used last, by their paths."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_path: weakref.WeakValueDictionary[str, Container] = weakref.WeakValueDictionary()
        self._signatures: dict[str, Hashable] = {}
        self._recent: collections.OrderedDict[str, Container] = collections.OrderedDict()
        self._opening: dict[str, threading.Lock] = {}

    def find(self, path: str) -> Container | None:
        """Returns the container that was opened of a path; None if there is none any more."""
        with self._lock:
            container = self._by_path.get(path)
            if container is not None:
                self._keep(path, container)
            return container

    def get(self, path: str, key: Hashable, opened: Callable[[], Container]) -> Container:
        """Returns the container of a path whose signature is `key`, opened by one thread."""
        with self._lock:
            opening = self._opening.setdefault(path, threading.Lock())
        with opening:
            with self._lock:
                container = self._by_path.get(path)
                if container is not None and self._signatures[path] == key:
                    self._keep(path, container)
                    return container
            container = opened()
            with self._lock:
                self._by_path[path] = container
                self._signatures[path] = key
                self._opening.pop(path, None)
                self._keep(path, container)
        return container

    def _keep(self, path: str, container: Container) -> None:
        self._recent[path] = container
        self._recent.move_to_end(path)
        while len(self._recent) > _MAX_UNUSED:
            self._recent.popitem(last=False)


_open = _OpenContainers()
