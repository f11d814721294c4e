"""When a step will start and end: the queue played forward in simulated time.  Pure: no database, no clock.

One pass with median durations, by the very order of :mod:`evenkeel.lab.order`, says who comes when.  In that order all
is then played :data:`PASSES` times at once with durations drawn from those learned, for the 80 % band.  Submissions
that come later are not known; they, and whatever else the model lacks, are in the errors of earlier forecasts, by which
:class:`Calibration` moves the ends of the band (split conformal prediction: of the latest forecasts, at most a tenth
ended before the band and a tenth after it).

Times are nanoseconds since 1970.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from evenkeel.lab import forecast_power
from evenkeel.lab.durations import Durations, quantile
from evenkeel.lab.forecast_power import Power
from evenkeel.lab.order import QUANTUM_NS, Ready, Shares

PASSES = 30
#: The band: from this quantile to one minus it.
EDGE = 0.1
#: Past forecasts, the latest so many, of which there must be a few.
CALIBRATED_BY = 1000
CALIBRATED_FROM = 30
#: What calibration aims at on each side.  A little less than EDGE: the errors of late ones become known last, so what
#: is known of errors is always too good (measured on two replayed months: 2 % of coverage).
_AIM = 0.09
#: Below and beyond it errors are learned apart: what runs at once fails otherwise than what waits for others.
_NEAR_NS = 60 * 60 * 10**9
_LEAST_SCALE_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Job:
    """A step that has not ended.  ``group``: number in the Ready index.  ``started_ns``, ``agent``: of a running one.

    ``after``: those of the steps before it that have not ended.
    """

    id: int
    submission: int
    group: int
    kind: str
    key: str
    person: str
    team: str
    submission_kind: str
    submitted_ns: int
    urgent: bool = False
    after: tuple[int, ...] = ()
    agent: str | None = None
    started_ns: int | None = None
    machine: str | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """``mask``: bits of the groups that it fits.  One that takes nothing (drained, lost) still ends what it runs."""

    name: str
    slots: int
    mask: int
    takes: bool = True


class Floor:
    """Agents, machines and steps in simulated time: what the dispatcher does, without agents and without a database.

    ``machines``: name -> bits of the groups whose steps could have it; ``wanting``: bits of groups that want one.
    ``expected``: what a step will probably take, nanoseconds.  ``power``: what machines count for at their sites.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        ready: Ready,
        expected: Callable[[Job], int],
        *,
        machines: Mapping[str, int] | None = None,
        wanting: int = 0,
        power: Power = forecast_power.NONE,
    ) -> None:
        # Who can do the least goes first, so that who can do more is left for others; as the dispatcher does.
        self.agents = sorted(agents, key=lambda agent: (agent.mask.bit_count(), agent.name))
        self.free = {agent.name: agent.slots if agent.takes else 0 for agent in self.agents}
        self.ready = ready
        self.jobs: dict[int, Job] = {}
        self.running: dict[int, tuple[str, int, str | None, int]] = {}  # agent, start, machine, expected
        self.machines = dict(machines or {})
        self.wanting = wanting
        self._expected = expected
        self._held: set[str] = set()
        self._rooms = forecast_power.Rooms(power)
        self._before: dict[int, int] = {}
        self._children: dict[int, list[int]] = {}
        self._available = self._look()

    def _look(self) -> int:
        """Bits of groups that want no machine, or could get one."""
        mask = ~self.wanting
        for name, fits in self.machines.items():
            if self._could_have(name):
                mask |= fits
        return mask

    def _could_have(self, machine: str) -> bool:
        return machine not in self._held and self._rooms.lets(machine)

    @property
    def available(self) -> int:
        return self._available

    def enter(self, job: Job) -> None:
        """All of ``job.after`` must have been entered before."""
        self.jobs[job.id] = job
        for before in job.after:
            self._children.setdefault(before, []).append(job.id)
        if job.after:
            self._before[job.id] = len(job.after)
        elif job.started_ns is None:
            self._queue(job)
        else:
            assert job.agent is not None
            self._take(job, job.agent, job.started_ns, job.machine, self._expected(job))

    def _queue(self, job: Job) -> None:
        self.ready.add(
            job.id,
            job.group,
            person=job.person,
            team=job.team,
            kind=job.submission_kind,
            submitted_ns=job.submitted_ns,
            urgent=job.urgent,
        )

    def _take(self, job: Job, agent: str, now_ns: int, machine: str | None, expected_ns: int) -> None:
        self.free[agent] = self.free.get(agent, 0) - 1
        if machine is not None:
            self.keep(machine)
        self.running[job.id] = (agent, now_ns, machine, expected_ns)

    def keep(self, machine: str) -> None:
        """Nobody gets it until :meth:`give`."""
        self._held.add(machine)
        self._available = self._look()

    def give(self, machine: str) -> None:
        self._held.discard(machine)
        self._available = self._look()

    def start(self, now_ns: int) -> list[Job]:
        """Give every free slot its best step, until nothing fits.  What started, in order."""
        started: list[Job] = []
        if not self.ready.waiting & self._available:
            return started
        for agent in self.agents:
            while self.free[agent.name] > 0:
                number = self.ready.best(agent.mask & self._available, now_ns)
                if number is None:
                    break
                job = self.jobs[number]
                self.ready.drop(number)
                machine = self._machine_for(job)
                if machine is not None:
                    self._rooms.take(machine)
                expected_ns = self._expected(job)
                self.ready.charge(job.person, job.team, expected_ns, now_ns)
                self._take(job, agent.name, now_ns, machine, expected_ns)
                started.append(job)
        return started

    def _machine_for(self, job: Job) -> str | None:
        if not self.wanting >> job.group & 1:
            return None
        return min(name for name, fits in self.machines.items() if fits >> job.group & 1 and self._could_have(name))

    def open_jobs(self) -> tuple[Job, ...]:
        """All that have not ended, as a forecast wants them: what runs with agent and start, what is over left out."""
        made = []
        for job in self.jobs.values():
            run = self.running.get(job.id)
            if run is not None:
                made.append(replace(job, after=(), agent=run[0], started_ns=run[1], machine=run[2]))
            else:
                made.append(replace(job, after=tuple(number for number in job.after if number in self.jobs)))
        return tuple(made)

    def end(self, number: int, now_ns: int, *, passed: bool = True) -> list[int]:
        """It ended.  When it passed, those after it come nearer; when not, they are dropped, with all that follow.

        Returns what was dropped."""
        agent, started_ns, machine, expected_ns = self.running.pop(number)
        job = self.jobs.pop(number)
        self.free[agent] += 1
        if machine is not None:
            self._rooms.give(machine)
            self.give(machine)
        self.ready.charge(job.person, job.team, now_ns - started_ns - expected_ns, started_ns)
        dropped: list[int] = []
        for child in self._children.pop(number, ()):
            if not passed:
                self._skip(child, dropped)
            elif child in self._before:
                self._before[child] -= 1
                if not self._before[child]:
                    del self._before[child]
                    self._queue(self.jobs[child])
        return dropped

    def _skip(self, number: int, dropped: list[int]) -> None:
        if self._before.pop(number, None) is not None:
            del self.jobs[number]
            dropped.append(number)
            for child in self._children.pop(number, ()):
                self._skip(child, dropped)


