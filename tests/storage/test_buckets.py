"""Objects of both services, read and written through the functions that serve local files."""

import contextlib
import io
import os
import pickle

import pytest

from stepaudio_jax import storage
from stepaudio_jax.errors import OutputError, StepAudioError, StorageError
from stepaudio_jax.storage import BucketPath, to_path


def test_content_ranges_and_sizes(bucket):
    path = to_path(f"{bucket}/a/b.bin")
    path.write_bytes(bytes(range(200)))
    assert storage.read_bytes(path) == bytes(range(200))
    assert storage.read_range(path, 10, 20) == bytes(range(10, 20))
    assert storage.read_range(path, 190, 300) == bytes(range(190, 200))
    assert storage.read_range(path, 300, 310) == b""
    assert storage.read_range(path, 5, 5) == b""
    assert storage.file_size(path) == path.stat().st_size == 200
    assert storage.hash_file(path) == storage.hash_file(str(path))


def test_an_open_file_reads_only_what_is_asked_for(gcs):
    content = os.urandom(5 << 20)
    gcs.put("bucket", "big", content)
    gcs.requests.clear()
    with storage.open_read("gs://bucket/big") as file:
        file.seek(-100, io.SEEK_END)
        assert file.read() == content[-100:]
        file.seek(3 << 20)
        assert file.read(10) == content[3 << 20 : (3 << 20) + 10]
        assert file.tell() == (3 << 20) + 10
    ranges = [line.rpartition("bytes=")[2] for line in gcs.requests if "bytes=" in line]
    fetched = [int(last) - int(first) + 1 for first, last in (text.split("-") for text in ranges)]
    assert fetched == [100, 1 << 20]


def test_lines_of_an_open_file(bucket):
    storage.write_text(f"{bucket}/lines.txt", "a\nb\r\nc")
    with storage.open_read(f"{bucket}/lines.txt") as file:
        assert list(file) == [b"a\n", b"b\r\n", b"c"]
    assert storage.read_text(f"{bucket}/lines.txt") == "a\nb\nc"


def test_an_object_that_changes_while_it_is_read_is_an_error(gcs):
    gcs.put("bucket", "x", bytes(3 << 20))
    with storage.open_read("gs://bucket/x") as file:
        file.read(1)
        gcs.put("bucket", "x", bytes(3 << 20))
        file.seek(2 << 20)
        with pytest.raises(FileNotFoundError):
            file.read(1)


def test_what_is_in_a_folder(bucket):
    root = to_path(bucket)
    for name in ("d/1.txt", "d/e/2.txt", "d/e/f/3.bin", "d2/4.txt", "5.txt"):
        (root / name).write_bytes(name.encode())
    folder = root / "d"
    assert [entry.name for entry in folder.iterdir()] == ["1.txt", "e"]
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "1.txt").is_file()
    assert not (folder / "1").exists()
    assert [path.name for path in folder.rglob("*.txt")] == ["1.txt", "2.txt"]
    assert [path.name for path in folder.glob("*.txt")] == ["1.txt"]
    assert storage.glob_paths(f"{bucket}/*/*.txt") == [f"{bucket}/d/1.txt", f"{bucket}/d2/4.txt"]
    assert storage.glob_paths(f"{bucket}/d/**/*.txt") == [
        f"{bucket}/d/1.txt",
        f"{bucket}/d/e/2.txt",
    ]
    assert storage.glob_paths(f"{bucket}/d/e/[0-9].tx?") == [f"{bucket}/d/e/2.txt"]
    assert storage.glob_paths(f"{bucket}/none/*.txt") == []
    assert list((root / "none").iterdir()) == []
    storage.remove_folder(folder)
    assert [entry.name for entry in root.iterdir()] == ["5.txt", "d2"]


def test_names_that_addresses_would_escape(bucket):
    for name in ("a b.wav", "ä#1.wav", "50%.wav", "q?.wav", "+[x].wav"):
        path = f"{bucket}/d/{name}"
        storage.write_text(path, name)
        assert storage.read_text(path) == name
        assert storage.read_range(path, 0, 1) == name.encode()[:1]
        assert storage.file_size(path) == len(name.encode())
        with storage.open_read(path) as file:
            assert file.read() == name.encode()
        assert [entry.name for entry in to_path(f"{bucket}/d").iterdir()] == [name]
        to_path(path).unlink()


def test_a_listing_of_many_pages(gcs):
    for number in range(1203):
        gcs.put("bucket", f"d/{number:04d}", b"x")
    assert len(list(to_path("gs://bucket/d").iterdir())) == 1203
    assert len(list(to_path("gs://bucket").rglob("*"))) == 1203


