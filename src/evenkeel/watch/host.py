"""Watch one host until told to stop: connect, look at everything, wait, look closer, judge, say, repair, reconnect.

The only module here that talks to a machine.  What it says goes to a callback; it must not print.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from evenkeel.apply.hosts import read_facts
from evenkeel.documents.findings import Check, Findings
from evenkeel.documents.plan import HostPlan
from evenkeel.errors import Unreachable, WrongInput
from evenkeel.machines.protocol import Machine, Probe, ProbeError
from evenkeel.probe import canary
from evenkeel.verify.observe import Observation
from evenkeel.watch import picture as look
from evenkeel.watch.catalogue import CANARY
from evenkeel.watch.drift import drifts, still_failing
from evenkeel.watch.notice import Notice, describe
from evenkeel.watch.picture import Picture, Piece
from evenkeel.watch.repair import Outcome, Repairer, live_steps

#: Device interrupts are counted as gone when none has fired on an isolated CPU for this long.
QUIET_S = 10.0
#: Between two looks at the files of the plan: some milliseconds, and nobody else notices them.
FILES_S = 1.0
#: Until repairs are tried again that something stood in the way of: an apply under way, nothing applied.
LEFT_S = 10.0
#: Longest wait for an event; how long it may take until a request to stop is seen.
WAIT_S = 1.0
_BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


@dataclass(frozen=True)
class Wish:
    """``interval_s``: between two looks at what no event tells; ``sweep_s``: between two looks at everything."""

    repair: bool = False
    interval_s: float = 1.0
    sweep_s: float = 60.0


@dataclass
class Watch:
    """A host being watched.  ``say`` and ``count`` are called from the thread that runs it."""

    host: HostPlan
    plan_sha256: str
    machine: Machine
    wish: Wish
    say: Callable[[Notice], None]
    stop: threading.Event
    #: Called with each event of the probe, and after each whole sweep with None.
    count: Callable[[str, dict[str, Any] | None], None] = lambda host, event: None
    failing: dict[str, Check] = field(default_factory=dict)
    picture: Picture | None = None
    _queue: list[Piece] = field(default_factory=list)
    _causes: list[dict[str, Any]] = field(default_factory=list)
    _sweeping: set[Piece] = field(default_factory=set)
    _now: float = 0.0  # the host's clock, as it told last
    _fired_at: float | None = None
    _sweep_at: float = 0.0
    _files_at: float = 0.0
    _repair_at: float = 0.0
    _canary_at: float = 0.0
    _canary_limit_s: float = canary.PATIENCE_S  # until it is known what a healthy answer takes here
    _left: frozenset[str] = frozenset()  # why repairs are not possible, as it was said last

    def __post_init__(self) -> None:
        if self.machine.read_only:
            raise WrongInput(f"{self.machine.address} is a recorded tree; nothing can happen to it")
        self._repairer = Repairer(self.host, self.plan_sha256)

    # -- the verbs ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until ``stop`` is set.  A lost connection is made again, however long it takes."""
        tries = 0
        while not self.stop.is_set():
            try:
                with self.machine.probe() as probe:
                    self._first_look(probe)
                    if self.stop.is_set():
                        return  # half a picture would be full of drifts
                    self._say("back" if tries else "watching", self._summary())
                    tries = 0
                    self._report()
                    while not self.stop.is_set():
                        self._turn(probe)
            except Unreachable as error:
                if not tries:
                    self._now = max(self._now, time.time())
                    self._say("lost", f"{error.message}; trying again")
                self.stop.wait(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
                tries += 1

    def once(self) -> Findings:
        """Look at everything once, repair what may be, and look again at that.  Raises Unreachable."""
        with self.machine.probe() as probe:
            self._first_look(probe)
            self._report()
            if self.wish.repair:
                self._repair(probe)
                while self._queue:
                    self._look(probe, self._queue.pop(0))
                self._report()
        assert self.picture is not None
        return look.judge(self.host, self.picture, self.plan_sha256)

    # -- one conversation ---------------------------------------------------------------------------------------------

    def _first_look(self, probe: Probe) -> None:
        """Everything, with the sources of events open before it, so that nothing falls in between."""
        around = self.picture.around if self.picture else look.Surroundings()  # of before the connection was lost
        first = self._wait(probe, [], [], 0.0)
        facts = read_facts(probe)
        seen = Observation(facts=facts, interrupts={"rows": [], "seconds": 0.0})
        self.picture = Picture(seen, around)
        self._queue = [piece for piece in look.at_first(self.host) if piece.what != "facts"]
        self._causes, self._fired_at = [], None
        for event in first:
            self._take(event)
        while self._queue:
            if self.stop.is_set():
                return
            self._look(probe, self._queue.pop(0))
        # Now the partitions and links are known; what happened to them meanwhile is seen by a second look.
        for event in self._wait_for_events(probe, 0.0):
            self._take(event)
        self._queue += [Piece("threads", guest.name) for guest in self.host.guests]
        while self._queue and not self.stop.is_set():
            self._look(probe, self._queue.pop(0))
        self._ask_canary(probe)
        self._causes.clear()
        self._sweep_at = time.monotonic() + self.wish.sweep_s
        self.count(self.host.name, None)

    def _turn(self, probe: Probe) -> None:
        """Wait for events, or take one look; then say what follows."""
        events = self._wait_for_events(probe, 0.0 if self._queue else WAIT_S)
        for event in events:
            self._take(event)
        self._calm_down()
        self._plan_looks()
        if time.monotonic() >= self._canary_at and not self.stop.is_set():
            self._ask_canary(probe)
        before = None if events else self.picture
        if self._queue:
            piece = self._queue.pop(0)
            self._look(probe, piece)
            if piece in self._sweeping:
                self._sweeping.discard(piece)
                if not self._sweeping:
                    self.count(self.host.name, None)
        if self.picture != before:
            self._report(probe)
        if not self._queue:
            self._causes.clear()
            if self.wish.repair:
                self._repair(probe)

    def _plan_looks(self) -> None:
        """What is looked at from time to time, events or not."""
        now = time.monotonic()
        if not self._queue and now >= self._sweep_at:
            self._queue = list(look.everything(self.host))
            self._sweeping = set(self._queue)
            self._sweep_at = now + self.wish.sweep_s
        if now >= self._files_at:
            self._files_at = now + FILES_S
            if Piece("files") not in self._queue and look.planned_files(self.host):
                self._queue.insert(0, Piece("files"))

    def _wait_for_events(self, probe: Probe, within_s: float) -> list[dict[str, Any]]:
        assert self.picture is not None
        seen = self.picture.seen
        return self._wait(probe, look.partitions(self.host, seen), look.links(seen.facts), within_s)

    def _wait(self, probe: Probe, partitions: list[str], links: list[str], within_s: float) -> list[dict[str, Any]]:
        answer = probe.call(
            "watch",
            partitions=partitions,
            guests=[guest.name for guest in self.host.guests],
            cpus=sorted(self.host.ledger.isolated),
            links=links,
            within_s=within_s,
            interval_s=self.wish.interval_s,
        )
        self._now = answer["at"]
        return list(answer["events"])

    def _take(self, event: dict[str, Any]) -> None:
        assert self.picture is not None
        self.count(self.host.name, event)
        self.picture = look.happened(self.picture, event)
        if event["kind"] == "start" or event.get("first"):
            return
        self._causes.append(event)
        if event["kind"] == "interrupts":
            self._fired_at = time.monotonic()
        urgent = list(look.pieces_for(event, self.host))
        self._queue = urgent + [piece for piece in self._queue if piece not in urgent]

    def _calm_down(self) -> None:
        if self._fired_at is not None and time.monotonic() - self._fired_at >= QUIET_S:
            assert self.picture is not None
            self.picture, self._fired_at = look.quiet(self.picture, QUIET_S), None
            self._report()

    def _look(self, probe: Probe, piece: Piece) -> None:
        assert self.picture is not None
        op, arguments = look.request(piece, self.host)
        try:
            seen = look.took(self.picture.seen, piece, probe.call(op, **arguments))
        except ProbeError as error:
            seen = look.refused(self.picture.seen, piece, error.message)
        self.picture = replace(self.picture, seen=seen)

    def _ask_canary(self, probe: Probe) -> None:
        """Where the plan relies on guests that let go of their CPUs: do they?  When not, it is taken back at once."""
        assert self.picture is not None
        if not look.takes_time_away(self.host):
            self._canary_at = float("inf")
            return
        answer = self._repairer.ask_canary(probe, self._canary_limit_s, take_back=self.wish.repair)
        self._canary_at = time.monotonic() + self.wish.sweep_s
        took, message = answer["slowest_s"], answer["message"]
        if took is not None and message:  # this kernel has no such operation
            self._canary_at = float("inf")
            return
        if took is not None and self._canary_limit_s == canary.PATIENCE_S:
            self._canary_limit_s = canary.limit(took)
        was, now = self.picture.around.canary, message or ""
        if was != now:
            self._take({"kind": "canary", "at": self._now, "message": now, "first": not was and not now})
        if was != now and now:
            self._report()
            back = f"{len(answer['undone'])} settings of real-time throttling taken back"
            problems = "; ".join(answer["problems"])
            if answer["undone"] or problems:
                check = self.failing.get(CANARY.id)
                self._say("not repaired" if problems else "repaired", problems or back, check)
            self._queue = [piece for piece in (Piece("files"),) if piece not in self._queue] + self._queue

    # -- saying -------------------------------------------------------------------------------------------------------

    def _report(self, probe: Probe | None = None) -> None:
        """Judge, and say what is new.  With ``probe`` the host's clock is read again, for the delay."""
        assert self.picture is not None
        findings = look.judge(self.host, self.picture, self.plan_sha256)
        found = drifts(self.failing, findings.checks)
        if not found:
            return
        self.failing = still_failing(self.failing, found)
        cause = self._causes[0] if self._causes else None
        if probe is not None:
            for event in self._wait_for_events(probe, 0.0):
                self._take(event)
        for drift in found:
            self._say(
                drift.kind,
                _told(drift.check),
                drift.check,
                describe(cause) if cause else "sweep",
                round(max(0.0, self._now - cause["at"]), 3) if cause else None,
            )

    def _say(
        self, kind: Any, text: str, check: Check | None = None, cause: str = "", delay_s: float | None = None
    ) -> None:
        self.say(Notice(kind, self.host.name, self._now, text, check, cause, delay_s))

    def _summary(self) -> str:
        events = "partitions, CPUs, devices, links, guests, interrupts, owners"
        repair = f"{len(live_steps(self.host))} settings are put back when they drift" if self.wish.repair else ""
        return f"{len(self.host.settings)} settings; events of {events}" + (f"; {repair}" if repair else "")

    # -- repairing ----------------------------------------------------------------------------------------------------

    def _repair(self, probe: Probe) -> None:
        if time.monotonic() < self._repair_at:
            return
        assert self.picture is not None
        outcomes = self._repairer.repair(probe, self.failing, self.picture.seen.facts)
        for outcome in outcomes:
            self._say_outcome(outcome)
        bodies = [outcome.step.body for outcome in outcomes if outcome.step is not None]
        pieces = [piece for body in bodies for piece in look.pieces_of_step(body, self.host)]
        self._queue += [piece for piece in dict.fromkeys(pieces) if piece not in self._queue]
        left = [outcome for outcome in outcomes if outcome.outcome == "left"]
        if any(outcome.step is None for outcome in left):
            self._repair_at = time.monotonic() + LEFT_S
        if outcomes:
            self._left = frozenset(outcome.message for outcome in left)

    def _say_outcome(self, outcome: Outcome) -> None:
        name = outcome.step.name if outcome.step else ""
        check = self.failing.get(name)
        text = outcome.message if check or not name else f"{name}: {outcome.message}"
        if outcome.outcome == "repaired":
            self._say("repaired", text, check)
        elif outcome.outcome == "failed" or outcome.message not in self._left:
            self._say("not repaired", text, check)


def _told(check: Check) -> str:
    if check.status == "not_checked":
        return check.reason
    return f"{check.observed or 'nothing'}" + (f", expected {check.expected}" if check.status == "failed" else "")


def watch_all(watches: Iterable[Watch], stop: threading.Event) -> None:
    """Run each in a thread of its own until ``stop`` is set.  The first defect or refusal of one ends all.

    The threads do not hold up the end of the process: a step under way is in the journal, and the probe ends it alone.
    """
    broken: list[BaseException] = []

    def run(watch: Watch) -> None:
        try:
            watch.run()
        except BaseException as error:  # noqa: BLE001  raised again below, in the main thread
            broken.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(watch,), name=watch.host.name, daemon=True) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
