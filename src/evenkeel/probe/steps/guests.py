"""Steps of a guest, all through libvirt's own virsh: definition, start (paused), resume, threads.

``{"kind": "guest", "guest": "plc", "xml": "<domain>...", "restart": false}``
``{"kind": "guest_power", "guest": "plc", "value": "paused" | "running"}``
``{"kind": "guest_thread", "guest": "plc", "vcpu": 1, "value": "fifo:2"}``
``{"kind": "guest_drain", "guest": "plc", "again": true}``
``{"kind": "guest_helpers", "guest": "plc", "cpus": "0-1"}``

Each kind is one class below with the functions of :mod:`evenkeel.probe.steps`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from typing import Any
from xml.etree import ElementTree

from evenkeel.probe import command, tasks
from evenkeel.probe.compare import cpu_list
from evenkeel.probe.facts.cpulist import format_list
from evenkeel.probe.failure import StepFailed, from_os_error
from evenkeel.probe.journal import DIRECTORY, SCHEDULABLE, is_schedulable
from evenkeel.probe.steps import config
from evenkeel.probe.steps.files import read_value, write_value

RECORDS = DIRECTORY + "/guests"
#: QEMU allocates and clears all huge pages of the guest before it answers.
_START_TIMEOUT_S = 600.0
_SHUTDOWN_S = 60.0
#: Kernel threads that work for one guest.  kvm-nx-lpage-recovery starts at the first run of a vCPU as that vCPU's
#: child, and so with its FIFO priority on its isolated CPU (measured on 6.12, nx_huge_pages=N too).
_HELPER = re.compile(r"kvm-nx-lpage|kvm-pit|kvm_nx|vhost-")


def _virsh(*words: str, within_s: float = 60.0, stdin: str | None = None, root: str = "/") -> str:
    return command.output(["virsh", "-c", "qemu:///system", *words], within_s, stdin, root)


def _power(guest: str, root: str) -> str:
    """``running``, ``paused``, ``shut off`` ... as virsh says; ``absent`` when there is no such guest."""
    tasks.check_guest(guest)
    words = ["virsh", "-c", "qemu:///system", "domstate", guest]
    said = command.run(words, root=root)
    if said["rc"] == 0:
        return str(said["stdout"]).strip()
    if "failed to get domain" in said["stderr"] or "Domain not found" in said["stderr"]:
        return "absent"
    return command.output(words, root=root).strip()  # libvirt itself is not well: raises with what it says


def _record(guest: str) -> str:
    return "%s/%s.json" % (RECORDS, guest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _defined_digest(xml: str) -> str:
    """Digest of a definition as libvirt prints it: without layout, and devices in an order of their own.

    libvirt 9.0 prints the same controllers in another order once the guest was started (measured).
    """
    root = ElementTree.fromstring(xml)
    for element in root.iter():
        element.text = (element.text or "").strip()
        element.tail = None
    for devices in root.iter("devices"):
        devices[:] = sorted(devices, key=ElementTree.tostring)
    return hashlib.sha256(ElementTree.tostring(root)).hexdigest()


class Definition:
    """What libvirt has as the definition of a guest.

    libvirt fills in what was left out, so its text is not ours.  A record beside the journal says which text of ours
    led to which text of libvirt's: as long as both are the same, nothing changed.
    """

    PERSISTENT = True

    @staticmethod
    def snapshot(step: dict[str, Any], root: str) -> str:
        """JSON: ``power``, ``xml`` (libvirt's, None: not defined), ``record`` (ours)."""
        guest = step["guest"]
        power = _power(guest, root)
        xml = _virsh("dumpxml", "--inactive", guest, root=root) if power != "absent" else None
        return json.dumps({"power": power, "xml": xml, "record": config.snapshot({"path": _record(guest)}, root)})

    @staticmethod
    def satisfied(step: dict[str, Any], state: str | None) -> bool:
        found = json.loads(state or "{}")
        record = json.loads(config.content(found["record"]) or b"{}")
        return (
            found["xml"] is not None
            and record.get("wanted") == _digest(step["xml"])
            and record.get("defined") == _defined_digest(found["xml"])
        )

    @staticmethod
    def shown(step: dict[str, Any], state: str | None) -> str | None:
        """The digest of the text that we defined it from; None: not defined."""
        found = json.loads(state or "{}")
        if found.get("xml") is None:
            return None
        if Definition.satisfied(step, state):
            return _digest(step["xml"])
        return "another definition" + (" (%s)" % found["power"] if found["power"] != "shut off" else "")

    @staticmethod
    def write(step: dict[str, Any], state: str | None, root: str) -> None:
        guest, found = step["guest"], json.loads(state or "{}")
        if found["power"] not in ("absent", "shut off"):
            if not step.get("restart"):
                raise StepFailed(
                    "the guest %s is %s with another definition; shut it down, or allow a restart (--restart-guests)"
                    % (guest, found["power"]),
                    16,
                )
            _shut_down(guest, root)
        if found["xml"] is not None:
            _refuse_secrets(guest, found["xml"], root)
        xml = _with_uuid(step["xml"], found["xml"])
        _virsh("define", "/dev/stdin", stdin=xml, root=root)
        defined = _virsh("dumpxml", "--inactive", guest, root=root)
        record = json.dumps({"wanted": _digest(step["xml"]), "defined": _defined_digest(defined)}) + "\n"
        config.replace(_record(guest), record.encode(), 0o600, None, root)

    @staticmethod
    def undo(step: dict[str, Any], state: str | None, root: str) -> None:
        guest, old = step["guest"], json.loads(state or "{}")
        now = json.loads(Definition.snapshot(step, root))
        if (now["xml"] and _defined_digest(now["xml"])) != (old["xml"] and _defined_digest(old["xml"])):
            if now["power"] not in ("absent", "shut off"):
                _virsh("destroy", guest, root=root)
            if old["xml"] is None:
                _virsh("undefine", "--managed-save", "--keep-nvram", guest, root=root)
            else:
                _virsh("define", "/dev/stdin", stdin=old["xml"], root=root)
        config.undo({"path": _record(guest)}, old["record"], root)
        if old["power"] == "running" and _power(guest, root) == "shut off":
            _virsh("start", guest, within_s=_START_TIMEOUT_S, root=root)


class Power:
    """Whether a guest runs.  ``paused`` is reached from off only: a guest that runs already is never stopped."""

    PERSISTENT = False

    @staticmethod
    def snapshot(step: dict[str, Any], root: str) -> str:
        return _power(step["guest"], root)

    @staticmethod
    def satisfied(step: dict[str, Any], state: str | None) -> bool:
        return state == "running" or (state == "paused" and step["value"] == "paused")

    @staticmethod
    def shown(step: dict[str, Any], state: str | None) -> str | None:
        return state

    @staticmethod
    def write(step: dict[str, Any], state: str | None, root: str) -> None:
        guest = step["guest"]
        if state in ("paused", "shut off") and not is_schedulable(root):
            raise StepFailed(
                "the host is not schedulable: its boot gate did not pass since it was started, so no guest may run; "
                "evenkeel apply asks the gate",
                None,
                SCHEDULABLE,
            )
        if step["value"] == "running" and state == "paused":
            _virsh("resume", guest, root=root)
        elif state == "shut off":
            paused = ("--paused",) if step["value"] == "paused" else ()
            _virsh("start", *paused, guest, within_s=_START_TIMEOUT_S, root=root)
        elif state == "absent":
            raise StepFailed("the guest %s is not defined" % guest, 2)
        else:
            raise StepFailed("the guest %s is %s; look at it with virsh, then run it again" % (guest, state), 16)

    @staticmethod
    def undo(step: dict[str, Any], state: str | None, root: str) -> None:
        guest = step["guest"]
        now = _power(guest, root)
        if now in (state, "absent", "shut off"):
            return
        if state == "paused":
            _virsh("suspend", guest, root=root)
        elif state in ("shut off", "absent"):
            _virsh("destroy", guest, root=root)


class Drain:
    """A guest out of the way of changes that would disturb it: shut down, and started again by what follows.

    ``again``: undoing starts it again.  False for a guest whose place is made after its start (partition, priority):
    without them it would run, and miss its deadlines in silence.
    """

    PERSISTENT = False

    @staticmethod
    def snapshot(step: dict[str, Any], root: str) -> str:
        return _power(step["guest"], root)

    @staticmethod
    def satisfied(step: dict[str, Any], state: str | None) -> bool:
        return state in ("absent", "shut off")

    @staticmethod
    def shown(step: dict[str, Any], state: str | None) -> str | None:
        return state

    @staticmethod
    def write(step: dict[str, Any], state: str | None, root: str) -> None:
        _shut_down(step["guest"], root)

    @staticmethod
    def undo(step: dict[str, Any], state: str | None, root: str) -> None:
        if step.get("again") and state == "running" and _power(step["guest"], root) == "shut off":
            _virsh("start", step["guest"], within_s=_START_TIMEOUT_S, root=root)


class Thread:
    """Policy and priority of one vCPU thread."""

    PERSISTENT = False

    @staticmethod
    def snapshot(step: dict[str, Any], root: str) -> str | None:
        """JSON: thread id -> schedule; None: the guest does not run."""
        thread = tasks.vcpu_thread(step["guest"], step["vcpu"], root)
        now = tasks.schedule(thread) if thread is not None else None
        return json.dumps({str(thread): now}) if now is not None else None

    @staticmethod
    def satisfied(step: dict[str, Any], state: str | None) -> bool:
        return state is not None and set(json.loads(state).values()) == {step["value"]}

    @staticmethod
    def shown(step: dict[str, Any], state: str | None) -> str | None:
        return next(iter(json.loads(state).values())) if state is not None else None

    @staticmethod
    def write(step: dict[str, Any], state: str | None, root: str) -> None:
        if state is None:
            raise StepFailed("vCPU %d of %s has no thread; does the guest run?" % (step["vcpu"], step["guest"]), 3)
        for thread in json.loads(state):
            tasks.set_schedule(int(thread), step["value"])

    @staticmethod
    def undo(step: dict[str, Any], state: str | None, root: str) -> None:
        living = json.loads(Thread.snapshot(step, root) or "{}")
        for thread, old in json.loads(state or "{}").items():
            if living.get(thread, old) != old:
                tasks.set_schedule(int(thread), old)


class Helpers:
    """Threads of the kernel that serve one guest: on its housekeeping CPUs, at no real-time priority."""

    PERSISTENT = False

    @staticmethod
    def snapshot(step: dict[str, Any], root: str) -> str:
        """JSON: thread id -> [name, schedule, CPUs].  Waits up to ``wait_s`` for the first of them to appear."""
        cpu_list(step["cpus"])
        deadline = time.monotonic() + float(step.get("wait_s", 0))
        while True:
            found = _helpers(step["guest"], root)
            if found or time.monotonic() >= deadline:
                return json.dumps(found)
            time.sleep(0.1)

    @staticmethod
    def satisfied(step: dict[str, Any], state: str | None) -> bool:
        home = cpu_list(step["cpus"])
        return all(
            not schedule.startswith(("fifo", "rr")) and cpu_list(cpus) <= home
            for _, schedule, cpus in json.loads(state or "{}").values()
        )

    @staticmethod
    def shown(step: dict[str, Any], state: str | None) -> str | None:
        threads = json.loads(state or "{}").values()
        return "; ".join(sorted("%s %s on %s" % (name, schedule, cpus) for name, schedule, cpus in threads)) or None

    @staticmethod
    def write(step: dict[str, Any], state: str | None, root: str) -> None:
        process = tasks.guest_process(step["guest"], root)
        home = cpu_list(step["cpus"])
        for thread, (name, schedule, cpus) in json.loads(state or "{}").items():
            if process is not None and not cpu_list(cpus) <= home:
                _to_emulator_cgroup(int(thread), process, root)
                with contextlib.suppress(ProcessLookupError):
                    try:
                        os.sched_setaffinity(int(thread), home)
                    except OSError as error:
                        raise from_os_error(error, "cannot move %s to CPUs %s" % (name, step["cpus"])) from None
            if schedule.startswith(("fifo", "rr")):
                tasks.set_schedule(int(thread), "other:0")

    @staticmethod
    def undo(step: dict[str, Any], state: str | None, root: str) -> None:
        """Nothing: they end with the guest, and no one wants them back on an isolated CPU."""


def _helpers(guest: str, root: str) -> dict[str, list[str]]:
    process = tasks.guest_process(guest, root)
    if process is None:
        return {}
    threads = {thread: name for thread, name in tasks.guest_threads(guest, root).items() if _HELPER.match(name)}
    # As kernel threads (before 6.12.y they all were) they carry the process id in their name: kvm-pit/1234.
    suffixes = ("/%d" % process, "-%d" % process)
    threads.update(
        (n, name) for n, name in tasks.kernel_threads(root) if _HELPER.match(name) and name.endswith(suffixes)
    )
    found = {}
    for thread, name in sorted(threads.items()):
        with contextlib.suppress(ProcessLookupError):
            schedule = tasks.schedule(thread)
            if schedule is not None:
                found[str(thread)] = [name, schedule, format_list(os.sched_getaffinity(thread))]
    return found


def _to_emulator_cgroup(thread: int, process: int, root: str) -> None:
    """Out of the vCPU's cgroup, whose cpuset holds nothing but the isolated CPU, into libvirt's ``emulator``."""
    here = tasks.cgroup_of(thread, process, root)
    if here is None or not re.search(r"/vcpu\d+\Z", here):
        return
    target = "/sys/fs/cgroup%s/emulator/cgroup.threads" % here.rpartition("/")[0]
    if read_value(target, root) is None:
        return
    try:
        write_value(target, "%d\n" % thread, root)
    except ProcessLookupError:
        return
    except OSError as error:
        raise from_os_error(error, "cannot move thread %d" % thread, target) from None


def _shut_down(guest: str, root: str) -> None:
    """Ask the guest to shut down; after a minute pull the plug."""
    with contextlib.suppress(StepFailed):  # a guest without ACPI cannot be asked
        _virsh("shutdown", guest, root=root)
        deadline = time.monotonic() + _SHUTDOWN_S
        while time.monotonic() < deadline:
            if _power(guest, root) == "shut off":
                return
            time.sleep(0.5)
    if _power(guest, root) != "shut off":
        _virsh("destroy", guest, root=root)


def _refuse_secrets(guest: str, xml: str, root: str) -> None:
    """A password in a definition must not get into the journal, and without it there is no way back."""
    if _virsh("dumpxml", "--inactive", "--security-info", guest, root=root) != xml:
        raise StepFailed(
            "the guest %s is defined already, with a password in its definition; save that definition elsewhere and "
            "undefine the guest by hand first" % guest,
            17,
        )


def _with_uuid(xml: str, defined: str | None) -> str:
    """libvirt takes a definition without uuid for a new guest, and then refuses the name that is taken."""
    uuid = re.search(r"<uuid>[^<]*</uuid>", defined or "")
    if uuid is None or "<uuid>" in xml:
        return xml
    return xml.replace("</name>", "</name>" + uuid.group(0), 1)
