"""Forecasts of a running lab: made after each submission, kept with what came of them, and made anew for who looks.

:class:`Forecaster` is a part of the service.  It takes what is live from the dispatcher, in the dispatcher's thread,
and plays it forward (:mod:`evenkeel.lab.forecast`) in its own.  When a submission has ended, its forecast is compared
with what came, and the bands of later ones are moved by what was missed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi import FastAPI
from sqlalchemy import Connection, RowMapping, bindparam, insert, select, update

from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError
from evenkeel.lab import boots, schema
from evenkeel.lab.actor import Actor, NotFound
from evenkeel.lab.dispatcher import Dispatcher
from evenkeel.lab.forecast import CALIBRATED_BY, Agent, Band, Calibration, Forecast, Job, Live, foretell
from evenkeel.lab.lab import Lab
from evenkeel.lab.live import Node, Sub
from evenkeel.lab.step import parse_when
from evenkeel.lab.store import Away

log = logging.getLogger("evenkeel.lab")
#: With more open steps than this nothing is foretold: it would cost seconds, and be worth little.
MOST_STEPS = 5000
#: A forecast for who looks is made anew when it is older.
_FRESH_NS = 2 * 10**9
#: After a forecast nothing is foretold for so many times what it took: the dispatcher runs in the same process.
_REST = 9
_SECOND_LOOK_S = 1.0
#: The dispatcher hears of a submission a moment after it was committed.
_TRIES, _TRY_S = 5, 0.02
_OPEN = frozenset({"blocked", "ready", "running"})
_forecast, _step, _sub, _claim = schema.forecast.c, schema.step.c, schema.submission.c, schema.claim.c


class Times(Model):
    """In 8 of 10 cases it is between p10 and p90."""

    p10_ns: int
    p50_ns: int
    p90_ns: int


class Eta(Model):
    """``ahead``: steps that will start before; ``people``: of how many others.

    ``unknown``: in words, why there is no start or no end; empty when both are known.
    """

    made_ns: int
    start: Times | None
    end: Times | None
    ahead: int
    people: int
    unknown: str


class SubmissionEta(Model):
    """``now``: as it looks now, None once it has ended; ``first``: as it was foretold when it was sent in.
    ``no_forecast``: in words, why nothing is foretold now."""

    submission: int
    now: Eta | None
    first: Eta | None
    started_ns: int | None
    ended_ns: int | None
    steps: dict[str, Eta]
    no_forecast: str = ""


class Current(NamedTuple):
    """By their numbers, what open steps and open submissions are foretold.  ``none``: in words, why for nothing."""

    steps: Mapping[int, Eta]
    submissions: Mapping[int, Eta]
    none: str = ""


class TooMany(EvenkeelError):
    """More open steps than forecasts are made for."""


# -- from the dispatcher's memory ---------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """``claims``: of running steps, by step; ``masks``: of all machines, the groups whose steps may have them;
    ``likely``: machines that steps will probably get whose start is being written, by step; ``ending``: claims of steps
    that were cancelled and are about to end."""

    live: Live
    claims: dict[int, int]
    masks: dict[str, int]
    likely: dict[int, str]
    ending: list[int]


def live_of(dispatcher: Dispatcher) -> _Seen:
    """What is live.  In the dispatcher's thread only."""
    if len(dispatcher.nodes) > MOST_STEPS:
        raise TooMany(f"{len(dispatcher.nodes)} steps are open, and forecasts are made for {MOST_STEPS} at most")
    ready = dispatcher.ready
    jobs: list[Job] = []
    claims: dict[int, int] = {}
    likely: dict[int, str] = {}
    ending: list[int] = []
    for sub in dispatcher.subs.values():
        if not sub.cancelled:
            jobs += _jobs(dispatcher, sub)
        else:
            ending += [node.run.claim_id for node in sub.steps.values() if node.run and node.run.claim_id is not None]
    for job in jobs:
        run = dispatcher.nodes[job.id].run
        if run is not None and run.claim_id is not None:
            claims[job.id] = run.claim_id
        elif run is not None and run.machine_id is not None:
            likely[job.id] = run.machine_id
    machines = dispatcher.machines
    masks = machines.masks
    live = Live(
        now_ns=dispatcher.lab.now(),
        jobs=tuple(jobs),
        agents=tuple(
            Agent(a.name, a.slots, a.mask, a.link is not None and a.state == "online")
            for a in dispatcher.agents.values()
        ),
        shares=ready.shares.copy(),
        durations=dispatcher.durations.copy(),
        machines={
            one: masks[one] for one in machines.free | machines.wakes.keys() | machines.over.keys() if masks.get(one)
        },
        wanting=machines.wanting,
        power=machines.power,
        wants={number: signature[:2] for number, signature in enumerate(ready.signatures)},  # type: ignore[index]
        withheld=machines.fit_any,
    )
    return _Seen(live, claims, masks, likely, ending)


