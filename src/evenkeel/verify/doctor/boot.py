"""Ailments of the boot layer: arguments that are misread, unknown, given twice, not in effect yet, or soon lost.

Source: reference host-tuning §2.1 (S6), §2.3 (H-LINT), F7, F10; Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from evenkeel.documents.findings import EvidenceItem
from evenkeel.verify.doctor import commandline
from evenkeel.verify.doctor.ailment import Ailment, Blind, Symptom, item
from evenkeel.verify.doctor.patient import Patient

_LINE = "/proc/cmdline"
#: Parameters of some distribution's kernel or of none, which guides recommend all the same.
_FOREIGN = {
    "kthread_cpus": "only some vendors' kernels have it; nohz_full and partitions move kernel threads",
    "isolcpu": "it is isolcpus",
    "rcu_nocb": "it is rcu_nocbs",
    "nohz_cpus": "it is nohz_full",
}
_SPELLED = sorted(key for key in commandline.TUNING if not key.endswith("."))
#: Modules whose parameters are all visible once they are loaded, so that a missing one does not exist.
_MODULES = ("kvm", "kvm_intel", "kvm_amd")


def _syntax(patient: Patient) -> Iterable[Symptom]:
    reader = patient.owner("tuned")
    for key in commandline.CPU_LISTS:
        for value in commandline.values(patient.line, key):
            text = commandline.isolcpus(value)[1] if key == "isolcpus" else value
            if not text:
                continue
            evidence = (item(f"{_LINE}: {key}", value),)
            try:
                commandline.parse(text, patient.last)
            except ValueError as error:
                yield Symptom(f"{key}={value}: {error}; the kernel drops the whole list", evidence)
                continue
            reason = commandline.strange(text)
            if reason and reader:
                yield Symptom(f"{key}={value}: {reason}, and TuneD reads it here", (*evidence, item("tuned", reader)))
            elif reason:
                yield Symptom(f"{key}={value}: {reason}", evidence, severity="warning")


def _unknown(patient: Patient) -> Iterable[Symptom] | Blind:
    found = []
    told = {word.partition("=")[0].replace("-", "_") for word in patient.facts.kernel.unknown_parameters}
    seen = set()
    for word in commandline.words(patient.line):
        near = difflib.get_close_matches(word.key, _SPELLED, n=1, cutoff=0.85)
        misspelt = len(word.key) > 4 and word.key not in _SPELLED and "." not in word.key and bool(near)
        if word.key in seen or not (word.key in told or word.key in _FOREIGN or misspelt):
            continue
        seen.add(word.key)
        meant = _FOREIGN.get(word.key) or (f"did you mean {near[0]}?" if near else "")
        evidence = [item(_LINE, word.text)]
        if word.key in told:
            evidence.append(item("kernel log: Unknown kernel command line parameters", word.text))
        if word.key in _FOREIGN or misspelt:
            found.append(Symptom(f"{word.text}: the kernel does not know it; {meant}", tuple(evidence)))
        else:
            found.append(
                Symptom(
                    f"{word.text}: the kernel does not know it, and hands it to init", tuple(evidence), severity="note"
                )
            )
    log = patient.facts.kernel_log
    if not found and (log is None or not log.complete):
        if not patient.line:
            return Blind("the facts have no command line")
        if log is None:
            return Blind("the kernel's log could not be read; run it as root")
        return Blind("the beginning of the kernel's log is lost; look again after the next boot")
    return found


def _module_parameters(patient: Patient) -> Iterable[Symptom]:
    for module in _MODULES:
        known = patient.facts.kvm_parameters.get(module)
        if not known:
            continue
        for word in commandline.words(patient.line):
            name = word.key.removeprefix(f"{module}.")
            if name != word.key and name not in known:
                yield _no_parameter(module, name, item(_LINE, word.text))
        for owner in patient.facts.owners:
            if owner.name != "modprobe.d":
                continue
            path, _, lines = owner.evidence.partition(": ")
            for line in lines.split("; "):
                given = line.split()
                if given[:2] != ["options", module]:
                    continue
                for name in (word.partition("=")[0] for word in given[2:]):
                    if name not in known:
                        yield _no_parameter(module, name, item(path, line))


def _no_parameter(module: str, name: str, evidence: EvidenceItem) -> Symptom:
    hint = "; since 6.12 it is lapic_timer_advance, yes or no" if name == "lapic_timer_advance_ns" else ""
    return Symptom(
        f"module {module} has no parameter {name}{hint}",
        (evidence, item(f"/sys/module/{module}/parameters/{name}", "does not exist")),
    )


def _twice(patient: Patient) -> Iterable[Symptom]:
    keys: dict[str, list[str]] = {}
    for word in commandline.words(patient.line):
        if commandline.is_tuning(word) and word.key not in ("hugepages", "hugepagesz"):
            keys.setdefault(word.key, []).append(word.text)
    for key, texts in keys.items():
        if len(set(texts)) > 1:
            yield Symptom(f"{key} is given {len(texts)} times: {', '.join(texts)}", (item(_LINE, " ".join(texts)),))


def _pending(patient: Patient) -> Iterable[Symptom] | Blind:
    release = patient.facts.kernel.release
    entries = [entry for entry in patient.facts.boot_entries if entry.kernel == release]
    if not entries:
        return _no_entries(patient)
    now = commandline.tuning(patient.line)
    if any(commandline.tuning(entry.arguments) == now for entry in entries):
        return []
    then = commandline.tuning(entries[0].arguments)
    new = [word for word in then if word not in now]
    gone = [word for word in now if word not in then]
    text = "; ".join(
        filter(
            None,
            (
                f"the next boot brings {' '.join(new)}" if new else "",
                f"takes away {' '.join(gone)}" if gone else "",
                "" if new or gone else "the next boot gives them in another order",
            ),
        )
    )
    return [Symptom(text, (item(_LINE, " ".join(now) or "(none)"), item(entries[0].path, " ".join(then) or "(none)")))]


def _lost(patient: Patient) -> Iterable[Symptom] | Blind:
    if not patient.facts.boot_entries:
        return _no_entries(patient)
    # What is set now; where it waits for a reboot, that is D-BOOT-PENDING's to say.
    own = [entry for entry in patient.facts.boot_entries if entry.kernel == patient.facts.kernel.release]
    now = commandline.tuning(own[0].arguments if own else patient.line)
    found = []
    others: dict[str, list[str]] = {}
    places = {}
    for entry in patient.facts.boot_entries:
        if entry.kernel and entry.kernel != patient.facts.kernel.release:
            there = commandline.tuning(entry.arguments)
            lacking = [word for word in now if word not in there]
            places[entry.kernel] = entry.path
            if entry.kernel not in others or len(lacking) < len(others[entry.kernel]):
                others[entry.kernel] = lacking
    for kernel, lacking in sorted(others.items()):
        if lacking:
            found.append(
                Symptom(
                    f"kernel {kernel} would start without {' '.join(lacking)}",
                    (item(_LINE, " ".join(now)), item(places[kernel], f"entry of {kernel}")),
                )
            )
    sources = _sources(patient)
    if sources:
        text = "\n".join(sources.values())
        missing = [word for word in now if word not in text]
        if missing:
            found.append(
                Symptom(
                    f"the entry of the next kernel package would lack {' '.join(missing)}",
                    (item(_LINE, " ".join(now)), *(item(path, "does not have them") for path in sources)),
                )
            )
    return found


def _sources(patient: Patient) -> dict[str, str]:
    """The files that the entries of future kernels are made from."""
    settings = patient.facts.settings
    if patient.facts.kernel.boot_loader == "grub":
        return {path: text for path, text in settings.items() if path.startswith("/etc/default/grub")}
    return {path: text for path, text in settings.items() if path == "/etc/kernel/cmdline"}


def _no_entries(patient: Patient) -> Blind:
    return Blind(
        "the facts hold no entry of a boot loader for the running kernel"
        if patient.facts.kernel.release
        else "the facts do not tell which kernel runs"
    )


def _errors_hidden(patient: Patient) -> Iterable[Symptom]:
    for word in commandline.words(patient.line):
        if word.text == "mce=off":
            yield Symptom("mce=off: the kernel no longer hears of memory errors", (item(_LINE, word.text),))


AILMENTS = (
    Ailment(
        "D-CPULIST",
        "kernel",
        "harmful",
        "CPU lists are written so that every tool reads the same",
        "TuneD reads 4-N as nothing and inverts it to all CPUs, without a word; what is isolated then depends on who "
        "reads",
        "write plain ranges: 4-15, not 4-N, all or 0-15:2/4",
        "host-tuning §0.6 (measured), F10; seapath/ansible#865",
        _syntax,
    ),
    Ailment(
        "D-PARAM",
        "kernel",
        "harmful",
        "The kernel knows every argument that is meant to tune it",
        "an argument that the kernel does not know is handed to init and does nothing",
        "correct its spelling or take it away",
        "host-tuning H-LINT (measured)",
        _unknown,
    ),
    Ailment(
        "D-MODULE-PARAM",
        "kernel",
        "warning",
        "Every parameter given to a KVM module exists",
        "the kernel says 'unknown parameter ignored' once, and the tool that set it believes in it for years",
        "take it away, or set what replaced it in this kernel",
        "host-tuning R-KVM-3 (measured: lapic_timer_advance_ns is gone in 6.12)",
        _module_parameters,
    ),
    Ailment(
        "D-PARAM-TWICE",
        "kernel",
        "warning",
        "No argument is given twice with different values",
        "which one counts differs from parameter to parameter; two owners write this command line",
        "find both owners (/etc/default/grub, grub.d, TuneD, the installer) and leave one",
        "host-tuning F11",
        _twice,
    ),
    Ailment(
        "D-BOOT-PENDING",
        "kernel",
        "warning",
        "The running kernel was started with what the boot loader gives it now",
        "what was changed takes effect at the next boot only: the host behaves in one way today and in another after "
        "any reboot",
        "reboot at a time of your choice, or take the change back",
        "host-tuning F7",
        _pending,
    ),
    Ailment(
        "D-BOOT-LOST",
        "kernel",
        "warning",
        "Every installed kernel, and the next one, gets the same tuning",
        "after a kernel update the host comes up untuned, and nobody looks; grubby loses options the same way "
        "(rhboot/grubby#55)",
        "set the arguments in the boot loader's defaults and make the entries anew (update-grub, grub2-mkconfig, "
        "kernel-install); evenkeel apply does",
        "host-tuning F7; rhboot/grubby#55",
        _lost,
    ),
    Ailment(
        "D-ERRORS-HIDDEN",
        "kernel",
        "warning",
        "Machine checks are heard",
        "polling for corrected errors costs a spike every five minutes, but mce=off also hides the errors that corrupt "
        "data",
        "mce=ignore_ce, or ignore_ce in /sys/devices/system/machinecheck, silences the corrected ones only",
        "host-tuning H-MCE",
        _errors_hidden,
    ),
)
