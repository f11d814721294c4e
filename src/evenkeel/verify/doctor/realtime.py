"""Ailments of real-time scheduling: priorities of vCPUs and kernel threads, throttling, the fair server, RCU.

Source: reference host-tuning §0.1 to §0.3, §2.2, R-RT-1 to R-RT-4 (all measured on 6.12 PREEMPT_RT).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import KernelThread
from evenkeel.verify.doctor.ailment import Ailment, Blind, Symptom, item
from evenkeel.verify.doctor.patient import FAIR_SERVER, FAIR_SERVER_SINCE, Patient, VcpuThread, priorities

_RUNTIME = "/proc/sys/kernel/sched_rt_runtime_us"
#: Threads bound to a CPU that do not serve what runs there, or that run only while a CPU comes or goes.
_ASIDE = re.compile(r"idle_inject/|cpuhp/|migration/|stopper/|watchdog/|backlog_napi/|rcuog/|rcuop/|rcuos/")
_SOFTIRQ = re.compile(r"ksoftirqd/\d+\Z")


def _priority_one(patient: Patient) -> Iterable[Symptom]:
    severity = None if patient.facts.kernel.preempt_rt else "warning"
    for vcpu in patient.vcpus:
        if vcpu.realtime and vcpu.thread.priority == 1:
            yield Symptom(
                f"{vcpu} runs at {vcpu.thread.policy.upper()} 1",
                (item(f"{vcpu}: policy", f"{vcpu.thread.policy} {vcpu.thread.priority}"),),
                severity=severity,  # type: ignore[arg-type]
                guest=vcpu.guest,
            )
    for domain in patient.idle_domains:
        if domain.root is None:
            continue
        ones = sorted(vcpu for vcpu, priority in priorities(domain.root).items() if priority == 1)
        if ones:
            yield Symptom(
                f"guest {domain.definition.guest}: <vcpusched> gives vCPU {format_cpus(ones)} priority 1",
                (item(f"{domain.definition.path}: cputune/vcpusched", "priority 1"),),
                severity=severity,  # type: ignore[arg-type]
                guest=domain.definition.guest,
            )


def _waiting(patient: Patient, vcpu: VcpuThread) -> list[KernelThread]:
    """Kernel threads bound to a CPU of this vCPU that cannot preempt it."""
    found = []
    for thread in patient.facts.kernel_threads:
        if len(thread.cpus) != 1 or not thread.cpus <= vcpu.thread.cpus or _ASIDE.match(thread.name):
            continue
        ordinary = patient.facts.kernel.preempt_rt and _SOFTIRQ.match(thread.name) and thread.policy == "other"
        if ordinary or (thread.policy in ("fifo", "rr") and thread.priority <= vcpu.thread.priority):
            found.append(thread)
    return found


def _inversion(patient: Patient) -> Iterable[Symptom] | Blind:
    realtime = [vcpu for vcpu in patient.vcpus if vcpu.realtime]
    if realtime and not patient.facts.kernel_threads:
        return Blind("the facts have no kernel threads")
    found = []
    for vcpu in realtime:
        waiting = _waiting(patient, vcpu)
        if waiting:
            names = ", ".join(f"{one.name} ({one.policy} {one.priority})" for one in waiting[:5])
            more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
            found.append(
                Symptom(
                    f"{vcpu} at {vcpu.thread.policy.upper()} {vcpu.thread.priority} on CPU "
                    f"{format_cpus(vcpu.thread.cpus)} keeps {names}{more} waiting",
                    (
                        item(f"{vcpu}: policy", f"{vcpu.thread.policy} {vcpu.thread.priority}"),
                        *(item(f"kernel thread {one.name}", f"{one.policy} {one.priority}") for one in waiting),
                    ),
                    guest=vcpu.guest,
                )
            )
    return found


def _throttling(patient: Patient) -> Iterable[Symptom] | Blind:
    text = patient.facts.settings.get(_RUNTIME)
    log = patient.facts.kernel_log.lines.get("throttling") if patient.facts.kernel_log else None
    if text is None:
        return Blind(f"{_RUNTIME} is not among the facts")
    grouped = patient.facts.kernel.config.get("RT_GROUP_SCHED") == "y"
    if patient.kernel >= FAIR_SERVER_SINCE and not grouped:
        cpus = patient.realtime_cpus or patient.isolated or patient.online
        known = {cpu: patient.fair_server(cpu) for cpu in sorted(cpus)}
        on = [cpu for cpu, runtime in known.items() if runtime != 0]
        if text.strip() == "-1" and on:
            shown = known[on[0]]
            return [
                Symptom(
                    f"sched_rt_runtime_us is -1, but on CPU {format_cpus(on)} the fair server takes its share all the "
                    "same",
                    (
                        item(_RUNTIME, text),
                        item(
                            f"{FAIR_SERVER}/cpu{on[0]}/runtime",
                            "cannot be read; the default is 50000000" if shown is None else shown,
                        ),
                        item("/proc/sys/kernel/osrelease", patient.facts.kernel.release),
                    ),
                )
            ]
        return []
    found = []
    if log:
        found.append(
            Symptom(
                "real-time tasks have been throttled since the boot", (item("kernel log", log), item(_RUNTIME, text))
            )
        )
    if text.strip() == "-1" and patient.realtime_cpus:
        found.append(
            Symptom(
                "sched_rt_runtime_us is -1: a vCPU that spins keeps everything else off its CPU for good",
                (item(_RUNTIME, text), item("CPUs of real-time vCPUs", format_cpus(patient.realtime_cpus))),
            )
        )
    return found


def _fair_server(patient: Patient) -> Iterable[Symptom] | Blind:
    if patient.kernel < FAIR_SERVER_SINCE:
        return []
    off = frozenset(cpu for cpu in patient.online if patient.fair_server(cpu) == 0)
    if not off and all(patient.fair_server(cpu) is None for cpu in patient.online):
        return Blind("debugfs does not show the fair server; run it as root, with debugfs mounted")
    found = []
    hit = off & patient.realtime_cpus
    for vcpu in patient.vcpus:
        cpus = vcpu.thread.cpus & off
        if vcpu.realtime and cpus:
            found.append(
                Symptom(
                    f"the fair server is off on CPU {format_cpus(cpus)}, where {vcpu} runs at "
                    f"{vcpu.thread.policy.upper()} {vcpu.thread.priority}; nothing says that this guest ever goes idle",
                    (
                        *(item(f"{FAIR_SERVER}/cpu{cpu}/runtime", 0) for cpu in sorted(cpus)),
                        item(f"{vcpu}: policy", f"{vcpu.thread.policy} {vcpu.thread.priority}"),
                    ),
                    guest=vcpu.guest,
                )
            )
    if off - hit:
        found.append(
            Symptom(
                f"the fair server is off on CPU {format_cpus(off - hit)}, where no real-time vCPU runs now",
                tuple(item(f"{FAIR_SERVER}/cpu{cpu}/runtime", 0) for cpu in sorted(off - hit)),
                severity="warning",
            )
        )
    return found


def _rcu_side(patient: Patient) -> Iterable[Symptom]:
    offloaded = patient.asked("rcu_nocbs")
    if not offloaded or not patient.isolated:
        return
    left = patient.isolated - offloaded - patient.facts.nohz_full
    wrong = not offloaded & patient.isolated
    if left or wrong:
        yield Symptom(
            f"rcu_nocbs={format_cpus(offloaded)} offloads "
            + ("housekeeping CPUs only" if wrong else "not all isolated CPUs")
            + f"; isolated are {format_cpus(patient.isolated)}",
            (
                item("/proc/cmdline: rcu_nocbs", format_cpus(offloaded)),
                item("isolated CPUs", format_cpus(patient.isolated)),
            ),
            severity=None if left else "warning",  # nohz_full offloads its CPUs by itself
        )


def _rcu_stall(patient: Patient) -> Iterable[Symptom]:
    safe = patient.asked("rcu_nocbs") | patient.facts.nohz_full
    for vcpu in patient.vcpus:
        exposed = vcpu.thread.cpus - safe
        if not vcpu.realtime or not exposed:
            continue
        worker = next(
            (one for one in patient.facts.kernel_threads if one.name == f"rcuc/{min(exposed)}"),
            None,
        )
        above = worker is not None and worker.policy == "fifo" and worker.priority > vcpu.thread.priority
        evidence = [
            item(
                f"{vcpu}: policy", f"{vcpu.thread.policy} {vcpu.thread.priority}, CPU {format_cpus(vcpu.thread.cpus)}"
            ),
            item("/proc/cmdline: rcu_nocbs", format_cpus(patient.asked("rcu_nocbs")) or "(not given)"),
            item("/sys/devices/system/cpu/nohz_full", format_cpus(patient.facts.nohz_full) or "(empty)"),
        ]
        if worker:
            evidence.append(item(f"kernel thread {worker.name}", f"{worker.policy} {worker.priority}"))
        yield Symptom(
            f"{vcpu} at {vcpu.thread.policy.upper()} {vcpu.thread.priority} runs on CPU {format_cpus(exposed)}, whose "
            "RCU callbacks are not offloaded",
            tuple(evidence),
            severity="warning" if above else None,
            guest=vcpu.guest,
        )
    log = patient.facts.kernel_log
    if log and "rcu-stall" in log.lines:
        yield Symptom(
            "the kernel has reported an RCU stall since its boot", (item("kernel log", log.lines["rcu-stall"]),)
        )
    if log and "lockup" in log.lines:
        yield Symptom("the kernel has reported a CPU that was stuck", (item("kernel log", log.lines["lockup"]),))


AILMENTS = (
    Ailment(
        "D-RT-ONE",
        "thread",
        "harmful",
        "No vCPU runs at real-time priority 1",
        "irq_work, ktimers and rcuc of PREEMPT_RT run at FIFO 1 too, and equals do not preempt each other: a busy vCPU "
        "keeps the kernel's own timers waiting",
        "give vCPUs 2 to 9, and these kernel threads 11: <vcpusched priority='2'>, rcutree.kthread_prio=11, chrt",
        "host-tuning §0.3, §2.2, F8 (measured); Nova and KubeVirt still default to 1",
        _priority_one,
        needs=("guests", "definitions"),
    ),
    Ailment(
        "D-RT-INVERSION",
        "thread",
        "harmful",
        "Kernel threads of a vCPU's CPU stand above the vCPU",
        "timers, soft interrupts and RCU of that CPU run in these threads; below a vCPU that is busy they never run, "
        "and the fair server saves none that is real-time (measured: 6 s)",
        "chrt -f -p 11 on ktimers/N, irq_work/N and ksoftirqd/N, rcutree.kthread_prio=11 at boot; again after each CPU "
        "hotplug",
        "host-tuning §0.2, §2.2, R-RT-4 (measured)",
        _inversion,
        needs=("guests", "threads"),
    ),
    Ailment(
        "D-RT-THROTTLE",
        "setting",
        "warning",
        "sched_rt_runtime_us does what it is believed to do",
        "since 6.12 it throttles nobody: -1 gives real-time tasks nothing, as the fair server takes 50 ms a second "
        "either way; before 6.12, -1 lets a spinning vCPU keep its CPU for good, and 950000 stops a busy one",
        "leave it at 950000 since 6.12 and decide by fair_server/cpuN/runtime; before, -1 for guests that go idle",
        "host-tuning §0.1, R-RT-1 (measured); ni/meta-nilrt#864",
        _throttling,
        needs=("settings",),
    ),
    Ailment(
        "D-FAIR-OFF",
        "setting",
        "harmful",
        "The fair server runs wherever a guest might spin",
        "without it one spinning vCPU hangs everybody who waits for a worker on that CPU: libvirt, systemd, memory "
        "compaction (measured: 11 s against 0.1 s)",
        "write 50000000 into its runtime; where the guest is known to go idle, accept this finding (--accept)",
        "host-tuning §0.2, R-RT-2, F3 (measured)",
        _fair_server,
        needs=("guests",),
    ),
    Ailment(
        "D-RCU-SIDE",
        "kernel",
        "harmful",
        "rcu_nocbs names the isolated CPUs",
        "callbacks keep running on the very CPUs that were to be left alone",
        "rcu_nocbs= takes the same list as nohz_full=: the isolated CPUs, not those that do the work",
        "host-tuning H-ISO-3, §1.8 (rt-conf's shipped example)",
        _rcu_side,
        needs=("command line",),
    ),
    Ailment(
        "D-RCU-STALL",
        "kernel",
        "harmful",
        "No real-time vCPU can stall RCU",
        "callbacks of its CPU wait in rcuc/N below it; the whole host then waits for memory that is never freed "
        "(measured: stall after 21 s)",
        "add its CPUs to nohz_full= or rcu_nocbs=, and set rcutree.kthread_prio=11",
        "host-tuning §0.2, H-ISO-3, H-ISO-5 (measured)",
        _rcu_stall,
        needs=("command line", "guests", "log"),
    ),
)
