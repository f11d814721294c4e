"""Ailments of the clock: a clock source that is slow to read, or that the kernel does not trust any more.

Source: reference host-tuning H-TSC; Documentation/admin-guide/kernel-parameters.txt (tsc=, clocksource=).
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.verify.doctor import commandline
from evenkeel.verify.doctor.ailment import Ailment, Blind, Symptom, item
from evenkeel.verify.doctor.patient import Patient

_CLOCK = "/sys/devices/system/clocksource/clocksource0"
#: Clocks that are read without leaving the CPU, or that a hypervisor gives.
_GOOD = frozenset({"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "tsc-early", "arch_sys_counter", "xen"})


def _source(patient: Patient) -> Iterable[Symptom] | Blind:
    facts = patient.facts
    if facts.clocksource is None:
        return Blind("the facts have no clock source (a recorded tree without clocksource0?)")
    bad = facts.clocksource not in _GOOD and facts.identity.architecture in ("x86_64", "i686", "aarch64")
    log = facts.kernel_log.lines.get("clocksource") if facts.kernel_log else None
    forced = [
        word.text
        for word in commandline.words(patient.line)
        if word.key in ("notsc",)
        or word.text == "tsc=unstable"
        or (word.key == "clocksource" and word.value and word.value not in _GOOD)
    ]
    if not bad and not log and not forced:
        return []
    evidence = [
        item(f"{_CLOCK}/current_clocksource", facts.clocksource),
        item(f"{_CLOCK}/available_clocksource", " ".join(facts.clocksources)),
    ]
    if log:
        evidence.append(item("kernel log", log))
    evidence += [item("/proc/cmdline", word) for word in forced]
    text = f"the clock source is {facts.clocksource}"
    if log:
        text += ", and the kernel called one unstable"
    if forced:
        text += f", as {' '.join(forced)} asks"
    matters = bool(patient.isolated or patient.realtime_cpus)
    return [Symptom(text, tuple(evidence), severity=None if matters and (bad or log) else "warning")]


AILMENTS = (
    Ailment(
        "D-CLOCK",
        "setting",
        "harmful",
        "The clock source is the CPU's own, and the kernel trusts it",
        "hpet and acpi_pm take a microsecond a reading, one CPU at a time, and no guest can be given a stable TSC on "
        "such a host; the kernel falls back to them when it finds the TSC unstable",
        "see the kernel's log for why; update the firmware; take clocksource= and notsc off the command line; "
        "tsc=reliable only where the TSC is constant and nonstop",
        "host-tuning H-TSC",
        _source,
        needs=("command line", "log"),
    ),
)
