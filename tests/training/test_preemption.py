"""SIGTERM and Ctrl-C stop a run, and a second Ctrl-C ends it at once."""

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
    """Sets Python's own handler of Ctrl-C, which a shell's background jobs start without."""
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
def test_a_notice_is_seen_and_its_origin_known(interruptible, capsys, number, by_keyboard):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    notice = PreemptionNotice()
    with notice.handle_signals():
        assert not notice.should_stop(1)
        os.kill(os.getpid(), number)
        wait_until(lambda: notice.should_stop(2))
        error = notice.interrupted_error("sft", 2)
    assert (
        str(error) == "stopped at step 2 of stage 'sft', and saved; the same command continues it"
    )
    assert error.by_keyboard == by_keyboard
    assert ("Ctrl-C again ends at once" in capsys.readouterr().err) == by_keyboard
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


# The main thread waits for a lock that it holds itself: for ever, in native code, where Python runs
# no signal handler.
WAIT_IN_NATIVE_CODE = """
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


def test_a_second_ctrl_c_ends_the_process_even_in_native_code():
    command = [sys.executable, "-c", WAIT_IN_NATIVE_CODE]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        printed = [process.stderr.readline() for _ in range(2)]
        assert printed == [
            "\n",
            "stopping: the step under way is finished and saved; Ctrl-C again ends at once\n",
        ]
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert (
            "ended at once; the same command continues from the last checkpoint"
            in process.stderr.read()
        )
    assert process.returncode == 130


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with PreemptionNotice().handle_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_handles_no_signals():
    entered = []

    def run():
        with PreemptionNotice().handle_signals():
            entered.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [True]
