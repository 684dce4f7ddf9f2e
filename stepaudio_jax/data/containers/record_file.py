"""A file of records as a container: what ArrayRecord and TFRecord files have in common."""

import abc
import os
import threading
import urllib.parse
from collections.abc import Sequence

from stepaudio_jax.data.containers.base import Block, EmbeddedClip, Row, Samples
from stepaudio_jax.data.containers.example_rows import ExampleOrJson, RecordDecoder
from stepaudio_jax.data.containers.places import clip_name
from stepaudio_jax.data.containers.tfds_features import find_features
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import PathLike, expand_home, truncate

# A record is read whole for its row, and once more for each clip, mostly by the same thread and at
# once. So each thread keeps the last record that it has read, unless it is very large.
_MAX_KEPT_BYTES = 16 << 20
_last_read = threading.local()


class RecordFile(abc.ABC):
    """Gives random access to the rows of a file of records (see `base.Container`).

    A clip's place is `INDEX/FEATURE`.

    Args:
        path: of the file.
        decoder: says what a record means. None for the features of the prepared TFDS folder that
            the file lies in, and outside of one for Examples and JSON.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: PathLike, decoder: RecordDecoder | None = None):
        self.path = expand_home(os.fspath(path))
        self._decoder = decoder or find_features(os.path.dirname(self.path)) or ExampleOrJson()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read_record(self, index: int) -> bytes:
        """Reads the bytes of the record at `index`; any thread may call it.

        Raises:
            DataError: they cannot be read; names `file#index`.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, records={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `file#index` of the row at `index`."""
        return f"{self.path}#{index}"

    def row(self, index: int) -> Row:
        """Reads the row at `index`, its clips as names: see `base.Container`."""
        record = self._read(index)
        try:
            value = self._decoder.row(record, lambda feature: self._name_clip(index, feature))
        except DataError as error:
            raise DataError(f"{self.origin(index)}: {error}") from None
        return Row(
            value=value,
            origin=self.origin(index),
            folder=os.path.dirname(self.path),
            default_id=f"{os.path.basename(self.path)}:{index}",
        )

    def read_clip(self, place: str) -> bytes | Samples:
        """Reads the clip at `INDEX/FEATURE`: see `base.Container`."""
        number, _, feature = place.partition("/")
        if not (number.isdecimal() and number.isascii() and feature):
            raise DataError(
                f"{self.path}: {truncate(place)!r} names no clip; it must be INDEX/FEATURE"
            )
        index = int(number)
        if index >= len(self):
            raise DataError(f"{self.path}: has {len(self)} records, and no record {index}")
        record = self._read(index)
        try:
            return self._decoder.clip(record, urllib.parse.unquote(feature))
        except DataError as error:
            raise DataError(f"{self.origin(index)}: {error}") from None

    def blocks(self) -> Sequence[Block] | None:
        """Returns None: every record is read alone."""
        return None

    def _name_clip(self, index: int, feature: str) -> EmbeddedClip:
        return clip_name(self.path, f"{index}/{feature}")

    def _read(self, index: int) -> bytes:
        if getattr(_last_read, "key", None) == (id(self), index):
            record: bytes = _last_read.record
            return record
        record = self.read_record(index)
        if len(record) <= _MAX_KEPT_BYTES:
            # `file` keeps the id from being given to another file.
            _last_read.file, _last_read.key, _last_read.record = self, (id(self), index), record
        return record
