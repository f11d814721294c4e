"""Every setting of a plan, read back and compared with the one comparison of the product.  Pure.

A file that this kernel lacks on purpose counts as satisfied, as the plan says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.documents.plan import (
    BootArgument,
    FileValue,
    GuestDefinition,
    GuestPartition,
    GuestThread,
    HostPlan,
    InterruptAffinity,
    NicChannels,
    ServicePlacement,
    Setting,
    ThreadSchedule,
    UnitState,
)
from evenkeel.plan.order import boot_value
from evenkeel.verify.catalogue import item, shorten
from evenkeel.verify.definition import differences
from evenkeel.verify.observe import GuestSeen, Observation

CMDLINE = "/proc/cmdline"
#: What a comparison gives: (passed, observed, evidence); a text instead says why it could not be made.
Result = tuple[bool, str, list[EvidenceItem]] | str


def check(host: HostPlan, seen: Observation) -> tuple[Check, ...]:
    """One check a setting, under the setting's id."""
    return tuple(_check(setting, host, seen) for setting in host.settings)


def _check(setting: Setting, host: HostPlan, seen: Observation) -> Check:
    target: Any = setting.target
    compare: Callable[[Setting, Any, HostPlan, Observation], Result] = _COMPARE[type(target)]
    result = compare(setting, target, host, seen)
    made = not isinstance(result, str)
    passed, observed, evidence = result if not isinstance(result, str) else (False, "", [])
    return Check(
        id=setting.id,
        subject="setting",
        title=setting.title,
        status="not_checked" if not made else "passed" if passed else "failed",
        expected=_expected(setting),
        observed=observed,
        evidence=tuple(evidence),
        severity="harmful",
        why=setting.reason,
        fix=_fix(setting),
        reason=result if isinstance(result, str) else "",
        guest=getattr(target, "guest", None),
    )


def _expected(setting: Setting) -> str:
    if setting.status == "absent":
        return f"{setting.new}, where the file exists"
    if isinstance(setting.target, GuestDefinition):
        return "the planned definition"
    if setting.new is None:
        return "not there"
    if isinstance(setting.target, BootArgument):
        words = f"{setting.target.key}={setting.new}" if setting.new else setting.target.key
        return f"{setting.target.after} {words}" if setting.target.after else words
    return setting.new


def _fix(setting: Setting) -> str:
    if setting.disturbance == "reboot":
        return "evenkeel apply --reboot; if it comes back, another tool owns the boot loader's configuration"
    return "evenkeel apply; if it comes back, another tool sets it: see the owners in `evenkeel facts`"


# -- one function a kind of target --------------------------------------------------------------------------------


def _file(setting: Setting, target: FileValue, _host: HostPlan, seen: Observation) -> Result:
    return _read(target, setting.new, setting.status == "absent", seen)


def _read(target: FileValue, wanted: str | None, may_lack: bool, seen: Observation) -> Result:
    facts = seen.facts
    if target.path in facts.unreadable:
        return f"{target.path} cannot be read: {facts.unreadable[target.path]}"
    found = facts.settings.get(target.path)
    if found is None:
        evidence = [item(target.path, "(no such file)")]
        return may_lack or wanted is None, "this kernel has no such file", evidence
    return target.matches(found, wanted), found.strip(), [item(target.path, found.strip())]


def _boot(setting: Setting, target: BootArgument, _host: HostPlan, seen: Observation) -> Result:
    line = seen.facts.kernel.command_line
    found = boot_value(line, target.key, target.after)
    evidence = [item(CMDLINE, line)]
    told = f"{target.key}={found}" if found else target.key if found == "" else f"no {target.key}"
    if found != setting.new or target.effective is None or setting.new is None:
        return found == setting.new, told, evidence
    wanted = setting.new if target.effective_value is None else target.effective_value
    effect = _read(target.effective, wanted, False, seen)
    if isinstance(effect, str):
        return effect
    passed, observed, more = effect
    return (
        passed,
        told if passed else f"{told}, but {target.effective.path} says {observed or 'nothing'}",
        evidence + more,
    )


def _interrupt(setting: Setting, target: InterruptAffinity, _host: HostPlan, seen: Observation) -> Result:
    rows = [row for row in seen.facts.interrupts if row.action == target.action]
    if not rows:
        return True, "this interrupt does not exist any more", [item("/proc/interrupts", f"no {target.action}")]
    wanted = parse_cpus(setting.new or "")
    evidence = [item(f"/proc/irq/{row.number}/smp_affinity_list", format_cpus(row.affinity)) for row in rows]
    passed = all(row.affinity == wanted for row in rows)
    return passed, " or ".join(sorted({format_cpus(row.affinity) or "none" for row in rows})), evidence


def _thread(setting: Setting, target: ThreadSchedule, _host: HostPlan, seen: Observation) -> Result:
    rows = [row for row in seen.facts.kernel_threads if row.name == target.name]
    if not rows:
        return setting.status == "absent", "no such kernel thread", [item("/proc", f"no thread {target.name}")]
    found = sorted({f"{row.policy}:{row.priority}" for row in rows})
    evidence = [item(f"kernel thread {target.name}", text) for text in found]
    return found == [setting.new], " and ".join(found), evidence