def _jobs(dispatcher: Dispatcher, sub: Sub) -> list[Job]:
    """Open steps of a submission, each after those before it.  It is assumed that all pass; a step that only follows
    a failure is left out."""
    before: dict[int, list[int]] = {}
    for node in sub.steps.values():
        if node.state in _OPEN:
            for child, condition in node.after:
                before.setdefault(child.id, []).append(-node.id if _after_failure(condition) else node.id)
    made: dict[int, Job] = {}
    todo = [node for node in sub.steps.values() if node.state in _OPEN]
    left_out: set[int] = set()
    while todo:
        rest = []
        for node in todo:
            after = before.get(node.id, [])
            if any(number < 0 or number in left_out for number in after) and not node.any_path:
                left_out.add(node.id)
                continue
            after = [number for number in after if number > 0 and number not in left_out]
            if all(number in made for number in after):
                made[node.id] = _job(dispatcher, node, tuple(after))
            else:
                rest.append(node)
        if len(rest) == len(todo):
            break  # behind steps that were left out
        todo = rest
    return list(made.values())


def _after_failure(condition: str) -> bool:
    return any(key == "state" and operator in (":", "=") and value != "passed"
               for key, operator, value in parse_when(condition))  # fmt: skip


def _job(dispatcher: Dispatcher, node: Node, after: tuple[int, ...]) -> Job:
    sub, run = node.sub, node.run
    return Job(
        id=node.id,
        submission=sub.id,
        group=dispatcher.group_for(node),
        kind=node.kind,
        key=node.expected,
        person=sub.person,
        team=sub.team,
        submission_kind=sub.kind,
        submitted_ns=sub.submitted_ns,
        urgent=sub.urgent,
        after=after,
        agent=run.agent if run else None,
        # By what passed since, so that a clock that was set is no reason to expect another end.
        started_ns=dispatcher.lab.now() - (dispatcher.lab.steady() - run.began_ns) if run else None,
    )


# -- the part of the service --------------------------------------------------------------------------------------


