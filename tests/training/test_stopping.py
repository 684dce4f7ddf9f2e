"""SIGTERM and Ctrl-C: a run is told to stop, and a second Ctrl-C ends it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stepaudio_jax.training.preemption import PreemptionNotice


@pytest.fixture
def interruptible():
    """Python's own handler of Ctrl-C, also where the tests were started in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert happened()


@pytest.mark.parametrize(
    ("number", "by_keyboard"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_a_notice_is_noted_and_says_who_gave_it(interruptible, capsys, number, by_keyboard):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = PreemptionNotice()
    with stop.handle_signals():
        assert not stop.should_stop(1)
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.should_stop(2))
        error = stop.interrupted_error("sft", 2)
    assert str(error) == "stopped at step 2 of stage 'sft', and saved; the same command goes on"
    assert error.by_keyboard == by_keyboard
    assert ("Ctrl-C again ends at once" in capsys.readouterr().err) == by_keyboard
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


# The main thread waits in native code for ever, where Python runs no handler: for a lock that it
# holds itself.
SECOND = """
import ctypes, signal
from stepaudio_jax.training.preemption import PreemptionNotice

signal.signal(signal.SIGINT, signal.default_int_handler)
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
library.pthread_mutex_init(mutex, None)
library.pthread_mutex_lock(mutex)
with PreemptionNotice().handle_signals():
    print("listening", flush=True)
    library.pthread_mutex_lock(mutex)
"""


def test_a_second_ctrl_c_ends_at_once_also_in_native_code():
    command = [sys.executable, "-c", SECOND]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = [process.stderr.readline() for _ in range(2)]
        assert said == [
            "\n",
            "stopping: the step under way is finished and saved; Ctrl-C again ends at once\n",
        ]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert (
            "ended at once; the same command goes on from the last checkpoint"
            in process.stderr.read()
        )
    assert process.returncode == 130


def test_what_was_started_without_ctrl_c_goes_on_without_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with PreemptionNotice().handle_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_listens_to_nothing_and_runs():
    entered = []

    def run():
        with PreemptionNotice().handle_signals():
            entered.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [True]
