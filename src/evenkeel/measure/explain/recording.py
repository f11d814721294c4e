"""Record a guest and its host together, keep the raw pages with all that is needed to read them, save and load that.

The host records sched, irq and kvm events, the guest timerlat and osnoise.  Where the host is a virtual machine on this
machine, what the scheduler here does to its CPUs is recorded as well.  Must not decode or judge.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from evenkeel.documents.evidence import Conditions
from evenkeel.errors import EvenkeelError, Where, WrongInput
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError
from evenkeel.measure.fetch import fetch
from evenkeel.measure.guest import guest_call

#: What the host must have.
_EVENTS = {"sched/sched_switch": ""}
#: Of the vCPUs of the guest only: other guests have as many of them.
_OF_VCPUS = ("kvm/kvm_entry", "kvm/kvm_exit")
#: What it may lack: an older or smaller kernel, no KVM.
_OPTIONAL = (
    "irq/irq_handler_entry",
    "irq/irq_handler_exit",
    "irq/softirq_entry",
    "irq/softirq_exit",
    "irq_vectors/local_timer_entry",
    "irq_vectors/local_timer_exit",
    "irq_vectors/reschedule_entry",
    "irq_vectors/reschedule_exit",
    "irq_vectors/call_function_entry",
    "irq_vectors/call_function_exit",
    "irq_vectors/call_function_single_entry",
    "irq_vectors/call_function_single_exit",
    "irq_vectors/irq_work_entry",
    "irq_vectors/irq_work_exit",
    "nmi/nmi_handler",
)
#: The kernel takes filters that are shorter than a page.  Without one more is recorded, and nothing is missing.
_LONGEST_FILTER = 4000
#: What a recording may take: of the memory of the host's probe, and of the guest's.
_HOST_BYTES, _GUEST_MB = 256 << 20, 64
#: Rings of the flight recorder a CPU: for each second that it is to hold, and at most.
_RING_KB_S, _MOST_RING_KB = 1024, 64 * 1024
#: The machine below begins this much before the host, and ends after it.
_LEAD_S = 0.5
#: How long setting a recording up may take on a slow host.
_SETUP_S = 120
#: How much longer a guest records that nobody ends.
_GUEST_ALONE_S = 300
_TRIP_S = 0.05
_EPOCH = (1980, 1, 1, 0, 0, 0)
_KIND = "evenkeel recording 1"


@dataclass(frozen=True)
class Raw:
    """What one machine recorded: pages a CPU, texts of the format files, and the rest that reading needs.

    ``cost``: ``cpu_ns`` of the recorder within ``over_ns``, in a guest ``timerlat_ns`` too; what is not known is left
    out.
    """

    pages: Mapping[int, bytes]
    formats: Mapping[str, str]
    header_page: str
    overrun: Mapping[int, int] = field(default_factory=dict)  # a CPU: what the kernel says that it overwrote
    marks: tuple[Mapping[str, int], ...] = ()
    cost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """``threads``: those of the guest's QEMU, as the probe's ``threads`` gives them; ``told``: its clock, as
    ``recording_guest.clock`` gives it; ``below_threads``: CPU of the host as text -> thread here, and ``timer``;
    ``trips``: time here before, mark of the host, time here after; ``guest_trips``: marks of the host before, of the
    guest, of the host after, taken where ``told`` has no offset, or when they were asked for; ``siblings``: CPU of the
    host as text -> the other threads of its core, empty where nobody said.
    """

    host_name: str
    guest_name: str
    conditions: Conditions
    seconds: float
    period_ns: int
    host: Raw
    guest: Raw
    threads: tuple[Mapping[str, Any], ...]
    told: Mapping[str, Any]
    below: Raw | None = None
    below_threads: Mapping[str, int] = field(default_factory=dict)
    trips: tuple[tuple[int, int, int], ...] = ()
    guest_trips: tuple[tuple[int, int, int], ...] = ()
    siblings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    full: tuple[str, ...] = ()  # of which machines the limit of memory ended the recording
    #: Of a flight recorder: its rings were overwritten on purpose; ``reason``: what froze them.
    flight: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Under:
    """The machine under a virtual host: how to open a probe on it, and another on the host, and the host's name there.

    Only this machine can be one: round trips are timed with its clock.
    """

    name: str
    probe: Callable[[], Probe]
    host_probe: Callable[[], Probe]


def record(
    probe: Probe,
    host: str,
    guest: str,
    vcpus: Sequence[int],
    *,
    conditions: Conditions,
    seconds: float,
    period_us: int = 1000,
    siblings: Mapping[str, tuple[int, ...]] | None = None,
    under: Under | None = None,
    round_trips: bool = False,
    on_progress: OnProgress | None = None,
    during: Callable[[], None] | None = None,
) -> Recording:
    """Record ``guest`` (its ``vcpus``) and its host for ``seconds``.  ``during`` is called when the guest records
    and the host begins to.  ``round_trips``: time them also where KVM tells how it makes the guest's clock.

    Raises EvenkeelError when the guest has no agent or no timerlat, or the host no tracefs.
    """
    session = _Session(probe, host, guest, conditions, period_us, siblings, on_progress)
    with session.guest(vcpus, seconds + _GUEST_ALONE_S):
        with ThreadPoolExecutor() as pool, _below(pool, under, probe, seconds) as (below, trips, end_below):
            other = pool.submit(during) if during else None
            trips_to = guest if round_trips or session.needs_trips else ""
            recorded = session.host("recording", seconds=seconds, most_bytes=_HOST_BYTES, trips_to=trips_to)
            end_below()
            session.stop()
            if other:
                other.result()
            under_raw = below.result() if below else None
        kept = session.keep(recorded, seconds)
    if under_raw is None:
        return kept
    full = kept.full + ("below",) * under_raw.full
    return replace(kept, below=under_raw.raw, below_threads=under_raw.threads, trips=tuple(trips), full=full)


def fly(
    probe: Probe,
    host: str,
    guest: str,
    vcpus: Sequence[int],
    *,
    conditions: Conditions,
    keep_s: float,
    late_us: int,
    limit_s: float,
    period_us: int = 1000,
    siblings: Mapping[str, tuple[int, ...]] | None = None,
    on_progress: OnProgress | None = None,
) -> Recording:
    """Keep the last ``keep_s`` or so in rings, until a sample is later than ``late_us``, and return what they hold.

    ``reason`` says what ended it, None when nothing had within ``limit_s``.  The rings have a fixed size: a busy host
    overwrites sooner.  A guest that is gone leaves only the trace of its host.  Raises as :func:`record`.
    """
    session = _Session(probe, host, guest, conditions, period_us, siblings, on_progress)
    ring_kb = round(min(_MOST_RING_KB, max(1024, keep_s * _RING_KB_S)))
    with session.guest(vcpus, limit_s + _GUEST_ALONE_S, late_us=late_us, buffer_kb=ring_kb):
        recorded = session.host(
            "recording_flight", guest=guest, limit_s=limit_s, buffer_kb=ring_kb, round_trips=session.needs_trips
        )
        gone = recorded["reason"] == "guest gone"
        if gone:
            session.gave_up()
        else:
            session.stop()
        return replace(session.keep(recorded, limit_s, with_guest=not gone), reason=recorded["reason"], flight=True)


class _Session:
    """One recording under way: what host and guest are asked, in the order in which they must be."""

    def __init__(
        self,
        probe: Probe,
        host: str,
        guest: str,
        conditions: Conditions,
        period_us: int,
        siblings: Mapping[str, tuple[int, ...]] | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.siblings = siblings or {}
        self.probe, self.on_progress = probe, on_progress
        self.host_name, self.guest_name, self.conditions, self.period_us = host, guest, conditions, period_us
        self.threads = _call(probe, "threads", guest=guest)["threads"]
        self.told = _call(probe, "recording_guest_clock", guest=guest)
        self.full: list[str] = []
        self._pid, self._gone = 0, False

    @property
    def needs_trips(self) -> bool:
        """KVM does not tell how it makes the guest's clock."""
        return not self.told["offsets"]

    @contextmanager
    def guest(self, vcpus: Sequence[int], seconds: float, **more: int) -> Iterator[None]:
        """The guest records meanwhile.  Its recorder is ended, and its files are removed, whatever happens."""
        started = guest_call(
            self.probe,
            self.guest_name,
            "recording_guest_start",
            vcpus=list(vcpus),
            seconds=seconds,
            period_us=self.period_us,
            most_mb=_GUEST_MB,
            timeout_s=180.0,
            **more,
        )
        self._pid = started["pid"]
        try:
            yield
        finally:
            with suppress(EvenkeelError):  # a connection that is lost: it ends by itself
                if self._pid:
                    self.stop()
                if not self._gone:
                    guest_call(self.probe, self.guest_name, "recording_guest_clean")

    def gave_up(self) -> None:
        """The guest is gone, its recorder with it: nothing is asked of it any more."""
        self._pid, self._gone = 0, True

    def stop(self) -> None:
        pid, self._pid = self._pid, 0
        ended = guest_call(self.probe, self.guest_name, "recording_guest_stop", self.on_progress, pid=pid)
        self.full += ["guest"] * ended["full"]

    def host(self, op: str, **arguments: Any) -> Any:
        tids = sorted(thread["tid"] for thread in self.threads if thread["vcpu"] is not None)
        optional = {
            **dict.fromkeys(_OPTIONAL, ""),
            **dict.fromkeys(_OF_VCPUS, _one_of("common_pid", tids)),
            **dict.fromkeys(("sched/sched_waking", "sched/sched_migrate_task"), _one_of("pid", tids)),
        }
        answer = _call(self.probe, op, on_progress=self.on_progress, events=_EVENTS, optional=optional, **arguments)
        self.full += ["host"] * answer["full"]
        return answer

    def keep(self, recorded: Mapping[str, Any], seconds: float, *, with_guest: bool = True) -> Recording:
        """Fetch what both have."""
        host = _fetch(self.probe, recorded, self.on_progress)
        if with_guest:
            guest = _fetch_guest(self.probe, self.guest_name, self.on_progress)
        else:
            guest = Raw({}, {}, host.header_page)
        return Recording(
            host_name=self.host_name,
            guest_name=self.guest_name,
            conditions=self.conditions,
            seconds=seconds,
            period_ns=self.period_us * 1000,
            host=host,
            guest=guest,
            threads=tuple(self.threads),
            told=self.told,
            guest_trips=tuple((one["before"], one["guest"], one["after"]) for one in recorded["trips"]),
            siblings=self.siblings,
            full=tuple(self.full),
        )