class Forecaster:
    """A thread that foretells what was submitted, and learns from what has ended."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._calibration = {(o, w): Calibration() for o in ("step", "submission") for w in ("start", "end")}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = False
        self._seq = 0
        self._new: set[int] = set()
        self._last: tuple[int, Mapping[int, Eta], Mapping[int, Eta]] | None = None
        self._thread = threading.Thread(target=self._work, name="forecasts")

    def start(self) -> None:
        with self.lab.store.read() as connection:
            self._seq = connection.scalar(select(schema.event.c.seq).order_by(schema.event.c.seq.desc()).limit(1)) or 0
            for row in self._known(connection):
                self._learn(row)
        self._end = self.lab.store.listen(lambda _: self._woken.set())
        self._thread.start()
        self.lab.forecaster = self

    def stop(self) -> None:
        self.lab.forecaster = None
        self._end()
        self._stopping = True
        self._woken.set()
        self._thread.join()

    # -- for who looks ----------------------------------------------------------------------------------------

    def etas(self, submission: int | None = None) -> tuple[Mapping[int, Eta], Mapping[int, Eta]]:
        """Of all open steps and of all open submissions, at most two seconds old.

        ``submission``: an open one that is to be among them; waited for while the dispatcher has not heard of it."""
        with self._lock:
            now = self.lab.now()
            if self._last is None or not 0 <= now - self._last[0] < _FRESH_NS:
                self._last = (now, *self._foretell()[:2])
            for _ in range(_TRIES):
                if submission is None or submission in self._last[2]:
                    break
                time.sleep(_TRY_S)
                self._last = (self.lab.now(), *self._foretell()[:2])
            return self._last[1:]

    def _foretell(self) -> tuple[Mapping[int, Eta], Mapping[int, Eta], Mapping[str, Mapping[int, Forecast]]]:
        assert self.lab.dispatching is not None
        live = _with_machines(self.lab, self.lab.dispatching.ask(live_of))
        foretold = foretell(live)
        drawn = {"step": foretold.steps, "submission": foretold.submissions}
        steps, whole = (
            {number: self._eta(object_, live.now_ns, one) for number, one in drawn[object_].items()}
            for object_ in ("step", "submission")
        )
        return steps, whole, drawn

    def _eta(self, object_: str, made_ns: int, drawn: Forecast) -> Eta:
        moved = {
            what: self._calibration[object_, what].apply(made_ns, band) if band and band.p90_ns > made_ns else band
            for what, band in (("start", drawn.start), ("end", drawn.end))
        }
        return Eta(
            made_ns=made_ns,
            start=_times(moved["start"]),
            end=_times(moved["end"]),
            ahead=drawn.ahead,
            people=drawn.people,
            unknown=drawn.unknown,
        )

    # -- the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping:
            self._woken.wait(_SECOND_LOOK_S)
            self._woken.clear()
            began = time.monotonic()
            try:
                self.look()
            except Away as error:
                log.warning("forecasts: %s", error)
            except Exception:
                log.exception("forecasts: something went wrong; the next event is tried again")
            took = time.monotonic() - began
            deadline = time.monotonic() + min(_REST * took, 10)
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))

    def look(self) -> None:
        """What happened since the last look: foretell what is new, compare what has ended."""
        event = schema.event.c
        with self.lab.store.read() as connection:
            rows = connection.execute(
                select(event.seq, event.type, event.object_id)
                .where(event.seq > self._seq, event.type.in_(("submission.submitted", *_ENDS)))
                .order_by(event.seq)
            ).all()
        self._new |= {int(row.object_id) for row in rows if row.type == "submission.submitted"}
        ended = {int(row.object_id) for row in rows if row.type in _ENDS}
        self._new -= ended
        if rows:
            self._seq = rows[-1].seq
        if ended:
            self._compare(sorted(ended))
        for _ in range(_TRIES):
            if not self._new or self.lab.dispatching is None:
                break
            self._keep()
            if self._new:
                time.sleep(_TRY_S)
        self._new.clear()

    def _keep(self) -> None:
        """Foretell what is new.  What the dispatcher has not heard of yet stays new."""
        with self._lock:
            try:
                steps, whole, drawn = self._foretell()
            except TooMany as error:
                log.info("no forecast: %s", error)
                self._new.clear()
                return
            self._last = (self.lab.now(), steps, whole)
        new = self._new & whole.keys()
        self._new -= new
        with self.lab.store.read() as connection:
            mine = set(connection.scalars(select(_step.id).where(_step.submission_id.in_(sorted(new)))))
        kept = [_row("step", n, steps[n], drawn["step"][n]) for n in mine & steps.keys()]
        kept += [_row("submission", n, whole[n], drawn["submission"][n]) for n in new & whole.keys()]
        if kept:
            self.lab.store.write(lambda connection: connection.execute(insert(schema.forecast), kept))

    def _compare(self, ended: list[int]) -> None:
        """What came of the forecasts of these submissions, of which nothing was cancelled."""

        def change(connection: Connection) -> list[RowMapping]:
            found: list[RowMapping] = []
            for number in ended:
                sub = connection.execute(select(_sub.state, _sub.ended_ns).where(_sub.id == number)).one()
                steps = connection.execute(
                    select(_step.id, _step.state, _step.started_ns, _step.ended_ns).where(_step.submission_id == number)
                ).all()
                came = [
                    {"b_object": "step", "b_id": s.id, "started_ns": s.started_ns, "ended_ns": s.ended_ns}
                    for s in steps
                    if s.state in ("passed", "failed") and s.started_ns is not None
                ]
                begun = [step.started_ns for step in steps if step.started_ns is not None]
                if sub.state in ("passed", "failed") and begun:
                    came.append(
                        {"b_object": "submission", "b_id": number, "started_ns": min(begun), "ended_ns": sub.ended_ns}
                    )
                if came:
                    connection.execute(_CAME, came)
                    for one in came:
                        found += connection.execute(
                            select(schema.forecast).where(
                                _forecast.object == one["b_object"], _forecast.object_id == one["b_id"]
                            )
                        ).mappings()
            return found

        for row in self.lab.store.write(change):
            self._learn(row)

    def _learn(self, row: RowMapping) -> None:
        for what, came_ns in (("start", row["started_ns"]), ("end", row["ended_ns"])):
            drawn = _band_of(row, what, "drawn_")
            if drawn is not None and came_ns is not None and drawn.p90_ns > row["made_ns"]:
                self._calibration[row["object"], what].learn(row["made_ns"], drawn, came_ns)

    def _known(self, connection: Connection) -> Iterator[RowMapping]:
        for object_ in ("step", "submission"):
            rows = connection.execute(
                select(schema.forecast)
                .where(_forecast.object == object_, _forecast.ended_ns.is_not(None))
                .order_by(_forecast.ended_ns.desc())
                .limit(2 * CALIBRATED_BY)
            ).mappings()
            yield from reversed(rows.all())


@contextlib.contextmanager
def part(lab: Lab, app: FastAPI) -> Iterator[Forecaster]:
    """After the dispatcher, which it asks."""
    forecaster = Forecaster(lab)
    forecaster.start()
    try:
        yield forecaster
    finally:
        forecaster.stop()


# -- for pages, REST and commands ---------------------------------------------------------------------------------


def of_submission(lab: Lab, actor: Actor, number: int) -> SubmissionEta:
    """Raises NotFound.  ``now`` and ``steps`` are empty when nothing is foretold, and once it has ended."""
    actor.need("read", "see forecasts")
    with lab.store.read() as connection:
        state = connection.scalar(select(_sub.state).where(_sub.id == number))
        if state is None:
            raise NotFound(f"there is no submission {number}")
        row = connection.execute(
            select(schema.forecast)
            .where(_forecast.object == "submission", _forecast.object_id == number)
            .order_by(_forecast.made_ns)
            .limit(1)
        ).mappings().one_or_none()  # fmt: skip
        names = {row_.id: row_.name for row_ in connection.execute(
            select(_step.id, _step.name).where(_step.submission_id == number, _step.state.in_(sorted(_OPEN)))
        )}  # fmt: skip
    steps, whole, none = current(lab, actor, submission=number if state == "open" else None)
    return SubmissionEta(
        submission=number,
        now=whole.get(number),
        first=_eta_of(row) if row else None,
        started_ns=row["started_ns"] if row else None,
        ended_ns=row["ended_ns"] if row else None,
        steps={name: steps[step] for step, name in names.items() if step in steps},
        no_forecast=none if state == "open" else "",
    )


def current(lab: Lab, actor: Actor, *, submission: int | None = None) -> Current:
    """Of all that is open; nothing, with the reason, where no dispatcher runs, or too much is open."""
    actor.need("read", "see forecasts")
    if lab.forecaster is None:
        return Current({}, {}, "this service stands by, or is starting")
    try:
        return Current(*lab.forecaster.etas(submission))
    except TooMany as error:
        return Current({}, {}, error.message)


# -- small parts --------------------------------------------------------------------------------------------------


def _with_machines(lab: Lab, seen: _Seen) -> Live:
    """The same with the machines that running steps hold, which are free when those end, and with how long those take
    to wake that sleep."""
    live, claims, masks, likely, ending = seen
    with lab.store.read() as connection:
        wakes = {one: wake.likely for one, wake in boots.wakes(connection, live.now_ns).items() if one in live.machines}
        asked = select(_claim.id, _claim.machine_id).where(_claim.id.in_(sorted([*claims.values(), *ending])))
        machine_of = {row.id: row.machine_id for row in connection.execute(asked)}
    machines = dict(live.machines)
    jobs = []
    for job in live.jobs:
        machine = machine_of.get(claims.get(job.id, 0)) or likely.get(job.id)
        if machine is not None:
            machines[machine] = masks.get(machine, 0) | 1 << job.group
            job = replace(job, machine=machine)
        jobs.append(job)
    left = dict(live.power.left)
    for machine in (machine_of[one] for one in ending if one in machine_of):
        machines[machine] = masks.get(machine, 0)
        if (draw := live.power.draws.get(machine)) is not None:
            left[draw.site] += draw.gives
    return replace(live, jobs=tuple(jobs), machines=machines, wakes=wakes, power=replace(live.power, left=left))


def _times(band: Band | None) -> Times | None:
    return Times(p10_ns=band.p10_ns, p50_ns=band.p50_ns, p90_ns=band.p90_ns) if band else None


def _row(object_: str, number: int, shown: Eta, drawn: Forecast) -> dict[str, Any]:
    row: dict[str, Any] = {"object": object_, "object_id": number, "made_ns": shown.made_ns, "ahead": shown.ahead}
    for what, times, band in (("start", shown.start, drawn.start), ("end", shown.end, drawn.end)):
        row |= {f"{what}_{edge}_ns": getattr(times, f"{edge}_ns") if times else None for edge in ("p10", "p50", "p90")}
        row |= {f"{what}_drawn_{edge}_ns": getattr(band, f"{edge}_ns") if band else None for edge in ("p10", "p90")}
    return row | {"unknown": shown.unknown}


def _band_of(row: RowMapping, what: str, which: str = "") -> Band | None:
    if row[f"{what}_p50_ns"] is None:
        return None
    return Band(row[f"{what}_{which}p10_ns"], row[f"{what}_p50_ns"], row[f"{what}_{which}p90_ns"])


def _eta_of(row: RowMapping) -> Eta:
    return Eta(
        made_ns=row["made_ns"],
        start=_times(_band_of(row, "start")),
        end=_times(_band_of(row, "end")),
        ahead=row["ahead"],
        people=0,
        unknown=row["unknown"],
    )


_ENDS = ("submission.passed", "submission.failed", "submission.cancelled")
_CAME = (
    update(schema.forecast)
    .where(_forecast.object == bindparam("b_object"), _forecast.object_id == bindparam("b_id"))
    .values(started_ns=bindparam("started_ns"), ended_ns=bindparam("ended_ns"))
)