# -- the forecast -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Band:
    """One time, as 80 % band and median."""

    p10_ns: int
    p50_ns: int
    p90_ns: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """``ahead``: steps that will start before it; ``people``: whose they are, without its own submitter's.

    ``unknown``: in words, why there is no ``start``, or no ``end``; empty when both are known.
    """

    start: Band | None
    end: Band | None
    ahead: int = 0
    people: int = 0
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Live:
    """All that a forecast looks at.  ``jobs``: in an order in which each comes after those in its ``after``."""

    now_ns: int
    jobs: tuple[Job, ...]
    agents: tuple[Agent, ...]
    shares: Shares
    durations: Durations
    machines: Mapping[str, int] = field(default_factory=dict)
    wanting: int = 0
    #: Those of them that sleep: nanoseconds until each answers, as often as it is known of its like.
    wakes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: What a group wants of an agent and of a machine, in words: for steps that nobody can take.
    wants: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    #: What machines count for at sites that have a power budget.
    power: Power = forecast_power.NONE
    #: Bits of groups that machines of the pool fit, of which steps can have none: reserved by people, or broken.
    withheld: int = 0


@dataclass(frozen=True, slots=True)
class Foretold:
    steps: Mapping[int, Forecast]
    submissions: Mapping[int, Forecast]


