"""What was read from a bucket is read from the local disk, up to a number of bytes."""

import concurrent.futures
import hashlib
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from stepaudio_jax.errors import StorageError
from stepaudio_jax.storage import CachedFile, DiskCache, disk_cache, open_read, to_path

ROOT = pathlib.Path(__file__).parents[2]
MIB = 1 << 20

# Keeps and reads entries at random, and ends with an error at the first that is not as it was kept.
WRITER = """
import hashlib, pathlib, random, sys
from stepaudio_jax.storage import DiskCache

folder, seed, count, bound = sys.argv[1], *map(int, sys.argv[2:])
rng, cache = random.Random(seed), DiskCache(folder, bound)
print("ready", flush=True)
for _ in range(count):
    number = rng.randrange(400)
    content = random.Random(number).randbytes(rng.choice([number, 9000 + 40 * number]))
    kept = cache.get(str(number))
    if kept is not None and hashlib.sha256(kept[1]).hexdigest() != kept[0]:
        sys.exit(f"entry {number} is damaged")
    cache.put(str(number), hashlib.sha256(content).hexdigest(), content)
"""


def num_reads(gcs):
    return sum("alt=media" in line for line in gcs.requests)


def read(path, cache, **settings):
    with open_read(CachedFile(path, cache, **settings)) as file:
        return file.read()


def files(folder):
    """Returns the sizes of the entries of a cache, which may change meanwhile."""
    sizes = {}
    for path in folder.rglob("??/*"):
        try:
            sizes[path] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


def counted(folder):
    (used,) = folder.rglob("used")
    return int(used.read_text().split()[0])


def start_writer(folder, seed, count, bound):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(seed), str(count), str(bound)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "ready\n", writer.stderr.read()
    return writer


def test_a_file_is_fetched_once(bucket, tmp_path, request):
    to_path(f"{bucket}/a").write_bytes(b"content")
    cache = DiskCache(tmp_path / "new" / "cache", MIB)
    for _ in range(3):
        assert read(f"{bucket}/a", cache) == b"content"
    assert read(f"{bucket}/a", DiskCache(tmp_path / "new" / "cache", MIB)) == b"content"
    if bucket.startswith("gs"):
        assert num_reads(request.getfixturevalue("gcs")) == 1
    assert len(files(tmp_path)) == 1
    with pytest.raises(FileNotFoundError):
        read(f"{bucket}/none", cache)


def test_a_file_that_was_changed_is_read_again(bucket, tmp_path):
    cache = DiskCache(tmp_path, MIB)
    for content in (b"first", b"other", b"longer than before"):  # two of one size
        to_path(f"{bucket}/a").write_bytes(content)
        assert read(f"{bucket}/a", cache) == content
        assert read(f"{bucket}/a", cache) == content
    assert len(files(tmp_path)) == 1
    assert counted(tmp_path) == 4096


def test_of_a_large_file_the_blocks_that_are_read_are_kept(gcs, tmp_path):
    content = random.Random(0).randbytes(9 * MIB + 5)
    gcs.put("bucket", "long", content)
    cache = DiskCache(tmp_path, 20 * MIB)
    # Of a header, 1 MiB around it.
    with open_read(CachedFile("gs://bucket/long", cache, keeps=False)) as file:
        assert file.read(100) == content[:100]
    assert not files(tmp_path)
    for _ in range(2):
        with open_read(CachedFile("gs://bucket/long", cache)) as file:
            file.seek(4 * MIB - 3)
            assert file.read(7) == content[4 * MIB - 3 : 4 * MIB + 4]
            file.seek(-2, os.SEEK_END)
            assert file.read() == content[-2:]
    assert num_reads(gcs) == 4
    assert read("gs://bucket/long", cache) == content
    assert num_reads(gcs) == 4
    # What is kept is used, also for a header.
    with open_read(CachedFile("gs://bucket/long", cache, keeps=False)) as file:
        assert file.read(100) == content[:100]
    assert num_reads(gcs) == 4


def test_what_is_there_stays_until_another_run_needs_the_room(tmp_path):
    size = 9000  # three blocks of the disk
    first = DiskCache(tmp_path, 5 * 12288)
    for number in range(8):
        first.put(str(number), "1", bytes([number]) * size)
    assert [first.get(str(number)) is not None for number in range(8)] == [True] * 5 + [False] * 3
    assert counted(tmp_path) == 5 * 12288
    for order, number in enumerate((3, 0, 1, 2, 4)):  # used last in this order, long ago
        os.utime(first._path(str(number)), (order + 1, order + 1))
    second = DiskCache(tmp_path, 5 * 12288)
    assert second.get("0") is not None
    second.put("new", "1", bytes(size))
    assert [second.get(name) is not None for name in ("0", "1", "2", "3", "4", "new")] == [
        *(True, True, True, False, True, True),
    ]
    second.put("larger than the bound", "1", bytes(70_000))
    assert len(files(tmp_path)) == 5
    # A smaller bound removes what nothing uses any more.
    for path in files(tmp_path):
        os.utime(path, (1, 1))
    third = DiskCache(tmp_path, 2 * 12288)
    third.put("another", "1", bytes(size))
    assert sum(files(tmp_path).values()) <= 2 * 12288
    assert third.get("another") is not None


