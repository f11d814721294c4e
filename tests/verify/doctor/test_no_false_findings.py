"""What looks like a fault and is none: the doctor must not cry wolf, or nobody asks it twice."""

from __future__ import annotations

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Findings
from evenkeel.verify.doctor import examine
from tests.verify.doctor.faults import TWO_CELLS, two_nodes
from tests.verify.doctor.tree import ETC_GUEST, Tree


def failed(tree: Tree) -> set[str]:
    return {check.id for check in examine(tree.facts(), "x").failed}


def test_a_file_of_the_administrator_overrides_one_of_a_package() -> None:
    tree = Tree("guests")
    live = tree.text("/proc/sys/vm/swappiness")
    tree.put("/usr/lib/sysctl.d/50-vendor.conf", "vm.swappiness = 99")
    tree.put("/etc/sysctl.d/60-own.conf", f"vm.swappiness = {live}")
    assert failed(tree) == set()


def test_an_interrupt_that_has_moved_but_not_fired_since() -> None:
    tree = Tree("guests")
    tree.change("/proc/irq/36/effective_affinity_list", "5")  # its affinity is housekeeping already
    assert failed(tree) == set()


def test_rescue_entries_and_other_systems_in_the_menu() -> None:
    tree = Tree("guests")
    menu = tree.text("/boot/grub/grub.cfg") + "\n"
    entry = "menuentry '{0}' {{\n\tlinux /boot/vmlinuz-5.10.0-{1} root=x ro {2}\n}}\n"
    tree.change(
        "/boot/grub/grub.cfg",
        menu
        + entry.format("Debian (recovery mode)", "1", "single")
        + entry.format("Debian without tuning", "2", "evenkeel.rescue=1")
        + entry.format("Fedora (on /dev/sdb2)", "3", "quiet"),
    )
    assert failed(tree) == set()
    tree.change("/boot/grub/grub.cfg", menu + entry.format("Debian", "4", "quiet"))
    assert failed(tree) == {"D-BOOT-LOST"}


def test_irqbalance_leaves_nohz_full_alone_by_itself() -> None:
    tree = Tree("guests")
    tree.start(900, "irqbalance")
    assert failed(tree) == set()


def test_a_guest_that_floats_over_ordinary_cpus_is_well() -> None:
    tree = Tree("guests")
    tree.swap("/etc/libvirt/qemu/hmi.xml", "<vcpu placement='static' cpuset='1-2'>1</vcpu>", "<vcpu>1</vcpu>")
    assert failed(tree) == set()


def test_other_threads_of_the_same_name_do_not_count() -> None:
    tree = Tree("guests")
    tree.start(900, "CPU 1/KVM")  # a process that only calls itself so
    assert failed(tree) == set()


def test_a_node_may_hold_nothing_but_huge_pages_of_a_large_machine() -> None:
    """92 % of a node, which is what SUSE recommends for SAP HANA."""
    tree = Tree("guests")
    facts = tree.facts()
    node = facts.nodes[1]
    pages = int(node.memory_bytes * 0.92) >> 21
    tree.pages(1, pages)
    assert failed(tree) == set()
    tree.pages(1, pages + 8)
    assert failed(tree) == {"D-NODE-MEMORY"}


@pytest.mark.parametrize("clock", ["kvm-clock", "xen", "hyperv_clocksource_tsc_page"])
def test_clocks_that_a_hypervisor_gives(clock: str) -> None:
    tree = Tree("guests")
    tree.change("/sys/devices/system/clocksource/clocksource0/current_clocksource", clock)
    assert failed(tree) == set()


def test_what_cannot_be_seen_is_not_well() -> None:
    """Without root: no debugfs, no log, no definitions.  A topology alone: nearly nothing."""
    whole = Tree("guests").facts()
    blind = whole.model_copy(
        update={
            "settings": {path: text for path, text in whole.settings.items() if "/debug/" not in path},
            "kernel_log": None,
            "definitions": (),
            "unreadable": {"/etc/libvirt/qemu": "EACCES"},
        }
    )
    unseen = {check.id for check in examine(blind, "x").checks if check.status == "not_checked"}
    assert unseen >= {"D-FAIR-OFF", "D-PARAM", "D-RCU-STALL", "D-XML-REFUSED", "D-HUGE-SHORT"}
    bare = Facts(identity=whole.identity, kernel=whole.kernel.model_copy(update={"command_line": ""}), cpus=whole.cpus)
    passed = {check.id for check in examine(bare, "x").checks if check.status == "passed"}
    assert passed == set()


def test_definitions_do_not_disturb_each_other() -> None:
    tree = Tree("guests")
    other = tree.text(ETC_GUEST).replace(">plc<", ">other<").replace("<emulatorpin cpuset='3'/>", "")
    tree.put("/etc/libvirt/qemu/other.xml", other)
    findings: Findings = examine(tree.facts(), "x")
    # Without <emulatorpin>; and not enough huge pages for both at once, which is nobody's alone.
    assert {check.id for check in findings.failed} == {"D-EMULATOR:other", "D-HUGE-SHORT"}


@pytest.mark.parametrize("junk", ["", "N", "-1", "{}", "99999999999999999999", "a=b", "\\x00"])
@pytest.mark.parametrize(
    "path",
    [
        "/proc/cmdline",
        "/proc/irq/default_smp_affinity",
        "/proc/sys/kernel/sched_rt_runtime_us",
        "/sys/devices/virtual/workqueue/cpumask",
        "/sys/devices/system/cpu/nohz_full",
        "/etc/default/irqbalance",
        "/boot/grub/grub.cfg",
    ],
)
def test_no_content_of_a_file_breaks_the_doctor(path: str, junk: str) -> None:
    tree = Tree("guests")
    tree.put(path, junk)
    examine(tree.facts(), "x")


def test_a_guest_with_a_cell_on_each_node() -> None:
    tree = Tree("guests")
    two_nodes(tree)
    assert failed(tree) == set()
    tree = Tree("guests")  # distances left out, which libvirt makes 20 of
    two_nodes(tree)
    for own in (0, 1):
        said = f"<distances><sibling id='{own}' value='10'/><sibling id='{1 - own}' value='21'/></distances>"
        tree.swap(ETC_GUEST, said, "")
    assert failed(tree) == set()


def test_two_cells_of_one_node_are_the_owners_own_idea() -> None:
    tree = Tree("guests")
    tree.swap(ETC_GUEST, "<cell id='0' cpus='0-1' memory='262144' unit='KiB'/>", TWO_CELLS)
    assert failed(tree) == set()