def test_paths_keep_their_slashes():
    path = to_path("gs://bucket/runs/a.tar.gz")
    assert str(path) == os.fspath(path) == "gs://bucket/runs/a.tar.gz"
    assert (path.name, path.stem, path.suffix) == ("a.tar.gz", "a.tar", ".gz")
    assert str(path.parent / "b" / "c") == "gs://bucket/runs/b/c"
    assert [str(folder) for folder in path.parents] == ["gs://bucket/runs", "gs://bucket"]
    assert str(path.with_name("x")) == "gs://bucket/runs/x"
    assert path.relative_to("gs://bucket").parts == ("runs", "a.tar.gz")
    assert path.absolute() == path.resolve() == BucketPath("gs://bucket/runs/a.tar.gz")
    assert str(to_path("s3://bucket/x/../y/./z")) == "s3://bucket/y/z"
    assert pickle.loads(pickle.dumps(path)) == path
    assert to_path("gs://bucket/a") < to_path("gs://bucket/b")
    assert not isinstance(to_path("runs/a"), BucketPath)
    with pytest.raises(ValueError):
        path.relative_to("gs://bucket/run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs:/bucket/x", "names no bucket"),
        ("gs://", "names no bucket"),
        ("gs://Bucket/x", "small letters"),
        ("gs://bucket/../x", "leaves its bucket"),
        ("az://container/x", "az:// is not read; paths are local, gs://BUCKET"),
        ("gcs://bucket/x", "gcs:// is not read"),
    ],
)
def test_addresses_that_name_no_bucket(text, message):
    with pytest.raises(StorageError, match=message):
        to_path(text)


def test_what_is_written_appears_whole(bucket):
    path = f"{bucket}/d/out.txt"
    storage.write_text(path, "ä\n")
    assert storage.read_bytes(path) == "ä\n".encode()
    with contextlib.suppress(ZeroDivisionError), storage.atomic_text_writer(path) as file:
        file.write("half")
        assert storage.read_text(path) == "ä\n"
        1 / 0  # noqa: B018
    assert storage.read_text(path) == "ä\n"
    with storage.atomic_binary_writer(path) as binary:
        binary.write(b"12")
        binary.write(memoryview(b"34"))
    assert storage.read_bytes(path) == b"1234"
    assert [entry.name for entry in to_path(f"{bucket}/d").iterdir()] == ["out.txt"]


def test_large_objects_are_sent_in_blocks(gcs):
    with storage.atomic_binary_writer("gs://bucket/big") as file:
        for number in range(70):
            file.write(bytes([number]) * (1 << 20))
        assert "big" not in gcs.buckets["bucket"]
    content = gcs.buckets["bucket"]["big"].content
    assert content == b"".join(bytes([number]) * (1 << 20) for number in range(70))
    assert sum("upload_id" in line for line in gcs.requests) == 3  # 32 + 32 + 6 MiB
    with (
        contextlib.suppress(KeyboardInterrupt),
        storage.atomic_binary_writer("gs://bucket/b2") as file,
    ):
        file.write(bytes(40 << 20))
        raise KeyboardInterrupt
    assert "b2" not in gcs.buckets["bucket"]
    assert not gcs.uploads


def test_folders_are_incomplete_while_they_are_written(bucket):
    target = to_path(f"{bucket}/model")
    with storage.atomic_directory(target) as folder:
        storage.write_text(folder / "config.json", "{}")
        assert not storage.is_finished_folder(target)
        assert "still being written" in str(storage.recognize_folder(target, "weights"))
        with pytest.raises(OutputError, match="another process is writing it"):
            storage.atomic_directory(target).__enter__()
    assert storage.is_finished_folder(target)
    assert [entry.name for entry in target.iterdir()] == ["config.json"]
    with pytest.raises(OutputError, match="already exists"):
        storage.check_output_directory(target)
    with pytest.raises(OutputError, match="already exists"):
        storage.atomic_directory(target).__enter__()
    assert [entry.name for entry in target.iterdir()] == ["config.json"]

    with contextlib.suppress(ZeroDivisionError), storage.atomic_directory(f"{bucket}/m2") as folder:
        storage.write_text(folder / "half.txt", "{}")
        1 / 0  # noqa: B018
    assert not to_path(f"{bucket}/m2").exists()


