"""Guests, definitions, boot entries and the kernel's log on small trees: what they hold, and what must not get out."""

from __future__ import annotations

from pathlib import Path

from evenkeel.documents.facts import Facts
from evenkeel.probe.facts import facts_of
from evenkeel.probe.facts.root import Root
from tests.probe.trees import Tree, plant

QEMU = "qemu-system-x86"
STATUS = """<domstatus state='running' reason='booted' pid='4001'>
  <vcpu id='0' pid='4002'/>
  <domain type='kvm' id='17'>
    <name>plc</name>
    <graphics type='vnc' passwd='hunter2'/>
  </domain>
</domstatus>"""
GRUB = """
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-x' {
        linux   /boot/vmlinuz-6.12.1-rt root=UUID=x ro  quiet isolcpus=managed_irq,2-3
}
menuentry 'Without tuning' {
        linux   /boot/vmlinuz-6.12.1-rt root=UUID=x ro quiet evenkeel.rescue=1
}
submenu 'Advanced options' {
        menuentry 'Debian GNU/Linux, with Linux 6.12.1-rt (recovery mode)' --class debian {
                linux   /boot/vmlinuz-6.12.1-rt root=UUID=x ro single
        }
}
"""
ENTRY = """title Fedora Linux (6.11.0)
version 6.11.0
linux /vmlinuz-6.11.0
options root=UUID=x $kernelopts
"""


def task(pid: int, tid: int, name: str, *, priority: int = 0, cpus: str = "0-7") -> dict[str, str]:
    fields = ["S", "2", *["0"] * 4, "0", *["0"] * 30, str(priority), str(1 if priority else 0), *["0"] * 11]
    folder = f"/proc/{pid}/task/{tid}"
    return {
        f"{folder}/stat": f"{tid} ({name}) {' '.join(fields)}",
        f"{folder}/status": f"Name:\t{name}\nCpus_allowed_list:\t{cpus}",
    }


def guest(pid: int, name: str = "plc") -> dict[str, str]:
    main = task(pid, pid, QEMU, cpus="1")
    return {
        f"/proc/{pid}/stat": main[f"/proc/{pid}/task/{pid}/stat"],
        f"/proc/{pid}/cmdline": f"/usr/bin/{QEMU}\0-name\0guest={name},debug-threads=on\0-o\0secret,data=hunter2\0",
        **main,
        **task(pid, pid + 1, "CPU 10/KVM", priority=2, cpus="3"),
        **task(pid, pid + 2, "CPU 9/KVM", cpus="2"),
        **task(pid, pid + 3, "worker", cpus="1"),
        **task(pid, pid + 4, f"vhost-{pid}", cpus="1"),
        **task(pid, pid + 5, f"vhost-{pid}", cpus="1"),
    }


def facts(folder: Path, tree: Tree) -> Facts:
    return Facts.model_validate(facts_of(plant(folder, tree)))


def test_a_guest_has_its_threads_and_no_process_id(tmp_path: Path) -> None:
    found = facts(tmp_path, guest(4001))
    (one,) = found.guests
    assert one.name == "plc"
    assert [(thread.name, thread.policy, thread.priority, thread.cpus) for thread in one.threads] == [
        ("CPU 9/KVM", "other", 0, frozenset({2})),
        ("CPU 10/KVM", "fifo", 2, frozenset({3})),
        (QEMU, "other", 0, frozenset({1})),
        ("vhost", "other", 0, frozenset({1})),  # two of them, alike
    ]
    assert "4001" not in found.to_json() and "hunter2" not in found.to_json()


def test_the_same_guest_under_another_process_id_gives_the_same_bytes(tmp_path: Path) -> None:
    first = facts(tmp_path / "a", guest(4001))
    assert first.to_json() == facts(tmp_path / "b", guest(5117)).to_json()
    assert first.to_json() != facts(tmp_path / "c", guest(4001, "other")).to_json()