def foretell(live: Live, *, passes: int = PASSES, seed: int = 0) -> Foretold:
    """Forecasts of all open steps, and of submissions: the start of their first step and the end of their last.

    The bands are as drawn, not calibrated.  Costs about 50 us a step, so 15 ms for 300 open ones.
    """
    why = _impossible(live)
    jobs = _without(live, why)
    medians: dict[tuple[str, str], int | None] = {}

    def median(job: Job) -> int | None:
        if (job.kind, job.key) not in medians:
            medians[job.kind, job.key] = live.durations.median(job.kind, job.key)
        return medians[job.kind, job.key]

    order = _play(live, jobs, lambda job: median(job) or QUANTUM_NS)
    if len(order) < len(jobs):  # in the end nobody is left who gives a machine back
        begun = set(order)
        for job in jobs:
            if job.id not in begun:
                why[job.id] = _after(job, why) or _NO_POWER
        jobs = _without(live, why)
    starts, ends = _draw(live, jobs, order, passes, np.random.default_rng(seed))
    steps: dict[int, Forecast] = {}
    ahead, people = 0, set[str]()
    by_id = {job.id: job for job in jobs}
    start_bands, end_bands = _bands(live.now_ns, starts), _bands(live.now_ns, ends)
    guessed = 0
    for seen, number in enumerate(order):
        job = by_id[number]
        learned = median(job) is not None
        unknown = "" if learned else f"no step of the kind {job.kind} has passed yet"
        start: Band | None = start_bands[number]
        if job.started_ns is not None:
            start = Band(job.started_ns, job.started_ns, job.started_ns)
        elif start_bands[number].p90_ns > live.now_ns:
            first = next((by_id[one] for one in job.after if one in by_id and median(by_id[one]) is None), None)
            if first is not None:
                start, unknown = None, f"it comes after a step of the kind {first.kind}, of which none has passed yet"
            elif 2 * guessed > seen:
                start, unknown = None, "most of what comes before it is of kinds of which no step has passed yet"
        steps[number] = Forecast(
            start=start,
            end=None if unknown else end_bands[number],
            ahead=ahead,
            people=len(people - {job.person}),
            unknown=unknown,
        )
        guessed += not learned
        if job.started_ns is None:
            ahead += 1
            people.add(job.person)
    for number, words in why.items():
        steps[number] = Forecast(None, None, unknown=words)
    return Foretold(steps, _whole(live, steps, starts, ends))


_AFTER = "it comes after a step for which "
#: Of what never begins in a forecast: it would begin when machines are put to sleep, or people give theirs back.
_NO_POWER = "a power budget keeps back every machine that it could have"


def _after(job: Job, why: Mapping[int, str]) -> str:
    """Why a step cannot be foretold that comes after another of those; empty when it does not."""
    before = next((why[one] for one in job.after if one in why), "")
    return before and _AFTER + before.removeprefix(_AFTER)


def _without(live: Live, why: Mapping[int, str]) -> list[Job]:
    return [job for job in live.jobs if job.id not in why]


def _impossible(live: Live) -> dict[int, str]:
    """Steps that cannot be foretold -> why: nobody there can take them, or one before them."""
    fits = 0
    for agent in live.agents:
        if agent.takes:
            fits |= agent.mask
    machines = ~live.wanting
    for mask in live.machines.values():
        machines |= mask
    why: dict[int, str] = {}
    for job in live.jobs:
        if job.started_ns is not None:
            continue
        wanted, machine = live.wants.get(job.group, ("", ""))
        if not fits >> job.group & 1:
            why[job.id] = f"no agent of that kind is online: {wanted}" if wanted else "no agent is online"
        elif not machines >> job.group & 1:
            there = (
                "free for steps, people hold them or they are broken" if live.withheld >> job.group & 1 else "like that"
            )
            why[job.id] = f"no machine of the pool is {there}{f': {machine}' if machine else ''}"
        elif after := _after(job, why):
            why[job.id] = after
    return why


