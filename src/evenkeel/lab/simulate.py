"""A month of a queue in seconds: a trace replayed in simulated time, by our order and by a batch lock.  Pure.

Ours (:func:`work_conserving`) is made of the very modules that the service runs: order, credits, durations, forecasts,
the same causes of idleness.  The lock (:func:`batch_lock`) is the scheduler of a kernel team's talk as it was told:
take all branches that wait, build them stage by stage, look at nothing else until the last of them is done.

A trace is a list of :class:`Branch`; :func:`generate` makes one.  Its durations are assumptions, because the talk named
none: 20 minutes a build in the median.  Replay a trace of your own before you believe a number.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evenkeel.lab.durations import Durations
from evenkeel.lab.forecast import Agent, Band, Calibration, Floor, Forecast, Job, Live, foretell
from evenkeel.lab.order import DAY_NS, MINUTE_NS, QUANTUM_NS, Ready, Shares

HOUR_NS = 60 * MINUTE_NS
ARCHES = {"x86_64": 1.0, "arm64": 1.1, "s390x": 0.8, "ppc64le": 1.4}
CHECKS = {"kabi": 3, "warnings": 1, "git-fixes": 2}
#: A build that hangs ends by itself after so long.
HANGS_NS = 6 * HOUR_NS
BUILDER, SERVER = "builder", "server"


@dataclass(frozen=True, slots=True)
class Work:
    """One step of a branch.  ``pool``: which agents; ``stage``: of the lock; ``took_ns``: what it takes if let run."""

    name: str
    kind: str
    key: str
    pool: str
    stage: int
    took_ns: int
    after: tuple[str, ...] = ()
    hangs: bool = False
    passes: bool = True


@dataclass(frozen=True, slots=True)
class Branch:
    """A submission of the trace.  ``at_ns``: from the start of the trace."""

    number: int
    at_ns: int
    person: str
    team: str
    kind: str
    urgent: bool
    steps: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """``builders``: architecture or ``any`` -> how many of one slot each."""

    builders: tuple[tuple[str, int], ...] = (("any", 8),)
    servers: int = 4

    @property
    def builder_count(self) -> int:
        return sum(number for _, number in self.builders)


def generate(
    seed: int,
    *,
    days: int = 30,
    per_day: int = 40,
    people: int = 20,
    teams: int = 6,
    build_ns: int = 20 * MINUTE_NS,
    bursts: bool = True,
) -> list[Branch]:
    """A trace: 90 % of branches between 9 and 18 h, twice as many on each tenth day, 15 at once from one person every
    fifth day, 5 % urgent, submitters by Zipf's law, 6 % with a conflict in the merge, 0.4 % of builds hang."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, people + 1)
    weights /= weights.sum()
    times: list[tuple[int, int]] = []
    for day in range(days):
        number = random.poisson(per_day * (2 if day % 10 == 9 else 1))
        for _ in range(number):
            hour = random.uniform(9, 18) if random.random() < 0.9 else random.uniform(0, 24)
            times.append((day * DAY_NS + int(hour * HOUR_NS), int(random.choice(people, p=weights))))
        if bursts and day % 5 == 4:
            at = day * DAY_NS + int(random.uniform(10, 16) * HOUR_NS)
            # Whoever sends in most sends in series.
            times += [(at + index * 10**9, 0) for index in range(15)]
    made = []
    for number, (at_ns, person) in enumerate(sorted(times)):
        urgent, final = random.random() < 0.05, random.random() < 0.3
        steps = _steps(random, build_ns)
        team = f"team{person % teams}"
        made.append(Branch(number, at_ns, f"p{person:02}", team, "final" if final else "wip", urgent, steps))
    return made


def _steps(random: np.random.Generator, build_ns: int) -> tuple[Work, ...]:
    merge = int(random.lognormal(np.log(4 * MINUTE_NS), 0.3))
    steps = [Work("merge", "merge", "", SERVER, 0, merge, passes=bool(random.random() >= 0.06))]
    for arch, factor in ARCHES.items():
        hangs = bool(random.random() < 0.004)
        took = HANGS_NS if hangs else int(random.lognormal(np.log(build_ns * factor), 0.35))
        steps.append(Work(f"build-{arch}", "build", arch, BUILDER, 1, took, ("merge",), hangs))
    builds = tuple(f"build-{arch}" for arch in ARCHES)
    for check, minutes in CHECKS.items():
        steps.append(Work(check, check, "", SERVER, 2, int(random.lognormal(np.log(minutes * MINUTE_NS), 0.3)), builds))
    return tuple(steps)


