"""Containers in buckets hold the rows and the clips that they hold on a disk."""

import numpy as np
import pytest

from stepaudio_jax.data.containers.base import EmbeddedClip, Samples
from stepaudio_jax.data.containers.opening import open_container, read_embedded_clip
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import to_path

NAMES = (
    *("project/dialogues.jsonl", "lhotse/cuts.jsonl.gz", "lhotse/recordings.jsonl.gz", "kaldi"),
    *("llama_factory/talks.json", "hf_parquet/train-00000-of-00001.parquet", "webdataset"),
    *("audiofolder/train", "audiofolder_labels/train", "lhotse", "nemo_manifest"),
    *("tfrecord/talks-00000-of-00001.tfrecord", "tfds_tfrecord/talks/plain/1.0.0"),
)
# The library reads these by itself, and not from `s3://`.
ARRAY_RECORDS = ("array_record/examples-00000-of-00001.array_record", "tfds/talks/plain/1.0.0")


def upload(formats, name, bucket):
    for path in sorted((formats / name.split("/")[0]).rglob("*")):
        if path.is_file():
            (to_path(bucket) / str(path.relative_to(formats))).write_bytes(path.read_bytes())


def assert_same_rows_and_clips(formats, name, bucket):
    local, remote = open_container(formats / name), open_container(f"{bucket}/{name}")
    assert len(remote) == len(local)
    for index in range(len(local)):
        here, there = local.row(index), remote.row(index)
        assert str(there).replace(f"{bucket}/", f"{formats}/") == str(here)
        for key, clip in here.value.items():
            if isinstance(clip, EmbeddedClip):
                content, expected = read_embedded_clip(there.value[key]), read_embedded_clip(clip)
                if isinstance(expected, Samples):
                    assert content.rate == expected.rate
                    np.testing.assert_array_equal(content.values, expected.values)
                else:
                    assert content == expected
    assert open_container(f"{bucket}/{name}") is remote


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_clips_are_those_of_the_local_file(formats, bucket, name):
    upload(formats, name, bucket)
    assert_same_rows_and_clips(formats, name, bucket)


@pytest.mark.parametrize("name", ARRAY_RECORDS)
def test_array_records(formats, gcs, name):
    upload(formats, name, "gs://bucket")
    assert_same_rows_and_clips(formats, name, "gs://bucket")


def test_array_records_that_cannot_be_read(formats, gcs, s3):
    name = "array_record/examples-00000-of-00001.array_record"
    upload(formats, name, "gs://bucket")
    with pytest.raises(DataError, match=r"none\.array_record: cannot be read: No such file"):
        open_container("gs://bucket/none.array_record")
    content = (formats / name).read_bytes()
    for place, message in ((-1, "is cut short"), (60_000, "is cut short"), (40, "is not an")):
        gcs.put("bucket", "cut.array_record", content[:place])
        with pytest.raises(DataError, match=message):
            open_container("gs://bucket/cut.array_record")
    gcs.put("bucket", "damaged.array_record", content[:500] + bytes(400) + content[900:])
    with pytest.raises(DataError, match=r"gs://bucket/damaged\.array_record.* damaged"):
        open_container("gs://bucket/damaged.array_record").row(0)
    to_path("s3://bucket/x.array_record").write_bytes(content)
    with pytest.raises(DataError, match="from local disks and gs://, not from s3://; copy it"):
        open_container("s3://bucket/x.array_record")


def test_what_is_not_in_a_bucket_is_named(bucket):
    with pytest.raises(DataError, match=f"^{bucket}/none.jsonl: cannot be read"):
        open_container(f"{bucket}/none.jsonl")
