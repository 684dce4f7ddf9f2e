"""Opens whatever holds rows: finds out what a file or folder is, by content first, then by name.

Containers stay open as long as something uses them, and those used last a while longer, so that a
clip named `FILE#PLACE` is read without reading the index of its file again.
"""

import collections
import json
import os
import threading
import weakref
from collections.abc import Callable, Hashable

from stepaudio_jax.data.containers.base import Container, EmbeddedClip, Samples
from stepaudio_jax.data.containers.folders import exists, is_folder, signature
from stepaudio_jax.data.containers.open_file import open_file
from stepaudio_jax.data.containers.open_folder import open_folder
from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS, absolute_path, is_address
from stepaudio_jax.data.containers.tar import TarShard
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import DiskCache, PathLike, expand_home, format_path

_MAX_UNUSED = 64


def open_container(path: PathLike) -> Container:
    """Opens a file or folder of rows; one that is open and has not changed is not read again.

    Args:
        path: of the file or folder.

    Raises:
        DataError: there is no such file, it is damaged, or it is of no kind that is understood.
    """
    return _open_container(path)[0]


def read_embedded_clip(name: str, cache: DiskCache | None = None) -> bytes | Samples:
    """Reads a clip that lies inside a container.

    Args:
        name: `FILE#PLACE`, the file absolute or relative to the working directory.
        cache: where files in tar archives in buckets are kept. What other containers store with a
            row is read with the row.

    Raises:
        DataError: the name has no place, the file cannot be opened, or there is no such clip.
    """
    file, place = split_clip_name(name)
    if place is None:
        raise DataError(
            f"{format_path(name)}: names no clip inside a file; write FILE#PLACE, as in x.tar#a.wav"
        )
    container, key = _open.find(absolute_path(file))
    if container is None:
        container, key = _open_container(file)
    if cache is None or not isinstance(container, TarShard) or not is_address(container.path):
        return container.read_clip(place)
    address, version = f"{container.path}#{place}", json.dumps(key)
    kept = cache.get(address)
    if kept is not None and kept[0] == version:
        return kept[1]
    content = container.read_clip(place)
    cache.put(address, version, content)
    return content


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
    if _open.find(absolute_path(file))[0] is None:
        if not exists(file):
            return name, None
    elif is_address(file):  # where asking for a file of the whole name takes as long as reading
        return file, place
    return (name, None) if exists(name) else (file, place)


def _open_container(path: PathLike) -> tuple[Container, Hashable]:
    """Opens a file or folder of rows; returns it and its signature when it was opened."""
    name = expand_home(os.fspath(path))
    name = name.rstrip("/") or name
    with reading(name, "a file or folder of data"):
        key = signature(name, AUDIO_EXTENSIONS)
    opened = open_folder if is_folder(name) else open_file
    return _open.get(absolute_path(name), key, lambda: opened(name)), key


class _OpenContainers:
    """Finds containers that something still uses, or that were used last, by their paths."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_path: weakref.WeakValueDictionary[str, Container] = weakref.WeakValueDictionary()
        self._signatures: dict[str, Hashable] = {}
        self._recent: collections.OrderedDict[str, Container] = collections.OrderedDict()
        self._opening: dict[str, threading.Lock] = {}

    def find(self, path: str) -> tuple[Container | None, Hashable]:
        """Returns the container that was opened of a path, and its signature then.

        None in its place if it is not open any more.
        """
        with self._lock:
            container = self._by_path.get(path)
            if container is not None:
                self._keep(path, container)
            return container, self._signatures.get(path)

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