def test_threads_share_a_cache(gcs, tmp_path):
    for number in range(20):
        gcs.put("bucket", str(number), bytes([number]) * 5000)
    cache = DiskCache(tmp_path, 10 * 8192)
    names = [str(number % 20) for number in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        contents = pool.map(lambda name: read(f"gs://bucket/{name}", cache), names)
        assert list(contents) == [bytes([int(name)]) * 5000 for name in names]
    assert sum(files(tmp_path).values()) <= 10 * 8192


def test_processes_share_a_cache_and_its_bound(tmp_path):
    bound = 60 * 4096
    writers = [start_writer(tmp_path, seed, 2000, bound) for seed in range(2)]
    largest = 0
    while any(writer.poll() is None for writer in writers):
        largest = max(largest, sum(files(tmp_path).values()))
    for writer in writers:
        assert writer.wait() == 0, writer.stderr.read()
    assert bound // 2 < largest <= bound
    assert sum(files(tmp_path).values()) <= counted(tmp_path) <= bound
    assert not list(tmp_path.rglob("*.incomplete"))


def test_processes_that_are_killed_leave_no_damaged_entry(tmp_path):
    bound = 100 * 4096
    for seed in range(2):
        for path in files(tmp_path):  # so that entries are replaced and removed in each round
            os.utime(path, (1, 1))
        writer = start_writer(tmp_path, seed, 10**9, bound)
        time.sleep(random.Random(seed).uniform(0.02, 0.2))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL, writer.stderr.read()
        writer.stderr.close()
        assert sum(files(tmp_path).values()) <= bound
    cache = DiskCache(tmp_path, bound)
    kept = [cache.get(str(number)) for number in range(400)]
    assert any(kept)
    assert all(hashlib.sha256(entry[1]).hexdigest() == entry[0] for entry in kept if entry)


def test_what_a_killed_process_was_writing_is_counted_and_later_removed(tmp_path):
    cache = DiskCache(tmp_path, MIB)
    cache.put("a", "1", b"x")
    left = cache.folder / "aa" / f"{0:032x}.incomplete"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(bytes(5000))
    used = cache.folder / "used"
    used.unlink()
    DiskCache(tmp_path, MIB)
    assert counted(tmp_path) == 4096 + 8192
    os.utime(left, (1, 1))
    used.write_text(f"{12288:020d} {1:020d}\n")  # counted long ago
    DiskCache(tmp_path, MIB)
    assert counted(tmp_path) == 4096
    assert not left.exists()


def test_other_files_of_the_folder_are_not_touched(tmp_path):
    """A user may name a folder that holds data."""
    cache = DiskCache(tmp_path, 8192)
    cache.put("a", "1", bytes(5000))
    others = [tmp_path / "ab" / f"{0:064x}", cache.folder / "ab" / "notes", tmp_path / "used"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(9000))
        os.utime(path, (1, 1))
    os.utime(cache._path("a"), (1, 1))
    other = DiskCache(tmp_path, 8192)
    other.put("b", "1", bytes(5000))
    assert other.get("a") is None
    assert other.get("b") is not None
    assert all(path.read_bytes() == bytes(9000) for path in others)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"xyz\n", None])
def test_a_damaged_entry_is_fetched_again(gcs, tmp_path, damage):
    gcs.put("bucket", "a", bytes(range(250)) * 20)
    cache = DiskCache(tmp_path, MIB)
    read("gs://bucket/a", cache)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!" if damage is None else damage)
    assert read("gs://bucket/a", cache) == bytes(range(250)) * 20
    assert num_reads(gcs) == 2
    assert path.read_bytes() == content


def test_a_full_disk_does_not_stop_reading(gcs, tmp_path, caplog, monkeypatch):
    for name in "abc":
        gcs.put("bucket", name, name.encode() * 5000)
    cache = DiskCache(tmp_path, MIB)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # writing more is an error
    try:
        for name in "aab":
            assert read(f"gs://bucket/{name}", cache) == name.encode() * 5000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not files(tmp_path)
    assert caplog.text.count("no more clips are kept on this disk") == 1
    monkeypatch.setattr(disk_cache, "_PAUSE_S", 0.0)
    cache = DiskCache(tmp_path, MIB)
    assert read("gs://bucket/a", cache) == b"a" * 5000
    assert len(files(tmp_path)) == 1
    monkeypatch.setattr(disk_cache, "_MIN_FREE_BYTES", 1 << 60)  # so much no disk has free
    assert read("gs://bucket/c", cache) == b"c" * 5000
    assert len(files(tmp_path)) == 1


def test_a_folder_that_disappears_is_no_error(gcs, tmp_path):
    gcs.put("bucket", "a", b"content")
    cache = DiskCache(tmp_path / "cache", MIB)
    shutil.rmtree(tmp_path / "cache")
    for _ in range(2):
        assert read("gs://bucket/a", cache) == b"content"
    assert num_reads(gcs) == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/cache"):
        with pytest.raises(StorageError, match=f"^{folder}: cannot keep clips there") as error:
            DiskCache(folder, MIB)
        assert "\n" not in str(error.value)