def test_copies_and_renames(bucket, tmp_path):
    (tmp_path / "local").write_bytes(b"content")
    storage.copy_file(tmp_path / "local", f"{bucket}/d/a")
    storage.copy_file(f"{bucket}/d/a", f"{bucket}/d/e/b")
    storage.copy_file(f"{bucket}/d/e/b", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"
    storage.rename(f"{bucket}/d", f"{bucket}/new")
    assert storage.glob_paths(f"{bucket}/**/*") == [f"{bucket}/new/a", f"{bucket}/new/e/b"]
    storage.rename(f"{bucket}/new/a", f"{bucket}/c")
    assert storage.read_bytes(f"{bucket}/c") == b"content"
    assert not to_path(f"{bucket}/new/a").exists()


def test_a_copy_of_a_folder_has_its_fingerprint(bucket, tmp_path):
    for name in ("a.txt", "a/b.txt", "z"):
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != "a/b.txt":
            path = path.with_name(f"x{path.name}")
        path.write_bytes(name.encode() * 30000)
        relative = path.relative_to(tmp_path / "d")
        to_path(f"{bucket}/d/{relative}").write_bytes(path.read_bytes())
    fingerprint = storage.fingerprint_folder(tmp_path / "d")
    assert storage.fingerprint_folder(f"{bucket}/d") == fingerprint
    assert storage.fingerprint_folder(f"{bucket}/none") == ""


def test_marks_of_finished_outputs(bucket):
    path, job = f"{bucket}/out.jsonl", {"input": 1}
    assert not storage.is_finished_output_of(path, job)
    with storage.finished_output(path, job) as file:
        file.write("{}\n")
    assert storage.is_finished_output_of(path, job)
    assert storage.has_job_mark(path)
    storage.check_output_file(path, may_replace=storage.has_job_mark)
    with pytest.raises(OutputError, match="is not what this job makes"):
        storage.is_finished_output_of(path, {"input": 2})
    storage.write_text(path, "other\n")
    with pytest.raises(OutputError, match="exists already"):
        storage.check_output_file(path, may_replace=storage.has_job_mark)
    with pytest.raises(OutputError, match="is the input"):
        storage.check_output_file(path, [f"{bucket}/x/../out.jsonl"])
    with pytest.raises(OutputError, match="names no file"):
        storage.check_output_file(f"{bucket}/d/")


def test_missing_objects_and_buckets(bucket):
    scheme = bucket[:2]
    with pytest.raises(FileNotFoundError) as missing:
        storage.read_bytes(f"{bucket}/none")
    assert missing.value.filename == f"{bucket}/none"
    with pytest.raises(FileNotFoundError):
        storage.open_read(f"{bucket}/none")
    if scheme == "gs":
        with pytest.raises(FileNotFoundError):
            to_path(f"{bucket}/none").unlink()
    to_path(f"{bucket}/none").unlink(missing_ok=True)
    no_bucket = f"{scheme}://no-such-bucket/x"
    for use in (
        storage.read_bytes,
        storage.open_read,
        lambda path: to_path(path).exists(),
        lambda path: list(to_path(path).iterdir()),
        lambda path: storage.write_text(path, "x"),
    ):
        with pytest.raises(StorageError, match=f"there is no bucket {scheme}://no-such-bucket"):
            use(no_bucket)


def test_access_that_is_refused(gcs):
    gcs.put("bucket", "x", b"x")
    gcs.forbidden.add("bucket")
    for use in (
        storage.read_bytes,
        storage.open_read,
        lambda path: to_path(path).exists(),
        lambda path: to_path(path).write_bytes(b"y"),
    ):
        with pytest.raises(StorageError, match=r"access is refused \(403.*Storage Object User"):
            use("gs://bucket/x")


def test_servers_that_fail_are_asked_again(gcs, no_waiting):
    gcs.put("bucket", "x", b"content")
    gcs.fail(500, 503, None, 429)
    assert storage.read_bytes("gs://bucket/x") == b"content"
    gcs.fail(500, 502)
    to_path("gs://bucket/y").write_bytes(b"new")
    assert storage.read_bytes("gs://bucket/y") == b"new"
    gcs.fail(500, 503, matching="upload_id")
    with storage.atomic_binary_writer("gs://bucket/z") as file:
        file.write(bytes(33 << 20))
    assert storage.file_size("gs://bucket/z") == 33 << 20


def test_servers_that_keep_failing_are_an_error(gcs, no_waiting):
    gcs.put("bucket", "x", b"content")
    gcs.fail(*[503] * 20)
    with pytest.raises(StorageError, match="gs://bucket/x: the bucket's server failed") as error:
        storage.read_bytes("gs://bucket/x")
    assert isinstance(error.value, StepAudioError)
    assert isinstance(error.value, OSError)
    assert error.value.strerror
    assert "\n" not in str(error.value)


def test_a_condition_whose_answer_was_lost_counts_as_met(gcs, no_waiting):
    from stepaudio_jax.storage import buckets

    first = buckets.write_if("gs://bucket/x", b"1", None)
    assert first is not None
    assert buckets.write_if("gs://bucket/x", b"2", None) is None
    gcs.fail(None, matching="ifGenerationMatch")
    second = buckets.write_if("gs://bucket/x", b"3", first)
    assert second not in (None, first)
    assert storage.read_bytes("gs://bucket/x") == b"3"


def test_conditions_of_both_services(bucket):
    from stepaudio_jax.storage import buckets

    path = f"{bucket}/x"
    first = buckets.write_if(path, b"1", None)
    assert buckets.write_if(path, b"2", None) is None
    second = buckets.write_if(path, b"3", first)
    assert buckets.write_if(path, b"4", first) is None
    assert storage.read_bytes(path) == b"3"
    assert buckets.find_object(path).version.strip('"') == second.strip('"')


def test_extras_that_are_missing_are_named(monkeypatch):
    import sys

    from stepaudio_jax.storage import bucket_clients

    bucket_clients.forget_clients()
    for scheme, package, extra in (("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(StorageError, match=rf"pip install 'stepaudio-jax\[{extra}\]'"):
            storage.read_bytes(f"{scheme}://bucket/x")
