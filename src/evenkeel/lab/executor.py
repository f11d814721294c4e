"""How an agent gets a step done: as processes of its own, or by handing it to another system (lab.slurm).

The agent talks to the lab and keeps results; an executor knows processes or jobs, and nothing of the lab.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evenkeel.documents.result import Result
from evenkeel.errors import Unreachable
from evenkeel.lab import runner
from evenkeel.lab.keepers import Mother
from evenkeel.lab.leftovers import end_attempt
from evenkeel.lab.logs import NO_ROOM
from evenkeel.lab.protocol import Ended, Start
from evenkeel.lab.step import Use

log = logging.getLogger("evenkeel.lab.agent")
#: Pauses between tries to bring artifacts.
_BRING_AGAIN_S = (1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Job:
    """One attempt.  ``folder``: of its own, not there yet; ``log``: where its log is while it runs and after."""

    start: Start
    folder: Path

    @property
    def attempt(self) -> int:
        return self.start.attempt

    @property
    def log(self) -> Path:
        return self.folder / "log"


#: Called once for each job that was submitted or adopted, from any thread.
OnEnd = Callable[[Ended], None]


class Executor(Protocol):
    """``kind``: shown in the list of agents."""

    kind: str

    def submit(self, job: Job, on_end: OnEnd) -> None:
        """Begin it, and return soon."""
        ...

    def cancel(self, attempt: int, state: str, cause: str) -> None:
        """End it; ``on_end`` follows with that state.  Nothing happens when it has ended."""
        ...

    def adopt(self, job: Job, on_end: OnEnd) -> bool:
        """After the agent was restarted: go on with a job that was submitted before.  False: it is lost, and ended."""
        ...

    def poll(self) -> None:
        """Called each second."""
        ...

    def close(self) -> None:
        """End all that run as this agent's own processes."""
        ...


#: Bring these files (name -> file) to where the lab keeps contents by SHA-256; raises OSError or EvenkeelError.
Bring = Callable[[Mapping[str, Path], Result], None]


@dataclass
class _Running:
    run: runner.Run
    on_end: OnEnd
    state: str = ""
    cause: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class Processes:
    """Steps as processes of this agent, each under a keeper that ends it when the agent dies."""

    name: str
    identity: str
    fetch: runner.Fetch | None = None
    bring: Bring | None = None
    cgroup: str | None = None
    kind: str = "process"
    _running: dict[int, _Running] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _mother: Mother = field(default_factory=Mother)

    def submit(self, job: Job, on_end: OnEnd) -> None:
        self.begin(job, on_end)

    def begin(self, job: Job, on_end: OnEnd) -> threading.Thread:
        """:meth:`submit`, with what can be waited for."""
        start = job.start
        run = runner.Run(
            Use.model_validate(start.use),
            job.folder,
            fetch=self.fetch,
            agent=self.name,
            machine={key: str(value) for key, value in (start.machine or {}).items()},
            time_ns=start.timeout_ns,
            cgroup=self.cgroup,
            keep=self._mother.keep,
        )
        with self._lock:
            self._running[job.attempt] = _Running(run, on_end)
        thread = threading.Thread(target=self._run, args=(job,), name=f"attempt-{job.attempt}", daemon=True)
        thread.start()
        return thread

    def _run(self, job: Job) -> None:
        running = self._running[job.attempt]
        try:
            ran = running.run.run()
            if ran.files and self.bring is not None:
                self._bring(running, self.bring, ran)
            ended = _ended(job.attempt, ran.result)
        except Exception as error:  # noqa: BLE001  a full disk, a lab that is away for too long: the step has no result
            ended = Ended(attempt=job.attempt, state="lost", cause=f"agent: {error}")
        with self._lock:
            del self._running[job.attempt]
        if running.state and ended.state != "passed":
            ended = ended.model_copy(update={"state": running.state, "cause": running.cause})
        running.on_end(ended)

    @staticmethod
    def _bring(running: _Running, bring: Bring, ran: runner.Ran) -> None:
        """The work is done: a lab that is away, or whose disk is full, is waited for, unless somebody cancels."""
        for pause_s in itertools.chain(_BRING_AGAIN_S, itertools.repeat(_BRING_AGAIN_S[-1])):
            try:
                return bring(ran.files, ran.result)
            except (Unreachable, OSError) as error:
                if isinstance(error, OSError) and error.errno not in NO_ROOM:
                    raise
                log.warning("artifacts cannot be brought, tried again in %g s: %s", pause_s, error)
                if running.cancelled.wait(pause_s):
                    raise
        return None

    def cancel(self, attempt: int, state: str, cause: str) -> None:
        with self._lock:
            running = self._running.get(attempt)
        if running is not None:
            running.state, running.cause = state, cause
            running.cancelled.set()
            running.run.cancel()

    def adopt(self, job: Job, on_end: OnEnd) -> bool:
        del on_end  # they died with the agent; should their keeper have died too, they end now
        end_attempt(self.identity, job.attempt)
        with contextlib.suppress(OSError):
            shutil.rmtree(job.folder / "work")
        return False

    def poll(self) -> None:
        with contextlib.suppress(OSError):  # for now; the step that needs it will say so
            self._mother.ready()  # before the first step needs it

    def close(self) -> None:
        with self._lock:
            running = list(self._running.values())
        for one in running:
            one.cancelled.set()
            one.run.cancel()
        self._mother.close()


def _ended(attempt: int, result: Result) -> Ended:
    document: dict[str, Any] = result.model_dump(mode="json")
    return Ended(
        attempt=attempt,
        state=result.state,
        exit=result.exit,
        cause=result.cause if result.cause != "exit" or not result.detail else result.detail,
        output=result.output,
        result=document,
    )
