"""Steps as jobs of Slurm: for builders when they are more than one's own agents.

An agent with this executor runs on a machine that may submit; its folder is shared with the nodes.  Slurm places and
runs; the lab keeps order, retries and results, so jobs are never requeued by Slurm.  A job runs the same runner as any
agent (:mod:`evenkeel.lab.slurm_job`) and leaves its result in a file, which is what counts: Slurm forgets jobs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError
from evenkeel.lab import protocol
from evenkeel.lab.executor import Job, OnEnd
from evenkeel.lab.protocol import Ended

_TIMEOUT_S = 60
#: Of a job that may still leave a result; everything else is over.
ALIVE = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "STAGE_OUT", "SIGNALING"}
)
#: Looks at a job that is over before its result counts as missing: a shared folder shows it a little later.
_LOOKS = 5
#: Minutes that Slurm adds to the step's own limit, so that the runner is the one that ends it.
_MORE_MIN = 2


@dataclass
class _Submitted:
    job: Job
    on_end: OnEnd
    number: str
    state: str = ""
    cause: str = ""
    looks: int = 0


@dataclass
class _Asked:
    """How an attempt is to end whose job is not known yet; empty: nobody asked for that."""

    state: str = ""
    cause: str = ""


@dataclass
class Slurm:
    """``identity``: of the agent; attempts have numbers in one lab only, and jobs of several labs can be one user's.

    ``folder``: of this executor, shared with the nodes; ``words``: more options for sbatch; ``reach``: what a job
    needs to fetch and bring files (see slurm_job)."""

    name: str
    identity: str
    folder: Path
    reach: Mapping[str, str]
    words: Sequence[str] = ()
    kind: str = "slurm"
    _jobs: dict[int, _Submitted] = field(default_factory=dict)
    _coming: dict[int, _Asked] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _submitting: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "sbatch"))

    def _of(self, attempt: int) -> Path:
        return self.folder / str(attempt)

    def _job_name(self, attempt: int) -> str:
        return f"evenkeel-{self.identity}-{attempt}"

    def submit(self, job: Job, on_end: OnEnd) -> None:
        # sbatch takes a tenth of a second, or much longer while Slurm's controller is away.
        with self._lock:
            self._coming[job.attempt] = _Asked()
        self._submitting.submit(self._submit, job, on_end)

    def _submit(self, job: Job, on_end: OnEnd) -> None:
        with self._lock:
            asked = self._coming[job.attempt]
            if asked.state:
                del self._coming[job.attempt]
        if asked.state:  # while others were submitted
            on_end(_ended(job.attempt, asked))
            return
        try:
            number = self._sbatch(job)
        except (EvenkeelError, OSError) as error:
            # It may have come through though nothing was answered, and must not run beside another try.
            self._end_by_name(job.attempt)
            with self._lock:
                del self._coming[job.attempt]
            on_end(_ended(job.attempt, asked if asked.state else _Asked("lost", f"Slurm: {error}")))
            return
        with self._lock:
            del self._coming[job.attempt]
            submitted = _Submitted(job, on_end, number, asked.state, asked.cause)
            self._jobs[job.attempt] = submitted
        if submitted.state:  # while sbatch worked
            self._end(submitted)

    def _sbatch(self, job: Job) -> str:
        """The number of its job.  Raises EvenkeelError, OSError."""
        folder = self._of(job.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        orders = {
            "start": job.start.model_dump(mode="json"),
            "name": self.name,
            "folder": str(job.folder),
            **self.reach,
        }
        (folder / "orders.json").write_text(json.dumps(orders))
        limit = job.start.timeout_ns
        words = ["--parsable", "--no-requeue", f"--job-name={self._job_name(job.attempt)}", f"--output={folder}/out"]
        words += [f"--time={limit // (60 * 10**9) + _MORE_MIN}"] if limit else []
        words += [f"--export=ALL,PYTHONPATH={':'.join(filter(None, sys.path))}"]
        run = f"exec {sys.executable} -m evenkeel.lab.slurm_job {folder}"
        number = _slurm("sbatch", *words, *self.words, f"--wrap={run}").split(";")[0].strip()
        (folder / "number.new").write_text(number)
        (folder / "number.new").rename(folder / "number")
        return number

    def cancel(self, attempt: int, state: str, cause: str) -> None:
        with self._lock:
            submitted = self._jobs.get(attempt)
            if submitted is None and (asked := self._coming.get(attempt)) is not None:
                asked.state, asked.cause = state, cause
        if submitted is not None:
            submitted.state, submitted.cause = state, cause
            self._end(submitted)

    def _end(self, submitted: _Submitted) -> None:
        """A job that has not begun just goes; the runner of one that has is told, and writes a result.

        A job that begins this moment may miss both, so :meth:`poll` says it again."""
        for words in (("--state=PENDING",), ("--batch", "--signal=TERM")):
            with contextlib.suppress(EvenkeelError):
                _slurm("scancel", *words, submitted.number)

    def _end_by_name(self, attempt: int) -> None:
        # Without its folder it ends itself, should Slurm not get hold of it.
        shutil.rmtree(self._of(attempt), ignore_errors=True)
        with contextlib.suppress(EvenkeelError):
            _slurm("scancel", f"--name={self._job_name(attempt)}")

    def adopt(self, job: Job, on_end: OnEnd) -> bool:
        """Jobs do not die with their agent."""
        try:
            number = (self._of(job.attempt) / "number").read_text()
        except FileNotFoundError:
            # Killed while it submitted: the job may be there, and must not run beside another try.
            self._end_by_name(job.attempt)
            return False
        with self._lock:
            self._jobs[job.attempt] = _Submitted(job, on_end, number)
        return True

    def poll(self) -> None:
        with self._lock:
            jobs = dict(self._jobs)
        if not jobs:
            return
        try:
            states = self._states()
        except EvenkeelError:
            return  # slurmctld is away; jobs go on
        for attempt, submitted in jobs.items():
            ended = self._result(submitted)
            if ended is None and states.get(submitted.number, "") not in ALIVE:
                submitted.looks += 1
                if submitted.looks >= _LOOKS:
                    state = states.get(submitted.number, "gone")
                    ended = Ended(attempt=attempt, state="lost", cause=f"Slurm: job {submitted.number} is {state}")
            if ended is None:
                if submitted.state:
                    self._end(submitted)
                continue
            with self._lock:
                del self._jobs[attempt]
            if submitted.state and ended.state != "passed":
                ended = ended.model_copy(update={"state": submitted.state, "cause": submitted.cause})
            shutil.rmtree(self._of(attempt), ignore_errors=True)
            submitted.on_end(ended)

    def _result(self, submitted: _Submitted) -> Ended | None:
        try:
            text = (self._of(submitted.job.attempt) / "result.json").read_bytes()
        except FileNotFoundError:
            return None
        ended = protocol.from_agent(text)
        assert isinstance(ended, Ended)
        return ended

    def _states(self) -> dict[str, str]:
        numbers = ",".join(submitted.number for submitted in self._jobs.values())
        try:
            lines = _slurm("squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={numbers}").splitlines()
        except EvenkeelError as error:
            if "Invalid job id" in str(error):  # all of them are so old that Slurm has forgotten them
                return {}
            raise
        return dict(line.split() for line in lines if line.strip())

    def close(self) -> None:
        """Jobs go on: the next agent adopts them."""
        self._submitting.shutdown()


def _ended(attempt: int, asked: _Asked) -> Ended:
    """Of one that has no job."""
    return Ended.model_validate({"attempt": attempt, "state": asked.state, "cause": asked.cause})


def _slurm(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EvenkeelError(f"{words[0]}: {error}", hint="is Slurm's client installed here?") from None
    if done.returncode:
        raise EvenkeelError(f"{words[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def reach_here(contents: Path) -> dict[str, Any]:
    """For an agent on the lab's own machine, whose folder is shared."""
    return {"contents": str(contents)}


def reach_there(url: str, token_file: Path) -> dict[str, Any]:
    """For a lab elsewhere; the nodes read the token from a file that only this user can."""
    return {"url": url, "token_file": str(token_file)}
