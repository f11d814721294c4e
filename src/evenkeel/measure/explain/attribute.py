"""From a recording of host and guest to an Explanation: decode, align, charge late samples, rank causes.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evenkeel.documents.course import Course
from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.documents.explanation import (
    NO_CAUSE,
    Alignment,
    Cause,
    Charge,
    Explanation,
    Kind,
    Lost,
    Piece,
    Recorder,
    Spike,
)
from evenkeel.errors import EvenkeelError
from evenkeel.measure.explain.charge import (
    SVM_EXITS,
    VMX_EXITS,
    Painted,
    Scene,
    charges,
    explain,
    usual,
)
from evenkeel.measure.explain.clocks import (
    Clock,
    by_round_trips,
    guest_clock,
    host_clock,
    marked,
    narrowed,
    narrowed_with_drift,
)
from evenkeel.measure.explain.recording import Raw, Recording
from evenkeel.measure.explain.timeline import (
    Below,
    GuestTimeline,
    HostEvents,
    Switches,
    below_timeline,
    guest_timeline,
)
from evenkeel.measure.explain.trace import Trace, make_trace

#: Spikes that carry their pieces, for the picture.
_PICTURED = 12
_GUEST_KINDS = frozenset({Kind.guest_nmi, Kind.guest_irq, Kind.guest_softirq, Kind.guest_thread, Kind.guest_kernel})
#: Before a flight recorder was frozen by something else than a late sample: what is shown of it.
_ENDING_NS = 200_000_000
#: A charge this small is the noise of measuring: it is in the sums, and makes no cause.
_NOTICED_NS = 20_000


@dataclass(frozen=True)
class Stage:
    """A recording on one axis.  ``scenes``: vCPU -> what is known; ``begin_ns``, ``end_ns``: what both recorded;
    ``ends_ns``: host, guest, below -> until when that one did.
    """

    scenes: Mapping[int, Scene]
    host: Trace
    guest: Trace
    host_clock: Clock
    guest_clock: Clock
    alignment: Alignment
    begin_ns: int
    end_ns: int
    below_alignment: Alignment | None = None
    below_lost: int = 0
    ends_ns: Mapping[str, int] = field(default_factory=dict)


def stage(recording: Recording) -> Stage:
    """Decode and align.  Raises WrongInput for damaged pages, EvenkeelError when the clocks cannot be aligned."""
    host, guest = _trace(recording.host, recording.flight), _trace(recording.guest, recording.flight)
    clock = host_clock(host, recording.host.marks)
    events = HostEvents.of(host)
    moved, alignment = _aligned(recording, events, guest, clock)
    # Beyond the last mark some CPUs may have nothing: the recording was full.
    ends = {"host": _last_mark(host, recording.host, clock)}
    if last := [records.at[-1] for records in guest.cpus.values() if len(records)]:
        ends["guest"] = int(moved.ns(np.array([max(last)]))[0])
    # One that was not full went on longer than the host: it is ended after it.
    end = min(ends.values()) if "guest" in recording.full else ends["host"]
    # What is so near to an end of one side may be beyond it.
    begin = _begin(host, clock, guest, moved) + alignment.error_ns
    end = max(begin, end - alignment.error_ns)
    under, under_alignment, under_lost, under_end = _below(recording, host, clock)
    if under_end is not None:
        ends["below"] = under_end
    family = frozenset(thread["tid"] for thread in recording.threads)
    names = _exit_names(host)
    vcpus = [
        (thread, guest_timeline(guest, moved, thread["vcpu"]))
        for thread in recording.threads
        if thread["vcpu"] is not None
    ]
    wanted = [(thread, seen) for thread, seen in vcpus if len(seen.sample_at) or recording.reason == "guest gone"]
    timelines = events.timelines(clock, (thread["tid"] for thread, _ in wanted))
    scenes = {
        thread["vcpu"]: Scene(
            host=timelines[thread["tid"]],
            guest=seen,
            tid=thread["tid"],
            home=parse_cpus(thread["cpus"]),
            family=family - {thread["tid"]},
            exit_names=names,
            below=under,
            siblings={int(cpu): others for cpu, others in recording.siblings.items()},
            error_ns=alignment.error_ns,
        )
        for thread, seen in wanted
    }
    return Stage(scenes, host, guest, clock, moved, alignment, begin, end, under_alignment, under_lost, ends)


def _aligned(recording: Recording, events: HostEvents, guest: Trace, clock: Clock) -> tuple[Clock, Alignment]:
    """The guest's clock: as KVM tells it, else by round trips.  Raises EvenkeelError without either."""
    if told := guest_clock(clock, recording.told):
        return told
    if not recording.guest.pages:  # it is gone, and what it recorded too: nothing of it is to be aligned
        return clock, Alignment(method="none", error_ns=0)
    host = events.trace
    here, there = host.marks, guest.marks
    trips = [
        (here[before], there[stamp], here[after])
        for before, stamp, after in recording.guest_trips
        if before in here and stamp in there and after in here
    ]
    # Where events are missing a CPU only seems to be away.
    vcpus = () if host.lost else (thread for thread in recording.threads if thread["vcpu"] is not None)
    absent = {thread["vcpu"]: events.outside(thread["tid"]) for thread in vcpus}
    stamps = {vcpu: records.at for vcpu, records in guest.cpus.items()}
    end = marked(host, recording.host.marks)[-1][0]
    found = narrowed_with_drift(clock, trips, end, absent, stamps)
    if found is None:
        why = f"the {len(trips)} round trips to its agent bind no clock" if trips else "no round trip reached its agent"
        raise EvenkeelError(
            f"KVM tells no clock offset of guest {recording.guest_name}, and {why}",
            hint="mount debugfs on the host: mount -t debugfs debugfs /sys/kernel/debug; or record for longer",
        )
    return found