def _one_of(name: str, tids: Sequence[int]) -> str:
    """A filter of the kernel, or "" where it would be too long."""
    condition = " || ".join(f"{name} == {tid}" for tid in tids)
    return condition if len(condition) <= _LONGEST_FILTER else ""


def _call(probe: Probe, op: str, *, on_progress: OnProgress | None = None, **arguments: Any) -> Any:
    try:
        return probe.call(op, on_progress=on_progress, **arguments)
    except ProbeError as error:
        hints = {
            "ENODEV": "the kernel of the host has no tracefs",
            "EPERM": "log in as root",
            "EACCES": "log in as root",
            "ESRCH": "is the guest running?",
        }
        raise EvenkeelError(error.message, hint=hints.get(error.errno or "")) from None


def _fetch(probe: Probe, answer: Mapping[str, Any], on_progress: OnProgress | None = None) -> Raw:
    return Raw(
        pages=fetch(probe, answer, "the trace of the host", on_progress),
        formats=answer["formats"],
        header_page=answer["header_page"],
        overrun={int(cpu): count for cpu, count in answer["overrun"].items()},
        marks=tuple(answer["marks"]),
        cost=answer["cost"],
    )


def _fetch_guest(probe: Probe, guest: str, on_progress: OnProgress | None) -> Raw:
    data, offset = b"", 0
    while offset is not None:
        if on_progress:
            on_progress(len(data), 0, "fetching the trace of the guest")
        piece = guest_call(probe, guest, "recording_guest_file", offset=offset)
        data += base64.b64decode(piece["data"])
        offset = piece["next"]
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if stream := archive.extractfile(member):
                files[member.name] = stream.read()
    pages, formats, overrun = {}, {}, {}
    for name, content in files.items():
        stem, _, kind = name.rpartition(".")
        if kind == "raw":
            pages[int(stem[3:])] = content
        elif kind == "format":
            formats[stem.replace(":", "/")] = content.decode()
        elif kind == "stats":
            lines = dict(line.partition(": ")[::2] for line in content.decode().splitlines())
            overrun[int(stem[3:])] = int(lines.get("overrun", 0))
    cost = _guest_cost(files["cost"].decode())
    return Raw(pages=pages, formats=formats, header_page=files["header_page"].decode(), overrun=overrun, cost=cost)