# -- what came of it ----------------------------------------------------------------------------------------------


@dataclass
class Came:
    """Of one branch: ``begun_ns``: its first build started; None: its merge had a conflict, or it never did."""

    branch: Branch
    begun_ns: int | None = None
    ended_ns: int | None = None
    failed: set[str] = field(default_factory=set)
    #: Urgent, and within credit.
    urgent: bool = False
    #: As shown, as drawn; of the end.
    end: tuple[Band, Band] | None = None
    start: tuple[Band, Band] | None = None

    @property
    def wait_ns(self) -> int | None:
        return None if self.begun_ns is None else self.begun_ns - self.branch.at_ns


@dataclass
class Outcome:
    """``idle``: by cause, builder time (nanoseconds) in which a builder did nothing although a branch waited.

    ``waiting_ns``: builder time, idle or not, while at least one branch waited; ``builders_ns``: all of it."""

    came: list[Came]
    idle: dict[str, int] = field(default_factory=dict)
    builders_ns: int = 0
    waiting_ns: int = 0

    def idle_hours(self) -> float:
        return sum(took for cause, took in self.idle.items() if cause != "fit") / HOUR_NS

    def idle_share(self, *causes: str) -> float:
        """Of builder time while a branch waited.

        Without causes: all of them but ``fit``, where no free builder could have built it."""
        wanted = causes or tuple(cause for cause in self.idle if cause != "fit")
        return sum(self.idle.get(cause, 0) for cause in wanted) / max(1, self.waiting_ns)

    def waits(self, which: Callable[[Came], bool] = lambda _: True) -> list[int]:
        return sorted(came.wait_ns for came in self.came if came.wait_ns is not None and which(came))

    def turnarounds(self, which: Callable[[Came], bool] = lambda _: True) -> list[int]:
        return sorted(
            c.ended_ns - c.branch.at_ns for c in self.came if c.ended_ns is not None and c.begun_ns and which(c)
        )


