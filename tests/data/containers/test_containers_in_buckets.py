"""Containers in buckets hold the rows and the clips that they hold on a disk."""

import pytest

from stepaudio_jax.data.containers.base import EmbeddedClip
from stepaudio_jax.data.containers.opening import open_container, read_embedded_clip
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import to_path

NAMES = (
    *("project/dialogues.jsonl", "lhotse/cuts.jsonl.gz", "lhotse/recordings.jsonl.gz", "kaldi"),
    *("llama_factory/talks.json", "hf_parquet/train-00000-of-00001.parquet", "webdataset"),
    *("audiofolder/train", "audiofolder_labels/train", "lhotse", "nemo_manifest"),
)


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_clips_are_those_of_the_local_file(formats, bucket, name):
    root = to_path(bucket)
    for path in sorted((formats / name.split("/")[0]).rglob("*")):
        if path.is_file():
            (root / str(path.relative_to(formats))).write_bytes(path.read_bytes())
    local, remote = open_container(formats / name), open_container(f"{bucket}/{name}")
    assert len(remote) == len(local)
    for index in range(len(local)):
        here, there = local.row(index), remote.row(index)
        assert str(there).replace(f"{bucket}/", f"{formats}/") == str(here)
        for key, clip in here.value.items():
            if isinstance(clip, EmbeddedClip):
                assert read_embedded_clip(there.value[key]) == read_embedded_clip(clip)
    assert open_container(f"{bucket}/{name}") is remote


def test_what_is_not_in_a_bucket_is_named(bucket):
    with pytest.raises(DataError, match=f"^{bucket}/none.jsonl: cannot be read"):
        open_container(f"{bucket}/none.jsonl")
