"""Prepared folders of TensorFlow Datasets, read without TensorFlow.

`tensorflow_datasets` 4.9 imports TensorFlow as soon as a data set has an Audio feature, so its
files are read here: `dataset_info.json` says which shards there are, `features.json` what their
records mean. The package itself is asked only about names, where it is installed.
"""

import array
import bisect
import importlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from stepaudio_jax.data.containers.array_record import ArrayRecordFile
from stepaudio_jax.data.containers.base import Row, Samples
from stepaudio_jax.data.containers.folders import list_folder
from stepaudio_jax.data.containers.record_file import RecordFile
from stepaudio_jax.data.containers.tfds_features import TfdsFeatures
from stepaudio_jax.data.containers.tfds_splits import parse_split
from stepaudio_jax.data.containers.tfds_values import FEATURES_FILE
from stepaudio_jax.data.containers.tfrecord import TFRecordFile
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import (
    PathLike,
    did_you_mean,
    expand_home,
    file_size,
    read_json,
    read_json_or_none,
    truncate,
)

INFO_FILE = "dataset_info.json"

_FILE_CLASSES: dict[str, type[RecordFile]] = {
    "array_record": ArrayRecordFile,
    "tfrecord": TFRecordFile,
}
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_DIGITS = 5  # of a shard's number, at least
_NAME = re.compile(
    r"tfds:(?P<dataset>\w+)(/(?P<config>[\w.+-]+))??([:/](?P<version>(\d+|\*)(\.(\d+|\*)){2}))?"
    r"(:(?P<split>.+))?"
)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_PREPARE = (
    "prepare it on a machine with tensorflow: tfds build {name} --file_format=array_record, or"
    " copy the prepared folder"
)


class _Shard(NamedTuple):
    """A shard of `length` rows, of which those from `start` to `stop` (excluded) are read."""

    path: str
    length: int
    start: int
    stop: int


class TfdsFolder:
    """Gives random access to the rows of a split (see `base.Container`).

    Rows name their clips by the shard that they lie in, `SHARD#INDEX/FEATURE`; a shard is a
    container of its own. The shards are opened when they are first read.

    Args:
        path: of the folder of a version, `.../NAME/CONFIG/1.0.0`.
        split: see `tfds_splits.parse_split`. None for the only split.

    Raises:
        DataError: it is not a prepared folder, a file is missing or damaged, there is no such
            split, or there are several and none is named.
    """

    def __init__(self, path: PathLike, split: str | None = None):
        self.path = expand_home(os.fspath(path)).rstrip("/")
        info = _read_info(self.path)
        file_format = info.get("fileFormat") or "tfrecord"
        if file_format not in _FILE_CLASSES:
            raise DataError(
                f"{self.path}: its files have the format {truncate(str(file_format))!r}, and"
                f" {' and '.join(_FILE_CLASSES)} are read; convert it: tfds convert_format"
            )
        self._file_class = _FILE_CLASSES[file_format]
        self._features = TfdsFeatures(self.path)
        self._shards = _find_shards(self.path, info, split)
        self._starts = array.array("q", [0])
        for shard in self._shards:
            self._starts.append(self._starts[-1] + shard.stop - shard.start)
        _check_shards([shard.path for shard in self._shards])
        self._lock = threading.Lock()
        self._files: dict[str, RecordFile] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"TfdsFolder({self.path!r}, records={len(self)})"

    def origin(self, index: int) -> str:
        """Returns `shard#index` of the row at `index`."""
        shard, index_in_shard = self._locate(index)
        return f"{shard.path}#{index_in_shard}"

    def row(self, index: int) -> Row:
        """Reads the row at `index`, its clips as names: see `base.Container`."""
        shard, index_in_shard = self._locate(index)
        return self._open(shard).row(index_in_shard)

    def read_clip(self, place: str) -> bytes | Samples:
        """Reads the clip at `INDEX/FEATURE`, by the index in this container."""
        number, separator, feature = place.partition("/")
        if not (number.isdecimal() and number.isascii() and int(number) < len(self)):
            raise DataError(
                f"{self.path}: {truncate(place)!r} names no clip; it must be INDEX/FEATURE, with an"
                f" index below {len(self)}"
            )
        shard, index_in_shard = self._locate(int(number))
        return self._open(shard).read_clip(f"{index_in_shard}{separator}{feature}")

    def block_lengths(self) -> Sequence[int] | None:
        """Returns None: every record is read alone."""
        return None

    def _locate(self, index: int) -> tuple[_Shard, int]:
        which = bisect.bisect_right(self._starts, index) - 1
        shard = self._shards[which]
        return shard, shard.start + index - self._starts[which]

    def _open(self, shard: _Shard) -> RecordFile:
        with self._lock:
            file = self._files.get(shard.path)
            if file is None:
                file = self._file_class(shard.path, self._features)
                if len(file) != shard.length:
                    raise DataError(
                        f"{shard.path}: has {len(file)} records, and {INFO_FILE} says"
                        f" {shard.length}; copy the folder again"
                    )
                self._files[shard.path] = file
        return file