class _Idle:
    """Adds up what builders did not do, by cause, between two looks as it was at the earlier one."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        self.waiting_ns = 0
        self._since_ns = 0
        self._now: dict[str, int] = {}
        self._waits = False

    def note(self, now_ns: int, waits: bool, idle: dict[str, int]) -> None:
        self.waiting_ns += (now_ns - self._since_ns) * self._waits
        self._waits = waits
        for cause, number in self._now.items():
            self.sums[cause] = self.sums.get(cause, 0) + number * (now_ns - self._since_ns)
        self._since_ns, self._now = now_ns, idle


# -- ours ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """What of ours is switched on; the pieces are switched off to see what each is worth."""

    fair: bool = True
    urgent: bool = True
    learned_timeouts: bool = True
    credits: int = 3
    period_ns: int = 20 * DAY_NS
    #: A forecast after each so many submissions; 0: none.
    forecast_every: int = 0
    passes: int = 30


def work_conserving(branches: Sequence[Branch], park: Park = Park(), policy: Policy = Policy()) -> Outcome:
    """Every freed slot takes its best step at once."""
    shares = Shares() if policy.fair else _Blind()
    ready = Ready(shares)
    durations = Durations()
    groups = _groups(ready)
    agents = _agents(park, groups)

    def expected(job: Job) -> int:
        return durations.median(job.kind, job.key) or QUANTUM_NS

    floor = Floor(agents, ready, expected)
    came = [Came(branch) for branch in branches]
    works: dict[int, tuple[Came, Work]] = {}
    left: dict[int, int] = {}
    spent: dict[str, list[int]] = {}
    ends: list[tuple[int, int, bool]] = []
    idle = _Idle()
    counter = itertools.count()
    calibration = {"start": Calibration(), "end": Calibration()}
    arrivals = iter(branches)
    arriving = next(arrivals, None)
    while arriving is not None or ends:
        if arriving is not None and (not ends or arriving.at_ns <= ends[0][0]):
            now, branch = arriving.at_ns, arriving
            arriving = next(arrivals, None)
            record = came[branch.number]
            record.urgent = policy.urgent and branch.urgent and _within(spent, branch, policy)
            numbers = {work.name: next(counter) for work in branch.steps}
            for work in branch.steps:
                job = _job(branch, work, numbers, groups[_group(work)], record.urgent)
                works[job.id] = (record, work)
                floor.enter(job)
            left[branch.number] = len(branch.steps)
            started = floor.start(now)
            if policy.forecast_every and branch.number % policy.forecast_every == 0:
                _forecast(record, floor, agents, durations, calibration, now, policy)
        else:
            now, number, passed = heapq.heappop(ends)
            record, work = works.pop(number)
            branch = record.branch
            _, since, _, _ = floor.running[number]
            if passed:
                durations.learn(work.kind, work.key, now - since)
            left[branch.number] -= 1
            gone = floor.end(number, now, passed=passed)
            left[branch.number] -= len(gone)
            for dropped in gone:
                works.pop(dropped)
            if not left[branch.number]:
                record.ended_ns = now
                _learn(record, calibration)
            started = floor.start(now)
        for job in started:
            record, work = works[job.id]
            if work.pool == BUILDER and record.begun_ns is None:
                record.begun_ns = now
            took, passed = _takes(work, durations, policy.learned_timeouts)
            heapq.heappush(ends, (now + took, job.id, passed))
        builds = ready.waiting & ~(1 << groups[SERVER])
        idle.note(now, bool(builds), _idle_builders(floor, builds))
    span = max((c.ended_ns or 0) for c in came) if came else 0
    return Outcome(came, idle.sums, span * park.builder_count, idle.waiting_ns * park.builder_count)


class _Blind(Shares):
    """Sees no use: everybody is equal for ever."""

    def charge(self, person: str, team: str, used_ns: int, at_ns: int) -> None:
        self.version += 1

    def copy(self) -> Shares:
        return _Blind()


def _groups(ready: Ready) -> dict[str, int]:
    return {name: ready.group(name) for name in (SERVER, *(f"{BUILDER} {arch}" for arch in ARCHES))}


def _group(work: Work) -> str:
    return SERVER if work.pool == SERVER else f"{BUILDER} {work.key}"


def _agents(park: Park, groups: dict[str, int]) -> tuple[Agent, ...]:
    building = {arch: 1 << groups[f"{BUILDER} {arch}"] for arch in ARCHES}
    agents = []
    for arch, number in park.builders:
        mask = building[arch] if arch in building else sum(building.values())
        agents += [Agent(f"{BUILDER}-{arch}-{index}", 1, mask) for index in range(number)]
    return (*agents, Agent(SERVER, park.servers, 1 << groups[SERVER]))


def _job(branch: Branch, work: Work, numbers: dict[str, int], group: int, urgent: bool) -> Job:
    return Job(
        id=numbers[work.name],
        submission=branch.number,
        group=group,
        kind=work.kind,
        key=work.key,
        person=branch.person,
        team=branch.team,
        submission_kind=branch.kind,
        submitted_ns=branch.at_ns,
        urgent=urgent,
        after=tuple(numbers[name] for name in work.after),
    )


def _within(spent: dict[str, list[int]], branch: Branch, policy: Policy) -> bool:
    """Whether its person still has a credit in this period; spends it."""
    used = spent.setdefault(branch.person, [])
    period = branch.at_ns // policy.period_ns
    if sum(1 for one in used if one == period) >= policy.credits:
        return False
    used.append(period)
    return True


def _idle_builders(floor: Floor, builds: int) -> dict[str, int]:
    """Free builders by cause: ``dispatch`` (a step that fits waits), ``fit`` (what waits fits other builders only).

    ``builds``: bits of groups in which something waits."""
    if not builds:
        return {}
    found: dict[str, int] = {}
    for agent in floor.agents:
        if agent.name != SERVER and (free := floor.free[agent.name]) > 0:
            cause = "dispatch" if agent.mask & builds else "fit"
            found[cause] = found.get(cause, 0) + free
    return found


def _forecast(
    record: Came,
    floor: Floor,
    agents: tuple[Agent, ...],
    durations: Durations,
    calibration: dict[str, Calibration],
    now: int,
    policy: Policy,
) -> None:
    live = Live(now, floor.open_jobs(), agents, floor.ready.shares, durations)
    whole: Forecast = foretell(live, passes=policy.passes, seed=record.branch.number).submissions[record.branch.number]
    if whole.end is not None:
        record.end = (calibration["end"].apply(now, whole.end), whole.end)
    if whole.start is not None:
        record.start = (calibration["start"].apply(now, whole.start), whole.start)


def _learn(record: Came, calibration: dict[str, Calibration]) -> None:
    if record.end is not None and record.ended_ns is not None:
        calibration["end"].learn(record.branch.at_ns, record.end[1], record.ended_ns)


# -- the lock -----------------------------------------------------------------------------------------------------


def batch_lock(
    branches: Sequence[Branch], park: Park = Park(), *, stages: bool = True, learned_timeouts: bool = False
) -> Outcome:
    """Take all branches that wait, hold the lock until the last of them is done.  ``stages``: merge all, then build
    all, then check all; without, branches are independent inside the batch (kinder than what was told).

    A branch that waits for the lock counts as waiting only from when its merge would have been done, had it begun at
    once: kinder to the lock, and what a work-conserving scheduler would have had to wait for too.
    """
    came = [Came(branch) for branch in branches]
    durations = Durations()
    spans: list[tuple[int, int]] = []  # a builder that works, from when to when
    waiting: list[tuple[int, int]] = []  # a branch that waits
    now, done = 0, 0
    while done < len(branches):
        now = max(now, branches[done].at_ns)
        batch = list(itertools.takewhile(_before(now), branches[done:]))
        done += len(batch)
        ready = Ready(_Blind())
        groups = _groups(ready)
        floor = Floor(_agents(park, groups), ready, lambda job: QUANTUM_NS)
        works: dict[int, tuple[Came, Work]] = {}
        numbers = _numbered(batch)
        for stage in range(3) if stages else (None,):
            for branch in batch:
                for work in branch.steps:
                    number = numbers[branch.number][work.name]
                    if stage not in (None, work.stage) or (stage and came[branch.number].failed & set(work.after)):
                        continue
                    job = _job(branch, work, numbers[branch.number], groups[_group(work)], False)
                    floor.enter(replace(job, kind="", after=() if stages else job.after))
                    works[number] = (came[branch.number], work)
            now = _run_out(floor, works, durations, now, learned_timeouts, spans)
        for branch in batch:
            begun, known_ns = came[branch.number].begun_ns, branch.at_ns + branch.steps[0].took_ns
            if begun is not None and begun > known_ns:
                waiting.append((known_ns, begun))
    idle, waited = _idle_while(waiting, spans, park.builder_count)
    return Outcome(came, {"lock": idle}, now * park.builder_count, waited)


def _before(now: int) -> Callable[[Branch], bool]:
    return lambda branch: branch.at_ns <= now


def _numbered(batch: list[Branch]) -> dict[int, dict[str, int]]:
    counter = itertools.count()
    return {branch.number: {work.name: next(counter) for work in branch.steps} for branch in batch}


def _run_out(
    floor: Floor,
    works: dict[int, tuple[Came, Work]],
    durations: Durations,
    now: int,
    learned_timeouts: bool,
    spans: list[tuple[int, int]],
) -> int:
    """Until nothing runs any more; returns when that is."""
    ends: list[tuple[int, int, bool]] = []
    while True:
        for job in floor.start(now):
            record, work = works[job.id]
            took, passes = _takes(work, durations, learned_timeouts)
            heapq.heappush(ends, (now + took, job.id, passes))
            if work.pool == BUILDER:
                spans.append((now, now + took))
                record.begun_ns = now if record.begun_ns is None else record.begun_ns
        if not ends:
            return now
        now, number, passes = heapq.heappop(ends)
        record, work = works[number]
        floor.end(number, now, passed=passes)
        record.ended_ns = now
        if passes:
            durations.learn(work.kind, work.key, work.took_ns)
        else:
            record.failed.add(work.name)


def _takes(work: Work, durations: Durations, learned_timeouts: bool) -> tuple[int, bool]:
    """What it takes, and whether it passes: one that hangs, or is cut off by its time-out, does not."""
    limit = durations.timeout(work.kind, work.key) if learned_timeouts else None
    if limit is not None and limit < work.took_ns:
        return limit, False
    return work.took_ns, work.passes and not work.hangs


def _idle_while(waiting: list[tuple[int, int]], spans: list[tuple[int, int]], builders: int) -> tuple[int, int]:
    """Builder time while at least one branch waits: what of it is free, and all of it."""
    changes = [(at, 1, 0) for at, _ in waiting] + [(at, -1, 0) for _, at in waiting]
    changes += [(at, 0, 1) for at, _ in spans] + [(at, 0, -1) for _, at in spans]
    idle = waited = waits = busy = since = 0
    for at, waiter, builder in sorted(changes):
        if waits:
            idle += (builders - busy) * (at - since)
            waited += builders * (at - since)
        since, waits, busy = at, waits + waiter, busy + builder
    return idle, waited
