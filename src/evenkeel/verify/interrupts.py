"""Interrupts against the isolated CPUs: where they are directed, and where they really fired.  Pure."""

from __future__ import annotations

from typing import Any

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Interrupt
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import HostPlan
from evenkeel.verify.catalogue import IRQ_AFFINITY, IRQ_COUNT, item, shorten
from evenkeel.verify.observe import Observation


def check(host: HostPlan, seen: Observation) -> tuple[Check, ...]:
    if not host.ledger.isolated:
        return ()
    return (_affinity(host, seen), _count(host, seen))


def _affinity(host: HostPlan, seen: Observation) -> Check:
    """Managed interrupts cannot be moved by anybody; for those it is the count that decides."""
    isolated = host.ledger.isolated
    reaching = [row for row in seen.facts.interrupts if row.action and row.effective & isolated]
    wrong = [row for row in reaching if not row.managed]
    counted = [row for row in reaching if row.managed]
    evidence = [item(f"/proc/irq/{row.number}/effective_affinity_list", _told(row)) for row in wrong]
    if counted:
        names = ", ".join(f"{row.action} ({format_cpus(row.effective)})" for row in counted)
        evidence.append(item("managed by the kernel, counted by V-IRQ-COUNT", names))
    evidence.append(item("/proc/irq", f"{len(seen.facts.interrupts)} interrupts looked at"))
    return IRQ_AFFINITY.judge(
        not wrong,
        expected=f"none on {format_cpus(isolated)}",
        observed=shorten([_told(row) for row in wrong]) or "none",
        evidence=evidence,
    )


def _told(row: Interrupt) -> str:
    return f"{row.action} on {format_cpus(row.effective)}"


def _count(host: HostPlan, seen: Observation) -> Check:
    isolated = host.ledger.isolated
    windows = [window for window in (seen.quiet, seen.loaded, seen.interrupts) if window is not None]
    expected = f"0 on {format_cpus(isolated)}"
    if not windows:
        reason = "; ".join(seen.trouble.get(name, "") for name in ("quiet", "loaded", "interrupts")).strip("; ")
        return IRQ_COUNT.not_checked(reason or "interrupts were not counted", expected=expected)
    fired = fired_on(isolated, windows)
    elsewhere = sum(sum(row["counts"].values()) for window in windows for row in window["rows"] if _device(row))
    seconds = sum(_seconds(window) for window in windows)
    evidence = [item(f"/proc/interrupts, growth on CPU {cpu}", f"{name} {n}") for (name, cpu), n in fired.items()]
    evidence.append(item(f"/proc/interrupts over {seconds:.1f} s", f"{elsewhere} device interrupts on all CPUs"))
    told = [f"{name} {count} times on CPU {cpu}" for (name, cpu), count in fired.items()]
    return IRQ_COUNT.judge(not fired, expected=expected, observed=shorten(told) or "0", evidence=evidence)


def fired_on(cpus: frozenset[int], windows: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """(name, CPU) -> how often a device interrupt fired there.  CPUs are text in what the probe counted (JSON)."""
    fired: dict[tuple[str, int], int] = {}
    for window in windows:
        for row in window["rows"]:
            for cpu, count in row["counts"].items() if _device(row) else ():
                if int(cpu) in cpus:
                    key = (row["action"] or row["label"], int(cpu))
                    fired[key] = fired.get(key, 0) + count
    return fired


def _device(row: dict[str, Any]) -> bool:
    return bool(row["kind"] == "device")


def _seconds(window: dict[str, Any]) -> float:
    spins = window.get("spins")
    return float(spins[0]["seconds"] if spins else window.get("seconds", 0.0))
