"""The host beneath the guests: system, sockets, memory care, services, command line.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.verify.hana.catalogue import rule
from evenkeel.verify.hana.subject import Host

MOST_SOCKETS = 4
_SYSTEM = re.compile(r"SUSE Linux Enterprise Server( for SAP [Aa]pplications)? 15 SP4\b")
_UNKNOWN = "the facts do not have it"


def check_host(host: Host) -> Iterator[Check]:
    yield from _system(host)
    yield from _shape(host)
    yield from _memory(host)
    yield from _services(host)
    yield from _boot(host)


def _judge(identifier: str, passed: bool, expected: str, observed: str, where: str) -> Check:
    return rule(identifier).judge(passed, None, expected, observed, (EvidenceItem(where=where, value=observed),))


def _unknown(identifier: str, expected: str, reason: str = _UNKNOWN) -> Check:
    return rule(identifier).not_checked(None, expected, reason)


def _system(host: Host) -> Iterator[Check]:
    expected = "SUSE Linux Enterprise Server (for SAP Applications) 15 SP4"
    system = host.facts.identity.os_release
    if system is None:
        yield _unknown("HANA-HOST-SYSTEM", expected)
    else:
        yield _judge("HANA-HOST-SYSTEM", bool(_SYSTEM.search(system)), expected, system, "/etc/os-release")
    versions = {"kernel": host.facts.kernel.release, **host.facts.programs}
    wanted = {"kernel": "5.14", "libvirt": "8.0", "qemu": "6.2"}
    expected = ", ".join(f"{name} {version}" for name, version in wanted.items())
    if missing := [name for name in wanted if not versions.get(name)]:
        yield _unknown("HANA-HOST-VERSIONS", expected, f"the facts do not know the version of {', '.join(missing)}")
        return
    found = ", ".join(f"{name} {versions[name]}" for name in wanted)
    fits = all(re.match(rf"{re.escape(version)}(\D|$)", versions[name]) for name, version in wanted.items())
    yield _judge("HANA-HOST-VERSIONS", fits, expected, found, "versions")


def _shape(host: Host) -> Iterator[Check]:
    count = len(host.packages)
    expected = f"at most {MOST_SOCKETS}"
    if count:
        yield _judge(
            "HANA-HOST-SOCKETS", count <= MOST_SOCKETS, expected, f"{count} sockets", "/sys/devices/system/cpu"
        )
    else:
        yield _unknown("HANA-HOST-SOCKETS", expected)
    yield _judge(
        "HANA-HOST-SMT",
        host.threads == 2 and all(len(core.threads) == 2 for core in host.topology.cores),
        "two threads a core",
        f"{host.threads} thread{'s' * (host.threads != 1)} a core"
        + (f", SMT {host.facts.smt}" if host.facts.smt else ""),
        "/sys/devices/system/cpu/smt/control",
    )


def _memory(host: Host) -> Iterator[Check]:
    for identifier, path, fine in (
        ("HANA-HOST-KSM", "/sys/kernel/mm/ksm/run", ("0", "2")),
        ("HANA-HOST-THP", "/sys/kernel/mm/transparent_hugepage/enabled", ("never",)),
        ("HANA-HOST-BALANCING", "/proc/sys/kernel/numa_balancing", ("0",)),
    ):
        text = host.setting(path)
        if text is None and host.facts.kernel.preempt_rt and identifier != "HANA-HOST-KSM":
            yield _judge(identifier, True, " or ".join(fine), "a PREEMPT_RT kernel lacks it on purpose", path)
            continue
        if text is None:
            yield _unknown(identifier, " or ".join(fine))
            continue
        chosen = re.search(r"\[(\w+)\]", text)  # always [madvise] never
        word = chosen[1] if chosen else text.strip()
        yield _judge(identifier, word in fine, " or ".join(fine), word, path)


def _services(host: Host) -> Iterator[Check]:
    if not host.facts.owners and not host.facts.programs:
        # A recorded tree has no processes: that none is seen there means nothing.
        yield _unknown("HANA-HOST-IRQBALANCE", "not running", "the facts know nothing of processes")
        yield _unknown("HANA-HOST-TUNED", "another profile", "the facts know nothing of processes")
    else:
        runs = host.runs("irqbalance")
        where = next(
            (one.evidence for one in host.facts.owners if one.name.startswith("irqbalance")), "no such process"
        )
        yield _judge("HANA-HOST-IRQBALANCE", not runs, "not running", "runs" if runs else "does not run", where)
        tuned = [one.evidence for one in host.facts.owners if one.name.startswith("tuned") and one.active]
        wrong = host.runs("tuned") and any(re.search(r"\bsap-hana\b(?!-)", evidence) for evidence in tuned)
        yield _judge(
            "HANA-HOST-TUNED", not wrong, "not sap-hana", "; ".join(tuned) or "TuneD does not run", "active owners"
        )
    governors = host.facts.frequency.governors
    if host.facts.frequency.driver is None:
        yield _unknown("HANA-HOST-CLOCK-RATE", "performance", "the facts know no frequency driver")
    else:
        found = ", ".join(governors) or "none"
        yield _judge("HANA-HOST-CLOCK-RATE", governors == ("performance",), "performance", found, "scaling_governor")
    source = host.facts.clocksource
    if source is None:
        yield _unknown("HANA-HOST-TSC", "tsc")
    else:
        place = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        yield _judge("HANA-HOST-TSC", source == "tsc", "tsc", source, place)


def _boot(host: Host) -> Iterator[Check]:
    if not host.command_line:
        for identifier, expected in (
            ("HANA-HOST-IDLE", "intel_idle.max_cstate=0"),
            ("HANA-HOST-IOMMU", "intel_iommu=on iommu=pt"),
        ):
            yield _unknown(identifier, expected, "the facts do not have the kernel's command line")
    else:
        keys = ("intel_idle.max_cstate", "processor.max_cstate")
        limits = {key: host.argument(key) for key in keys}
        # Without intel_idle the kernel falls back on acpi_idle, and that one reads processor.max_cstate=0 as 1
        # (drivers/acpi/processor_idle.c), so 1 is no less than what the guide writes.
        yield _judge(
            "HANA-HOST-IDLE",
            limits[keys[0]] == "0" and limits[keys[1]] in ("0", "1"),
            "intel_idle.max_cstate=0 processor.max_cstate=0",
            " ".join(_said(key, value) for key, value in limits.items()),
            "/proc/cmdline",
        )
        units = {key: host.argument(key) for key in ("intel_iommu", "iommu")}
        found = " ".join(_said(key, value) for key, value in units.items())
        yield _judge(
            "HANA-HOST-IOMMU",
            (units["intel_iommu"] or "").split(",")[0] == "on" and units["iommu"] == "pt",
            "intel_iommu=on iommu=pt",
            found,
            "/proc/cmdline",
        )
    gap = host.facts.kvm_parameters.get("kvm_intel", {}).get("ple_gap", host.argument("kvm_intel.ple_gap"))
    if gap is None:
        yield _unknown("HANA-HOST-PLE", "ple_gap 0")
    else:
        yield _judge(
            "HANA-HOST-PLE", gap == "0", "ple_gap 0", f"ple_gap {gap}", "/sys/module/kvm_intel/parameters/ple_gap"
        )
    path = "/sys/module/kvm/parameters/nx_huge_pages"
    split = host.setting(path) or host.facts.kvm_parameters.get("kvm", {}).get("nx_huge_pages")
    if split is None:
        yield _unknown("HANA-HOST-NX", "off")
    else:
        yield _judge("HANA-HOST-NX", split in ("N", "off", "0", "never"), "off", split, path)


def _said(key: str, value: str | None) -> str:
    return f"no {key}" if value is None else f"{key}={value}"