def _last_mark(trace: Trace, raw: Raw, clock: Clock) -> int:
    return int(clock.ns(np.array([marked(trace, raw.marks)[-1][0]]))[0])


def _trace(raw: Raw, flight: bool = False) -> Trace:
    return make_trace(raw.pages, raw.formats, raw.header_page, raw.overrun, flight)


def _begin(host: Trace, host_clock: Clock, guest: Trace, guest_clock: Clock) -> int:
    """From when on neither side misses anything; 0 unless rings were overwritten on purpose."""
    begins = [0]
    for trace, clock in ((host, host_clock), (guest, guest_clock)):
        if trace.whole_from is not None:
            begins.append(int(clock.ns(np.array([trace.whole_from]))[0]))
    return max(begins)


def _exit_names(host: Trace) -> Mapping[int, str]:
    """``isa`` of kvm_exit: 1 for Intel, 2 for AMD."""
    isa = host.table("kvm/kvm_exit", "isa")["isa"] if host.rows("kvm/kvm_exit") else np.zeros(0)
    return VMX_EXITS if len(isa) and isa[0] == 1 else SVM_EXITS


def _below(recording: Recording, host: Trace, clock: Clock) -> tuple[Below | None, Alignment | None, int, int | None]:
    """The machine under the host, on the axis of the host: bound by round trips, narrowed by what is impossible.

    Then how many of its events were lost, and until when it was recorded.  Where no round trip binds it, nothing is
    charged to it.
    """
    if recording.below is None:
        return None, None, 0, None
    under = _trace(recording.below)
    own = host_clock(under, recording.below.marks)
    # Trips are told in nanoseconds of this machine; its counter at that time is what the host's is compared with.
    zero_ns = marked(under, recording.below.marks)[0][1]
    stamps = host.marks
    trips = [
        (
            own.base + round((before - zero_ns) / own.ns_per_tick),
            stamps[stamp],
            own.base + round((after - zero_ns) / own.ns_per_tick),
        )
        for before, stamp, after in recording.trips
        if stamp in stamps
    ]
    # The host's counter seen from below: as a guest's from its host, so the two change places.
    found = by_round_trips(own, trips)
    if found is None:
        return None, Alignment(method="none", error_ns=0), under.lost, None
    host_from_below, alignment = found
    tids = {int(cpu): tid for cpu, tid in recording.below_threads.items() if cpu != "timer"}
    switches = Switches.of(under)
    if not under.lost:  # where the switch that ended an absence is lost, the CPU seems to run in it
        absent = {cpu: list(switches.states(tid).absences()) for cpu, tid in tids.items()}
        seen = {cpu: records.at for cpu, records in host.cpus.items()}
        host_from_below, alignment = narrowed(own, alignment, host_from_below, absent, seen)
    axis = Clock(clock.base, clock.ns_per_tick, -host_from_below.offset)
    seen_below = below_timeline(switches.on(axis), tids, recording.below_threads["timer"])
    return seen_below, alignment, under.lost, _last_mark(under, recording.below, axis)


# -- the document -------------------------------------------------------------------------------------------------