def _guest_cost(text: str) -> dict[str, int]:
    """From the lines of the recorder in the guest; empty where it could not say.

    Fields 14 to 17 of /proc/PID/stat, of the process and of its children that have ended, each in user and in system
    mode, are hundredths of a second on every kernel that KVM runs (USER_HZ; proc_pid_stat(5)).
    """
    looks = [line.split() for line in text.splitlines()]
    if len(looks) != 2:
        return {}
    before, after = looks
    ticks = sum(map(int, after[13:17])) - sum(map(int, before[13:17]))
    cost = {"cpu_ns": ticks * 10_000_000, "over_ns": round((float(after[0]) - float(before[0])) * 1e9)}
    if "-" not in (before[1], after[1]):
        cost["timerlat_ns"] = int(after[1]) - int(before[1])
    return cost


# -- the machine under the host -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _UnderRaw:
    raw: Raw
    threads: Mapping[str, int]
    full: bool


@contextmanager
def _below(
    pool: ThreadPoolExecutor, under: Under | None, host: Probe, seconds: float
) -> Iterator[tuple[Future[_UnderRaw] | None, list[tuple[int, int, int]], Callable[[], object]]]:
    """Record the threads of the host's CPUs, and time round trips to the host, until the third is called.

    Not for a time: an emulated host on a busy machine took 22 s to set its own recording up.
    """
    trips: list[tuple[int, int, int]] = []
    if under is None:
        yield None, trips, lambda: None
        return
    pid = _call(host, "hello")["pid"]
    with under.probe() as here, under.host_probe() as there:
        found = _call(here, "threads", guest=under.name)
        tids = {str(thread["vcpu"]): thread["tid"] for thread in found["threads"] if thread["vcpu"] is not None}
        tids["timer"] = found["pid"]
        with tempfile.TemporaryDirectory() as folder:
            ended = Path(folder) / "ended"
            running = pool.submit(_record_below, here, seconds + _SETUP_S, tids, str(ended))
            timing = pool.submit(_time_trips, there, pid, seconds + _SETUP_S, trips)
            time.sleep(_LEAD_S)

            def end() -> None:
                time.sleep(_LEAD_S)
                ended.touch()

            try:
                yield running, trips, end
                timing.result()
            finally:
                ended.touch()
                running.exception()