def resolve_name(name: str) -> tuple[str, str | None]:
    """Finds the prepared folder that a name means.

    It is looked for in `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`. Without a version the newest
    one is taken, and without a configuration the default one, as TFDS does.

    Args:
        name: `tfds:NAME`, `tfds:NAME/CONFIG`, either with `:VERSION` (`1.0.0`, `1.*.*`) and
            `:SPLIT` behind it.

    Returns:
        The folder, and the split or None.

    Raises:
        DataError: the name is malformed, or nothing is prepared under it; says what there is.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise DataError(
            f"{truncate(name)!r} is not the name of a data set; write tfds:NAME/CONFIG:SPLIT"
        )
    data_dir = expand_home(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    dataset, config = match["dataset"], match["config"]
    folder = os.path.join(data_dir, dataset)
    if not _list_folder(folder):
        others = _list_folder(data_dir)
        raise DataError(
            f"{name}: {folder} does not exist{did_you_mean(dataset, others)};"
            f" {_explain(dataset)}{_PREPARE.format(name=dataset)}, or set TFDS_DATA_DIR"
        )
    if config is None and not _versions(folder):
        config = _default_config(name, dataset, folder)
    if config is not None:
        folder = os.path.join(folder, config)
    versions = _versions(folder)
    wanted = match["version"]
    if wanted is not None:
        pattern = re.escape(wanted).replace(r"\*", r"\d+")
        versions = [version for version in versions if re.fullmatch(pattern, version)]
    if not versions:
        what = f"version {wanted}" if wanted else "version"
        known = _list_folder(folder) or _configs(os.path.dirname(folder))
        there = ", ".join(known) or "nothing"
        prepared = f"{dataset}/{config}" if config else dataset
        raise DataError(
            f"{name}: {folder} holds no prepared {what}; there is {there};"
            f" {_PREPARE.format(name=prepared)}"
        )
    return os.path.join(folder, versions[-1]), match["split"]


def dataset_name_parts(path: str) -> list[str]:
    """Returns what names a data set: itself, its configuration, version and split, as far as given.

    Args:
        path: of a source: `tfds:NAME..`, or the folder of a version.

    Returns:
        [] where the source is no data set of TFDS.
    """
    match = _NAME.fullmatch(path)
    if match is not None:
        parts = match.group("dataset", "config", "version", "split")
    elif _VERSION.fullmatch(os.path.basename(path.rstrip("/"))):
        info = read_json_or_none(os.path.join(path, INFO_FILE))
        known = info if isinstance(info, dict) and info.get("name") else {}
        parts = tuple(known.get(key) for key in ("name", "configName", "version"))
    else:
        return []
    return [part for part in parts if isinstance(part, str) and part]


def _read_info(path: str) -> dict[str, Any]:
    for file in (INFO_FILE, FEATURES_FILE):
        try:
            file_size(os.path.join(path, file))
        except OSError:
            inner = ", ".join(_versions(path) or _configs(path))
            hint = f"; name a folder in it: {inner}" if inner else ""
            raise DataError(
                f"{path}: is not a prepared TFDS folder: it has no {file}"
                f"{hint or '; copy the whole folder, or prepare it again'}"
            ) from None
    return read_json(os.path.join(path, INFO_FILE), DataError)


def _find_shards(path: str, info: Mapping[str, Any], split: str | None) -> list[_Shard]:
    """Returns the shards that hold rows of a split, in order."""
    try:
        templates = {
            description["name"]: description.get("filepathTemplate") or _DEFAULT_TEMPLATE
            for description in info["splits"]
        }
        shard_lengths = {
            description["name"]: [int(length) for length in description.get("shardLengths", [])]
            for description in info["splits"]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: {INFO_FILE} does not describe splits as TFDS does ({type(error).__name__}:"
            f" {error}); copy the folder again"
        ) from None
    if split is None:
        if len(shard_lengths) != 1:
            names = ", ".join(shard_lengths)
            raise DataError(
                f"{path}: has {len(shard_lengths)} splits; name one, or all: {names}"
                if names
                else f"{path}: has no split; prepare it again"
            )
        split = next(iter(shard_lengths))
    try:
        ranges = parse_split(split, shard_lengths)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    shards = []
    for rows in ranges:
        lengths = shard_lengths[rows.split]
        if not lengths:
            raise DataError(
                f"{path}: {INFO_FILE} says no shardLengths of the split {rows.split!r}; prepare it"
                " again with tensorflow_datasets 4.9"
            )
        first = 0
        for number, length in enumerate(lengths):
            start, stop = max(rows.start - first, 0), min(rows.stop - first, length)
            first += length
            if start < stop:
                file = _file_name(
                    path, templates[rows.split], info, rows.split, number, len(lengths)
                )
                shards.append(_Shard(os.path.join(path, file), length, start, stop))
    return shards


def _file_name(
    path: str, template: str, info: Mapping[str, Any], split: str, number: int, count: int
) -> str:
    digits = max(_DIGITS, len(str(count)))
    number_text, count_text = f"{number:0{digits}}", f"{count:0{digits}}"
    values = {
        "DATASET": info.get("name", ""),
        "SPLIT": split,
        "FILEFORMAT": info.get("fileFormat") or "tfrecord",
        "SHARD_INDEX": number_text,
        "NUM_SHARDS": count_text,
        "SHARD_X_OF_Y": f"{number_text}-of-{count_text}",
    }
    try:
        # What follows a % says how other tools are to write the file.
        return template.partition("%")[0].format(**values)
    except (KeyError, IndexError, ValueError):
        raise DataError(
            f"{path}: {INFO_FILE} names its files by {template!r}, which is not a template of TFDS"
        ) from None


def _check_shards(paths: Sequence[str]) -> None:
    """Checks that all files are there, several at once since in a bucket each takes a request."""

    def find_problem(path: str) -> str | None:
        try:
            file_size(path)
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror or error}); copy the folder again"
        return None

    with futures.ThreadPoolExecutor(16) as pool:
        problems = [problem for problem in pool.map(find_problem, paths) if problem]
    if problems:
        more = f"; {len(problems) - 1} more shards are missing" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _list_folder(path: str) -> list[str]:
    """Returns the names in a folder, hidden ones left out; none where there is no such folder."""
    try:
        return list_folder(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _versions(folder: str) -> list[str]:
    """Returns the versions that a folder holds, the newest last."""
    versions = [name for name in _list_folder(folder) if _VERSION.fullmatch(name)]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def _configs(folder: str) -> list[str]:
    """Returns the configurations that a data set's folder holds."""
    return [name for name in _list_folder(folder) if _versions(os.path.join(folder, name))]


