"""Opens a folder of rows: by the files that only one kind of folder has, or as numbered files."""

import os
import re
from collections.abc import Sequence
from typing import Any

from stepaudio_jax.data.containers.audio_folder import METADATA_NAMES, SPLIT_NAMES, AudioFolder
from stepaudio_jax.data.containers.base import Container
from stepaudio_jax.data.containers.folders import (
    exists,
    is_folder,
    list_files_below,
    list_folder,
)
from stepaudio_jax.data.containers.kaldi import RECORDINGS_FILE, KaldiFolder
from stepaudio_jax.data.containers.lhotse import open_lhotse_folder
from stepaudio_jax.data.containers.open_file import (
    UNDERSTOOD,
    binary_kind,
    is_llama_factory_index,
    open_file,
    text_kind,
)
from stepaudio_jax.data.containers.places import AUDIO_EXTENSIONS, extension
from stepaudio_jax.data.containers.sharded import ShardedRows
from stepaudio_jax.data.containers.text_files import reading
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import first_few, format_path, read_json_or_none

_KIND = "a folder of data"
_DATASET_INFO = "dataset_info.json"
_FEATURES = "features.json"
# Files of JSON that say something of a dataset and hold none of its rows.
_DESCRIPTIONS = (
    *(_DATASET_INFO, _FEATURES, "dataset_infos.json", "state.json", "metadata.json"),
    *("sizes.json", "index.json"),  # of WebDataset
)
# A hash after the number of a file, as `datasets` has written it for a time.
_HASH = r"(-of-\d+)-[0-9a-f]{16}\b"
# What a file or folder should be read as, where samples of formats are kept with it.
_EXPECTED_ROWS = re.compile(r"(?:.*\.)?expected\.jsonl")
# What a conversion of this project lists beside its shards: the rows that it could not read.
_SKIPPED_ROWS = "skipped.jsonl"
# Which a data folder of Kaldi may have beside `text`.
_KALDI_FILES = ("segments", "utt2spk", "spk2utt", "utt2dur", "feats.scp", "reco2dur")
_NUMBERED = re.compile(r"-\d+-of-\d+\.")


def open_folder(path: str) -> Container:
    """Opens a folder of rows.

    Args:
        path: of the folder.

    Raises:
        DataError: it cannot be read, holds several datasets, or is of no kind that is understood.
    """
    with reading(path, _KIND):
        names = [name for name in list_folder(path) if not _EXPECTED_ROWS.fullmatch(name)]
    if RECORDINGS_FILE in names:
        return KaldiFolder(path)
    info = read_json_or_none(os.path.join(path, _DATASET_INFO)) if _DATASET_INFO in names else None
    _check_not_foreign(path, names, info)
    if _FEATURES in names or (isinstance(info, dict) and {"splits", "version"} <= info.keys()):
        from stepaudio_jax.data.containers.tfds import TfdsFolder

        return TfdsFolder(path)
    # Numbered files are of other formats, whatever their names: Lhotse separates numbers by a dot.
    manifests = open_lhotse_folder(path, [name for name in names if not _NUMBERED.search(name)])
    if manifests is not None:
        return manifests
    files = [name for name in names if _is_data(name)]
    if files and not any(name in names for name in METADATA_NAMES):
        return _open_shards(path, files)
    return _open_by_what_lies_below(path, names)


def _is_data(name: str) -> bool:
    """Returns whether a file has rows, by its name; metadata of a folder of sound has none."""
    no_rows = (*_DESCRIPTIONS, *METADATA_NAMES, _SKIPPED_ROWS)
    return name not in no_rows and (binary_kind(name) or text_kind(name)) is not None


def _check_not_foreign(path: str, names: Sequence[str], info: Any) -> None:
    """Checks that a folder is none of another library that is not read as a whole."""
    shown = format_path(path)
    if any(extension(name) == "arrow" for name in names):
        raise DataError(
            f"{shown}: holds Arrow files, as `save_to_disk` of `datasets` writes them; write them"
            " as Parquet: `load_from_disk(DIR).to_parquet(FILE)`"
        )
    if isinstance(info, dict) and is_llama_factory_index(info):
        files = [os.path.join(path, str(item["file_name"])) for item in info.values()]
        there = [file for file in files if exists(file)]
        if not there:
            raise DataError(
                f"{format_path(files[0])}: does not exist, and {_DATASET_INFO} names it; copy it"
                " too, or correct its file_name"
            )
        raise DataError(
            f"{shown}: holds datasets of LLaMA-Factory; name one of their files:"
            f" {first_few([format_path(file) for file in there])}"
        )
    if any(name in _KALDI_FILES for name in names) and "text" in names:
        raise DataError(
            f"{shown}: is a data folder of Kaldi without {RECORDINGS_FILE}, which names its sound;"
            " copy it too"
        )


def _open_shards(path: str, names: Sequence[str]) -> Container:
    """Opens files whose names differ in a number only, such as train-00000-of-00002.parquet."""
    series: dict[str, list[str]] = {}
    for name in names:
        name_of_all = re.sub(r"\d+", "*", re.sub(_HASH, r"\1", name))
        series.setdefault(name_of_all, []).append(name)
    if len(series) > 1:
        raise DataError(
            f"{format_path(path)}: holds several datasets ({first_few(sorted(series))});"
            f" name one of them, as {format_path(os.path.join(path, min(series)))}"
        )
    check_complete(path, names)
    shards = [open_file(os.path.join(path, name)) for name in names]
    return shards[0] if len(shards) == 1 else ShardedRows(path, shards)


def check_complete(path: str, names: Sequence[str]) -> None:
    """Checks that of files named NUMBER-of-COUNT, none is missing."""
    numbers = [match for name in names if (match := re.search(r"(\d+)-of-(\d+)", name))]
    missing = sorted(
        set(range(max((int(match[2]) for match in numbers), default=0)))
        - {int(match[1]) for match in numbers}
    )
    if missing:
        raise DataError(
            f"{format_path(path)}: files are missing: of {names[0]} and so on there are"
            f" {len(names)}, without number {first_few([str(number) for number in missing])};"
            " copy them too, or name those that are there by a pattern"
        )


def _open_by_what_lies_below(path: str, names: Sequence[str]) -> Container:
    folders = [name for name in names if is_folder(os.path.join(path, name))]
    with reading(path, _KIND):
        files = list_files_below(path)
    if any(extension(name) in AUDIO_EXTENSIONS for name in files):
        return AudioFolder(path)
    shown = format_path(path)
    prepared = [os.path.dirname(name) for name in files if name.endswith(f"/{_FEATURES}")]
    if prepared:
        raise DataError(
            f"{shown}: holds prepared datasets of TFDS; name the folder of one version:"
            f" {first_few([format_path(os.path.join(path, name)) for name in prepared])}"
        )
    if len(folders) == 1 and folders[0] in ("data", *SPLIT_NAMES):
        return open_folder(os.path.join(path, folders[0]))
    below = sorted({os.path.dirname(name) for name in files if _is_data(os.path.basename(name))})
    if below and below != [""]:
        raise DataError(
            f"{shown}: has its data in folders below it; name one of them:"
            f" {first_few([format_path(os.path.join(path, name)) for name in below])}"
        )
    found = f"it holds {first_few(names)}" if names else "it is empty"
    raise DataError(
        f"{shown}: is no folder of data that is understood; {found}; there are {UNDERSTOOD}"
    )
