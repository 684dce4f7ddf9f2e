"""The thread that runs the engines: takes up requests between steps, and delivers their outputs.

All engines of a process share one thread, and each has a step in turn: there is one device to wait
for. The rest of the server is asyncio; `EngineThread` is what it talks to, from any thread.
"""

import dataclasses
import logging
import queue
import threading
from collections.abc import Mapping
from typing import Literal

from stepaudio_jax.errors import GenerationError
from stepaudio_jax.generation import Engine, RequestOutput
from stepaudio_jax.serving.command_link import CommandLink
from stepaudio_jax.serving.constraints import ConstraintFactory
from stepaudio_jax.serving.fair_queue import FairQueue
from stepaudio_jax.serving.jobs import Command, Job

_LOGGER = logging.getLogger(__name__)
_HEARTBEAT_S = 1.0  # between two messages to the other processes, which wait for one
State = Literal["starting", "ready", "stopped", "failed"]


@dataclasses.dataclass(frozen=True)
class Lane:
    """An engine and the jobs that wait for it.

    Attributes:
        engine: the engine.
        constraints: makes the constraints of its model.
        waiting: jobs that the engine does not have yet.
        jobs: by the engine's number of a reply: the job, and which of its replies it is.
    """

    engine: Engine
    constraints: ConstraintFactory
    waiting: FairQueue[Job] = dataclasses.field(default_factory=FairQueue)
    jobs: dict[int, tuple[Job, int]] = dataclasses.field(default_factory=dict)


class EngineThread(threading.Thread):
    """Runs engines until it is stopped.

    Args:
        lanes: the engine of each model, by the model's name.
        link: to the other processes that run the same engines; None for a single process.

    Attributes:
        state: "starting" while programs are compiled, "ready", "stopped", or "failed" where an
            engine has ended by an error, which the log has.
        progress: what was compiled last.
    """

    def __init__(self, lanes: Mapping[str, Lane], link: CommandLink | None = None):
        super().__init__(name="engine", daemon=True)
        self._lanes, self._link = lanes, link
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._accepted: dict[Job, None] = {}  # all that have not ended, wherever they are
        self._is_stopping = threading.Event()
        self.state: State = "starting"
        self.progress = ""

    @property
    def num_waiting(self) -> int:
        """Replies without a slot; all replies to a request count until the last of them has one."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Replies that have a slot."""
        return sum(lane.engine.num_slots - lane.engine.free_slots for lane in self._lanes.values())

    def try_submit(self, job: Job, max_waiting: int) -> bool:
        """Takes a job unless too many replies wait already; returns whether it was taken.

        As many replies may wait as the job's model has free slots, and `max_waiting` more; those
        that wait for other models count too. Once the thread has ended no job is taken.
        """
        count = len(job.work.samplings)
        free = self._lanes[job.work.model].engine.free_slots
        with self._lock:
            has_ended = self.state in ("stopped", "failed")
            if has_ended or self._num_waiting + count > max_waiting + free:
                return False
            self._num_waiting += count
            self._accepted[job] = None
        self._inbox.put(Command("submit", job))
        return True

    def cancel(self, job: Job) -> None:
        """Gives up a job; its slots are free after the step that is being computed."""
        self._inbox.put(Command("cancel", job))

    def stop(self) -> None:
        """Ends the thread after the step or the compilation that it is at."""
        self._is_stopping.set()
        self._inbox.put(Command("stop"))

    def run(self) -> None:
        """Compiles all programs, then steps until told to stop."""
        stopped = False
        try:
            self._warm_up()
            if not self._is_stopping.is_set():
                self.state = "ready"
            while self._take_commands():
                for lane in self._lanes.values():
                    self._step(lane)
            stopped = True
        finally:
            self._give_up_all("stopped" if stopped else "failed")

    def _warm_up(self) -> None:
        for name, lane in self._lanes.items():
            lane.constraints.prepare()
            for program in lane.engine.warm_up():
                self.progress = f"{name}: {program}"
                if self._is_stopping.is_set():
                    return
                _LOGGER.debug("compiled %s", self.progress)

    def _take_commands(self) -> bool:
        """Carries out what was asked for since the last step; returns whether to go on."""
        commands = self._read_inbox()
        if self._link is not None:
            commands = self._link.exchange(commands)
        for command in commands:
            if command.kind == "stop":
                return False
            if command.job is None:
                continue
            lane = self._lanes[command.job.work.model]
            if command.kind == "submit":
                lane.waiting.put(command.job.work.client, command.job)
            else:
                self._cancel(lane, command.job)
        return True

    def _read_inbox(self) -> list[Command]:
        """Returns the commands that wait; waits for one where no engine has anything to do."""
        if self._link is not None and not self._link.is_leader:
            return []
        commands = []
        is_idle = not any(lane.engine.busy or len(lane.waiting) for lane in self._lanes.values())
        try:
            if is_idle:
                timeout = None if self._link is None else _HEARTBEAT_S
                commands.append(self._inbox.get(timeout=timeout))
            while True:
                commands.append(self._inbox.get_nowait())
        except queue.Empty:
            return commands

    def _cancel(self, lane: Lane, job: Job) -> None:
        lane.waiting.remove(job)
        for request in job.requests:
            if lane.jobs.pop(request, None) is not None:
                lane.engine.cancel(request)
        self._end(job)

    def _step(self, lane: Lane) -> None:
        # One prompt ahead of the slots, which is prefilled while they are busy: later ones wait
        # here, where clients take turns.
        while (
            lane.engine.num_waiting <= lane.engine.free_slots
            and (job := lane.waiting.take()) is not None
        ):
            self._begin(lane, job)
        if not lane.engine.busy:
            return
        outputs: dict[Job, list[tuple[int, RequestOutput]]] = {}
        running = {job: None for job, _ in lane.jobs.values()}
        for output in lane.engine.step():
            entry = lane.jobs.get(output.request)
            if entry is None:  # cancelled
                continue
            job, index = entry
            outputs.setdefault(job, []).append((index, output))
            if output.completion is not None:
                del lane.jobs[output.request]
        for job in running:
            if not job.started and not any(map(lane.engine.is_waiting, job.requests)):
                self._mark_started(job)
            if not any(request in lane.jobs for request in job.requests):
                self._end(job)
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
            self._end(job)
            job.on_failure(error)
            return
        lane.jobs.update({request: (job, index) for index, request in enumerate(job.requests)})

    def _mark_started(self, job: Job) -> None:
        if not job.started:
            job.started = True
            with self._lock:
                self._num_waiting -= len(job.work.samplings)

    def _end(self, job: Job) -> None:
        self._mark_started(job)
        with self._lock:
            self._accepted.pop(job, None)
        if self._link is not None:
            self._link.forget(job)

    def _give_up_all(self, state: State) -> None:
        """Takes no further jobs, and tells those that were taken that they will not be finished."""
        with self._lock:
            self.state = state
            jobs, self._accepted = [*self._accepted], {}
        for job in jobs:
            job.on_failure(None)
