"""A constructed root for the steps of the probe: files where a machine has them, and steps that write all of them.

The update-grub of the tree is a shell script that does what grub-mkconfig does with the defaults: source them in its
order, write one entry a kernel.  The real one runs in tests/virtual.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

GUEST_PID, VCPU_TID = 4001, 4003
SCOPE = "/machine.slice/machine-qemu\\x2d1\\x2dplc.scope/libvirt"
FILES = {
    "/proc/sys/vm/stat_interval": "1\n",
    "/proc/sys/kernel/sched_rt_runtime_us": "950000\n",
    "/proc/sys/kernel/watchdog_cpumask": "0-7\n",
    "/sys/devices/virtual/workqueue/cpumask": "ff\n",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "/proc/irq/24/smp_affinity_list": "0-7\n",
    "/proc/irq/25/smp_affinity_list": "4\n",
    "/sys/kernel/irq/24/actions": "eth0-rx-0\n",
    "/sys/kernel/irq/25/actions": "eth0-rx-0\n",
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet nohz_full=1"\nGRUB_CMDLINE_LINUX="console=ttyS0"\n',
    "/etc/somewhere/owner.conf": "a = 1\n",
    "/boot/grub/grub.cfg": "",
    "/run/libvirt/qemu/plc.pid": f"{GUEST_PID}\n",
    f"/proc/{GUEST_PID}/task/{VCPU_TID}/comm": "CPU 1/KVM\n",
    f"/proc/{GUEST_PID}/task/{VCPU_TID}/cgroup": f"0::{SCOPE}/vcpu1\n",
    "/sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive": "6\n",
    f"/sys/fs/cgroup{SCOPE.rpartition('/')[0]}/cpuset.cpus.exclusive": "\n",
    f"/sys/fs/cgroup{SCOPE}/cpuset.cpus.exclusive": "\n",
    f"/sys/fs/cgroup{SCOPE}/vcpu1/cpuset.cpus.exclusive": "\n",
    f"/sys/fs/cgroup{SCOPE}/vcpu1/cpuset.cpus.partition": "member\n",
    "/proc/sys/kernel/random/boot_id": "11111111-1111-1111-1111-111111111111\n",
}
UPDATE_GRUB = """#!/bin/sh
set -e
out=.${2:-/boot/grub/grub.cfg}
. ./etc/default/grub
for x in ./etc/default/grub.d/*.cfg; do if [ -e "$x" ]; then . "$x"; fi; done
{
    echo "### BEGIN /etc/grub.d/10_linux ###"
    for kernel in 6.12-rt 6.12; do
        echo "menuentry 'Linux $kernel' --class gnu \\$menuentry_id_option 'gnulinux-$kernel-advanced-x' {"
        echo "    linux   /boot/vmlinuz-$kernel root=UUID=x ro $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"
        echo "}"
        echo "menuentry 'recovery' \\$menuentry_id_option 'gnulinux-$kernel-recovery-x' {"
        echo "    linux   /boot/vmlinuz-$kernel root=UUID=x ro single $GRUB_CMDLINE_LINUX"
        echo "}"
    done
    echo "### END /etc/grub.d/10_linux ###"
    if [ -x ./etc/grub.d/11_evenkeel ]; then
        echo "### BEGIN /etc/grub.d/11_evenkeel ###"
        echo "menuentry 'rescue' \\$menuentry_id_option 'evenkeel-rescue-6.12' {"
        echo "    linux   /boot/vmlinuz-6.12 root=UUID=x ro $GRUB_CMDLINE_LINUX $EVENKEEL_PLAIN evenkeel.rescue"
        echo "}"
        echo "### END /etc/grub.d/11_evenkeel ###"
    fi
} > "$out"
"""
STEPS: list[dict[str, Any]] = [
    {
        "kind": "boot",
        "arguments": [
            {"key": "isolcpus", "value": "managed_irq,2-3", "after": None},
            {"key": "nohz_full", "value": "2-3", "after": None},
            {"key": "hugepages", "value": "0:64", "after": "hugepagesz=2M"},
        ],
    },
    {"kind": "file", "path": "/proc/sys/vm/stat_interval", "value": "10", "compare": "integer"},
    {"kind": "file", "path": "/proc/sys/kernel/watchdog_cpumask", "value": "0-1,4-7", "compare": "cpulist"},
    {"kind": "file", "path": "/sys/devices/virtual/workqueue/cpumask", "value": "f3", "compare": "cpumask"},
    {"kind": "file", "path": "/sys/kernel/mm/transparent_hugepage/enabled", "value": "never", "compare": "choice"},
    {"kind": "interrupt", "action": "eth0-rx-0", "value": "0-1"},
    {"kind": "config", "path": "/etc/somewhere/owner.conf", "text": "a = 2\nb = 3\n"},
    {"kind": "config", "path": "/etc/new/folder/ours.conf", "text": "x\n"},
    {"kind": "partition", "guest": "plc", "vcpu": 1, "value": "2-3"},
    {"kind": "file", "path": "/proc/sys/kernel/sched_rt_runtime_us", "value": "-1", "compare": "integer"},
]


def build(root: Path) -> None:
    """Make the tree below ``root``, with its grub.cfg generated."""
    for path, text in FILES.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "etc/somewhere/owner.conf").chmod(0o640)
    script = root / "usr/sbin/update-grub"
    script.parent.mkdir(parents=True)
    script.write_text(UPDATE_GRUB)
    script.chmod(0o755)
    (root / "var/lib").mkdir(parents=True)
    import subprocess

    subprocess.run([str(script)], cwd=root, check=True)


def picture(root: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> (mode, content) of everything but our own journal: what must be the same again."""
    found: dict[str, tuple[int, bytes]] = {}
    for item in sorted(root.rglob("*")):
        name = "/" + str(item.relative_to(root))
        if not name.startswith("/var/lib/evenkeel"):
            mode = stat.S_IMODE(item.lstat().st_mode)
            found[name] = (mode, item.read_bytes() if item.is_file() else b"")
    return found
