"""Files that one process at a time holds, and what ends it."""

import subprocess
import sys

import pytest

from stepaudio_jax.errors import LockHeldError
from stepaudio_jax.storage import lock_file

HOLD = """
import sys
from stepaudio_jax.storage import lock_file
held = lock_file(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_file_is_held_by_one_process_until_it_dies(tmp_path):
    path = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        for _ in range(2):
            with pytest.raises(LockHeldError) as raised:
                lock_file(path)
            assert not raised.value.by_this_process
        other.kill()
        other.wait()
        held = lock_file(path)
    held.file.write(b"mine")
    held.close()


def test_this_process_does_not_take_it_twice_by_another_name_either(tmp_path):
    (tmp_path / "link").symlink_to("file")
    held = lock_file(tmp_path / "file")
    with pytest.raises(LockHeldError) as raised:
        lock_file(tmp_path / "link")
    assert raised.value.by_this_process
    held.close()
    held.close()
    again = lock_file(tmp_path / "link")
    again.close()


def test_a_file_that_was_removed_meanwhile_is_made_anew(tmp_path):
    held = lock_file(tmp_path / "file")
    (tmp_path / "file").unlink()
    held.close()
    again = lock_file(tmp_path / "file")
    assert (tmp_path / "file").exists()
    again.close()
