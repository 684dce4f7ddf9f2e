"""The thread that runs the engines: it takes up requests between two steps, and tells of each step.

All engines of a process share one thread, and each has a step in turn: there is one device to wait
for. The rest of the server is asyncio; `EngineThread` is what it talks to, from any thread.
"""

import dataclasses
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Engine, Prompt, RequestOutput, Sampling
from stepaudio_jax.serving.constraints import ConstraintFactory
from stepaudio_jax.serving.fair_queue import FairQueue

_LOGGER = logging.getLogger(__name__)
State = Literal["starting", "ready", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Work:
    """A prompt that is to be answered.

    Attributes:
        model: the name of the model that answers.
        client: whose it is; clients take turns.
        prompt: the prompt.
        samplings: how each of the replies is sampled.
        num_top_logprobs: alternatives of each token.
        grammar: what every reply must follow; None for nothing.
    """

    model: str
    client: str
    prompt: Prompt
    samplings: tuple[Sampling, ...]
    num_top_logprobs: int = 0
    grammar: str | None = None


Deliver = Callable[[Sequence[tuple[int, RequestOutput]]], None]
"""Takes what a step has added to a job: (which of its replies, output). Called in the thread."""


@dataclasses.dataclass(eq=False)
class Job:
    """Work in the thread's hands.

    Attributes:
        work: what is to be done.
        deliver: takes the outputs.
        on_start: called in the thread once the last reply has its slot.
        on_failure: called in the thread where the job will not be finished, with the reason; None
            where the engine ends.
        requests: the engine's numbers of the replies; empty until the engine has the job.
        started: whether all replies have a slot.
    """

    work: Work
    deliver: Deliver
    on_start: Callable[[], None]
    on_failure: Callable[[GenerationError | None], None]
    requests: list[int] = dataclasses.field(default_factory=list)
    started: bool = False


@dataclasses.dataclass(frozen=True)
class Lane:
    """An engine and the jobs that wait for it."""

    engine: Engine
    constraints: ConstraintFactory
    waiting: FairQueue[Job] = dataclasses.field(default_factory=FairQueue)
    jobs: dict[int, tuple[Job, int]] = dataclasses.field(default_factory=dict)


class EngineThread(threading.Thread):
    """Runs engines until it is stopped.

    Args:
        lanes: the engine of each model, by the model's name.

    Attributes:
        state: "starting" while programs are compiled, "ready", "stopped", or "failed" where an
            engine has ended by an error, which the log has.
        progress: what was compiled last.
    """

    def __init__(self, lanes: Mapping[str, Lane]):
        super().__init__(name="engine", daemon=True)
        self._lanes = lanes
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._on_ready: list[Callable[[], None]] = []
        self.state: State = "starting"
        self.progress = ""

    @property
    def num_waiting(self) -> int:
        """Replies that have no slot yet."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Replies that have a slot."""
        return sum(lane.engine.num_slots - lane.engine.free_slots for lane in self._lanes.values())

    def try_submit(self, job: Job, max_waiting: int) -> bool:
        """Takes a job unless too many replies wait already; returns whether it was taken.

        A job for which there are free slots is always taken.
        """
        count = len(job.work.samplings)
        free = self._lanes[job.work.model].engine.free_slots
        with self._lock:
            if self._num_waiting + count > max_waiting + free:
                return False
            self._num_waiting += count
        self._inbox.put(("submit", job))
        return True

    def cancel(self, job: Job) -> None:
        """Gives up a job; its slots are free after the step that is being computed."""
        self._inbox.put(("cancel", job))

    def stop(self) -> None:
        """Ends the thread after the step that is being computed."""
        self._inbox.put(("stop", None))

    def run(self) -> None:
        """Compiles all programs, then steps until told to stop."""
        stopped = False
        try:
            self._warm_up()
            self.state = "ready"
            while self._take_commands():
                for lane in self._lanes.values():
                    self._step(lane)
            stopped = True
        finally:
            self.state = "stopped" if stopped else "failed"
            self._give_up_all()

    def _warm_up(self) -> None:
        for name, lane in self._lanes.items():
            lane.constraints.prepare()
            for program in lane.engine.warm_up():
                self.progress = f"{name}: {program}"
                _LOGGER.debug("compiled %s", self.progress)

    def _take_commands(self) -> bool:
        """Carries out what was asked for since the last step; returns whether to go on.

        Waits for something to do where no engine has anything.
        """
        while True:
            try:
                command, job = self._inbox.get(block=not self._busy)
            except queue.Empty:
                return True
            if command == "stop":
                return False
            lane = self._lanes[job.work.model]
            if command == "submit":
                lane.waiting.put(job.work.client, job)
            else:
                self._cancel(lane, job)

    @property
    def _busy(self) -> bool:
        return any(lane.engine.busy or len(lane.waiting) for lane in self._lanes.values())

    def _cancel(self, lane: Lane, job: Job) -> None:
        if lane.waiting.remove(job):
            self._mark_started(job)
        for request in job.requests:
            if lane.jobs.pop(request, None) is not None:
                lane.engine.cancel(request)
        if job.requests:
            self._mark_started(job)

    def _step(self, lane: Lane) -> None:
        # One prompt ahead of the slots, which is prefilled while they are busy: later ones wait
        # here, where clients take turns.
        while (
            lane.engine.waiting <= lane.engine.free_slots
            and (job := lane.waiting.take()) is not None
        ):
            self._begin(lane, job)
        if not lane.engine.busy:
            return
        outputs: dict[Job, list[tuple[int, RequestOutput]]] = {}
        for output in lane.engine.step():
            entry = lane.jobs.get(output.request)
            if entry is None:  # cancelled
                continue
            job, index = entry
            outputs.setdefault(job, []).append((index, output))
            if output.completion is not None:
                del lane.jobs[output.request]
        for job in {job for job, _ in lane.jobs.values()} | outputs.keys():
            if not job.started and not any(map(lane.engine.is_waiting, job.requests)):
                self._mark_started(job)
        for job, added in outputs.items():
            job.deliver(added)

    def _begin(self, lane: Lane, job: Job) -> None:
        work = job.work
        constraints = None
        try:
            if work.grammar is not None:
                constraints = [lane.constraints.make(work.grammar) for _ in work.samplings]
            job.requests = lane.engine.submit(
                work.prompt,
                work.samplings,
                num_top_logprobs=work.num_top_logprobs,
                constraints=constraints,
            )
        except GenerationError as error:
            self._mark_started(job)
            job.on_failure(error)
            return
        lane.jobs.update({request: (job, index) for index, request in enumerate(job.requests)})

    def _mark_started(self, job: Job) -> None:
        if job.started:
            return
        job.started = True
        with self._lock:
            self._num_waiting -= len(job.work.samplings)
        job.on_start()

    def _give_up_all(self) -> None:
        """Tells every job that it will not be finished."""
        jobs: list[Job] = []
        for lane in self._lanes.values():
            jobs += itertools.chain(dict.fromkeys(job for job, _ in lane.jobs.values()))
            while (job := lane.waiting.take()) is not None:
                jobs.append(job)
        while True:
            try:
                command, queued = self._inbox.get_nowait()
            except queue.Empty:
                break
            if command == "submit":
                jobs.append(queued)
        for job in jobs:
            job.on_failure(None)
