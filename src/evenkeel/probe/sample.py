"""Look at what runs where: threads, interrupts, memory.  Reads only; parsers are in :mod:`evenkeel.probe.sample_proc`.

Must not judge: whether a thread may be where it is, is decided by `evenkeel.verify`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import time
from typing import Any, Callable, Iterator, Sequence

from evenkeel.probe.sample_proc import (
    PF_KTHREAD,
    parse_interrupts,
    parse_numa_maps,
    parse_stat,
    parse_status,
    row_kind,
)

OnProgress = Callable[[int, int, str], None]
_VCPU = re.compile(r"CPU (\d+)/(?:KVM|TCG)\Z")
#: Kernel threads that carry the number of the process they work for: the in-kernel timer chip (before 6.16), huge page
#: recovery (before 6.12.9 or so; a thread of QEMU itself since), vhost (before 6.4; likewise).
_HELPER = re.compile(r"(?:kvm-pit/|kvm-nx-lpage-recovery-|vhost-)(\d+)\Z")


def read(path: str) -> str | None:
    """The text of a file of procfs or sysfs; None when it, or the thread it is about, is gone."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return None


def interrupt_rows() -> dict[str, dict[str, Any]]:
    return parse_interrupts(read("/proc/interrupts") or "")


def grown(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of /proc/interrupts that grew: label, action, kind, and the growth a CPU, without zeros.

    A row that appeared between the readings (a driver was loaded) grew from zero.
    """
    rows = []
    for label, row in after.items():
        old = before.get(label, {"counts": {}})["counts"]
        counts = {cpu: count - old.get(cpu, 0) for cpu, count in row["counts"].items() if count > old.get(cpu, 0)}
        if counts:
            kind = row_kind(label, row["action"])
            rows.append({"label": label, "action": row["action"], "kind": kind, "counts": counts})
    return rows


def interrupts(seconds: float, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """What fired on which CPU within ``seconds``: ``{"seconds": real, "rows": [...]}`` as :func:`grown` gives them."""
    before, start = interrupt_rows(), time.monotonic()
    pause(seconds, "counting interrupts", on_progress)
    return {"rows": grown(before, interrupt_rows()), "seconds": round(time.monotonic() - start, 3)}


def pause(seconds: float, what: str, on_progress: OnProgress | None) -> None:
    """Sleep, telling once a second how far it is: that also notices a lost connection, so that an orphan ends."""
    start = time.monotonic()
    while True:
        spent = time.monotonic() - start
        if on_progress:
            on_progress(int(min(spent, seconds) * 10), int(seconds * 10), what)
        if spent >= seconds:
            return
        time.sleep(min(1.0, seconds - spent))


# -- the threads of a guest ---------------------------------------------------------------------------------------


def qemu_pid(guest: str) -> int | None:
    """The QEMU of a guest: by libvirt's pid file, else by ``-name guest=NAME`` on a command line."""
    for folder in ("/run/libvirt/qemu", "/var/run/libvirt/qemu"):
        text = (read("%s/%s.pid" % (folder, guest)) or "").strip()
        if text.isdecimal() and os.path.isdir("/proc/" + text):
            return int(text)
    for pid in numbers("/proc"):
        words = (read("/proc/%d/cmdline" % pid) or "").split("\0")
        name = words[words.index("-name") + 1].split(",")[0] if "-name" in words[:-1] else ""
        if guest in (name, name.partition("guest=")[2]):
            return pid
    return None


def _needed_pid(guest: str) -> int:
    pid = qemu_pid(guest)
    if pid is None:
        raise OSError(errno.ESRCH, "no QEMU process of a guest named %r" % guest)
    return pid


def threads(
    guest: str, samples: int = 1, interval_s: float = 0.1, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Every thread of a guest, kernel threads that serve it included.  ``seen``: the CPUs it ran on, sample by sample.

    A thread: ``tid, name, kind, vcpu, policy, priority, cpus, seen, voluntary, involuntary, cgroup``; kind is vcpu,
    iothread, emulator or kernel.  vCPU threads also have ``partition``: the state of the cpuset partition that they
    are in, and ``exclusive``: its CPUs.  Raises ESRCH when there is no such guest.
    """
    pid = _needed_pid(guest)
    found: dict[int, dict[str, Any]] = {}
    for sample in range(max(1, samples)):
        if sample:
            pause(interval_s, "watching the threads of %s" % guest, on_progress)
        for tid, folder, kernel in _threads_of(pid):
            thread = _thread(tid, folder, kernel)
            if thread:
                thread["seen"] = sorted({*found.get(tid, thread)["seen"], *thread["seen"]})
                found[tid] = thread
    if not found:
        raise OSError(errno.ESRCH, "the QEMU process of %r ended" % guest)
    return {"pid": pid, "threads": [found[tid] for tid in sorted(found)]}


def _threads_of(pid: int) -> Iterator[tuple[int, str, bool]]:
    for tid in numbers("/proc/%d/task" % pid):
        yield tid, "/proc/%d/task/%d" % (pid, tid), False
    for tid in numbers("/proc"):
        name = (read("/proc/%d/comm" % tid) or "").strip()
        match = _HELPER.match(name)
        if match and int(match.group(1)) == pid:
            stat = parse_stat(read("/proc/%d/stat" % tid) or "")
            if stat and stat.flags & PF_KTHREAD:
                yield tid, "/proc/%d" % tid, True


def _thread(tid: int, folder: str, kernel: bool) -> dict[str, Any] | None:
    stat, status = parse_stat(read(folder + "/stat") or ""), parse_status(read(folder + "/status") or "")
    if not stat or not status:
        return None
    name = (read(folder + "/comm") or "").strip() or stat.name
    vcpu = _VCPU.match(name)
    thread: dict[str, Any] = {
        "tid": tid,
        "name": name,
        "kind": "kernel" if kernel else "vcpu" if vcpu else _kind(name),
        "vcpu": int(vcpu.group(1)) if vcpu else None,
        "policy": stat.policy,
        "priority": stat.priority,
        "cpus": status.get("Cpus_allowed_list", ""),
        "seen": [stat.cpu],
        "voluntary": int(status.get("voluntary_ctxt_switches", 0)),
        "involuntary": int(status.get("nonvoluntary_ctxt_switches", 0)),
        "cgroup": _cgroup(folder),
    }
    if vcpu:
        thread["partition"], thread["exclusive"] = _partition(thread["cgroup"])
    return thread


def _kind(name: str) -> str:
    """Of a thread of QEMU that is no vCPU.  Since 6.4 and 6.12 the kernel's helpers are such threads as well."""
    if name.startswith(("vhost-", "kvm-nx-lpage-re")):
        return "kernel"
    return "iothread" if name.startswith("IO iothread") else "emulator"


def _cgroup(folder: str) -> str:
    """Path in the cgroup v2 hierarchy, ``/machine.slice/...``; empty without one."""
    for line in (read(folder + "/cgroup") or "").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def _partition(cgroup: str) -> tuple[str | None, str | None]:
    folder = "/sys/fs/cgroup" + cgroup
    state, cpus = read(folder + "/cpuset.cpus.partition"), read(folder + "/cpuset.cpus.exclusive.effective")
    return state and state.strip(), cpus and cpus.strip()


def numbers(folder: str) -> list[int]:
    """Names in a folder of /proc that are numbers: processes, or threads; none where it is gone."""
    with contextlib.suppress(OSError):
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    return []


# -- everything else that may run on a CPU ------------------------------------------------------------------------


def intruders(cpus: Sequence[int], guests: Sequence[str] = ()) -> list[dict[str, Any]]:
    """User threads other than those of ``guests`` that may run on one of ``cpus``: tid, pid, name, cpus, policy.

    Kernel threads are left out: each CPU has its own, and their place is a setting by itself.
    """
    wanted, spared = set(cpus), {qemu_pid(guest) for guest in guests}
    found = []
    for pid in numbers("/proc"):
        if pid in spared:
            continue
        for tid in numbers("/proc/%d/task" % pid):
            folder = "/proc/%d/task/%d" % (pid, tid)
            status = parse_status(read(folder + "/status") or "")
            allowed = status.get("Cpus_allowed_list", "")
            if not wanted & expand(allowed):
                continue
            stat = parse_stat(read(folder + "/stat") or "")
            if stat and not stat.flags & PF_KTHREAD:
                found.append({"tid": tid, "pid": pid, "name": stat.name, "cpus": allowed, "policy": stat.policy})
    return found


def expand(cpus: str) -> set[int]:
    """The kernel's list format, as the kernel wrote it."""
    numbers: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdecimal():
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def units(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """State of systemd units: name -> LoadState, ActiveState, UnitFileState.  Empty where systemd does not answer."""
    found = {}
    for name in names:
        try:
            done = subprocess.run(
                ["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", "--", name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=30,
                check=False,
            )
        except OSError:
            return {}
        pairs = (line.partition("=") for line in done.stdout.splitlines())
        found[name] = {key: value for key, equals, value in pairs if equals}
    return found


# -- memory -------------------------------------------------------------------------------------------------------


def numa_maps(guest: str) -> dict[str, Any]:
    """Where the memory of a guest is: ``huge`` mappings, ``ordinary`` bytes a node, ``locked_bytes``.

    Keys of ``nodes`` are node numbers as text (JSON).  Raises ESRCH when there is no such guest.
    """
    pid = _needed_pid(guest)
    with open("/proc/%d/numa_maps" % pid) as file:
        mappings = parse_numa_maps(file.read())
    ordinary: dict[str, int] = {}
    huge = []
    for mapping in mappings:
        if mapping["huge"]:
            huge.append({**mapping, "nodes": {str(node): pages for node, pages in mapping["nodes"].items()}})
            continue
        for node, pages in mapping["nodes"].items():
            ordinary[str(node)] = ordinary.get(str(node), 0) + pages * mapping["page_bytes"]
    status = parse_status(read("/proc/%d/status" % pid) or "")
    locked = status.get("VmLck", "0 kB").split()
    return {
        "pid": pid,
        "huge": huge,
        "ordinary": ordinary,
        "locked_bytes": int(locked[0]) * 1024 if locked and locked[0].isdecimal() else 0,
    }
