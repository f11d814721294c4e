"""Documents of an invented run on a host of 2 packages x 2 cores x 2 threads, for the tests of the report."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

from evenkeel.documents.course import Course
from evenkeel.documents.evidence import EMULATION_NOTE, Conditions, Evidence, Latency, Spin
from evenkeel.documents.facts import Cache, Cpu, Facts, HugePages, Identity, Kernel, Nic, Node, PciFunction
from evenkeel.documents.findings import Check, EvidenceItem, Findings
from evenkeel.documents.histogram import Histogram
from evenkeel.documents.journal import Journal, JournalEntry
from evenkeel.documents.plan import (
    BootArgument,
    FileValue,
    GuestDefinition,
    GuestPlan,
    GuestThread,
    HostPlan,
    InterruptAffinity,
    Ledger,
    Note,
    Phase,
    Plan,
    Setting,
    ThreadSchedule,
    UnitState,
    VcpuPlan,
)
from evenkeel.report.verdict import HostRun, Run

RELEASE = "6.12.117+deb12-rt-amd64"
BUILD = "#1 SMP PREEMPT_RT Debian 6.12.117-1~bpo12+1 (2026-10-30)"
BOOT = "BOOT_IMAGE=/boot/vmlinuz-6.12.117+deb12-rt-amd64 root=/dev/vda1 ro console=ttyS0 no_timer_check"
ADDED = (
    "isolcpus=managed_irq,2-3,6-7 nohz_full=2-3,6-7 rcu_nocbs=2-3,6-7 irqaffinity=0-1,4-5 rcutree.kthread_prio=11 "
    "skew_tick=1"
)


def facts(*, tuned: bool = False, emulated: bool | None = True, **changes: Any) -> Facts:
    """CPU n and n+4 are threads of one core; cores 0-1 are package and node 0, cores 2-3 package and node 1."""
    isolated = frozenset({3, 7}) if tuned else frozenset()
    values: dict[str, Any] = {
        "identity": Identity(
            hostname="plc",
            architecture="x86_64",
            system_vendor="QEMU",
            product="Standard PC (Q35 + ICH9, 2009)",
            firmware_vendor="SeaBIOS",
            firmware_version="1.16.3",
            os_release="Debian GNU/Linux 12 (bookworm)",
            hypervisor="qemu",
            emulated=emulated,
        ),
        "kernel": Kernel(
            release=RELEASE,
            version=BUILD,
            preempt_rt=True,
            command_line=f"{BOOT} {ADDED}" if tuned else BOOT,
            boot_loader="grub",
        ),
        "cpus": tuple(
            Cpu(
                id=number,
                package=number % 4 // 2,
                die=0,
                core=number % 2,
                node=number % 4 // 2,
                siblings=frozenset({number % 4, number % 4 + 4}),
                model="QEMU TCG CPU version 2.5+",
            )
            for number in range(8)
        ),
        "possible": frozenset(range(8)),
        "isolated": isolated,
        "nohz_full": isolated,
        "caches": tuple(
            Cache(level=3, type="unified", size_bytes=16 << 20, cpus=frozenset(c for c in range(8) if c % 4 // 2 == n))
            for n in (0, 1)
        ),
        "nodes": tuple(
            Node(
                id=n,
                cpus=frozenset(c for c in range(8) if c % 4 // 2 == n),
                memory_bytes=2 << 30,
                distances={n: 10, 1 - n: 21},
                huge_pages=(HugePages(page_bytes=2 << 20, total=256 if tuned and n else 0, free=0),),
            )
            for n in (0, 1)
        ),
        "memory_bytes": 4 << 30,
        "pci": (PciFunction(address="0000:41:00.0", class_code="020000", vendor="8086", device="10c9", node=1),),
        "nics": (Nic(name="enp65s0", pci="0000:41:00.0", driver="igb", node=1, rx_queues=4, tx_queues=4),),
        "clocksource": "tsc",
        "remarks": ("The firmware gives no NUMA distances for node 1.",),
        "programs": {"libvirt": "9.0.0", "qemu": "7.2.22", "systemd": "252"},
    }
    return Facts(**(values | changes))


def histogram(*, floor_us: int, peak: int, decay: float, last_us: int, tail: int = 1) -> Histogram:
    """A steep peak with a long thin tail, as cyclictest prints them."""
    counts = {
        us: count
        for us in range(floor_us, 6 * floor_us)
        if (count := round(peak * math.exp(-decay * ((us - 2 * floor_us) / floor_us) ** 2)))
    }
    position = 6.0 * floor_us
    while position < last_us:
        counts[round(position)] = tail
        position *= 1.31
    counts[last_us] = 1
    return Histogram(counts=counts)


def course(run: Histogram, *, seconds: int = 60) -> Course:
    """One of each hundred samples of ``run``, one after the other; of the late ones all, in two bursts."""
    values = [low * run.bucket_ns for low, count in run.counts.items() for _ in range(max(1, count // 100))]
    return _course(tuple(values), seconds)


@functools.cache
def _course(values: tuple[int, ...], seconds: int) -> Course:
    edge = 6 * min(values)
    body, tail = [value for value in values if value <= edge], [value for value in values if value > edge]
    random.Random(3).shuffle(body)
    step = seconds * 1_000_000_000 // max(1, len(body))
    samples = [(number * step, value) for number, value in enumerate(body)]
    samples += [((20 + 25 * (n % 2)) * seconds * 10_000_000 + n * 40_000_000, value) for n, value in enumerate(tail)]
    return Course.of(samples, length_ns=seconds * 1_000_000_000)


def latency(where: str, run: Histogram, *, label: str = EMULATION_NOTE, cpus: str = "3") -> Latency:
    samples = run.samples
    return Latency.model_validate(
        {
            "tool": "cyclictest",
            "tool_version": "2.40",
            "argv": ("cyclictest", "--mlockall", "-p95"),
            "where": where,
            "guest": "plc-runtime" if where == "guest" else None,
            "cpus": cpus,
            "interval_ns": 1_000_000,
            "samples": samples,
            "lost": 0,
            "min_ns": min(run.counts) * 1000,
            "avg_ns": sum(us * count for us, count in run.counts.items()) * 1000 // samples,
            "max_ns": max(run.counts) * 1000,
            "histogram": run,
            "course": course(run),
            "label": label,
        }
    )


def evidence(moment: str, *, emulated: bool | None = True, plan_sha256: str | None = None, **changes: Any) -> Evidence:
    after = moment == "after"
    label = EMULATION_NOTE if emulated else ""
    values: dict[str, Any] = {
        "host": "plc",
        "moment": moment,
        "conditions": Conditions(
            kernel=f"{RELEASE} {BUILD}",
            preempt_rt=True,
            command_line=f"{BOOT} {ADDED}" if after else BOOT,
            firmware="SeaBIOS 1.16.3",
            cpu_model="QEMU TCG CPU version 2.5+",
            hypervisor="qemu",
            qemu="7.2.22",
            libvirt="9.0.0",
            emulated=emulated,
            clocksource="tsc",
            plan_sha256=plan_sha256,
            load="hackbench on 0-1,4-5",
            dma_latency_holders=(),
            guest_dma_latency_holders={"plc-runtime": ()},
        ),
        "latencies": (
            latency(
                "host", histogram(floor_us=140, peak=900, decay=0.6, last_us=4100 if after else 31200), label=label
            ),
            latency(
                "guest",
                histogram(floor_us=210, peak=700, decay=0.5, last_us=9800 if after else 46000, tail=2),
                label=label,
                cpus="1",
            ),
        ),
        "spins": (
            Spin(
                where="host",
                cpu=3,
                seconds=4.0,
                timer_interrupts=6 if after else 1012,
                device_interrupts={} if after else {"nvme0q4": 12, "enp65s0-rx-1": 3},
                other_interrupts={"CAL": 1} if after else {"RES": 14, "CAL": 9, "TLB": 2},
                involuntary_switches=1 if after else 23,
                voluntary_switches=0,
                cpu_seconds=3.99 if after else 3.91,
            ),
            Spin(
                where="host",
                cpu=3,
                seconds=4.0,
                load="hackbench on 0-1,4-5" if after else "hackbench on 0-7",
                timer_interrupts=8 if after else 1044,
                other_interrupts={"CAL": 3} if after else {"RES": 2150, "CAL": 31, "TLB": 12},
                involuntary_switches=3 if after else 812,
                voluntary_switches=0,
                cpu_seconds=3.98 if after else 0.44,
            ),
        ),
    }
    return Evidence.model_validate(values | {"moment": moment} | changes)


def setting(
    identifier: str, phase: Phase, title: str, target: Any, old: str | None, new: str | None, **more: Any
) -> Setting:
    values: dict[str, Any] = {
        "id": identifier,
        "rule": identifier.split(":")[0],
        "title": title,
        "target": target,
        "old": old,
        "new": new,
        "status": "change" if old != new else "satisfied",
        "phase": phase,
        "disturbance": "reboot" if phase is Phase.BOOT else "drain" if phase is Phase.GUEST else "live",
        "reason": "Work that the kernel does on any CPU would run on a CPU that a real-time vCPU owns.",
        "inputs": {"real-time CPUs": "3,7", "housekeeping CPUs": "0-1,4-5"},
        "verification": "the file reads back with the value, and the counters of the CPU stay still",
        "risk": "none known",
        "source": "kernel: Documentation/admin-guide/kernel-parameters.txt",
    }
    return Setting(**(values | more))


def settings() -> tuple[Setting, ...]:
    isolated = FileValue(path="/sys/devices/system/cpu/isolated", compare="cpulist")
    return (
        setting(
            "H-ISO-1",
            Phase.BOOT,
            "Keep managed interrupts away from isolated CPUs",
            BootArgument(key="isolcpus", effective=isolated),
            None,
            "managed_irq,3,7",
            risk="the option is deprecated; the domain flag is left out, because partitions do that part",
        ),
        setting("H-ISO-2", Phase.BOOT, "Stop the timer tick", BootArgument(key="nohz_full"), None, "3,7"),
        setting(
            "H-ISO-4", Phase.BOOT, "New interrupts go to housekeeping", BootArgument(key="irqaffinity"), None, "0-1,4-5"
        ),
        setting(
            "R-MM-3:node1",
            Phase.MEMORY,
            "Huge pages of 2 MiB on node 1",
            FileValue(path="/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", compare="integer"),
            "0",
            "256",
            risk="fewer than asked when memory is fragmented; read back and refused then",
        ),
        setting(
            "H-THP",
            Phase.MEMORY,
            "No transparent huge pages",
            FileValue(path="/sys/kernel/mm/transparent_hugepage/enabled"),
            None,
            "never",
            status="absent",
            reason="A PREEMPT_RT kernel lacks this file on purpose.",
        ),
        setting(
            "R-IRQ-4",
            Phase.INTERRUPTS,
            "irqbalance stays off",
            UnitState(unit="irqbalance.service"),
            "running",
            "stopped",
        ),
        setting(
            "R-IRQ-1:enp65s0-rx-0",
            Phase.INTERRUPTS,
            "Device interrupts to housekeeping",
            InterruptAffinity(action="enp65s0-rx-0"),
            "0-7",
            "1,5",
        ),
        setting(
            "R-IRQ-1:enp65s0-tx-0",
            Phase.INTERRUPTS,
            "Device interrupts to housekeeping",
            InterruptAffinity(action="enp65s0-tx-0"),
            "0-7",
            "1,5",
        ),
        setting(
            "R-WQ-2",
            Phase.WORKQUEUES,
            "Writeback on housekeeping CPUs",
            FileValue(path="/sys/bus/workqueue/devices/writeback/cpumask", compare="cpumask"),
            "ff",
            "33",
        ),
        setting(
            "R-TIM-2",
            Phase.KERNEL,
            "Memory statistics every 120 s",
            FileValue(path="/proc/sys/vm/stat_interval"),
            "1",
            "120",
        ),
        setting(
            "R-RT-4:ktimers/3",
            Phase.THREADS,
            "ktimers/3 above the vCPUs",
            ThreadSchedule(name="ktimers/3"),
            "fifo:1",
            "fifo:11",
        ),
        setting(
            "G-0:plc-runtime",
            Phase.GUEST,
            "Definition of plc-runtime",
            GuestDefinition(guest="plc-runtime"),
            None,
            "5f2c" * 16,
        ),
        setting(
            "G-3:plc-runtime:1",
            Phase.GUEST,
            "Priority of vCPU 1",
            GuestThread(guest="plc-runtime", vcpu=1),
            None,
            "fifo:2",
        ),
        setting(
            "R-RT-1",
            Phase.THROTTLE,
            "Real-time throttling stays",
            FileValue(path="/proc/sys/kernel/sched_rt_runtime_us"),
            "950000",
            "950000",
            reason="The guest is trusted to yield; the host keeps its way out.",
        ),
    )


XML = """<domain type="qemu">
  <name>plc-runtime</name>
  <vcpu placement="static">2</vcpu>
  <cputune>
    <vcpupin vcpu="0" cpuset="2"/>
    <vcpupin vcpu="1" cpuset="3"/>
    <emulatorpin cpuset="1,5"/>
    <vcpusched vcpus="1" scheduler="fifo" priority="2"/>
  </cputune>
