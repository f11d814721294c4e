"""The boot gate: did the kernel that came up take every boot setting of the plan?  Pure comparison.

A host that fails it must not run its guests: a real-time guest on a kernel without its isolation works, until the
moment it does not.  The engine reads, this module compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evenkeel.apply.steps import boot_settings, boot_words
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.documents.plan import BootArgument, HostPlan, Setting

CMDLINE = "/proc/cmdline"
_WHY = "what depends on it is not isolated, although everything else looks as planned"


def effective_paths(host: HostPlan) -> list[str]:
    """The files that show whether boot arguments took effect."""
    targets = [setting.target for setting in boot_settings(host)]
    return sorted({t.effective.path for t in targets if isinstance(t, BootArgument) and t.effective})


def booted_with(host: HostPlan, command_line: str) -> bool:
    """Whether the running kernel was started with every boot argument of the plan."""
    return all(_on_command_line(setting, command_line) for setting in boot_settings(host))


def check_boot(host: HostPlan, facts: Facts, values: Mapping[str, str]) -> tuple[Check, ...]:
    """``values``: contents of :func:`effective_paths`; a path that is missing could not be read."""
    checks = [_kernel(host, facts)]
    if _boots_tuned(host):
        checks.append(_entry(facts.kernel.command_line))
    for setting in boot_settings(host):
        checks.append(_argument(setting, facts.kernel.command_line))
        assert isinstance(setting.target, BootArgument)
        if setting.target.effective and setting.new is not None:
            checks.append(_effect(setting, setting.target, values))
    checks.append(_unknown(host, facts.kernel.unknown_parameters))
    return tuple(checks)


def failures(checks: Sequence[Check]) -> list[str]:
    """One line for each check that is not passed."""
    return [
        f"{check.id}: {check.title}: expected {check.expected or 'nothing'}, "
        f"found {check.observed or check.reason or 'nothing'}"
        for check in checks
        if check.status != "passed"
    ]


def _on_command_line(setting: Setting, command_line: str) -> bool:
    from evenkeel.probe.steps.boot.arguments import missing

    target = setting.target
    assert isinstance(target, BootArgument)
    # What stands behind -- belongs to init, not to the kernel.
    words = f" {command_line} ".partition(" -- ")[0]
    return not missing([{"key": target.key, "value": setting.new, "after": target.after}], words)


def _kernel(host: HostPlan, facts: Facts) -> Check:
    return Check(
        id="GATE-KERNEL",
        subject="kernel",
        title="The kernel that the plan was made for",
        status="passed" if facts.kernel.release == host.kernel_release else "failed",
        expected=host.kernel_release,
        observed=facts.kernel.release,
        evidence=(EvidenceItem(where="uname -r", value=facts.kernel.release),),
        why="rules are keyed on the kernel version; on another one the same value may mean something else",
        fix="boot that kernel (GRUB_DEFAULT, grub-set-default), or make the plan anew on the one that runs",
    )


def _boots_tuned(host: HostPlan) -> bool:
    return any(setting.new is not None for setting in boot_settings(host))


def _entry(command_line: str) -> Check:
    from evenkeel.probe.steps.boot.arguments import RESCUE_MARK, rescued

    found = rescued(command_line)
    return Check(
        id="GATE-ENTRY",
        subject="kernel",
        title="The entry of the boot menu",
        status="failed" if found else "passed",
        expected="an entry with the arguments of the plan",
        observed="Evenkeel's rescue entry" if found else "no rescue entry",
        evidence=(EvidenceItem(where=CMDLINE, value=RESCUE_MARK if found else ""),),
        why="the rescue entry starts the host on purpose without what guests depend on",
        fix="when the host is mended, reboot it and let the boot menu choose by itself",
    )


def _argument(setting: Setting, command_line: str) -> Check:
    words = " ".join(boot_words([setting]))
    target = setting.target
    assert isinstance(target, BootArgument)
    return Check(
        id=setting.id,
        subject="setting",
        title=f"{target.key} on the command line",
        status="passed" if _on_command_line(setting, command_line) else "failed",
        expected=words or f"no {target.key}",
        observed=" ".join(_relevant(target.key, command_line)),
        evidence=(EvidenceItem(where=CMDLINE, value=command_line),),
        why=_WHY,
        fix="was an entry chosen by hand in the boot menu, or another boot loader used? run evenkeel apply again",
    )


def _effect(setting: Setting, target: BootArgument, values: Mapping[str, str]) -> Check:
    assert target.effective
    read = values.get(target.effective.path)
    wanted = target.effective_value if target.effective_value is not None else setting.new
    return Check(
        id=setting.id,
        subject="setting",
        title=f"{target.key} took effect",
        status="passed" if target.effective.matches(read, wanted) else "failed",
        expected=wanted or "",
        observed=(read or "").strip(),
        reason=f"{target.effective.path} does not exist or cannot be read" if read is None else "",
        evidence=(EvidenceItem(where=target.effective.path, value=read or ""),),
        why=_WHY,
        fix="the kernel took another value than it was given; look for its reason in dmesg",
    )


def _unknown(host: HostPlan, unknown: Sequence[str]) -> Check:
    keys = {t.key.replace("-", "_") for t in (s.target for s in boot_settings(host)) if isinstance(t, BootArgument)}
    ours = [word for word in unknown if word.partition("=")[0].replace("-", "_") in keys]
    return Check(
        id="GATE-UNKNOWN",
        subject="kernel",
        title="Every boot argument is known to this kernel",
        status="failed" if ours else "passed",
        expected="no argument of the plan among the unknown ones",
        observed=" ".join(ours) or "none",
        evidence=(EvidenceItem(where="dmesg: Unknown kernel command line parameters", value=" ".join(unknown)),),
        why="the kernel hands an argument that it does not know to init and does nothing",
        fix="make the plan anew: its rules are keyed on another kernel version",
    )


def _relevant(key: str, command_line: str) -> list[str]:
    from evenkeel.probe.steps.boot.arguments import same_key

    return [word for word in command_line.split() if same_key(word, key)]
