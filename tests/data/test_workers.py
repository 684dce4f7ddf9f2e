"""Worker processes: what they change (nothing in the batches), their errors, and their end."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from stepaudio_jax.config import AugmentationConfig
from stepaudio_jax.data import batches
from stepaudio_jax.data.workers import WorkerPool
from stepaudio_jax.errors import DataError, WorkerError
from tests.data.corpus import (
    MODEL,
    TOKENIZER,
    audio_record,
    settings,
    text_record,
    write_records,
    write_spoken,
    write_written,
)
from tests.data.test_loader import same, take

ROOT = pathlib.Path(__file__).parents[2]


def test_neither_batches_nor_resuming_depend_on_workers(tmp_path):
    """And when a worker is killed, the run can go on from where it was."""
    sources = write_spoken(tmp_path), write_written(tmp_path)
    loud = AugmentationConfig(noise_probability=0.5, max_shift_s=0.05, gain_db=(-3, 3))

    def start(**changes):
        return batches(settings(*sources, augmentation=loud, **changes), TOKENIZER, MODEL, seed=1)

    straight = start()
    expected = take(straight, 14)
    both = start(workers=2, threads=1)
    assert all(map(same, expected[:4], take(both, 4)))
    alone = start(workers=1, threads=3)
    alone.set_state(json.loads(json.dumps(both.get_state())))
    both.close()
    (worker,) = multiprocessing.active_children()
    assert all(map(same, expected[4:7], take(alone, 3)))
    os.kill(worker.pid, signal.SIGKILL)
    made = []
    with pytest.raises(WorkerError, match=r"was killed by SIGKILL.*lower data\.workers"):
        made.extend(alone)
    resumed = start()
    resumed.set_state(alone.get_state())
    made += take(resumed, 7 - len(made))
    assert all(map(same, expected[7:], made))
    assert resumed.counts == straight.counts
    alone.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_error_in_a_worker_is_that_of_the_record(tmp_path):
    rows = [text_record(0, 3), audio_record(1, "missing.wav")]
    path = write_records(tmp_path / "d.jsonl", rows)
    iterator = batches(settings(path, workers=1), TOKENIZER, MODEL, seed=0)
    with pytest.raises(DataError, match=r"d\.jsonl:2: audio .*missing\.wav.*exist") as caught:
        take(iterator, 20)
    assert caught.value.kind == "bad_audio"
    iterator.close()


def answer(request: str):
    """Computed in a worker."""
    if request == "jax":
        return jax._src.xla_bridge.backends_are_initialized(), jax.config.jax_platforms
    if request == "divide":
        return 1 / 0
    if request == "refuse":
        raise DataError("d.jsonl:2: audio a.wav: is empty", kind="bad_audio")
    if request == "lambda":
        return lambda: None
    if request == "exit":
        os._exit(3)
    return request.upper()


def open_answer():
    return answer


def open_missing():
    raise DataError("d.jsonl: no such file")


def test_what_a_worker_answers_raises_and_how_it_ends():
    pool = WorkerPool(open_answer, processes=1, threads=2)
    answers = {name: pool.submit(name) for name in ("a", "jax", "divide", "refuse", "lambda")}
    assert answers["a"].result() == "A"
    assert answers["jax"].result() == (False, "cpu")
    defect, refusal = answers["divide"].exception(), answers["refuse"].exception()
    assert isinstance(defect, ZeroDivisionError)
    assert "in answer" in defect.__notes__[0]
    assert isinstance(refusal, DataError)
    assert (str(refusal), refusal.kind) == ("d.jsonl:2: audio a.wav: is empty", "bad_audio")
    assert not hasattr(refusal, "__notes__")
    with pytest.raises(RuntimeError, match=r"function.*cannot be pickled"):
        answers["lambda"].result()
    for future in (pool.submit("exit"), pool.submit("b")):
        with pytest.raises(WorkerError, match="has ended with exit code 3"):
            future.result(timeout=60)
    pool.close()


@pytest.mark.slow
def test_a_worker_that_cannot_open_its_sources_says_so_for_each_record():
    pool = WorkerPool(open_missing, processes=1, threads=1)
    for _ in range(2):
        with pytest.raises(DataError, match="no such file"):
            pool.submit("a").result()
    pool.close()


PROGRAM = """
    import pathlib, signal, sys
    from stepaudio_jax.data import batches
    from tests.data.corpus import MODEL, TOKENIZER, settings
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    if __name__ == "__main__":
        data = settings(pathlib.Path(sys.argv[1]), workers=1, prefetch_batches=1)
        iterator = batches(data, TOKENIZER, MODEL, seed=0)
        print("started", flush=True)  # the worker has not opened its sources yet
        for line in sys.stdin:
            for _ in range(6):
                next(iterator)
            print(len(signals), flush=True)
        sys.exit("the end")
"""


@pytest.mark.parametrize("ends", ["killed", pytest.param("normally", marks=pytest.mark.slow)])
def test_workers_leave_signals_to_the_program_and_end_with_it(tmp_path, ends):
    path = write_written(tmp_path)
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    program = subprocess.Popen(
        [sys.executable, script, path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout.readline() == "started\n"
    # As a terminal and a cluster send them: to all processes.
    os.killpg(program.pid, signal.SIGINT)
    os.killpg(program.pid, signal.SIGTERM)
    program.stdin.write("go on\n")
    program.stdin.flush()
    assert program.stdout.readline() == "2\n"
    os.killpg(program.pid, signal.SIGINT)
    if ends == "killed":
        program.kill()
    _, stderr = program.communicate(timeout=60)
    assert stderr == ("" if ends == "killed" else "the end\n")
    deadline = time.monotonic() + 30
    while group_is_alive(program.pid):
        assert time.monotonic() < deadline, "a worker has outlived the program"
        time.sleep(0.05)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