def _record_below(here: Probe, seconds: float, tids: dict[str, int], until: str) -> _UnderRaw:
    answer = _call(
        here,
        "recording",
        seconds=seconds,
        until=until,
        events={**_EVENTS, "sched/sched_waking": _one_of("pid", sorted(tids.values()))},
        buffer_kb=8192,
    )
    return _UnderRaw(_fetch(here, answer), tids, answer["full"])


def _time_trips(there: Probe, pid: int, seconds: float, trips: list[tuple[int, int, int]]) -> None:
    """Marks of the host, each between two looks at the clock here.  Ends when the host has ended recording."""
    until = time.monotonic() + seconds + 30
    while time.monotonic() < until:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        try:
            mark = there.call("recording_mark", pid=pid)
        except ProbeError:
            if trips:
                return
        else:
            trips.append((before, mark["before"], time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)))
        time.sleep(_TRIP_S)


# -- saved --------------------------------------------------------------------------------------------------------


def to_bytes(recording: Recording) -> bytes:
    """One zip archive; the same recording gives the same bytes."""
    about = {key: value for key, value in asdict(recording).items() if key not in ("host", "guest", "below")}
    about |= {"conditions": recording.conditions.model_dump(mode="json"), "kind": _KIND}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)

        add("about.json", json.dumps(about, indent=1, sort_keys=True).encode())
        for name in ("host", "guest", "below"):
            raw: Raw | None = getattr(recording, name)
            if raw is None:
                continue
            meta = {"formats": dict(raw.formats), "header_page": raw.header_page, "overrun": dict(raw.overrun)}
            meta["cost"] = dict(raw.cost)
            add(f"{name}/about.json", json.dumps({**meta, "marks": list(raw.marks)}, indent=1, sort_keys=True).encode())
            for cpu, pages in sorted(raw.pages.items()):
                add(f"{name}/cpu{cpu}.raw", pages)
    return buffer.getvalue()


def from_bytes(data: bytes, file: str) -> Recording:
    """Read a saved recording.  Raises WrongInput that names ``file``."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            about = json.loads(archive.read("about.json"))
            if about.pop("kind") != _KIND:
                raise ValueError("written by another version")
            names = archive.namelist()
            raws = {name: _raw(archive, name) for name in ("host", "guest", "below") if f"{name}/about.json" in names}
        for key in ("threads", "full"):
            about[key] = tuple(about[key])
        # Recordings of earlier versions do not know them.
        about["siblings"] = {cpu: tuple(others) for cpu, others in about.get("siblings", {}).items()}
        for key in ("trips", "guest_trips"):
            about[key] = tuple((before, stamp, after) for before, stamp, after in about.get(key, ()))
        about["conditions"] = Conditions.model_validate(about["conditions"])
        return Recording(**about, host=raws["host"], guest=raws["guest"], below=raws.get("below"))
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError) as error:
        raise WrongInput(f"no recording of host and guest: {error}", where=Where(file)) from None


def _raw(archive: zipfile.ZipFile, name: str) -> Raw:
    meta = json.loads(archive.read(f"{name}/about.json"))
    prefix = f"{name}/cpu"
    overrun = {int(cpu): count for cpu, count in meta["overrun"].items()}
    pages = {
        int(item.removeprefix(prefix).removesuffix(".raw")): archive.read(item)
        for item in archive.namelist()
        if item.startswith(prefix)
    }
    # Recordings of earlier versions do not say what they cost.
    return Raw(pages, meta["formats"], meta["header_page"], overrun, tuple(meta["marks"]), meta.get("cost", {}))
