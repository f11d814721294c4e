"""Each rule by itself: what it wants, on which kernel, and when it keeps quiet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from evenkeel.documents.facts import Facts, HugePages, Partition, TuningOwner
from evenkeel.documents.plan import BootArgument, FileValue, InterruptAffinity, UnitState
from evenkeel.documents.site import Boot, ConsentKey
from evenkeel.errors import WrongInput
from evenkeel.plan.order import command_line
from evenkeel.plan.placement import KERNEL_PRIORITY, VCPU_PRIORITIES
from evenkeel.plan.rules import CATALOGUE
from evenkeel.plan.rules.rule import kernel_version, nothing
from tests.plan.factories import GIB, MIB, STANDARD_KERNEL, guest, make_facts
from tests.plan.rules.ask import of, one, plan

KERNEL_6_1 = "6.1.0-42-rt-amd64"
KERNEL_6_8 = "6.8.0-rt"


STANDARD: dict[str, Any] = {"kernel": STANDARD_KERNEL, "preempt_rt": False}
PERFORMANCE = {"db": guest("performance")}


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_catalogue_is_complete_and_unique() -> None:
    ids = [rule.id for rule in CATALOGUE]
    assert len(ids) == len(set(ids))
    for rule in CATALOGUE:
        assert rule.levels and rule.title and rule.risk and rule.source and rule.verification, rule.id
        assert (rule.phase.value == "boot") == (rule.when == "boot") == (rule.disturbance == "reboot"), rule.id
        assert (rule.compute is nothing) == (rule.when == "report"), rule.id
        assert bool(rule.consent) == bool(rule.brings), rule.id
    assert {rule.consent for rule in CATALOGUE} - {None} <= set(get_args(ConsentKey))


@pytest.mark.parametrize("kernel", ["5.10.0-rt", KERNEL_6_1, KERNEL_6_8, "6.12.1-rt", "7.0.0-rt"])
@pytest.mark.parametrize("trust", ["yields", "spins"])
def test_every_setting_is_whole(kernel: str, trust: str) -> None:
    guests = {
        "plc": guest(latency=40_000, trust=trust),
        "db": guest("performance"),
        "gui": guest("balanced"),
        "log": guest("flexible"),
    }
    host = plan(make_facts(kernel=kernel, cores=5), guests)
    ids = [setting.id for setting in host.settings]
    assert len(ids) == len(set(ids))
    for setting in host.settings:
        assert setting.reason and setting.source and setting.risk and setting.verification and setting.title, setting.id
        assert not re.search(r"\bNone\b|frozenset|\{|  ", setting.reason), setting.reason
        assert setting.new is not None, setting.id
        if setting.status == "satisfied" and isinstance(setting.target, FileValue):
            assert setting.target.matches(setting.old, setting.new), setting.id


def test_flexible_guests_isolate_nothing() -> None:
    host = plan(guests={"log": guest("flexible"), "gui": guest("flexible")})
    assert {setting.rule for setting in host.settings} == {"G-15"}
    assert host.notes == ()
    assert not host.ledger.isolated


def test_balanced_guests_get_pages_and_nothing_else() -> None:
    host = plan(guests={"gui": guest("balanced")})
    assert {setting.rule for setting in host.settings} == {"G-15", "R-MM-3"}


def test_performance_needs_no_realtime_rule() -> None:
    rules = {setting.rule for setting in plan(make_facts(**STANDARD), PERFORMANCE).settings}
    assert {"H-ISO-1", "H-ISO-3", "H-ISO-4", "R-IRQ-1", "R-WQ-1", "R-WQ-2", "C-1"} <= rules
    assert not {"H-ISO-2", "H-ISO-5", "H-WD", "R-RT-1", "R-RT-2", "R-RT-4", "R-TIM-2", "G-3"} & rules


def test_priorities_leave_room() -> None:
    assert min(VCPU_PRIORITIES) > 1
    assert max(VCPU_PRIORITIES) < KERNEL_PRIORITY


def test_kernel_version() -> None:
    assert kernel_version("6.12.117+deb12-rt-amd64") == (6, 12, 117)
    assert kernel_version("unknown") == ()
    assert kernel_version("6.9") < (6, 12)


# -- isolation --------------------------------------------------------------------------------------------------------


def test_isolcpus_leaves_domains_to_partitions() -> None:
    setting = one(plan(), "H-ISO-1")
    assert setting.new == "managed_irq,8-11"
    assert setting.target == BootArgument(key="isolcpus")  # nothing shows managed_irq but the command line
    assert "CPUs 8-11 carry guest plc's vCPUs and their empty siblings" in setting.reason


@pytest.mark.parametrize(("kernel", "cgroup"), [(KERNEL_6_1, 2), ("6.12.1-rt", 1)])
def test_isolcpus_domain_where_there_are_no_remote_partitions(kernel: str, cgroup: int) -> None:
    host = plan(make_facts(kernel=kernel, cgroup_version=cgroup))
    setting = one(host, "H-ISO-1")
    assert setting.new == "managed_irq,domain,8-11"
    assert isinstance(setting.target, BootArgument)
    assert setting.target.effective_value == "8-11"
    assert of(host, "C-1") == []  # never together


def test_nohz_full_only_for_realtime_guests() -> None:
    host = plan(make_facts(cores=5), {"plc": guest(), "db": guest("performance", vcpus=2, near="ens2")})
    assert one(host, "H-ISO-1").new == "managed_irq,2-3,12-15"
    assert one(host, "H-ISO-2").new == "12-15"
    assert one(host, "H-ISO-3").new == "2-3,12-15"


def test_boot_arguments_that_are_there_are_satisfied() -> None:
    line = (
        "root=/dev/vda1 isolcpus=managed_irq,8-11 nohz_full=8-11 rcu_nocbs=8-11 irqaffinity=0-1,6-7 "
        "rcutree.kthread_prio=11 rcutree.nohz_full_patience_delay=1000 skew_tick=1 default_hugepagesz=2M "
        "hugepagesz=2M hugepages=1:192"
    )
    files = {
        "/sys/devices/system/cpu/nohz_full": "8-11",
        "/proc/irq/default_smp_affinity": "0c3",
        "/sys/module/rcutree/parameters/kthread_prio": "11",
        "/sys/module/rcutree/parameters/nohz_full_patience_delay": "1000",
        "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages": "192",
    }
    host = plan(make_facts(command_line=line, settings=files))
    assert {setting.status for setting in host.settings if setting.phase.value == "boot"} == {"satisfied"}
    assert command_line(line, host.settings) == line
    # The argument is there, but the kernel did not take it.
    broken = plan(make_facts(command_line=line, settings=files | {"/sys/devices/system/cpu/nohz_full": " (null)"}))
    assert one(broken, "H-ISO-2").status == "change"


def test_irqaffinity_is_proved_by_a_mask() -> None:
    target = one(plan(), "H-ISO-4").target
    assert isinstance(target, BootArgument) and target.effective is not None
    assert target.effective_value == "c3"
    assert target.effective.matches("0c3", target.effective_value)


def test_rcu_polls_for_strict_deadlines_only() -> None:
    assert plan().setting("H-ISO-3:poll") is None
    assert one(plan(guests={"plc": guest(latency=50_000)}), "H-ISO-3:poll").new == ""


def test_patience_since_6_11() -> None:
    assert one(plan(), "H-ISO-5:patience").new == "1000"
    assert plan(make_facts(kernel="6.10.1-rt")).setting("H-ISO-5:patience") is None


# -- clock ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "sockets", "wanted"),
    [
        ("5.10.0-rt", 1, True),
        (KERNEL_6_1, 2, False),
        (KERNEL_6_1, 4, True),
        ("6.12.1-rt", 4, False),
        ("6.12.1-rt", 8, True),
    ],
)
def test_tsc_watchdog_by_kernel_and_sockets(kernel: str, sockets: int, wanted: bool) -> None:
    facts = make_facts(kernel=kernel, sockets=sockets)
    metal = facts.model_copy(update={"identity": facts.identity.model_copy(update={"hypervisor": "none"})})
    assert bool(of(plan(metal), "H-TSC")) is wanted
    assert of(plan(facts), "H-TSC") == []  # a virtual host's TSC is not ours to trust
    assert of(plan(metal.model_copy(update={"clocksource": "hpet"})), "H-TSC") == []
    told = {"tsc_flags": ("constant_tsc", "nonstop_tsc", "tsc", "tsc_adjust")}
    assert bool(of(plan(metal.model_copy(update=told)), "H-TSC")) is wanted


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("constant_tsc", "nonstop_tsc", "tsc", "tsc_adjust"), False),
        (("constant_tsc", "nonstop_tsc", "tsc"), True),  # an AMD EPYC, one socket or two, whatever the kernel
        (("constant_tsc", "tsc", "tsc_adjust"), False),  # stops when the CPU sleeps deeply: to be watched
        (("nonstop_tsc", "tsc"), False),
        ((), False),
    ],
)
@pytest.mark.parametrize("hypervisor", ["none", "qemu"])
def test_no_kernel_trusts_a_tsc_unwatched_that_cannot_tell_when_it_was_changed(
    flags: tuple[str, ...], wanted: bool, hypervisor: str
) -> None:
    facts = make_facts(kernel="6.12.1-rt")
    identity = facts.identity.model_copy(update={"hypervisor": hypervisor})
    found = of(plan(facts.model_copy(update={"identity": identity, "tsc_flags": flags})), "H-TSC")
    assert [one.new for one in found] == (["nowatchdog"] if wanted else [])
    assert all("TSC_ADJUST" in one.reason for one in found)


def test_watchdog_stays_on_the_other_cpus() -> None:
    setting = one(plan(), "H-WD:cpumask")
    assert (setting.old, setting.new, setting.status) == ("0-11", "0-7", "change")
    assert one(plan(), "H-WD:nmi").status == "satisfied"


def test_intervals() -> None:
    host = plan()
    assert one(host, "R-TIM-1").status == "satisfied"
    assert one(host, "R-TIM-2:stat_interval").new == "10"
    assert one(host, "R-TIM-2:hung_task").new == "600"


# -- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latency", "limit"), [(30_000, "n/a"), (100_000, "25"), (1_000_000, "250"), (None, "25")])
def test_idle_states_leave_a_quarter_of_the_deadline(latency: int | None, limit: str) -> None:
    files = {f"/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us": "0" for cpu in range(12)}
    facts = make_facts(settings=files)
    assert of(plan(facts), "H-PM-1") == []  # a virtual host has no idle driver
    metal = facts.model_copy(update={"idle": facts.idle.model_copy(update={"driver": "intel_idle"})})
    found = of(plan(metal, {"plc": guest(latency=latency)}), "H-PM-1")
    assert {setting.id: setting.new for setting in found} == {"H-PM-1:cpu8": limit, "H-PM-1:cpu10": limit}


def test_governor_of_the_policies_that_exist() -> None:
    files = {f"/sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_governor": "schedutil" for cpu in (0, 8)}
    facts = make_facts(settings=files)
    assert of(plan(facts), "H-PM-3") == []
    metal = facts.model_copy(update={"frequency": facts.frequency.model_copy(update={"driver": "intel_pstate"})})
    assert [(setting.id, setting.new) for setting in of(plan(metal), "H-PM-3")] == [("H-PM-3:cpu8", "performance")]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_huge_pages_of_two_sizes_on_two_nodes() -> None:
    facts = make_facts(node_bytes=64 * GIB, cores=6)
    guests = {
        "a": guest(near="ens2"),
        "b": guest(near="ens3", memory=512 * MIB),
        "c": guest(near="ens3", memory=2 * GIB),
    }
    host = plan(facts, guests)
    assert one(host, "H-HP-1:default").new == "2M"
    assert one(host, "H-HP-1:2M").new == "0:192,1:256"
    assert one(host, "H-HP-1:1G").new == "1:2"
    assert command_line("quiet", host.settings).endswith(
        "default_hugepagesz=2M hugepagesz=1G hugepages=1:2 hugepagesz=2M hugepages=0:192,1:256"
    )
    assert {setting.id for setting in of(host, "R-MM-3")} == {
        "R-MM-3:node0-2M",
        "R-MM-3:node1-2M",
        "R-MM-3:node1-1G",
    }


def test_no_node_counts_on_the_command_line_before_5_16() -> None:
    host = plan(make_facts(kernel="5.10.0-rt"))
    assert of(host, "H-HP-1") == []
    assert one(host, "R-MM-3:node1-2M").new == "192"


def test_a_pool_in_use_is_never_made_smaller() -> None:
    def with_pool(total: int, free: int) -> Facts:
        facts = make_facts()
        pool = (HugePages(page_bytes=2 * MIB, total=total, free=free),)
        return facts.model_copy(
            update={"nodes": tuple(node.model_copy(update={"huge_pages": pool}) for node in facts.nodes)}
        )

    assert one(plan(with_pool(300, 300)), "R-MM-3:node1-2M").new == "192"
    kept = one(plan(with_pool(300, 100)), "R-MM-3:node1-2M")
    assert (kept.new, kept.status) == ("200", "change")
    assert "200 are in use now" in kept.reason
    assert one(plan(with_pool(200, 0)), "R-MM-3:node1-2M").status == "satisfied"
    assert one(plan(with_pool(192, 0)), "R-MM-3:node1-2M").status == "satisfied"


def test_files_that_a_realtime_kernel_lacks_on_purpose() -> None:
    host = plan()
    for identifier in ("H-THP", "H-NUMA"):
        setting = one(host, identifier)
        assert setting.status == "absent"
        assert "lacks this on purpose" in setting.reason
    standard = plan(make_facts(**STANDARD), PERFORMANCE)
    assert (one(standard, "H-THP").old, one(standard, "H-THP").status) == ("always [madvise] never", "change")
    assert one(standard, "H-NUMA").new == "0"


def test_page_merging() -> None:
    path = "/sys/kernel/mm/ksm/run"
    assert one(plan(), "R-MM-1").status == "satisfied"  # it never ran
    assert one(plan(make_facts(settings={path: "1"})), "R-MM-1").new == "2"
    assert one(plan(make_facts(settings={path: "2"})), "R-MM-1").status == "satisfied"
    assert one(plan(make_facts(settings={"/sys/kernel/mm/ksm/pages_shared": "7"})), "R-MM-1").new == "2"


def test_compaction() -> None:
    wanted = {setting.id.partition(":")[2]: setting.status for setting in of(plan(), "R-MM-2")}
    assert wanted == {
        "compaction_proactiveness": "change",
        "compact_unevictable_allowed": "satisfied",
        "swappiness": "change",
        "zone_reclaim_mode": "satisfied",
    }


# -- interrupts -------------------------------------------------------------------------------------------------------


def test_interrupts_go_to_the_device_node() -> None:
    host = plan()
    assert one(host, "R-IRQ-1:ens2-rx-0").new == "0-1"
    far = one(host, "R-IRQ-1:ens3-rx-0")
    assert (far.new, far.old, far.target) == ("6-7", "0-11", InterruptAffinity(action="ens3-rx-0"))
    assert "on node 1 like ens3" in far.reason
    assert one(host, "R-IRQ-1:nvme0q0").new == "0-1,6-7"  # no device says where it sits


def test_managed_interrupts_are_a_note_and_no_setting() -> None:
    host = plan()
    assert host.setting("R-IRQ-1:nvme0q9") is None
    assert host.setting("R-IRQ-1:timer") is None
    note = next(note for note in host.notes if note.rule == "R-IRQ-2")
    assert "nvme0q9" in note.text and "EPERM" in note.text and "8-11" in note.text


def test_managed_interrupts_by_name_where_the_kernel_does_not_tell() -> None:
    facts = make_facts(kernel=KERNEL_6_8)
    unknown = tuple(interrupt.model_copy(update={"managed": None}) for interrupt in facts.interrupts)
    host = plan(facts.model_copy(update={"interrupts": unknown}))
    assert host.setting("R-IRQ-1:nvme0q9") is None
    assert host.setting("R-IRQ-1:timer") is None
    assert one(host, "R-IRQ-1:nvme0q0").new
    assert "EIO" in next(note.text for note in host.notes if note.rule == "R-IRQ-2")


def test_equal_actions_are_one_setting() -> None:
    facts = make_facts()
    twice = facts.interrupts[1].model_copy(update={"number": 99, "affinity": frozenset({3})})
    setting = one(plan(facts.model_copy(update={"interrupts": (*facts.interrupts, twice)})), "R-IRQ-1:ens2-rx-0")
    assert setting.old == "0-11 or 3"
    assert setting.inputs["interrupts"] == "24, 99"


def test_irqbalance() -> None:
    assert of(plan(), "R-IRQ-4") == []
    running = TuningOwner(name="irqbalance", active=True, evidence="process irqbalance runs")
    setting = one(plan(make_facts(owners=(running,))), "R-IRQ-4")
    assert (setting.target, setting.old, setting.new) == (UnitState(unit="irqbalance.service"), "running", "stopped")
    stopped = running.model_copy(update={"active": False})
    assert one(plan(make_facts(owners=(stopped,))), "R-IRQ-4").status == "satisfied"
    installed = make_facts().programs | {"irqbalance": "1.9.2"}
    assert one(plan(make_facts(programs=installed)), "R-IRQ-4").status == "satisfied"


def test_irqbalance_is_dealt_with_before_the_affinities() -> None:
    running = TuningOwner(name="irqbalance", active=True, evidence="runs")
    rules = [setting.rule for setting in plan(make_facts(owners=(running,))).settings]
    assert rules.index("R-IRQ-4") < rules.index("R-IRQ-1")


def test_other_tuners_are_stopped_first() -> None:
    tuned = TuningOwner(name="tuned", active=True, evidence="process tuned runs, profile virtual-host")
    host = plan(make_facts(owners=(tuned,)))
    assert one(host, "R-OWN:tuned").new == "stopped"
    runtime = [setting for setting in host.settings if setting.phase.value != "boot"]
    assert runtime[0].rule == "R-OWN"
    assert of(plan(make_facts(owners=(tuned,)), {"log": guest("flexible")}), "R-OWN") == []


def test_files_that_set_our_values_again_are_noted() -> None:
    owner = TuningOwner(name="sysctl.d", active=True, evidence="/etc/sysctl.d/90.conf: vm.swappiness = 1")
    note = next(note for note in plan(make_facts(owners=(owner,))).notes if note.rule == "R-OWN")
    assert "vm.swappiness" in note.text and "90.conf" in note.text


def test_packet_steering_since_6_3() -> None:
    setting = one(plan(), "R-NET")
    assert (setting.old, setting.new) == ("0", "c3")
    assert of(plan(make_facts(kernel=KERNEL_6_1)), "R-NET") == []


def test_workqueues() -> None:
    host = plan()
    assert one(host, "R-WQ-1").new == one(host, "R-WQ-2").new == "c3"
    done = make_facts(settings={"/sys/devices/virtual/workqueue/cpumask": "000000c3"})
    assert one(plan(done), "R-WQ-1").status == "satisfied"


def test_masks_of_large_machines_are_grouped() -> None:
    host = plan(make_facts(cores=40, threads=2, node_bytes=64 * GIB))
    assert one(host, "R-WQ-1").new == "f0000,00000000,0000000f"


# -- real-time scheduling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "trust", "latency", "runtime", "fair"),
    [
        ("6.12.1-rt", "yields", 100_000, "950000", "50000000"),
        ("6.12.1-rt", "yields", 50_000, "-1", "0"),
        ("6.12.1-rt", "yields", None, "950000", "50000000"),
        ("6.12.1-rt", "spins", 100_000, "950000", "50000000"),
        ("6.12.1-rt", "spins", 30_000, "950000", "50000000"),
        (KERNEL_6_8, "yields", 100_000, "-1", None),
        (KERNEL_6_8, "spins", 30_000, "950000", None),
    ],
)
def test_throttling_and_fair_server(
    kernel: str, trust: str, latency: int | None, runtime: str, fair: str | None
) -> None:
    host = plan(make_facts(kernel=kernel), {"plc": guest(trust=trust, latency=latency)})
    assert one(host, "R-RT-1").new == runtime
    found = of(host, "R-RT-2")
    assert [setting.new for setting in found] == ([fair] if fair else [])
    if fair:
        assert found[0].id == "R-RT-2:cpu10"  # only where a FIFO vCPU runs, never on the guest's own housekeeping
        assert "trust" in found[0].inputs


def test_fair_server_is_decided_guest_by_guest() -> None:
    guests = {
        "fast": guest(latency=30_000, near="ens3"),
        "wild": guest(latency=30_000, trust="spins", near="ens2"),
    }
    host = plan(guests=guests)
    assert {setting.id: setting.new for setting in of(host, "R-RT-2")} == {
        "R-RT-2:cpu10": "0",
        "R-RT-2:cpu4": "50000000",
    }
    assert one(host, "R-RT-1").new == "-1"


def test_order_of_throttle_and_fair_server() -> None:
    """The kernel answers EBUSY to the other orders (measured, R-RT-3)."""

    def last(trust: str) -> list[str]:
        host = plan(guests={"plc": guest(latency=50_000, trust=trust)})
        return [setting.rule for setting in host.settings][-2:]

    assert last("yields") == ["R-RT-1", "R-RT-2"]  # off: -1 first
    assert last("spins") == ["R-RT-2", "R-RT-1"]  # back: the server first


def test_fair_server_without_debugfs() -> None:
    facts = make_facts()
    files = {path: text for path, text in facts.settings.items() if "fair_server" not in path}
    setting = one(plan(facts.model_copy(update={"settings": files})), "R-RT-2:cpu10")
    assert setting.status == "absent"
    assert "debugfs" in setting.reason


def test_kernel_threads_of_realtime_cpus() -> None:
    host = plan()
    found = {setting.id: (setting.old, setting.new) for setting in of(host, "R-RT-4")}
    assert found == {
        "R-RT-4:ktimers/10": ("fifo:1", "fifo:11"),
        "R-RT-4:ksoftirqd/10": ("other:0", "fifo:11"),
        "R-RT-4:irq_work/10": ("fifo:1", "fifo:11"),
    }
    facts = make_facts()
    raised = tuple(
        thread.model_copy(update={"policy": "fifo", "priority": 11}) if thread.name.endswith("/10") else thread
        for thread in facts.kernel_threads
    )
    done = plan(facts.model_copy(update={"kernel_threads": raised}))
    assert {setting.status for setting in of(done, "R-RT-4")} == {"satisfied"}


# -- KVM and guests ---------------------------------------------------------------------------------------------------


def test_halt_polling() -> None:
    assert one(plan(), "R-KVM-1").status == "satisfied"
    polling = guest(trust="spins", boot=Boot(kernel="/k", arguments="idle=poll"))
    assert one(plan(guests={"plc": polling}), "R-KVM-1").new == "0"


def test_mitigations_are_never_touched() -> None:
    host = plan()
    assert not any(
        "mitigations" in str(setting.target) or "nx_huge" in str(setting.target) for setting in host.settings
    )
    assert "nx_huge_pages is N" in next(note.text for note in host.notes if note.rule == "R-KVM-2")


def test_partitions_hold_the_empty_siblings_too() -> None:
    host = plan()
    assert [(setting.id, setting.new) for setting in of(host, "C-1")] == [
        ("C-1:plc/vcpu0", "8-9"),
        ("C-1:plc/vcpu1", "10-11"),
    ]
    running = Partition(
        path=r"/machine.slice/machine-qemu\x2d1\x2dplc.scope/libvirt/vcpu1",
        exclusive="10-11",
        state="isolated",
    )
    host = plan(make_facts(partitions=(running,)))
    assert [setting.status for setting in of(host, "C-1")] == ["change", "satisfied"]
    broken = running.model_copy(update={"state": "isolated invalid (Cpu list in cpuset.cpus not exclusive)"})
    assert [setting.status for setting in of(plan(make_facts(partitions=(broken,))), "C-1")] == ["change", "change"]


def test_guest_threads() -> None:
    assert [(setting.id, setting.new) for setting in of(plan(), "G-3")] == [
        ("G-3:plc/vcpu0", "other:0"),
        ("G-3:plc/vcpu1", "fifo:2"),
    ]


def test_unknown_arguments_are_noted() -> None:
    facts = make_facts()
    kernel = facts.kernel.model_copy(update={"unknown_parameters": ("skew_tick=1", "kthread_cpus=0-1")})
    notes = [note for note in plan(facts.model_copy(update={"kernel": kernel})).notes if note.rule == "H-LINT"]
    assert len(notes) == 1 and "skew_tick=1" in notes[0].text


def test_the_probe_reads_every_file_that_a_rule_sets(tmp_path: Path) -> None:
    """A file that the probe does not read looks absent, and its rule would quietly do nothing."""
    from evenkeel.probe.facts.root import Root
    from evenkeel.probe.facts.settings import read_settings

    guests = {"plc": guest(latency=50_000), "db": guest("performance"), "gui": guest("balanced")}
    standard = {goal: wish for goal, wish in guests.items() if goal != "plc"}
    hosts = [plan(make_facts(cores=5), guests), plan(make_facts(cores=5, **STANDARD), standard)]
    settings = [setting for host in hosts for setting in host.settings]
    targets = [setting.target for setting in settings if isinstance(setting.target, FileValue)]
    targets += [
        setting.target.effective
        for setting in settings
        if isinstance(setting.target, BootArgument) and setting.target.effective
    ]
    for target in targets:
        file = tmp_path / target.path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n")
    assert len(targets) > 20
    assert {target.path for target in targets} <= read_settings(Root(str(tmp_path))).keys()


# -- consents ---------------------------------------------------------------------------------------------------------

NX = "/sys/module/kvm/parameters/nx_huge_pages"
NX_CONSENT = {"mitigations-off:itlb-multihit": {"because": "guests are our own"}}


def test_without_consent_nothing_is_weakened_and_the_plan_says_what_it_would_bring() -> None:
    host = plan(make_facts(settings={NX: "Y"}))
    assert of(host, "R-KVM-2") == []
    note = next(note.text for note in host.notes if note.rule == "R-KVM-2")
    assert note.startswith("not set, since no goal implies it: " + NX + " = N.")
    assert "consents: { mitigations-off:itlb-multihit: { because: ... } }" in note
    # Where it is off already there is nothing to consent to, and an override is no way round it.
    assert not [note for note in plan().notes if "consents:" in note.text and note.rule == "R-KVM-2"]
    forced = plan(make_facts(settings={NX: "Y"}), overrides={"R-KVM-2": {"value": "N", "because": "x"}})
    assert of(forced, "R-KVM-2") == []


def test_a_consent_makes_it_a_setting_with_the_reason() -> None:
    setting = one(plan(make_facts(settings={NX: "Y"}), consents=NX_CONSENT), "R-KVM-2")
    assert (setting.old, setting.new, setting.status) == ("Y", "N", "change")
    assert setting.reason.endswith("; the owner consents to it: guests are our own")


def test_a_consent_without_effect_is_noted() -> None:
    host = plan(guests={"log": guest("flexible")}, consents=NX_CONSENT)
    assert [note.text for note in host.notes] == [
        "the consent mitigations-off:itlb-multihit (guests are our own) has nothing to change on this host."
    ]


# -- overrides --------------------------------------------------------------------------------------------------------


def test_an_override_sets_the_value_and_keeps_the_reason() -> None:
    host = plan(overrides={"R-TIM-1": {"value": "0", "because": "measured better here"}})
    setting = one(host, "R-TIM-1")
    assert (setting.new, setting.status) == ("0", "change")
    assert setting.reason.startswith("the owner sets it: measured better here (the rule would set '1'")
    assert one(plan(overrides={"R-MM-2:swappiness": {"value": "60", "because": "x"}}), "R-MM-2:swappiness").status == (
        "satisfied"
    )


def test_an_override_of_a_boot_argument_is_checked_on_the_command_line_only() -> None:
    setting = one(plan(overrides={"H-ISO-4": {"value": "0-1", "because": "x"}}), "H-ISO-4")
    assert setting.target == BootArgument(key="irqaffinity")


def test_an_override_switches_off() -> None:
    host = plan(overrides={"R-MM-2": {"off": True, "because": "the database wants its own"}})
    assert of(host, "R-MM-2") == []
    notes = [note.text for note in host.notes if note.rule == "R-MM-2"]
    assert len(notes) == 4 and "the database wants its own" in notes[0]


@pytest.mark.parametrize(
    ("identifier", "override", "says"),
    [
        ("R-TIM-9", {"off": True}, "there is no rule R-TIM-9"),
        ("R-MM-2", {"value": "1"}, "R-MM-2 is 4 settings"),
        ("C-1:plc/vcpu0", {"value": "8"}, "has no value of its own"),
        ("G-15:plc", {"off": True}, "a guest must be defined"),
    ],
)
def test_wrong_overrides(identifier: str, override: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongInput, match=says) as caught:
        plan(overrides={identifier: override | {"because": "x"}})
    assert caught.value.hint


def test_an_override_without_effect_is_noted() -> None:
    host = plan(guests={"log": guest("flexible")}, overrides={"R-WQ-1": {"off": True, "because": "x"}})
    assert [note.rule for note in host.notes] == ["R-WQ-1"]