def test_definitions_are_kept_without_passwords_and_numbers_of_a_run(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {"/etc/libvirt/qemu/hmi.xml": "<domain><name>hmi</name></domain>", "/run/libvirt/qemu/plc.xml": STATUS},
    )
    assert [(one.guest, one.running, one.path) for one in found.definitions] == [
        ("hmi", False, "/etc/libvirt/qemu/hmi.xml"),
        ("plc", True, "/run/libvirt/qemu/plc.xml"),
    ]
    assert found.definitions[1].xml.startswith("<domain type='kvm'>")
    assert "passwd=''" in found.definitions[1].xml
    for word in ("hunter2", "4001", "4002", "'17'"):
        assert word not in found.to_json()


def test_boot_entries_of_grub_and_of_entry_files(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        {
            "/boot/grub/grub.cfg": GRUB,
            "/boot/loader/entries/a.conf": ENTRY,
            "/boot/grub2/grubenv": "# GRUB Environment Block\nkernelopts=nohz_full=2-3 ",
        },
    )
    assert [(entry.kernel, entry.arguments) for entry in found.boot_entries] == [
        ("6.12.1-rt", "root=UUID=x ro quiet isolcpus=managed_irq,2-3"),
        ("6.11.0", "root=UUID=x nohz_full=2-3"),
    ]


def test_the_log_gives_the_first_line_of_each_kind(tmp_path: Path) -> None:
    log = "\n".join(
        [
            "[    0.000000] Linux version 6.12",
            "[   12.345678] HugeTLB: allocating 900 of page size 2.00 MiB failed node1.  Only allocated 554 hugepages.",
            "[   61.000000] [   T17] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   99.000000] rcu: INFO: rcu_preempt self-detected stall on CPU",
        ]
    )
    found = facts(tmp_path / "a", {"/var/log/dmesg": log}).kernel_log
    assert found is not None and found.complete
    assert found.lines == {
        "huge-pages": "HugeTLB: allocating 900 of page size 2.00 MiB failed node1.  Only allocated 554 hugepages.",
        "rcu-stall": "rcu: INFO: rcu_preempt self-detected stall on CPU",
    }
    assert facts(tmp_path / "b", {}).kernel_log is None  # not read is not the same as silent


def test_restricted_slices(tmp_path: Path) -> None:
    group = "/sys/fs/cgroup"
    found = facts(
        tmp_path,
        {
            "/proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
            f"{group}/cpuset.cpus.effective": "0-7",
            f"{group}/machine.slice/cpuset.cpus": "2-7",
            f"{group}/machine.slice/cpuset.cpus.effective": "2-5",
            f"{group}/user.slice/cpuset.cpus": "",
            f"{group}/user.slice/cpuset.cpus.effective": "0-7",
        },
    )
    assert [(one.path, one.cpus, one.effective) for one in found.cpusets] == [
        ("/machine.slice", frozenset(range(2, 8)), frozenset(range(2, 6)))
    ]


def test_a_document_from_before_still_loads() -> None:
    from tests.probe.test_facts_recorded import TUNED, read

    old = read(TUNED).model_dump(mode="json")
    for key in ("guests", "definitions", "cpusets", "boot_entries", "kernel_log"):
        del old[key]
    assert Facts.model_validate(old).guests == ()


def test_a_recording_keeps_what_these_facts_were_made_of(tmp_path: Path) -> None:
    import io
    import tarfile

    from evenkeel.probe.facts.record import Recording

    plant(tmp_path / "a", {**guest(4001), "/run/libvirt/qemu/plc.xml": STATUS, "/boot/grub/grub.cfg": GRUB})
    recording = Recording()
    first = facts_of(Root(str(tmp_path / "a"), recording))
    with tarfile.open(fileobj=io.BytesIO(recording.tarball())) as archive:
        archive.extractall(tmp_path / "b", filter="data")
    again = facts_of(Root(str(tmp_path / "b")))
    for key in ("guests", "definitions", "boot_entries"):
        assert again[key] == first[key] != []
    kept = "".join(path.read_text() for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert "hunter2" not in kept
