"""Run several tools at the same time, on the host and in its guests, beside one load.

Must not interpret the results, and must not fail as a whole because one tool does.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import Any, Sequence

from evenkeel.probe.sample import OnProgress
from evenkeel.probe.sample_dma_latency import GuestHolders, Holders
from evenkeel.probe.sample_guest_timerlat import TimerlatInGuest
from evenkeel.probe.sample_load import under_load
from evenkeel.probe.sample_rttests import InGuest, OnHost, unseen
from evenkeel.probe.sample_tracer import Tracer

#: Each question to its agent takes time of the guest that is measured.
_ASK_GUEST_S = 1.0


def together(
    jobs: Sequence[dict[str, Any]],
    seconds: int,
    interval_us: int = 1000,
    load: dict[str, Any] | None = None,
    live: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run ``jobs`` for ``seconds``: ``{"tool": ..., "cpus": [...], "isolate": [...], "cgroups": {...}}`` on the host,
    or ``{"tool": ..., "guest": name, "vcpus": [...]}`` in a guest.  A tool is cyclictest, oslat or timerlat, on the
    host also osnoise.  ``live``: tell once a second how it stands, behind ``what``, each place after a `` | ``.

    Returns ``{"load": text, "loads": [...], "holders": [...], "guest_holders": {guest: [...]}, "jobs": [...]}``:
    ``loads`` as Load.report() of :mod:`evenkeel.probe.sample_load` gives them; ``holders``: who held
    /dev/cpu_dma_latency meanwhile, on the host and in each guest, None: not known; a job is the tool's result with
    ``spent_s``, which it took by the clock of the host, or
    ``{"error": {"message": text, "errno": name}}``.
    """
    answers: list[dict[str, Any]] = [{} for _ in jobs]
    spent = 0.0

    def tell(what: str) -> None:
        if on_progress:
            on_progress(int(min(spent, seconds) * 10), seconds * 10, what)

    def looking(_done: int, _total: int, what: str) -> None:
        tell(what)

    holders = Holders()
    holders.look()
    inside = [GuestHolders(guest) for guest in sorted({job["guest"] for job in jobs if "guest" in job})]
    for one in inside:
        one.look(on_progress=looking)
    with contextlib.ExitStack() as stack:
        loading = stack.enter_context(contextlib.ExitStack())
        running = loading.enter_context(under_load(load, tell))
        started: dict[int, Any] = {}
        stopped: dict[int, Tracer] = {}
        # A guest takes a moment to start something, so it begins first.
        for number in sorted(range(len(jobs)), key=lambda number: "guest" not in jobs[number]):
            tell("starting %s" % jobs[number]["tool"])
            with _kept(answers, number):
                started[number] = _start(stack, jobs[number], seconds, interval_us, live)
        begin = time.monotonic()
        asked_s = {number: 0.0 for number in started}
        what = ", ".join(sorted({job["tool"] for job in jobs}))
        shown, next_s = "", 0.0
        while started:
            spent = time.monotonic() - begin
            for number in list(started):
                with _kept(answers, number, started):
                    if _ended(jobs[number], started[number], spent, seconds, asked_s, number):
                        tool = started.pop(number)
                        if isinstance(tool, Tracer):
                            stopped[number] = tool
                            continue
                        answers[number] = _answer(tool, begin)
                    elif spent > seconds * 3 + 60:
                        raise OSError(
                            errno.ETIMEDOUT,
                            "%s did not end %.0f s after it should have" % (jobs[number]["tool"], spent - seconds),
                        )
            holders.look()
            for one in inside:
                one.look(on_progress=looking)
            running.look()
            if live and spent >= next_s:
                next_s = spent + 1.0
                standing = [row for tool in started.values() for row in tool.now()] + _failed(jobs, answers)
                shown = "".join(" | " + row for row in standing)
            tell(what + shown)
            if started:
                time.sleep(0.2)
        loaded = {"load": running.text(), "loads": running.report()}
        tell("ending the load" if load else what)
        loading.close()
        # Beside the load reading what is left in the rings of a tracer can take minutes.
        for number, tracer in stopped.items():
            with _kept(answers, number):
                while not tracer.look():
                    tell("reading what %s found" % jobs[number]["tool"])
                answers[number] = _answer(tracer, begin)
    # The load has ended: beside it asking a guest takes many times as long.
    for one in inside:
        one.look(now=True, on_progress=looking)
    return {
        **loaded,
        "holders": holders.names(),
        "guest_holders": {one.guest: one.names() for one in inside},
        "jobs": answers,
    }


def _answer(tool: Any, begin: float) -> dict[str, Any]:
    """What it found, and how long it took: until now, since asking the guests takes its time; a tracer until it was
    stopped, since reading its rings takes time, too.
    """
    stopped = tool.until if isinstance(tool, Tracer) else None
    spent = (stopped or time.monotonic()) - begin
    return {**tool.result(), "spent_s": round(spent, 1)}


def _failed(jobs: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each guest that is not measured."""
    return [
        unseen(job["guest"], answer["error"]["message"])
        for job, answer in zip(jobs, answers)  # noqa: B905
        if "guest" in job and "error" in answer
    ]


def _start(stack: contextlib.ExitStack, job: dict[str, Any], seconds: int, interval_us: int, live: bool) -> Any:
    tool = job["tool"]
    if "guest" in job and tool == "timerlat":
        return TimerlatInGuest(stack, job["guest"], seconds, job["vcpus"], interval_us)
    if "guest" in job:
        return InGuest(stack, job["guest"], tool, seconds, job["vcpus"], interval_us=interval_us, live=live)
    place = {key: job[key] for key in ("cpus", "isolate", "cgroups") if key in job}
    own = stack.enter_context(contextlib.ExitStack())
    if tool in ("timerlat", "osnoise"):
        return Tracer(own, tool, interval_us=interval_us, **place)
    return OnHost(own, tool, seconds, interval_us=interval_us, **place)


def _ended(job: dict[str, Any], tool: Any, spent: float, seconds: int, asked_s: dict[int, float], number: int) -> bool:
    if isinstance(tool, Tracer):
        if spent >= seconds:
            tool.stop()
            return True
        tool.look()
        return False
    if isinstance(tool, (InGuest, TimerlatInGuest)):
        if spent < asked_s[number]:
            return False
        asked_s[number] = spent + _ASK_GUEST_S
    return not tool.running()


@contextlib.contextmanager
def _kept(answers: list[dict[str, Any]], number: int, started: dict[int, Any] | None = None) -> Any:
    """An error of one job is its answer, and ends that job."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        message, code = str(error), None
        if isinstance(error, OSError):
            message = error.strerror or str(error)
            code = errno.errorcode.get(error.errno or 0, str(error.errno))
        answers[number] = {"error": {"message": message, "errno": code}}
        if started is not None:
            started.pop(number, None)
