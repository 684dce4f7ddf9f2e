"""Features of a prepared TFDS folder: what `features.json` says of the Examples in its files.

TFDS flattens a nested example into one feature a leaf, `a/b/c`, and a list of examples into one
list a leaf. Here an example is put together again, as JSON would hold it: names of classes instead
of their numbers, text instead of bytes, and the name of a clip in the place of its sound.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepaudio_jax.data.containers.base import Samples
from stepaudio_jax.data.containers.example import Feature, parse_example
from stepaudio_jax.data.containers.example_rows import (
    ClipNamer,
    missing_feature,
    numbers_or_clip,
    samples_of_numbers,
    split_item,
    text_or_clip,
)
from stepaudio_jax.data.containers.tfds_values import (
    FEATURES_FILE,
    Leaf,
    ListOf,
    Node,
    assemble,
    class_name,
    nest,
    split,
    stored_items,
)
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import read_json, read_json_or_none, read_text, truncate


class TfdsFeatures:
    """Reads the Examples of a prepared TFDS folder (a `RecordDecoder`).

    Args:
        folder: with `features.json`, and a file `NAME.labels.txt` for each feature with classes.

    Raises:
        DataError: a file is missing or damaged, or a feature is of a kind that cannot be read.
    """

    def __init__(self, folder: str):
        self._path = os.path.join(folder, FEATURES_FILE)
        self._leaves: dict[str, Leaf] = {}
        description = read_json(self._path, DataError)
        try:
            self._root = self._parse(description, folder, (), 0)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self._path}: is not as TFDS writes it today ({type(error).__name__}: {error});"
                " prepare the data set with tensorflow_datasets 4.9"
            ) from None

    def row(self, record: bytes, name_clip: ClipNamer) -> Any:
        """Returns the row's value: see `RecordDecoder`."""
        features = parse_example(record)
        values = {
            name: self._leaf_values(leaf, features, name_clip)
            for name, leaf in self._leaves.items()
        }
        return assemble(self._root, values, ())

    def clip(self, record: bytes, feature: str) -> bytes | Samples:
        """Returns the clip in a feature: see `RecordDecoder`."""
        name, item = split_item(feature, self._leaves)
        leaf = self._leaves.get(name)
        if leaf is None:
            raise DataError(missing_feature(feature, self._leaves))
        items, _ = stored_items(leaf, parse_example(record))
        values = [value for group in items for value in group] if leaf.dtype is None else items
        if item >= len(values):
            raise DataError(f"the feature {name!r} has {len(values)} values, and no {item}")
        if leaf.dtype is None:
            return bytes(values[item])
        if leaf.rate is None:
            raise DataError(
                f"the feature {name!r} is an array and not an Audio feature, so that its sample"
                " rate is unknown; prepare the data set with tfds.features.Audio(sample_rate=..)"
            )
        return Samples(samples_of_numbers(values[item], name), leaf.rate)

    def _leaf_values(
        self, leaf: Leaf, features: Mapping[str, Feature], name_clip: ClipNamer
    ) -> Any:
        """Returns the values of a leaf, in as many lists as it lies in."""
        if leaf.stored_name not in features:
            if leaf.optional:
                return None
            raise DataError(missing_feature(leaf.stored_name, features))
        if leaf.rate is not None and not leaf.ranks:  # its samples are decoded when they are read
            return name_clip(leaf.name)
        items, lengths = stored_items(leaf, features)
        is_single = not leaf.ranks and leaf.shape == ()
        values: list[Any] = []
        first = 0
        for index, item in enumerate(items):
            if leaf.dtype is None:
                texts = [
                    text_or_clip(
                        content, leaf.name if is_single else f"{leaf.name}[{first + k}]", name_clip
                    )
                    for k, content in enumerate(item)
                ]
                first += len(item)
                values.append(nest(texts, leaf.shape))
            elif leaf.rate is not None:
                values.append(name_clip(f"{leaf.name}[{index}]"))
            elif leaf.is_class:
                values.append(class_name(leaf, int(item)))
            else:
                name = f"{leaf.name}[{index}]" if leaf.ranks else leaf.name
                values.append(numbers_or_clip(item, name, name_clip))
        if not leaf.ranks:
            return values[0]
        for row_lengths in reversed(lengths):
            values = split(values, row_lengths, leaf.name)
        return values

    def _parse(self, value: Any, folder: str, path: tuple[str, ...], ranks: int) -> Node:
        """Parses the description of a feature; `path` are the keys above it."""
        parse = functools.partial(self._parse, folder=folder)
        if (children := value.get("featuresDict")) is not None:
            return {
                key: parse(child, path=(*path, key), ranks=ranks)
                for key, child in children["features"].items()
            }
        if (sequence := value.get("sequence")) is not None:
            return ListOf(parse(sequence["feature"], path=path, ranks=ranks + 1))
        if (translation := value.get("translation")) is not None:
            if translation.get("variableLanguagesPerExample"):
                keys, ranks = ["language", "translation"], ranks + 1
            else:
                keys = translation["languages"]
            texts = {key: self._add(Leaf("/".join((*path, key)), ranks)) for key in keys}
            return ListOf(texts) if translation.get("variableLanguagesPerExample") else texts
        if "video" in value:
            return ListOf(self._add(Leaf("/".join(path), ranks + 1)))
        return self._add(self._parse_leaf(value, folder, path, ranks))

    def _parse_leaf(self, value: Any, folder: str, path: tuple[str, ...], ranks: int) -> Leaf:
        leaf = Leaf("/".join(path), ranks)
        if "text" in value:
            # Whether a Text may be absent, TFDS does not write down.
            return dataclasses.replace(leaf, optional=not ranks)
        if "image" in value:
            return leaf
        if (label := value.get("classLabel")) is not None:
            names = _read_class_names(folder, path, int(label.get("numClasses", 0)))
            return dataclasses.replace(
                leaf, dtype=np.dtype(np.int64), is_class=True, class_names=names
            )
        if "boundingBox" in value:
            return dataclasses.replace(leaf, dtype=np.dtype(np.float32), shape=(4,))
        if (audio := value.get("audio")) is not None:
            return self._parse_audio(audio, leaf)
        if (tensor := value.get("tensor")) is not None:
            return dataclasses.replace(
                _array(leaf, tensor), optional=bool(tensor.get("optional")) and not ranks
            )
        kind = str(value["pythonClassName"]).rpartition(".")[2]
        raise DataError(
            f"{self._path}: the feature {leaf.name!r} is of the kind {truncate(kind)}, which cannot"
            " be read; prepare the data set without it"
        )

    def _parse_audio(self, audio: Mapping[str, Any], leaf: Leaf) -> Leaf:
        array = _array(leaf, audio)
        if audio.get("lazyDecode"):  # the bytes of a sound file, which says its rate itself
            if array.encoding != "none":
                raise DataError(
                    f"{self._path}: the feature {leaf.name!r} stores encoded sound files, encoded"
                    f" once more as {array.encoding!r}; prepare it with lazy_decode or encoding,"
                    " not both"
                )
            return leaf
        rate = int(audio.get("sampleRate") or 0)
        if rate <= 0:
            raise DataError(
                f"{self._path}: the Audio feature {leaf.name!r} says no sampleRate, and its samples"
                f' do not either; add "sampleRate": "16000" (the rate in Hz) beside its "dtype"'
            )
        return dataclasses.replace(array, rate=rate)

    def _add(self, leaf: Leaf) -> Leaf:
        self._leaves[leaf.name] = leaf
        return leaf