def explanation(on: Stage, recording: Recording, *, over_ns: int) -> Explanation:
    """Explain every sample of at least ``over_ns``.  What allowed the causes is not said yet: that is .allowed."""
    emulated = bool(recording.conditions.emulated)
    lost = Lost(host=on.host.lost, guest=on.guest.lost, below=on.below_lost)
    found: list[tuple[Spike, Sequence[Painted]]] = []
    courses: dict[int, Course] = {}
    samples = worst = 0
    for vcpu, scene in sorted(on.scenes.items()):
        taken = list(_samples(scene.guest, on.begin_ns, on.end_ns))
        # A sample belongs to when its timer was due.
        due = ((at - latency - on.begin_ns, latency) for at, latency in taken)
        courses[vcpu] = Course.of(due, length_ns=max(1, on.end_ns - on.begin_ns))
        as_ever = usual(scene, taken)
        for at, latency in taken:
            samples += 1
            worst = max(worst, latency)
            if latency >= over_ns:
                painted = explain(scene, at - latency, at)
                lossy = bool(lost.host or lost.guest or lost.below)
                spike = Spike(
                    at_ns=at,
                    vcpu=vcpu,
                    latency_ns=latency,
                    charges=charges(painted, as_ever, emulated=emulated),
                    lossy=lossy,
                )
                found.append((spike, painted))
    pictured = sorted(range(len(found)), key=lambda n: -found[n][0].latency_ns)[:_PICTURED]
    spikes = [
        spike.model_copy(update={"pieces": _pieces(painted)}) if n in pictured else spike
        for n, (spike, painted) in enumerate(found)
    ]
    spikes.sort(key=lambda spike: (spike.at_ns, spike.vcpu))
    return Explanation(
        host=recording.host_name,
        guest=recording.guest_name,
        conditions=recording.conditions,
        label=EMULATION_NOTE if recording.conditions.emulated else "",
        seconds=round((on.end_ns - on.begin_ns) / 1e9, 3),
        asked_seconds=None if recording.flight else recording.seconds,
        recorders=_recorders(on, recording),
        period_ns=recording.period_ns,
        threshold_ns=over_ns,
        samples=samples,
        max_latency_ns=worst,
        alignment=on.alignment,
        below=on.below_alignment,
        lost=lost,
        reason=recording.reason,
        ending=_ending(on, recording) if recording.reason not in (None, "late sample") else (),
        spikes=tuple(spikes),
        causes=rank(spikes),
        courses=courses,
        courses_from_ns=on.begin_ns,
    )


def _recorders(on: Stage, recording: Recording) -> dict[Any, Recorder]:
    raws = {"host": recording.host, "guest": recording.guest, "below": recording.below}
    return {
        name: Recorder(
            seconds=round((on.ends_ns[name] - on.begin_ns) / 1e9, 3),
            full=name in recording.full,
            size_bytes=sum(map(len, raw.pages.values())),
            cpu_ns=raw.cost.get("cpu_ns"),
            over_ns=raw.cost.get("over_ns"),
            timerlat_ns=raw.cost.get("timerlat_ns"),
        )
        for name, raw in raws.items()
        if raw is not None and name in on.ends_ns
    }


def _ending(on: Stage, recording: Recording) -> tuple[Spike, ...]:
    """The last moments of each vCPU, as the host saw them."""
    found = []
    for vcpu, scene in sorted(on.scenes.items()):
        painted = explain(scene, max(on.begin_ns, on.end_ns - _ENDING_NS), on.end_ns)
        length = sum(part.end - part.start for part in painted)
        found.append(
            Spike(
                at_ns=on.end_ns,
                vcpu=vcpu,
                latency_ns=length,
                charges=charges(painted, emulated=bool(recording.conditions.emulated)),
                pieces=_pieces(painted),
            )
        )
    return tuple(found)


def _samples(guest: GuestTimeline, begin_ns: int, end_ns: int) -> Iterable[tuple[int, int]]:
    """Time and latency of the samples whose whole window both sides recorded."""
    whole = (guest.sample_at - guest.sample_latency >= begin_ns) & (guest.sample_at <= end_ns)
    return zip(guest.sample_at[whole].tolist(), guest.sample_latency[whole].tolist(), strict=True)


def _pieces(painted: Iterable[Painted]) -> tuple[Piece, ...]:
    pieces = []
    for part in painted:
        lane: Any = "guest" if part.kind in _GUEST_KINDS or part.kind == Kind.unexplained else "host"
        pieces.append(Piece(start_ns=part.start, end_ns=part.end, lane=lane, kind=part.kind, who=part.who))
    return tuple(pieces)


def rank(spikes: Iterable[Spike]) -> tuple[Cause, ...]:
    """Causes over all spikes: those that made samples late, then others, each largest first.

    The machine under a virtual host stands behind what happened on the host, slack and the unexplained last.
    """
    total: dict[tuple[Kind, str], list[Charge]] = {}
    for spike in spikes:
        for charge in spike.charges:
            if charge.ns >= _NOTICED_NS:
                total.setdefault((charge.kind, charge.who), []).append(charge)
    causes = [
        Cause(
            kind=kind,
            who=who,
            ns=sum(part.ns for part in parts),
            spikes=len(parts),
            worst_ns=max(part.ns for part in parts),
            usual_ns=max(part.usual_ns for part in parts),
            named=sum(part.named for part in parts),
        )
        for (kind, who), parts in total.items()
    ]
    return tuple(sorted(causes, key=_order))


def _order(cause: Cause) -> tuple[object, ...]:
    return (cause.kind in NO_CAUSE, cause.kind == Kind.below, not cause.named, -cause.ns, cause.kind, cause.who)