def _unit(setting: Setting, target: UnitState, _host: HostPlan, seen: Observation) -> Result:
    if "units" in seen.trouble or target.unit not in seen.units:
        return seen.trouble.get("units", "systemd does not answer")
    state = seen.units[target.unit]
    running = state.get("ActiveState") in ("active", "activating", "reloading")
    evidence = [item(f"systemctl show {target.unit}", " ".join(f"{key}={value}" for key, value in state.items()))]
    # A unit that may be started by somebody at any time is not stopped for good.
    again = state.get("UnitFileState") == "enabled"
    passed = running if setting.new == "running" else not running and not again
    observed = "running" if running else f"stopped, {state.get('UnitFileState') or 'not installed'}"
    return passed, observed, evidence


def _channels(setting: Setting, target: NicChannels, _host: HostPlan, seen: Observation) -> Result:
    nic = next((nic for nic in seen.facts.nics if nic.name == target.nic), None)
    if nic is None:
        return False, "no such interface", [item("/sys/class/net", f"no {target.nic}")]
    if nic.channels is None:
        return f"the driver of {target.nic} does not tell how many channels it has"
    kinds = [word.partition("=")[0] for word in (setting.new or "").split()]
    found = " ".join(f"{kind}={getattr(nic.channels, kind)}" for kind in kinds)
    return found == setting.new, found, [item(f"ethtool -l {target.nic}", found)]


def _service(setting: Setting, target: ServicePlacement, _host: HostPlan, seen: Observation) -> Result:
    rows = [row for row in seen.facts.daemons if row.unit == target.unit and row.name == target.process]
    if not rows:
        return f"{target.process} does not run as {target.unit}"
    cpus, _, schedule = (setting.new or "").partition(" ")
    found = sorted({f"{format_cpus(row.cpus)} {row.policy}:{row.priority}" for row in rows})
    placed = all(
        row.cpus <= parse_cpus(cpus) and schedule in ("", f"{row.policy}:{row.priority}") and row.kept == setting.new
        for row in rows
    )
    kept = ", ".join(sorted({row.kept or "nothing kept for its next start" for row in rows}))
    evidence = [item(f"threads of {target.process}", text) for text in found]
    return placed, " and ".join(found), [*evidence, item(f"drop-in of {target.unit}", kept)]


def _guest(seen: Observation, name: str) -> GuestSeen | str:
    guest = seen.guests.get(name)
    if guest is None:
        return f"the plan has no guest {name}"
    return guest if not guest.trouble else guest.trouble


def _definition(_setting: Setting, target: GuestDefinition, host: HostPlan, seen: Observation) -> Result:
    guest = _guest(seen, target.guest)
    if isinstance(guest, str):
        return guest
    plan = next((plan for plan in host.guests if plan.name == target.guest), None)
    if plan is None:
        return f"the plan has no guest {target.guest}"
    if guest.defined is None:
        return False, "libvirt does not know this guest", [item("virsh domstate", guest.state)]
    wrong = differences(plan.xml, guest.defined)
    where = f"virsh dumpxml --inactive {target.guest}"
    evidence = [item(where, text) for text in wrong or [f"{len(guest.defined.splitlines())} lines, nothing missing"]]
    return not wrong, shorten(wrong, 3) or "the planned definition", evidence


def _partition(setting: Setting, target: GuestPartition, _host: HostPlan, seen: Observation) -> Result:
    thread = _vcpu(seen, target.guest, target.vcpu)
    if isinstance(thread, str):
        return thread
    state, cpus = thread.get("partition") or "no cpuset controller", thread.get("exclusive") or ""
    folder = f"/sys/fs/cgroup{thread['cgroup']}"
    evidence = [
        item(f"{folder}/cpuset.cpus.partition", state),
        item(f"{folder}/cpuset.cpus.exclusive.effective", cpus),
    ]
    passed = state == "isolated" and parse_cpus(cpus) == parse_cpus(setting.new or "")
    return passed, cpus if state == "isolated" else f"{state} {cpus}".strip(), evidence


def _schedule(setting: Setting, target: GuestThread, _host: HostPlan, seen: Observation) -> Result:
    thread = _vcpu(seen, target.guest, target.vcpu)
    if isinstance(thread, str):
        return thread
    found = f"{thread['policy']}:{thread['priority']}"
    return found == setting.new, found, [item(f"thread {thread['tid']} {thread['name']}", found)]


def _vcpu(seen: Observation, name: str, index: int) -> dict[str, Any] | str:
    guest = _guest(seen, name)
    if isinstance(guest, str):
        return guest
    if guest.threads is None:
        return f"guest {name} does not run ({guest.state})"
    return guest.vcpu(index) or f"guest {name} has no thread of vCPU {index}"


_COMPARE: dict[type, Callable[[Setting, Any, HostPlan, Observation], Result]] = {
    FileValue: _file,
    BootArgument: _boot,
    InterruptAffinity: _interrupt,
    ThreadSchedule: _thread,
    UnitState: _unit,
    NicChannels: _channels,
    ServicePlacement: _service,
    GuestDefinition: _definition,
    GuestPartition: _partition,
    GuestThread: _schedule,
}