def _play(live: Live, jobs: list[Job], expected: Callable[[Job], int]) -> list[int]:
    """Numbers of steps in the order in which they start, running ones first, each taking what is expected of it."""
    ready = Ready(live.shares.copy())
    for number in range(max((job.group for job in jobs), default=-1) + 1):
        ready.group(number)
    floor = Floor(live.agents, ready, expected, machines=live.machines, wanting=live.wanting, power=live.power)
    order: list[int] = []
    ends: list[tuple[int, int]] = []
    asleep = list(live.wakes)
    for index, name in enumerate(asleep):
        floor.keep(name)
        heapq.heappush(ends, (live.now_ns + quantile(live.wakes[name], 0.5), -1 - index))
    for job in jobs:
        floor.enter(job)
        if job.started_ns is not None:
            elapsed = live.now_ns - job.started_ns
            order.append(job.id)
            heapq.heappush(ends, (live.now_ns + _left(live.durations.like(job.kind, job.key), elapsed), job.id))
    now_ns = live.now_ns
    while True:
        for job in floor.start(now_ns):
            order.append(job.id)
            heapq.heappush(ends, (now_ns + expected(job), job.id))
        if not ends:
            return order
        now_ns, number = heapq.heappop(ends)
        if number < 0:
            floor.give(asleep[-1 - number])
        else:
            floor.end(number, now_ns)


