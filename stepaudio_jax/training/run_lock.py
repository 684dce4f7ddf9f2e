"""Keeps a second job away from a run folder."""

import datetime
import json
import os
import pathlib
import socket

import jax

from stepaudio_jax.config import ConfigError
from stepaudio_jax.parallel import broadcast_json
from stepaudio_jax.storage import LockedFile, LockHeldError, lock_file
from stepaudio_jax.training.run_folder import CONFIG

LOCK = ".lock"


class RunLock:
    """The lock of a run folder, in a file there that process 0 holds: whatever ends that process lets the folder go.

    Every process calls the same methods, and every one raises what process 0 has found. What only
    reads the folder (a report, the model of a checkpoint) needs no lock.

    Args:
        run_dir: the folder.
    """

    def __init__(self, run_dir: str):
        self._run_dir = run_dir
        self._held: LockedFile | None = None

    def acquire_if_exists(self) -> None:
        """Takes the lock where the folder holds a run already.

        Raises:
            ConfigError: another job holds it.
        """
        problem = None
        if jax.process_index() == 0 and (pathlib.Path(self._run_dir) / CONFIG).exists():
            problem = self._take()
        _raise_on_all_processes(problem)

    def acquire(self) -> None:
        """Makes the folder, and takes the lock if it is not held yet.

        Raises:
            ConfigError: another job holds it, or has begun a run there since this one looked.
        """
        problem = None
        if jax.process_index() == 0 and self._held is None:
            problem = self._take()
            if problem is None and (pathlib.Path(self._run_dir) / CONFIG).exists():
                problem = f"run_dir={self._run_dir!r}: another job has begun there meanwhile; start the same command again"
        _raise_on_all_processes(problem)

    def close(self) -> None:
        """Lets the folder go, and removes the lock's file; one that a killed run leaves is nobody's, and taken."""
        if self._held is not None:
            pathlib.Path(self._held.path).unlink(missing_ok=True)
            self._held.close()
            self._held = None

    def _take(self) -> str | None:
        """Takes the lock; returns why it cannot be had, or None."""
        path = pathlib.Path(self._run_dir) / LOCK
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = lock_file(path)
            os.ftruncate(self._held.file.fileno(), 0)
            os.write(self._held.file.fileno(), json.dumps(holder).encode() + b"\n")
        except LockHeldError as error:
            who = " in this process" if error.by_this_process else _holder(path)
            return f"run_dir={self._run_dir!r} is in use by another job{who}: wait for it or stop it, or choose another run_dir"
        except OSError as error:  # told to the other processes too, which wait for an answer
            return f"run_dir={self._run_dir!r} cannot be locked: {error}"
        return None


def _holder(path: pathlib.Path) -> str:
    """Who says in the file that it holds it, for a message; empty where that cannot be read."""
    try:
        holder = json.loads(path.read_bytes())
        return f" (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _raise_on_all_processes(problem: str | None) -> None:
    problem = broadcast_json(problem)
    if problem is not None:
        raise ConfigError(problem)
