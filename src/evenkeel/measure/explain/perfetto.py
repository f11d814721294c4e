"""Write a recording as a ``.pftrace`` file for the Perfetto UI (ui.perfetto.dev, which needs no upload).  Pure.

Perfetto's protobuf messages are written by hand: field numbers from ``protos/perfetto/trace/trace_packet.proto`` and
``track_event/*.proto``.  Only what a timeline needs: tracks, and slices on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evenkeel.documents.explanation import Explanation
from evenkeel.measure.explain.attribute import Stage
from evenkeel.measure.explain.timeline import IRQ, NMI, PREEMPTED, RUNS, SLEEPS, SOFTIRQ, THREAD, WOKEN, Steps

_SEQUENCE = 1
_BEGIN, _END = 1, 2
_STATES = {RUNS: "running", PREEMPTED: "pre-empted", SLEEPS: "asleep", WOKEN: "woken, waits"}
_CLASSES = {NMI: "NMI", IRQ: "interrupts", SOFTIRQ: "soft interrupts", THREAD: "threads"}
#: Perfetto takes no times below zero; the guest begins a little before the host.
_ZERO_NS = 3_600_000_000_000


def _number(number: int) -> bytes:
    """A varint: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(place: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _number(place << 3) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _number(place << 3 | 2) + _number(len(data)) + data


class Writer:
    """Collects packets.  A track is known by the number that :meth:`track` returns."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._tracks = 0

    def _packet(self, content: bytes) -> None:
        self._parts.append(_field(1, content + _field(10, _SEQUENCE)))

    def track(self, name: str, parent: int | None = None) -> int:
        self._tracks += 1
        inside = _field(1, self._tracks) + _field(2, name)
        if parent is not None:
            inside += _field(5, parent)
        self._packet(_field(60, inside))
        return self._tracks

    def slice(
        self, track: int, start_ns: int, end_ns: int, name: str, about: Mapping[str, int | str] | None = None
    ) -> None:
        """Slices of one track may nest; they must not overlap in part."""
        event = _field(9, _BEGIN) + _field(11, track) + _field(23, name)
        for key, value in (about or {}).items():
            event += _field(4, _field(10, key) + _field(4 if isinstance(value, int) else 6, value))
        self._packet(_field(8, start_ns + _ZERO_NS) + _field(11, event))
        self._packet(_field(8, end_ns + _ZERO_NS) + _field(11, _field(9, _END) + _field(11, track)))

    def data(self) -> bytes:
        return b"".join(self._parts)


def pftrace(on: Stage, explanation: Explanation) -> bytes:
    """The whole recording: late samples, the vCPUs, their host CPUs, and what disturbed them in the guest."""
    writer = Writer()
    late = writer.track(f"late samples of {explanation.guest}")
    lanes = {vcpu: writer.track(f"vCPU {vcpu}", late) for vcpu in on.scenes}
    for spike in explanation.spikes:
        about = {f"{charge.kind} {charge.who}".strip(): charge.ns for charge in spike.charges}
        lane = lanes[spike.vcpu]
        writer.slice(lane, spike.at_ns - spike.latency_ns, spike.at_ns, f"{spike.latency_ns // 1000} us late", about)
    cpus: set[int] = set()
    for vcpu, scene in on.scenes.items():
        top = writer.track(f"guest {explanation.guest}, vCPU {vcpu}")
        _steps(writer, writer.track("on the host", top), scene.host.thread, _STATES, on.end_ns)
        for number, spans in scene.guest.noise.items():
            lane = writer.track(f"in the guest: {_CLASSES[number]}", top)
            for start, end, what in zip(spans.start.tolist(), spans.end.tolist(), spans.what.tolist(), strict=True):
                writer.slice(lane, start, end, scene.guest.names[number][what])
        cpus |= set(scene.home) | set(scene.host.thread.cpu.tolist())
    first = next(iter(on.scenes.values()), None)
    for cpu in sorted(cpus):
        if first and cpu in first.host.running:
            lane = writer.track(f"host CPU {cpu}")
            _steps(writer, lane, first.host.running[cpu], first.host.names, on.end_ns)
            if cpu in first.host.interrupts:
                here = first.host.interrupts[cpu]
                _nested(
                    writer,
                    writer.track("interrupts", lane),
                    here.spans.start.tolist(),
                    here.spans.end.tolist(),
                    [here.names[what] for what in here.spans.what.tolist()],
                )
    return writer.data()


def _steps(writer: Writer, track: int, steps: Steps, names: Mapping[int, str], end_ns: int) -> None:
    at = [*steps.at.tolist(), max(end_ns, int(steps.at[-1]) + 1 if len(steps.at) else 0)]
    for n, what in enumerate(steps.what.tolist()):
        if what != 0 or names is _STATES:  # the idle task is an empty lane
            writer.slice(track, at[n], at[n + 1], names.get(what, f"pid {what}"))


def _nested(writer: Writer, track: int, starts: Iterable[int], ends: Iterable[int], names: Iterable[str]) -> None:
    for start, end, name in sorted(zip(starts, ends, names, strict=True), key=lambda one: (one[0], -one[1])):
        writer.slice(track, start, end, name)
