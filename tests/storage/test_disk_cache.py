"""What was read from a bucket is read from the local disk, up to a number of bytes."""

import concurrent.futures
import os
import socket
import subprocess

import pytest

from stepaudio_jax.storage import DiskCache


def num_reads(gcs):
    return sum("alt=media" in line for line in gcs.requests)


def test_a_file_is_fetched_once(gcs, tmp_path):
    gcs.put("bucket", "a", b"content")
    cache = DiskCache(tmp_path / "cache", 100)
    for _ in range(3):
        assert cache.read_bytes("gs://bucket/a") == b"content"
    assert num_reads(gcs) == 1
    (tmp_path / "local").write_bytes(b"x")
    assert cache.read_bytes(tmp_path / "local") == b"x"
    with pytest.raises(FileNotFoundError):
        cache.read_bytes("gs://bucket/none")
    cache.close()
    assert list((tmp_path / "cache").iterdir()) == []
    assert cache.read_bytes("gs://bucket/a") == b"content"


def test_what_was_used_longest_ago_makes_room(gcs, tmp_path):
    for name in "abc":
        gcs.put("bucket", name, name.encode() * 40)
    cache = DiskCache(tmp_path, 100)
    for name in "ababcacab":
        assert cache.read_bytes(f"gs://bucket/{name}") == name.encode() * 40
        kept = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()]
        assert sum(kept) <= 100
    assert num_reads(gcs) == 5  # a, b, c in the place of a, a in that of b, and b again
    gcs.put("bucket", "large", bytes(101))
    assert len(cache.read_bytes("gs://bucket/large")) == 101
    cache.close()


def test_threads_share_a_cache(gcs, tmp_path):
    for number in range(20):
        gcs.put("bucket", str(number), bytes([number]) * 50)
    cache = DiskCache(tmp_path, 400)
    names = [str(number % 20) for number in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        contents = pool.map(lambda name: cache.read_bytes(f"gs://bucket/{name}"), names)
        assert list(contents) == [bytes([int(name)]) * 50 for name in names]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 400
    cache.close()


def test_a_disk_that_fails_does_not_stop_reading(gcs, tmp_path, caplog, monkeypatch):
    gcs.put("bucket", "a", b"content")
    cache = DiskCache(tmp_path, 100)
    monkeypatch.setattr(
        cache, "_make_room", lambda size: (_ for _ in ()).throw(OSError(28, "full"))
    )
    assert cache.read_bytes("gs://bucket/a") == b"content"
    assert cache.read_bytes("gs://bucket/a") == b"content"
    assert caplog.text.count("no more clips are kept on this disk") == 1
    cache.close()


def test_caches_of_dead_processes_are_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    dead = tmp_path / f"stepaudio-cache.{host}.{ended.pid}.1"
    alive = tmp_path / f"stepaudio-cache.{host}.{os.getppid()}.1"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "clip").write_bytes(b"x")
    DiskCache(tmp_path, 100).close()
    assert not dead.exists()
    assert alive.exists()
