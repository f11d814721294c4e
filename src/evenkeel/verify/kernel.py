"""Kernel and CPU ledger against the machine.  Pure."""

from __future__ import annotations

from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import BootArgument, HostPlan
from evenkeel.plan.ledger import check_ledger
from evenkeel.verify.catalogue import ISOLATED, KERNEL, LEDGER, MACHINE, UNKNOWN_ARGUMENTS, item


def check(host: HostPlan, facts: Facts) -> tuple[Check, ...]:
    return (
        _machine(host, facts),
        _kernel(host, facts),
        _unknown(host, facts),
        _ledger(host, facts),
        *_isolated(host, facts),
    )


def _machine(host: HostPlan, facts: Facts) -> Check:
    """All parts of the fingerprint but the kernel, which is a check of its own."""
    now = facts.fingerprint()
    parts = sorted((host.fingerprint.keys() | now.keys()) - {"kernel"})
    other = [part for part in parts if host.fingerprint.get(part) != now.get(part)]
    return MACHINE.judge(
        not other,
        expected=f"the same {', '.join(parts)}",
        observed=f"other {', '.join(other)}" if other else "the same",
        evidence=[item(f"fingerprint: {part}", now.get(part, "none")) for part in other or parts],
    )


def _kernel(host: HostPlan, facts: Facts) -> Check:
    def words(release: str, realtime: bool) -> str:
        return f"{release}{', PREEMPT_RT' if realtime else ''}"

    expected = words(host.kernel_release, host.preempt_rt)
    observed = words(facts.kernel.release, facts.kernel.preempt_rt)
    evidence = (item("uname -r -v", f"{facts.kernel.release} {facts.kernel.version}"),)
    return KERNEL.judge(expected == observed, expected=expected, observed=observed, evidence=evidence)


def _unknown(host: HostPlan, facts: Facts) -> Check:
    """The kernel reads ``-`` and ``_`` in a key as the same character."""
    keys = {
        setting.target.key.replace("-", "_") for setting in host.settings if isinstance(setting.target, BootArgument)
    }
    unknown = facts.kernel.unknown_parameters
    ours = [word for word in unknown if word.partition("=")[0].replace("-", "_") in keys]
    return UNKNOWN_ARGUMENTS.judge(
        not ours,
        expected="none of the plan's arguments among the unknown ones",
        observed=", ".join(ours) or "none",
        evidence=(item("dmesg: Unknown kernel command line parameters", " ".join(unknown) or "(no such line)"),),
    )


def _ledger(host: HostPlan, facts: Facts) -> Check:
    broken = check_ledger(host.ledger, facts)
    ledger = host.ledger
    evidence = [item("CPUs online", format_cpus(facts.online))]
    for name in ("housekeeping", "data_plane", "realtime", "idle", "shared"):
        cpus: frozenset[int] = getattr(ledger, name)
        if cpus:
            evidence.append(item(f"ledger: {name.replace('_', ' ')}", format_cpus(cpus)))
    return LEDGER.judge(
        not broken,
        expected="every online CPU has one owner, no core is split",
        observed="; ".join(broken) or "as expected",
        evidence=evidence,
    )


def _isolated(host: HostPlan, facts: Facts) -> tuple[Check, ...]:
    """Only what the plan sets on the command line: a host without isolating goals has nothing isolated."""
    boot = {
        setting.target.key: setting.new
        for setting in host.settings
        if isinstance(setting.target, BootArgument) and setting.new
    }
    checks = []
    for key, file, cpus in (
        ("nohz_full", "/sys/devices/system/cpu/nohz_full", facts.nohz_full),
        ("isolcpus", "/sys/devices/system/cpu/isolated", facts.isolated),
    ):
        if key not in boot:
            continue
        if key == "isolcpus" and not _takes_domain(host):
            continue  # with managed_irq alone that file stays empty until partitions fill it
        try:
            # CPUs of performance guests are isolated and keep their tick, so nohz_full has a list of its own.
            wanted = parse_cpus(boot[key]) if key == "nohz_full" else host.ledger.isolated
        except ValueError:  # the owner's own value, in a form that only the kernel knows
            checks.append(ISOLATED.not_checked(f"{key}={boot[key]} is no list of CPUs", part=key))
            continue
        checks.append(
            ISOLATED.judge(
                cpus == wanted,
                expected=format_cpus(wanted),
                observed=format_cpus(cpus) or "none",
                evidence=(item(file, facts.settings.get(file, format_cpus(cpus))),),
                part=key,
            )
        )
    return tuple(checks)


def _takes_domain(host: HostPlan) -> bool:
    for setting in host.settings:
        if isinstance(setting.target, BootArgument) and setting.target.key == "isolcpus":
            flags = (setting.new or "").split(",")
            names = [word for word in flags if not word[:1].isdigit()]
            return not names or "domain" in names
    return False
