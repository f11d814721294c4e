"""What the SAP HANA linter looks at: one line a check, with the reason, the cure and where the demand is written.

docs/how-to/sap-hana.md is this table for people (a test holds the two together).  No judgement here.

``harmful``: the guide says must, and a difference leaves the validated envelope.  ``warning``: it recommends.
``note``: another source than the guide, for the same purpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.findings import Check, EvidenceItem

GUIDE = "SUSE Best Practices for SAP HANA on KVM, SLES for SAP Applications 15 SP4"
Severity = Literal["harmful", "warning", "note"]


@dataclass(frozen=True)
class HanaRule:
    """``source``: section of the guide, unless it names another text.  ``key``: of a guest in a site file, that decides
    it; "" where no key does.  ``planner``: the cure where the definition is made from a site file; "" where a planned
    guest always has it.
    """

    id: str
    title: str
    why: str
    fix: str
    source: str
    severity: Severity = "harmful"
    key: str = ""
    about: Literal["guest", "host"] = "guest"
    planner: str = ""

    def judge(
        self, passed: bool, guest: str | None, expected: str, observed: str, evidence: Iterable[EvidenceItem] = ()
    ) -> Check:
        return self._check("passed" if passed else "failed", guest, expected, observed, tuple(evidence), "")

    def not_checked(self, guest: str | None, expected: str, reason: str) -> Check:
        """Never a pass."""
        return self._check("not_checked", guest, expected, "", (), reason)

    def _check(
        self,
        status: Literal["passed", "failed", "not_checked"],
        guest: str | None,
        expected: str,
        observed: str,
        evidence: tuple[EvidenceItem, ...],
        reason: str,
    ) -> Check:
        return Check(
            id=f"{self.id}:{guest}" if guest else self.id,
            subject="guest" if self.about == "guest" else "setting",
            title=self.title,
            status=status,
            expected=expected,
            observed=observed,
            evidence=evidence,
            severity=self.severity,
            why=f"{self.why} ({self.cited})",
            fix=self.fix,
            reason=reason,
            guest=guest,
        )

    @property
    def cited(self) -> str:
        """The source in full."""
        return f"{GUIDE}: {self.source}" if ":" not in self.source else self.source


_VCPU = "Configuring global vCPU"
_MAPPING = "Mapping vCPU and vNUMA topology and pinning"
_BACKING = "Backing memory"
_BOOT = "Technical explanation of the configuration settings"

RULES = (
    # -- the guest: its CPUs
    HanaRule(
        "HANA-CPU",
        "the host's own CPU model",
        "a named model hides what this CPU can do; the guest should be as close to the host as possible",
        "<cpu mode='host-passthrough' check='none'>",
        _VCPU,
    ),
    HanaRule(
        "HANA-FLAGS",
        "rdtscp, invtsc and x2apic are required of the CPU",
        "they make reading the time and sending interrupts cheap; required means that the guest does not start without "
        "them",
        "<feature policy='require' name='...'/> for each of the three",
        _VCPU,
        planner="none yet: the guest has them where the host has, but Evenkeel does not make the start depend on them",
    ),
    HanaRule(
        "HANA-CPU-CHECK",
        "no check of the CPU model",
        "a check can refuse a start after a microcode update",
        "check='none' at <cpu>",
        _VCPU,
        "warning",
    ),
    HanaRule(
        "HANA-CACHE",
        "the caches of the host are seen in the guest",
        "the guide looks for the L3 cache in the guest (lscpu); the one that QEMU makes up is not the host's",
        "<cache mode='passthrough'/> in <cpu>",
        "libvirt: formatdomain, cpu cache; host-tuning G-6",
        "note",
        planner="goal: performance",
    ),
    HanaRule(
        "HANA-TOPOLOGY",
        "sockets, cores and threads are those of the host",
        "HANA spreads its threads by what it takes for cores and sockets",
        "<topology sockets= cores= threads=> as the host has them, for the sockets that the guest gets",
        _MAPPING,
        key="vcpus",
        planner="none yet: see HANA-SOCKETS",
    ),
    HanaRule(
        "HANA-PIN",
        "every vCPU is pinned",
        "the host's scheduler would move vCPUs between cores and sockets",
        "one <vcpupin> for each vCPU",
        _MAPPING,
        key="goal",
        planner="goal: performance",
    ),
    HanaRule(
        "HANA-SIBLINGS",
        "threads of one guest core are on one host core",
        "QEMU numbers siblings side by side, most firmware does not: pinned number by number, two guest cores share "
        "one real core",
        "vCPU 2n and 2n+1 on the two threads of one core (lscpu --extended=CPU,SOCKET,CORE)",
        _MAPPING,
        key="cpus",
        planner="leave `cpus` out",
    ),
    HanaRule(
        "HANA-BOTH-THREADS",
        "both vCPUs of a core may use both of its threads",
        "where the host is busy on one thread, the vCPU goes to the other",
        "the same pair of CPUs at both <vcpupin>, as in cpuset='0,112'",
        _MAPPING,
        "warning",
        key="goal",
        planner="none yet: Evenkeel pins each vCPU to one thread",
    ),
    HanaRule(
        "HANA-OVERCOMMIT",
        "no CPU is promised twice",
        "there cannot be any overcommitting of CPUs",
        "a core of its own for each core of each guest",
        _VCPU,
        key="cpus",
    ),
    HanaRule(
        "HANA-SOCKETS",
        "the guest has whole sockets",
        "validated were one guest on the whole host, and guests that have a socket or several each",
        "pin it to all CPUs of its sockets, and no other guest to any of them",
        "Supported scenarios",
        key="vcpus",
        planner="none yet: Evenkeel keeps a core of each node for the host, so no guest gets a socket whole",
    ),
    HanaRule(
        "HANA-EMULATOR",
        "the emulator may run on every node of the guest",
        "QEMU takes strictly bound memory from a CPU of its node, so the start fails when the pin has none there; the "
        "guide pins it nowhere",
        "no <emulatorpin>, or one with a CPU of each node",
        "measured; host-tuning G-2: the guide needs no CPUs for it",
        "warning",
        planner="leave `housekeeping` out",
    ),
    # -- the guest: NUMA and memory
    HanaRule(
        "HANA-CELLS",
        "a guest cell for each host node, with the same CPUs",
        "HANA places memory by NUMA node; one node that is really two makes half of all accesses slow",
        "one <cell> for each node of its sockets, with the vCPUs that are pinned there",
        _MAPPING,
        key="vcpus",
        planner="goal: performance, and numa: the number of nodes, or auto",
    ),
    HanaRule(
        "HANA-DISTANCES",
        "distances between cells are those of the host",
        "HANA looks at them to decide what is near; libvirt makes 20 of a distance that is left out",
        "<distances> in each <cell>, as numactl --hardware prints them",
        _MAPPING,
    ),
    HanaRule(
        "HANA-NODES",
        "memory of each cell strictly on its node",
        "without it, memory comes from wherever there is some",
        "<memory mode='strict'> and a <memnode mode='strict'> for each cell in <numatune>",
        _MAPPING,
        key="goal",
        planner="goal: performance",
    ),
    HanaRule(
        "HANA-PAGES",
        "all memory in huge pages of 1 GiB",
        "fewer page table entries for terabytes of memory, and pages that are never swapped",
        "<page size='1048576' unit='KiB'/> in <hugepages>",
        _BACKING,
        key="page_size",
        planner="goal: performance, and page_size: 1GiB",
    ),
    HanaRule(
        "HANA-EQUAL-CELLS",
        "each cell has the same whole number of GiB",
        "the memory configuration must be balanced, and no page can be cut",
        "divide the number of pages by the number of cells",
        _BACKING,
        key="memory",
        planner="memory: a whole number of GiB",
    ),
    HanaRule(
        "HANA-BALLOON",
        "current memory is all of its memory",
        "ballooning causes unacceptable latency",
        "<currentMemory> as <memory>",
        _BACKING,
    ),
    HanaRule(
        "HANA-NO-BALLOON-DEVICE",
        "no balloon device",
        "the guide's own example has one and keeps it still by currentMemory; without it nothing can go wrong",
        "<memballoon model='none'/>",
        "host-tuning G-10: the guide's example has it",
        "note",
        planner="any goal but flexible",
    ),
    HanaRule(
        "HANA-SHARING",
        "pages are never merged",
        "a write to a merged page must first copy it",
        "<nosharepages/> in <memoryBacking>",
        _BACKING,
        "warning",
        planner="goal: performance",
    ),
    HanaRule(
        "HANA-92-PERCENT",
        "guests have at most 92 % of the host's memory",
        "the host needs about 8 % for itself; too many huge pages starve it silently",
        "less memory for the guests of this host",
        "Memory sizing",
        key="memory",
        planner="less `memory`",
    ),
    # -- the guest: time, network, storage
    HanaRule(
        "HANA-CLOCK",
        "rtc catches up, pit is delayed, no hpet",
        "the HPET is emulated in QEMU's own thread",
        "<clock offset='utc'> with <timer> rtc catchup, pit delay, hpet present='no'",
        "Setting up clocks and timers",
    ),
    HanaRule(
        "HANA-KVM-CLOCK",
        "kvm-clock is offered to the guest",
        "the guide sets the clock source kvm-clock in the guest (TuneD's sap-hana-kvm-guest sets tsc: they disagree)",
        "take <timer name='kvmclock' present='no'/> out",
        "Setting the clock source",
    ),
    HanaRule(
        "HANA-HINT",
        "the guest knows that its CPUs are its own",
        "cpuidle-haltpoll loads only then",
        "<hint-dedicated state='on'/> in <features><kvm>",
        "Configuring special features",
        key="goal",
        planner="goal: performance",
    ),
    HanaRule(
        "HANA-NETWORK",
        "a network function is passed through",
        "emulated cards cost at every packet",
        "<interface type='hostdev'> with a virtual function of an SR-IOV card",
        "Configuring networking",
        key="place",
        planner="`place: functions`, of a card under `wires` of the host; by the goal alone it is not planned yet",
    ),
    HanaRule(
        "HANA-STORAGE",
        "data and log are on storage passed through, or on block devices",
        "an image file, qcow2 above all, allocates and maps at each write; for the system disk (the first one) it does "
        "not matter",
        "<hostdev> of the whole controller; or <disk type='block'>; with NFS in the guest neither is needed",
        "Configuring storage for SAP HANA volumes",
        key="disks",
        planner="`disks` that are block devices (/dev/...) beside the system disk",
    ),
    HanaRule(
        "HANA-WHOLE-ADAPTER",
        "all functions of a storage adapter go together",
        "it is not possible to use only one function of an adapter",
        "a <hostdev> for each of its functions",
        "Configuring storage for SAP HANA volumes",
    ),
    HanaRule(
        "HANA-DISK-MODE",
        "disks are raw, without host cache, with native I/O",
        "the host's page cache holds everything twice",
        "<driver type='raw' cache='none' io='native'/>",
        "Configuring storage for operating system volumes",
        "warning",
        key="disks",
        planner="format: raw",
    ),
    HanaRule(
        "HANA-NEAR",
        "devices passed through sit on the guest's nodes",
        "each transfer would cross a socket that the guest does not have",
        "a card in a slot of the guest's socket, or the guest on the card's socket",
        "host-tuning G-11: VF node == guest node",
        "note",
    ),
    HanaRule(
        "HANA-METRICS",
        "the host's metrics reach the guest (vhostmd)",
        "SAP's support reads them: SAP Note 1522993",
        "the disk /dev/shm/vhostmd0, read-only, or the channel org.github.vhostmd.1",
        "Setting up a vhostmd device",
        "warning",
        planner="none yet: Evenkeel writes no vhostmd device",
    ),
    # -- the host
    HanaRule(
        "HANA-HOST-SYSTEM",
        "the host runs SLES for SAP or SLES 15 SP4",
        "only this was validated by this guide (15 SP5 has a note of its own); SAP Note 3366235",
        "nothing here makes another system the validated one",
        "Configuring the KVM hypervisor version",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-VERSIONS",
        "kernel 5.14, libvirt 8.0, QEMU 6.2",
        "only these major versions were validated on 15 SP4",
        "the packages of 15 SP4, at least kernel 5.14.21-150400.24.46, libvirt 8.0.0-150400.7.3.1, qemu "
        "6.2.0-150400.37.11.1",
        "Configuring the KVM hypervisor version",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-SOCKETS",
        "at most four sockets",
        "validated were up to four on one board",
        "a server of up to four sockets",
        "Supported scenarios",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-SMT",
        "both threads of each core are online",
        "the validated topology has two threads a core",
        "switch SMT on (/sys/devices/system/cpu/smt/control, or the firmware)",
        _MAPPING,
        about="host",
    ),
    HanaRule(
        "HANA-HOST-PAGES",
        "each node has the huge pages that its guests need",
        "strict binding allows no other node, so the guest does not start",
        "default_hugepagesz=1G hugepagesz=1G hugepages=N, in this order",
        _BOOT,
        about="host",
    ),
    HanaRule(
        "HANA-HOST-KSM",
        "no page merging on the host",
        "a write to a merged page must first copy it",
        "echo 2 > /sys/kernel/mm/ksm/run",
        "Kernel Samepage Merging (ksm)",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-THP",
        "no transparent huge pages on the host",
        "khugepaged scans for pages to promote",
        "transparent_hugepage=never",
        _BOOT,
        about="host",
    ),
    HanaRule(
        "HANA-HOST-BALANCING",
        "no automatic NUMA balancing on the host",
        "it unmaps pages to learn who touches them",
        "numa_balancing=disable",
        _BOOT,
        about="host",
    ),
    HanaRule(
        "HANA-HOST-IRQBALANCE",
        "irqbalance does not run",
        "reading /proc/irq alone causes latency",
        "systemctl disable --now irqbalance",
        "irqbalance",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-TUNED",
        "TuneD does not apply the profile sap-hana on the host",
        "that profile is for machines that run HANA themselves; the guide wants virtual-host",
        "tuned-adm profile virtual-host, or no TuneD at all where Evenkeel tunes",
        "Tuning the generic host with tuned",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-CLOCK-RATE",
        "CPUs run at full clock",
        "ramping up takes time",
        "governor performance",
        "Power management considerations",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-IDLE",
        "CPUs do not enter deep idle states",
        "waking up takes time; the first argument alone hands over to acpi_idle, which knows the same states, and of "
        "the second the kernel makes 1, so C1 stays",
        "intel_idle.max_cstate=0 processor.max_cstate=0",
        "Power management considerations",
        "warning",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-IOMMU",
        "the IOMMU is on, in passthrough mode",
        "without it nothing can be passed through",
        "intel_iommu=on iommu=pt",
        _BOOT,
        about="host",
    ),
    HanaRule(
        "HANA-HOST-PLE",
        "no exits for spinning vCPUs",
        "pause loop exits help when CPUs are promised twice, and here they are not",
        "kvm_intel.ple_gap=0 kvm_intel.ple_window=0",
        _BOOT,
        about="host",
    ),
    HanaRule(
        "HANA-HOST-NX",
        "kvm.nx_huge_pages=off",
        "the guide measured less OLTP throughput with the mitigation (up to 10 %, single tests more); to switch off "
        "what guards against CVE-2018-12207 weakens security, which is yours to decide",
        "leave it, or consent to it knowingly",
        "Performance considerations",
        "note",
        about="host",
    ),
    HanaRule(
        "HANA-HOST-TSC",
        "the host itself keeps time by the TSC",
        "kvm-clock in the guest reads the TSC of the host; with another source every reading leaves the guest",
        "find in dmesg why the kernel distrusts the TSC",
        "kernel: virt/kvm/x86/timekeeping.rst; host-tuning H-TSC",
        "warning",
        about="host",
    ),
)


def rule(identifier: str) -> HanaRule:
    return next(one for one in RULES if one.id == identifier)
