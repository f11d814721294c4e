"""Ailments of ownership: two programs that set the same value undo each other.

Source: reference host-tuning F2, F11, R-IRQ-4; seapath/ansible#985.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus, parse_cpus, parse_mask
from evenkeel.verify.doctor.ailment import Ailment, Symptom, item
from evenkeel.verify.doctor.patient import Patient

#: What they set -> daemons that do so.
_RIVALS = {
    "frequency governors": ("tuned", "power-profiles-daemon", "auto-cpufreq", "tlp"),
    "page merging": ("tuned", "ksmtuned"),
    "starved threads": ("stalld", "fair server"),
    "placement on nodes": ("numad", "evenkeel"),
}
_OWN = ("/etc/default/grub.d/", "evenkeel")
_BANNED = re.compile(r'^\s*(?:export\s+)?IRQBALANCE_BANNED_(CPULIST|CPUS)\s*=\s*"?([^"\s]+)', re.MULTILINE)


def _rivals(patient: Patient) -> Iterable[Symptom]:
    running = {owner.name: owner.evidence for owner in patient.facts.owners if owner.active}
    for what in ("frequency governors", "page merging"):
        names = [name for name in _RIVALS[what] if name in running]
        if len(names) > 1:
            yield Symptom(f"{' and '.join(names)} both set {what}", tuple(item(name, running[name]) for name in names))
    pinned = [vcpu for vcpu in patient.vcpus if vcpu.thread.cpus < patient.online]
    if "numad" in running and (patient.isolated or pinned):
        who = f"{len(pinned)} vCPU threads" if pinned else f"the isolated CPUs {format_cpus(patient.isolated)}"
        yield Symptom(f"numad moves what somebody else has placed: {who}", (item("numad", running["numad"]),))
    ours = [path for path in patient.facts.settings if path.startswith(_OWN[0]) and _OWN[1] in path]
    if "tuned" in running and ours:
        yield Symptom(
            "TuneD and Evenkeel both write boot arguments, masks and sysctls of this host",
            (item("tuned", running["tuned"]), *(item(path, "Evenkeel's arguments") for path in ours)),
        )


def _irqbalance(patient: Patient) -> Iterable[Symptom]:
    evidence = patient.owner("irqbalance")
    if evidence is None or not patient.isolated:
        return
    # irqbalance itself leaves alone what these two files name (irqbalance(1), IRQBALANCE_BANNED_CPULIST).
    safe = patient.facts.isolated | patient.facts.nohz_full
    texts = [item("irqbalance", evidence)]
    for path in ("/etc/default/irqbalance", "/etc/sysconfig/irqbalance"):
        for kind, value in _BANNED.findall(patient.facts.settings.get(path, "")):
            try:
                safe = parse_cpus(value) if kind == "CPULIST" else parse_mask(value)
            except ValueError:
                continue
            texts.append(item(path, f"IRQBALANCE_BANNED_{kind}={value}"))
    open_ = patient.isolated - safe
    if open_:
        yield Symptom(
            f"irqbalance may move interrupts to the isolated CPUs {format_cpus(open_)}",
            (*texts, item("isolated CPUs", format_cpus(patient.isolated))),
        )


def _sysctls(patient: Patient) -> Iterable[Symptom]:
    """Two files with two values; and a value that is not the file's."""
    given: dict[str, dict[str, str]] = {}
    for owner in patient.facts.owners:
        if owner.name != "sysctl.d":
            continue
        path, _, rest = owner.evidence.partition(": ")
        for one in rest.split("; "):
            key, equals, value = one.partition(" = ")
            if equals:
                given.setdefault(key, {})[path] = " ".join(value.split())
    for key, found in sorted(given.items()):
        # A file of the administrator overrides one of a package: that is how it is meant.
        files = {path: value for path, value in found.items() if path.startswith(("/etc/", "/run/"))} or found
        if len(set(files.values())) > 1:
            yield Symptom(
                f"{key} is set to {' and '.join(sorted(set(files.values())))} by different files; the name decides "
                "which is read last",
                tuple(item(path, f"{key} = {value}") for path, value in files.items()),
            )
            continue
        live = patient.facts.settings.get(f"/proc/sys/{key.replace('.', '/')}")
        ((path, value),) = list(files.items())[:1]
        if live is not None and " ".join(live.split()) != value:
            yield Symptom(
                f"{key} is {' '.join(live.split())}, but {path} sets {value}: somebody changed it since, and the next "
                "boot changes it back",
                (item(f"/proc/sys/{key.replace('.', '/')}", live), item(path, f"{key} = {value}")),
                severity="note",
            )


AILMENTS = (
    Ailment(
        "D-OWNERS",
        "setting",
        "harmful",
        "Each value has one owner",
        "two daemons that set the same value undo each other at moments of their own choice; on a live cluster that "
        "cost the network (seapath/ansible#985)",
        "stop and mask all but one: systemctl mask --now NAME",
        "host-tuning F11",
        _rivals,
        needs=("threads",),
    ),
    Ailment(
        "D-IRQBALANCE",
        "interrupt",
        "warning",
        "irqbalance knows which CPUs to leave alone",
        "every ten seconds it spreads interrupts over all CPUs that it believes free; partitions are unknown to it",
        "systemctl mask --now irqbalance, or name the isolated CPUs in IRQBALANCE_BANNED_CPULIST",
        "host-tuning R-IRQ-4, F2",
        _irqbalance,
        needs=("threads", "command line"),
    ),
    Ailment(
        "D-SYSCTL",
        "setting",
        "warning",
        "No sysctl has two values",
        "what holds now and what holds after the next boot are not the same",
        "keep one file that sets it: grep -r KEY /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d",
        "sysctl.d(5)",
        _sysctls,
        needs=("settings",),
    ),
)