def _default_config(name: str, dataset: str, folder: str) -> str:
    """Returns the configuration that is meant where none is named."""
    configs = _configs(folder)
    stored = read_json_or_none(os.path.join(folder, ".config", "metadata.json"))
    default = stored.get("default_config_name") if isinstance(stored, dict) else None
    if default is None and len(configs) > 1:
        builder = _builder_class(dataset)
        if builder is not None and builder.BUILDER_CONFIGS:
            default = builder.BUILDER_CONFIGS[0].name
    if default is None and len(configs) == 1:
        default = configs[0]
    if default not in configs:
        there = ", ".join(configs) or "nothing"
        default_text = f", and not the default configuration {default}" if default else ""
        raise DataError(
            f"{name}: {folder} holds {there}{default_text}; name one: tfds:{dataset}/CONFIG:SPLIT"
        )
    return str(default)


def _explain(dataset: str) -> str:
    """Returns what the package `tensorflow_datasets` knows of a name, for an error message."""
    builder = _builder_class(dataset)
    if builder is None:
        return ""
    configs = ", ".join(config.name for config in builder.BUILDER_CONFIGS[:8])
    return f"TFDS has it{f' with the configurations {configs}' if configs else ''}: "


def _builder_class(dataset: str) -> Any:
    """Returns the class that prepares a data set; None where the package does not tell.

    The package is imported only here, to explain or complete a name: it takes seconds, and without
    TensorFlow it knows the names, versions and configurations of data sets but opens none that has
    an Audio feature.
    """
    try:
        package = importlib.import_module("tensorflow_datasets")
        return package.builder_cls(dataset)
    except (ImportError, AttributeError, ValueError, LookupError):
        return None
