"""One measurement of one host: spinners, then each tool on its real-time CPUs and in its guests at once, as Evidence.

Takes numbers and binds them to their conditions; whether they are good enough is decided in
:mod:`evenkeel.measure.verdict`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evenkeel.documents.evidence import Evidence, Latency, LoadRun, Spin
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import GuestPlan, HostPlan
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError
from evenkeel.measure.conditions import conditions
from evenkeel.measure.cyclictest import latencies
from evenkeel.measure.guest import cure, guest_call
from evenkeel.measure.load import load_runs
from evenkeel.measure.oslat import oslat_latencies
from evenkeel.measure.tracer import tracer_latencies
from evenkeel.measure.verdict import MISS_RATE, deadlines
from evenkeel.verify.observe import GuestSeen, hackbench, spin_places
from evenkeel.verify.spinners import by_guest
from evenkeel.verify.steps import Steps

Moment = Literal["before", "after"]
#: cyclictest: on the host and in guests.  timerlat: the same, of their kernels.  oslat: a busy loop, in guests, and on
#: those CPUs of the host whose guest does not run.  osnoise: of the host's kernel, a busy loop too.
#: Where neither of the first two is among them, cyclictest runs in the guests once, beside osnoise.
TOOLS = ("cyclictest", "timerlat", "oslat", "osnoise")
TRACERS = ("timerlat", "osnoise")
#: Of the host alone: what the guests do meanwhile is told by another tool in them.
OF_THE_HOST = ("osnoise",)
INTERVAL_US = 1000
SPIN_S = 4.0
#: How long a guest that boots is waited for, so that before and after compare.
SETTLE_S = 90.0
#: Seconds that starting and ending a tool take besides its run; for the progress bar only.
_EXTRA_S = {"spin": 1.0, "load": 3.0, "tool": 2.0}


@dataclass(frozen=True)
class Wish:
    """What to measure.  ``guest`` None: the host, and each guest that has a real-time vCPU and runs.

    ``tools``: of :data:`TOOLS`, one after the other, each for ``seconds``.  ``load``: kinds of load, placed on the
    CPUs that are not real-time; or ``hackbench`` alone, which goes wherever the scheduler puts it.  ``miss_rate``: the
    share of late samples that must be excluded for a deadline to count as met.  ``live``: tell once a second how it
    stands on host and guests, in the words of the progress.
    """

    seconds: int = 10
    tools: tuple[str, ...] = ("cyclictest",)
    load: tuple[str, ...] = ()
    guest: str | None = None
    spin_seconds: float = SPIN_S
    miss_rate: float = MISS_RATE
    live: bool = False


def measure_host(
    host: HostPlan,
    probe: Probe,
    facts: Facts,
    *,
    moment: Moment,
    wish: Wish | None = None,
    plan_sha256: str | None = None,
    spun: Sequence[dict[str, Any]] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Evidence:
    """Measure ``host`` as it is now.  ``on_note`` hears what had to be left out.

    ``spun``: what the spinners gave a moment ago, when the host was verified; they are not run again then.

    On the host: a spinner alone, and one under the load (if any), on the CPUs that the plan gives to real-time vCPUs.
    Then each tool there and in all guests at the same time; there it pre-empts a running guest for some microseconds a
    millisecond.  In each guest at last, after the plan is applied, a busy loop.  The load always runs on the host.
    Raises EvenkeelError when a tool is missing, Unreachable when the connection is lost, WrongInput for a guest that
    is not in the plan, and for osnoise, which is of the host, together with a guest.
    """
    wish = wish or Wish()
    guests = _chosen(host, wish.guest)
    _refuse_tools_of_the_host(wish)
    run = _Run(host, probe, facts, wish, on_note or (lambda text: None))
    run.look()
    spins = wish.guest is None and not spun
    run.plan_steps(guests, moment, spins, on_progress)
    for answer in spun:
        run.keep(answer, None)
    if spins:
        run.spinners()
    there = run.running(guests, moment)
    for tool in wish.tools:
        run.together(tool, there)
    if moment == "after":
        for guest in there:
            run.busy_loop(guest)
    run.steps.end()
    evidence = Evidence(
        host=host.name,
        moment=moment,
        conditions=conditions(
            facts,
            load=run.load,
            plan_sha256=plan_sha256,
            dma_latency_holders=known_holders(run.seen_holders),
            guest_dma_latency_holders=run.holders_in_guests(),
        ),
        latencies=tuple(run.latencies),
        spins=tuple(run.spins),
    )
    found = deadlines(host, evidence, guest=wish.guest, rate=wish.miss_rate)
    return evidence.model_copy(update={"deadlines": found})


def guess_moment(host: HostPlan, facts: Facts) -> Moment:
    """``after`` when the kernel isolates what the plan wants isolated; a plan that isolates nothing is always so."""
    return "after" if host.ledger.isolated <= facts.nohz_full else "before"


def _chosen(host: HostPlan, name: str | None) -> list[GuestPlan]:
    """Of all guests those that have something to prove: at real-time priority, or with a deadline of any goal."""
    if name is None:
        return [
            guest
            for guest in host.guests
            if guest.latency_ns is not None or any(vcpu.policy == "fifo" for vcpu in guest.vcpus)
        ]
    found = [guest for guest in host.guests if guest.name == name]
    if not found:
        known = ", ".join(sorted(guest.name for guest in host.guests)) or "none"
        raise WrongInput(f"host {host.name} has no guest {name} in this plan", hint=f"its guests: {known}")
    return found


def _refuse_tools_of_the_host(wish: Wish) -> None:
    """Raises WrongInput: with a guest only that guest is measured, and these measure the host only."""
    tracers = [tool for tool in wish.tools if tool in OF_THE_HOST]
    if wish.guest is None or not tracers:
        return
    raise WrongInput(
        f"--tools {','.join(tracers)}: of the host's kernel, and with guest {wish.guest} the host is left in peace",
        hint="leave the guest out, and it runs on the host, with cyclictest in the guests; or leave it out of --tools: "
        "timerlat runs inside a guest",
    )


class _Run:
    """A measurement under way."""

    def __init__(
        self,
        host: HostPlan,
        probe: Probe,
        facts: Facts,
        wish: Wish,
        on_note: Callable[[str], None],
    ) -> None:
        self.host, self.probe, self.facts, self.wish = host, probe, facts, wish
        self.note = on_note
        self.seen: dict[str, GuestSeen] = {}
        self.latencies: list[Latency] = []
        self.spins: list[Spin] = []
        self.load = "idle"
        self.seen_holders: list[list[str] | None] = []
        self.guest_holders: dict[str, list[list[str] | None]] = {}
        self.failed: set[str] = set()  # guests in which something could not be run
        # What is found on the host is of use beside what the guests see meanwhile.
        self.beside = not {"cyclictest", "timerlat"} & set(wish.tools)
        self.steps = Steps(0, None)

    def look(self) -> None:
        """Which guests run, and in which cgroups their vCPUs are."""
        for guest in self.host.guests:
            try:
                found = self.probe.call("threads", guest=guest.name)["threads"]
                self.seen[guest.name] = GuestSeen("running", threads=found)
            except ProbeError:
                self.seen[guest.name] = GuestSeen("shut off")

    def plan_steps(self, guests: list[GuestPlan], moment: Moment, spins: bool, on_progress: OnProgress | None) -> None:
        load = _EXTRA_S["load"] if self.wish.load else 0.0
        spin = self.wish.spin_seconds + _EXTRA_S["spin"]
        total = (self.wish.seconds + _EXTRA_S["tool"] + load) * len(self.wish.tools)
        if spins:
            total += spin + (spin + load if load else 0)
        if moment == "after":
            total += sum(spin + 3 for guest in guests if self.seen[guest.name].threads)
        self.steps = Steps(total, on_progress)

    # -- spinners on the host -----------------------------------------------------------------------------------

    def spinners(self) -> None:
        places = self._places()
        if not places:
            self.note(f"{self.host.name}: the plan has no real-time CPU, so there is nothing to measure on the host")
            return
        self._spin(places, None)
        if self.wish.load:
            self._spin(places, self._load())

    def _places(self) -> dict[str, Any]:
        return spin_places(self.host, self.seen, self.facts)

    def _load(self) -> dict[str, Any] | None:
        if not self.wish.load:
            return None
        if self.wish.load == ("hackbench",):
            return hackbench(self.host)
        return {"kinds": list(self.wish.load), "cpus": sorted(self.host.ledger.housekeeping | self.host.ledger.shared)}

    def _spin(self, places: dict[str, Any], load: dict[str, Any] | None) -> None:
        seconds = self.wish.spin_seconds
        length = seconds + _EXTRA_S["spin"] + (_EXTRA_S["load"] if load else 0)
        inner = self.steps.begin(length, "a spinner under load" if load else "a spinner")
        answer = self._call("spin", inner, seconds=seconds, load=load, settle_s=SETTLE_S, **places)
        self.keep(answer, None)

    def _call(self, op: str, inner: OnProgress, **arguments: Any) -> Any:
        try:
            return self.probe.call(op, on_progress=inner, **arguments)
        except ProbeError as error:
            raise EvenkeelError(error.message, hint=_CURES.get(error.errno or "")) from None

    # -- tools on the host and in guests ------------------------------------------------------------------------

    def running(self, guests: list[GuestPlan], moment: Moment) -> list[GuestPlan]:
        """Those of ``guests`` that run.  Raises EvenkeelError when the one that was asked for by name does not."""
        found = []
        for guest in guests:
            if self.seen[guest.name].threads:
                found.append(guest)
            elif self.wish.guest:
                raise EvenkeelError(
                    f"guest {guest.name} does not run on {self.host.name}", hint="evenkeel apply starts it"
                )
            elif moment == "after":
                self.note(f"guest {guest.name} does not run: not measured")
        return found

    def together(self, tool: str, guests: list[GuestPlan]) -> None:
        """One tool everywhere at once.  A guest in which it fails is a note, unless it was asked for by name.

        Raises EvenkeelError when cyclictest fails on the host; of the other tools, which not every host has, what fails
        is a note, too.
        """
        jobs = self._host_jobs(tool) if self.wish.guest is None else []
        if tool in TRACERS and self.wish.guest is None and not jobs and self._places():
            self.note(f"no {tool} on the host: a busy loop would take the CPUs of the guests that run there")
        inside = "cyclictest" if tool in OF_THE_HOST else tool
        if tool not in OF_THE_HOST or self.beside:
            jobs += [
                {"tool": inside, "guest": guest.name, "vcpus": list(guest.realtime_vcpus)}
                for guest in guests
                if guest.name not in self.failed
            ]
        if not jobs:
            return
        inner = self.steps.begin(self.wish.seconds + _EXTRA_S["tool"], _in_words(jobs))
        answer = self._call(
            "together",
            inner,
            jobs=jobs,
            seconds=self.wish.seconds,
            interval_us=INTERVAL_US,
            load=self._load(),
            live=self.wish.live,
        )
        self.load = str(answer["load"])
        self.seen_holders.append(answer.get("holders"))
        for guest, names in answer.get("guest_holders", {}).items():
            self.guest_holders.setdefault(guest, []).append(names)
        for job, found in zip(jobs, answer["jobs"], strict=True):
            try:
                self._take(job, found, load_runs(answer))
            except EvenkeelError as error:
                if self.wish.guest or (job["tool"] == "cyclictest" and "guest" not in job):
                    raise
                self.note(f"{self._without(job)}: {error}")

    def _without(self, job: dict[str, Any]) -> str:
        """What is missing now, in words.  A guest in which not even cyclictest runs is not tried again."""
        if "guest" not in job:
            return f"no {job['tool']} on the host"
        if job["tool"] != "cyclictest":
            return f"no {job['tool']} in guest {job['guest']}"
        self.failed.add(job["guest"])
        return f"guest {job['guest']} was not measured"

    def _host_jobs(self, tool: str) -> list[dict[str, Any]]:
        places = self._places()
        if not places:
            return []
        if tool in ("oslat", "osnoise"):  # a busy loop beside a vCPU would take its CPU, or never get it
            places["cpus"] = [cpu for cpu in places["cpus"] if str(cpu) not in places["cgroups"]]
        if tool in TRACERS:
            return [{"tool": tool, **places}] if places["cpus"] else []
        return [{"tool": tool, **places, "cpus": cpus} for cpus in self._groups(places)]

    def _groups(self, places: dict[str, Any]) -> list[list[int]]:
        """CPUs that one run of a tool can be on: those in the same cgroup."""
        groups: dict[str, list[int]] = {}
        for cpu in places["cpus"]:
            place = places["cgroups"].get(str(cpu), "own" if cpu in places["isolate"] else "")
            groups.setdefault(place, []).append(cpu)
        return list(groups.values())

    def _take(self, job: dict[str, Any], found: dict[str, Any], loads: tuple[LoadRun, ...]) -> None:
        """Keep the result of one job.  Raises EvenkeelError, with the cure, when it has none."""
        guest, emulated = job.get("guest"), self.facts.identity.emulated
        if "error" in found:
            error = ProbeError(self.host.name, job["tool"], found["error"])
            hint = cure(guest, error) if guest else _CURES.get(error.errno or "")
            # It is a part of the kernel: there is nothing to install, and it may be in use by no fault of this plan.
            raise EvenkeelError(error.message, hint=hint if guest or job["tool"] not in TRACERS else None)
        if job["tool"] in TRACERS:
            self.latencies += tracer_latencies(
                found,
                guest=guest,
                interval_us=INTERVAL_US,
                seconds=_by_the_hosts_clock(self.wish.seconds, found.get("spent_s", 0.0) if guest else 0.0),
                emulated=emulated,
                loads=loads,
            )
            return
        cpus = job["vcpus"] if guest else job["cpus"]
        if job["tool"] == "oslat":
            self.latencies += oslat_latencies(found, cpus, guest=guest, emulated=emulated, loads=loads)
            return
        self.latencies += latencies(
            found,
            cpus,
            guest=guest,
            interval_us=INTERVAL_US,
            emulated=emulated,
            seconds=_by_the_hosts_clock(self.wish.seconds, found.get("spent_s", 0.0)),
            loads=loads,
        )

    def busy_loop(self, guest: GuestPlan) -> None:
        """What disturbs a spinner in a guest.  As of :meth:`together`, a failure is a note."""
        if guest.name in self.failed:
            return
        inner = self.steps.begin(self.wish.spin_seconds + 4, f"a busy loop in guest {guest.name}")
        try:
            spun = guest_call(
                self.probe,
                guest.name,
                "spin_guest",
                inner,
                vcpu=guest.realtime_vcpus[-1],
                seconds=self.wish.spin_seconds,
            )
        except EvenkeelError as error:
            # A lost connection is a subclass with an exit code of its own, and no note.
            if self.wish.guest or type(error) is not EvenkeelError:
                raise
            self.note(f"no busy loop in guest {guest.name}: {error}")
            return
        self.keep(spun, guest.name)

    # -- results ------------------------------------------------------------------------------------------------

    def holders_in_guests(self) -> dict[str, tuple[str, ...]] | None:
        """Of each guest of which it is known; None when no guest was measured."""
        found = {guest: known_holders(seen) for guest, seen in sorted(self.guest_holders.items())}
        return {guest: names for guest, names in found.items() if names is not None} if found else None

    def keep(self, answer: dict[str, Any], guest: str | None) -> None:
        """Take what spinners gave into the evidence; on the host where ``guest`` is None."""
        for spin in answer["spins"]:
            self.spins.append(
                Spin(
                    where="guest" if guest else "host",
                    guest=guest,
                    cpu=spin["cpu"],
                    seconds=spin["seconds"],
                    load=answer["load"],
                    timer_interrupts=spin["timer_interrupts"],
                    device_interrupts=spin["device_interrupts"],
                    other_interrupts=spin["other_interrupts"],
                    involuntary_switches=spin["involuntary_switches"],
                    guest_switches=by_guest(spin),
                    voluntary_switches=spin["voluntary_switches"],
                    cpu_seconds=spin["cpu_seconds"],
                    watched_seconds=spin.get("watched_seconds"),
                    policy=spin["policy"],
                )
            )


def known_holders(seen: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """Who held /dev/cpu_dma_latency during any of these runs; None where one of them could not tell, or none was."""
    known = [names for names in seen if names is not None]
    if not known or len(known) < len(seen):
        return None
    return tuple(sorted({name for names in known for name in names}))


#: What the machine answers -> the cure, for tools on the host.
_CURES = {
    "ENOENT": "install rt-tests (cyclictest, oslat, hackbench) on the host",
    "EPERM": "log in as root",
    "EPROTONOSUPPORT": "does modprobe veth work there? or leave net out of --load",
    # Linux has two names for this number; the probe sends the one that Python prefers.
    errno.errorcode[errno.EOPNOTSUPP]: "the host needs cgroup v2 with the cpuset controller",
    "EBUSY": "does another tool own these CPUs? see evenkeel verify",
}


def _by_the_hosts_clock(seconds: int, spent_s: float) -> int:
    """How long a run was to take samples.  The clock of a guest stands still while the guest is paused, and its tool
    misses nothing; the host's clock goes on.  A guest agent may be some seconds late by itself.
    """
    return seconds if spent_s <= 1.02 * seconds + 5 else int(spent_s)


def _in_words(jobs: Sequence[dict[str, Any]]) -> str:
    """Which tool runs where: "timerlat on host, cyclictest on plc"."""
    places: dict[str, dict[str, None]] = {}
    for job in jobs:
        places.setdefault(job["tool"], {})[job.get("guest", "host")] = None
    return ", ".join(f"{tool} on {' and '.join(names)}" for tool, names in places.items())