</domain>
"""


def plan(**changes: Any) -> Plan:
    before = facts()
    host: dict[str, Any] = {
        "name": "plc",
        "address": "virtual:plc",
        "fingerprint": before.fingerprint(),
        "facts_sha256": before.sha256(),
        "kernel_release": RELEASE,
        "preempt_rt": True,
        "ledger": Ledger(
            housekeeping=frozenset({0, 1, 4, 5}) - {1, 5} | {2, 6},
            realtime=frozenset({3}),
            idle=frozenset({7}),
            shared=frozenset({1, 5}),
            why=(
                "CPU 0 stays with the host: the boot CPU cannot be isolated.",
                "Core 3,7 goes to plc-runtime: node 1 is where enp65s0 sits.",
                "CPU 7 stays empty: a sibling would share the pipeline with vCPU 1.",
            ),
        ),
        "settings": settings(),
        "guests": (
            GuestPlan(
                name="plc-runtime",
                goal="realtime",
                trust="yields",
                latency_ns=100_000,
                node=1,
                vcpus=(
                    VcpuPlan(index=0, cpus=frozenset({2})),
                    VcpuPlan(index=1, cpus=frozenset({3}), policy="fifo", priority=2),
                ),
                emulator_cpus=frozenset({2, 6}),
                memory_bytes=512 << 20,
                page_bytes=2 << 20,
                pages=256,
                guest_arguments="isolcpus=managed_irq,domain,1 nohz_full=1",
                xml=XML,
                why=("Node 1: its NIC enp65s0 sits there.", "Priority 2: above the kernel's FIFO 1, below its 11."),
            ),
            GuestPlan(
                name="historian",
                goal="flexible",
                trust="yields",
                vcpus=(VcpuPlan(index=0, cpus=frozenset({1, 5})), VcpuPlan(index=1, cpus=frozenset({1, 5}))),
                emulator_cpus=frozenset({1, 5}),
                memory_bytes=256 << 20,
                xml=XML.replace("plc-runtime", "historian"),
            ),
        ),
    }
    host["notes"] = (Note(rule="R-IRQ-2", text="nvme0q4 is a managed interrupt: the kernel refuses to move it."),)
    return Plan(site_sha256="ab" * 32, hosts=(HostPlan(**(host | changes)),))


def check(number: int, status: str = "passed", **changes: Any) -> Check:
    subjects = ("kernel", "spinner", "interrupt", "thread", "page", "setting")
    values: dict[str, Any] = {
        "id": f"V-{number}",
        "subject": subjects[number % len(subjects)],
        "title": f"Thread {number} runs where the plan puts it",
        "status": status,
        "expected": "CPU 3, fifo:2",
        "observed": "CPU 3, fifo:2" if status == "passed" else "CPU 0-7, other:0",
        "evidence": (EvidenceItem(where=f"/proc/1234/task/{1240 + number}/status", value="Cpus_allowed_list: 3"),),
        "why": "A vCPU that may run elsewhere loses its CPU's cache and its deadline.",
        "fix": "evenkeel apply plan.json",
        "reason": "the guest was not running" if status == "not_checked" else "",
    }
    return Check(**(values | changes))


def findings(plan_sha256: str | None = None, **statuses: int) -> Findings:
    wanted = statuses or {"passed": 24}
    names = [status for status, count in wanted.items() for _ in range(count)]
    return Findings(
        host="plc",
        plan_sha256=plan_sha256,
        kernel=RELEASE,
        emulated=True,
        checks=tuple(check(number, status) for number, status in enumerate(names)),
    )


def journal(of: Plan) -> Journal:
    entries: list[JournalEntry] = []

    def add(event: str, **values: Any) -> None:
        number = len(entries)
        at = f"2026-11-21T03:{number // 60:02}:{number % 60:02}Z"
        entries.append(
            JournalEntry.model_validate(
                {"sequence": number, "at": at, "event": event, "plan_sha256": of.sha256()} | values
            )
        )

    add("begin")
    for one in of.hosts[0].changes:
        common = {"setting": one.id, "phase": one.phase.value, "old": one.old, "wanted": one.new}
        add("intent", **common)
        add("done", **common, read_back=one.new)
    add("end")
    return Journal(host="plc", entries=tuple(entries))


def run(*, emulated: bool | None = True, **statuses: int) -> Run:
    """A whole run.  Keywords: how many checks of which status, as in ``passed=20, failed=1``."""
    made = plan()
    digest = made.sha256()
    return Run(
        plan=made,
        hosts={
            "plc": HostRun(
                facts_before=facts(emulated=emulated),
                facts_after=facts(tuned=True, emulated=emulated),
                findings=findings(digest, **statuses).model_copy(update={"emulated": emulated}),
                evidence_before=evidence("before", emulated=emulated),
                evidence_after=evidence("after", emulated=emulated, plan_sha256=digest),
                journal=journal(made),
            )
        },
    )