def _left(like: tuple[int, ...], elapsed_ns: int) -> int:
    """Median of what is left of a step that runs that long already."""
    longer = [took for took in like if took > elapsed_ns]
    if longer:
        return quantile(longer, 0.5) - elapsed_ns
    return max(_LEAST_SCALE_NS, elapsed_ns // 2) if like else QUANTUM_NS


def _draw(
    live: Live, jobs: list[Job], order: list[int], passes: int, random: np.random.Generator
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Start and end of each step in each pass, in nanoseconds from now (below 2**53, so a float is exact)."""
    by_id = {job.id: job for job in jobs}
    slots = [(agent.mask, agent.name) for agent in live.agents if agent.takes for _ in range(agent.slots)]
    free = np.zeros((passes, len(slots)))
    names = sorted(live.machines)
    machine_free = np.zeros((passes, len(names)))
    for index, name in enumerate(names):
        if name in live.wakes:
            machine_free[:, index] = random.choice(np.array(live.wakes[name], dtype=float), passes)
    rows = np.arange(passes)
    power = forecast_power.Passes(live.power, names, passes)
    column: dict[str, list[int]] = {}
    for index, (_, name) in enumerate(slots):
        column.setdefault(name, []).append(index)
    fitting: dict[int, np.ndarray] = {}
    machine_fitting: dict[int, np.ndarray] = {}
    at_sites: dict[int, list[forecast_power.AtSite]] = {}
    likes: dict[tuple[str, str], np.ndarray] = {}
    starts: dict[int, np.ndarray] = {}
    ends: dict[int, np.ndarray] = {}
    nothing = np.zeros(passes)
    for number in order:
        job = by_id[number]
        like = likes.get((job.kind, job.key))
        if like is None:
            known = live.durations.like(job.kind, job.key) or (QUANTUM_NS,)
            like = likes[job.kind, job.key] = np.array(known, dtype=float)
        if job.started_ns is not None:
            elapsed = live.now_ns - job.started_ns
            longer = like[like > elapsed]
            if not len(longer):
                longer = np.array([elapsed * 1.1, elapsed * 1.5, elapsed * 2.0]) + _LEAST_SCALE_NS
            end = random.choice(longer, passes) - elapsed
            starts[number] = nothing
            mine = column.get(job.agent or "", ())
            if mine:
                free[:, mine[0]] = end
                column[job.agent or ""] = mine[1:]
            if job.machine in names:
                machine_free[:, names.index(job.machine)] = end
                power.runs(names.index(job.machine), end)
            ends[number] = end
            continue
        release = nothing
        for before in job.after:
            release = np.maximum(release, ends[before])
        fits = fitting.get(job.group)
        if fits is None:
            fits = fitting[job.group] = np.array(
                [index for index, (mask, _) in enumerate(slots) if mask >> job.group & 1], dtype=int
            )
        start, chosen = _earliest(free[:, fits], release, rows)
        slot = fits[chosen]
        took = like[random.integers(0, len(like), passes)]
        if live.wanting >> job.group & 1:
            ones = machine_fitting.get(job.group)
            if ones is None:
                ones = machine_fitting[job.group] = np.array(
                    [i for i, name in enumerate(names) if live.machines[name] >> job.group & 1], dtype=int
                )
                at_sites[job.group] = power.at_sites(ones)
            times = power.from_when(at_sites[job.group], machine_free[:, ones], start)
            start, chosen = _earliest(times, start, rows)
            machine = ones[chosen]
            machine_free[rows, machine] = start + took
            power.take(at_sites[job.group], machine, start + took)
        end = start + took
        free[rows, slot] = end
        starts[number], ends[number] = start, end
    return starts, ends


def _earliest(times: np.ndarray, release: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """When one can take it, and which: of those free at its release the one that waited least.

    ``times``: a row a pass, when each is free."""
    late = times > release[:, None]
    chosen = np.where(late, times, -times - 1e18).argmin(axis=1)
    return np.maximum(times[rows, chosen], release), chosen


def _bands(now_ns: int, drawn: Mapping[int, np.ndarray]) -> dict[int, Band]:
    """All at once: asking numpy for one quantile costs more than playing the step."""
    if not drawn:
        return {}
    edges = np.quantile(np.stack(list(drawn.values())), (EDGE, 0.5, 1 - EDGE), axis=1).astype(np.int64) + now_ns
    return {number: Band(*times) for number, times in zip(drawn, edges.T.tolist(), strict=True)}


def _whole(
    live: Live, steps: Mapping[int, Forecast], starts: Mapping[int, np.ndarray], ends: Mapping[int, np.ndarray]
) -> dict[int, Forecast]:
    """Of submissions.  Its end is known when those of all its steps are."""
    of: dict[int, list[Job]] = {}
    for job in live.jobs:
        of.setdefault(job.submission, []).append(job)
    known_of = {number: [job.id for job in jobs if job.id in starts] for number, jobs in of.items()}
    first_start = {n: np.minimum.reduce([starts[one] for one in known]) for n, known in known_of.items() if known}
    last_end = {n: np.maximum.reduce([ends[one] for one in known]) for n, known in known_of.items() if known}
    start_bands, end_bands = _bands(live.now_ns, first_start), _bands(live.now_ns, last_end)
    made: dict[int, Forecast] = {}
    for submission, jobs in of.items():
        waiting = [job for job in jobs if job.started_ns is None]
        unknown = next((steps[job.id].unknown for job in jobs if steps[job.id].unknown), "")
        first = min((steps[job.id] for job in waiting if job.id in starts), key=lambda one: one.ahead, default=None)
        made[submission] = Forecast(
            start=start_bands.get(submission) if first is None or first.start else None,
            end=None if unknown else end_bands.get(submission),
            ahead=first.ahead if first else 0,
            people=first.people if first else 0,
            unknown=unknown,
        )
    return made


# -- calibration --------------------------------------------------------------------------------------------------


class Calibration:
    """Moves the ends of a band to where they would have been right for the latest forecasts.

    A miss is measured in units of how far ahead the median was, so that what was learned on an hour holds for a day;
    what was foretold for within the hour, and what for later, learn apart.
    """

    def __init__(self) -> None:
        self._misses = (
            deque[tuple[float, float]](maxlen=CALIBRATED_BY),
            deque[tuple[float, float]](maxlen=CALIBRATED_BY),
        )

    def __len__(self) -> int:
        return sum(map(len, self._misses))

    def learn(self, made_ns: int, drawn: Band, came_ns: int) -> None:
        """``drawn``: the band as it was drawn, before it was moved."""
        scale = _scale(made_ns, drawn)
        misses = self._misses[drawn.p50_ns - made_ns > _NEAR_NS]
        misses.append(((drawn.p10_ns - came_ns) / scale, (came_ns - drawn.p90_ns) / scale))

    def apply(self, made_ns: int, drawn: Band) -> Band:
        """As drawn, while too few forecasts have come true."""
        misses = list(self._misses[drawn.p50_ns - made_ns > _NEAR_NS])
        if len(misses) < CALIBRATED_FROM:
            misses = [miss for each in self._misses for miss in each]
        if len(misses) < CALIBRATED_FROM:
            return drawn
        scale = _scale(made_ns, drawn)
        share = min(1.0, (1 - _AIM) * (len(misses) + 1) / len(misses))
        early, late = np.quantile(np.array(misses), share, axis=0)
        low = drawn.p10_ns - int(early * scale)
        high = drawn.p90_ns + int(late * scale)
        return Band(max(made_ns, min(low, drawn.p50_ns)), drawn.p50_ns, max(high, drawn.p50_ns))


def _scale(made_ns: int, drawn: Band) -> int:
    return max(_LEAST_SCALE_NS, drawn.p50_ns - made_ns)


def covered(bands: Iterable[tuple[Band, int]]) -> float | None:
    """Share of times that lay in their band; None of nothing."""
    hits = [band.p10_ns <= came_ns <= band.p90_ns for band, came_ns in bands]
    return sum(hits) / len(hits) if hits else None