def find_features(folder: str) -> TfdsFeatures | None:
    """Returns the features of the prepared TFDS folder that a file's folder is or lies in.

    None for any other folder.

    Raises:
        DataError: as of `TfdsFeatures`.
    """
    for candidate in (folder, os.path.dirname(folder)):
        description = read_json_or_none(os.path.join(candidate, FEATURES_FILE))
        if isinstance(description, dict) and "pythonClassName" in description:
            return TfdsFeatures(candidate)
    return None


def _array(leaf: Leaf, value: Mapping[str, Any]) -> Leaf:
    """Returns a leaf with the dtype, shape and encoding of a description."""
    dimensions = [int(size) for size in value.get("shape", {}).get("dimensions", [])]
    return dataclasses.replace(
        leaf,
        dtype=None if value["dtype"] == "string" else np.dtype(value["dtype"]),
        shape=tuple(None if size < 0 else size for size in dimensions),
        encoding=str(value.get("encoding") or "none").lower(),
    )


def _read_class_names(folder: str, path: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Reads the names of classes; none where TFDS wrote no file of them."""
    file = os.path.join(folder, "-".join(key.replace("/", ".") for key in path) + ".labels.txt")
    try:
        lines = read_text(file).split("\n")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise DataError(
            f"{file}: has {len(names)} names, and {FEATURES_FILE} says {count}; copy the folder"
            " again"
        )
    return names
