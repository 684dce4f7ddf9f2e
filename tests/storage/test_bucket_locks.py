"""Locks in buckets: who gets them, what a killed holder leaves, and what a sleeping one loses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage import bucket_locks, buckets, take_lock, to_path
from stepaudio_jax.storage.bucket_locks import lock_object

HOLD = """
import sys, time
from stepaudio_jax.storage.bucket_locks import lock_object
lock = lock_object(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(bucket_locks, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(bucket_locks, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(bucket_locks, "_POLL_SECONDS", 0.02)


def foreign(path):
    """Writes the lock of a process on another machine."""
    holder = {"process": 7, "host": "elsewhere", "machine": "other boot", "token": "t", "beat": 3}
    to_path(path).write_bytes(json.dumps(holder).encode())


def test_a_held_lock_is_refused_and_a_released_one_is_free(bucket):
    lock = take_lock(f"{bucket}/run/.lock")
    with pytest.raises(LockHeldError, match="held by this process") as held:
        take_lock(f"{bucket}/run/.lock")
    assert held.value.by_this_process
    lock.describe({"since": "today"})
    assert json.loads(to_path(f"{bucket}/run/.lock").read_bytes())["since"] == "today"
    lock.close()
    lock.close()
    assert not to_path(f"{bucket}/run/.lock").exists()
    take_lock(f"{bucket}/run/.lock").remove()


def test_a_killed_process_of_this_machine_is_known_to_be_gone(gcs):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "gs://bucket/.lock"],
        env={**os.environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(LockHeldError, match="held by another process"):
            lock_object("gs://bucket/.lock")
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock_object("gs://bucket/.lock").close()
        assert time.monotonic() - started < 5  # far less than the lease
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_silent_holder_elsewhere_is_replaced_after_the_lease(gcs, short_lease):
    foreign("gs://bucket/.lock")
    started = time.monotonic()
    lock = lock_object("gs://bucket/.lock")
    assert time.monotonic() - started > 0.5
    lock.close()


def test_a_holder_elsewhere_that_renews_its_lock_keeps_it(gcs, short_lease):
    foreign("gs://bucket/.lock")
    read, count = bucket_locks._read, iter(range(100))

    def read_later(path):
        if next(count) == 3:
            foreign(path)
        return read(path)

    bucket_locks_read = pytest.MonkeyPatch()
    bucket_locks_read.setattr(bucket_locks, "_read", read_later)
    try:
        with pytest.raises(LockHeldError, match="held by another process"):
            lock_object("gs://bucket/.lock")
    finally:
        bucket_locks_read.undo()


def test_a_lock_is_renewed(gcs, short_lease):
    lock = lock_object("gs://bucket/.lock")
    first = buckets.find_object("gs://bucket/.lock").version
    time.sleep(0.8)  # longer than the lease
    assert buckets.find_object("gs://bucket/.lock").version != first
    assert not lock.is_lost
    lock.close()


def test_a_holder_notices_that_its_lock_was_taken(gcs, short_lease, caplog):
    lock = lock_object("gs://bucket/.lock")
    foreign("gs://bucket/.lock")
    lock._thread.join(5)
    assert lock.is_lost
    assert "another job may have taken" in caplog.text
    lock.close()
    assert to_path("gs://bucket/.lock").exists()  # the other's


def test_failures_of_the_server_do_not_lose_a_lock(gcs, short_lease, no_waiting):
    lock = lock_object("gs://bucket/.lock")
    gcs.fail(503, 500, 503, matching="ifGenerationMatch")
    time.sleep(0.3)
    assert not lock.is_lost
    lock.close()
