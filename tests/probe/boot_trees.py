"""Constructed roots of machines that boot in different ways, with the files of a real installation of each.

The two that generate their menu run the real grub-mkconfig and the real 10_linux of this machine, in a mount namespace
in which the folders of the tree lie over those of this machine.  Only grub-probe is a stand-in: it asks for a disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ID = "6a9857a393724b7a981ebb5b8495b9ea"
OLD, NEW = "5.14.0-427.13.1.el9.x86_64", "5.14.0-503.11.1.el9.x86_64"
RT = "5.14.0-503.11.1.rt1.el9.x86_64"
OPTIONS = 'root=/dev/mapper/rl-root  ro crashkernel=1G-4G:192M resume=UUID=7 rhgb "dyndbg=file isolcpus=x +p" quiet'
#: Everything that stood in the way before: other values of our keys, in the other spelling, one twice.
BEFORE = f"{OPTIONS} nohz-full=1 isolcpus=5 isolcpus=7 hugepages=9"

_MKCONFIG = """#!/bin/sh
exec unshare {flags} --mount --propagation private sh -ec '
for folder in etc/default etc/grub.d boot; do mount --bind "$PWD/$folder" "/$folder"; done
mount --bind "$PWD/grub-probe" /usr/sbin/grub-probe
exec {program} "$@"
' sh "$@"
"""
_GRUB_PROBE = """#!/bin/sh
for word; do case $word in --target=*) target=${word#--target=};; esac; done
while [ $# -gt 0 ]; do case $1 in -t|--target) target=$2; shift;; esac; shift; done
case $target in
device) echo /dev/vda1;; disk) echo /dev/vda;; fs_uuid) echo 46f7;; fs) echo ext2;; partmap) echo msdos;;
drive|compatibility_hint) echo hd0,msdos1;; hints_string) echo "--hint-bios=hd0,msdos1";; fs_label|abstraction) ;;
*) exit 1;;
esac
"""


def debian(root: Path) -> None:
    _generated(root, "update-grub", "/usr/sbin/update-grub", "grub")
    put(root, "/etc/default/grub.d/50-cloudimg.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT net=1"\n')
    _generate(root, "update-grub", "grub")


def suse(root: Path) -> None:
    _generated(root, "grub2-mkconfig", "/usr/sbin/grub-mkconfig", "grub2")
    with (root / "etc/default/grub").open("a") as file:  # YaST's defaults: no entries for recovery
        file.write('GRUB_DISABLE_RECOVERY="true"\nGRUB_CMDLINE_XEN_DEFAULT="vga=gfx-1024x768x16"')
    _generate(root, "grub2-mkconfig", "grub2")


def rhel9(root: Path) -> None:
    _entries(root, BEFORE)
    put(root, "/etc/kernel/cmdline", f"{BEFORE}\n")
    put(root, "/etc/default/grub", 'GRUB_CMDLINE_LINUX="crashkernel=1G-4G:192M rhgb quiet"\nGRUB_ENABLE_BLSCFG=true\n')
    put(root, "/boot/grub2/grubenv", grubenv(f"saved_entry={ID}-{NEW}", "boot_success=1"))


def fedora_cloud(root: Path) -> None:
    """No /etc/kernel/cmdline and no defaults: kernel-install would take what the running kernel was started with."""
    _entries(root, BEFORE)
    put(root, "/boot/grub2/grubenv", grubenv(f"saved_entry={ID}-{NEW}", "menu_auto_hide=1"))


def rhel8(root: Path) -> None:
    """Entries refer to a variable of the environment block, which on UEFI lies on the EFI system partition."""
    _entries(root, "$kernelopts $tuned_params", extra=f"id rhel-20240501000000-{OLD}\ngrub_users $grub_users\n")
    put(root, "/etc/default/grub", 'GRUB_CMDLINE_LINUX="crashkernel=auto"\nGRUB_ENABLE_BLSCFG=true\n')
    block = grubenv(f"saved_entry={ID}-{NEW}", f"kernelopts={BEFORE}", "boot_success=0")
    put(root, "/boot/efi/EFI/redhat/grubenv", block)
    (root / "boot/grub2/grubenv").symlink_to("../efi/EFI/redhat/grubenv")


def systemd_boot(root: Path) -> None:
    put(root, "/efi/EFI/systemd/systemd-bootx64.efi", "MZ")
    put(root, "/efi/loader/loader.conf", f"timeout 3\ndefault {ID}-*\n")
    for number, version in enumerate((OLD, NEW)):
        put(
            root,
            f"/efi/loader/entries/{ID}-{version}.conf",
            f"# made by kernel-install\ntitle      Debian GNU/Linux 12\nversion    {version}\nmachine-id {ID}\n"
            f"sort-key   debian\noptions    {BEFORE}\n{'options    splash' + chr(10) if number else ''}"
            f"linux      /{ID}/{version}/linux\ninitrd     /{ID}/{version}/initrd.img\n",
        )
        put(root, f"/efi/{ID}/{version}/linux", "kernel")
        put(root, f"/efi/{ID}/{version}/initrd.img", "initrd")
    put(root, "/efi/loader/entries/memtest.conf", "title Memory test\nefi /EFI/memtest.efi\n")
    put(root, "/etc/kernel/cmdline", f"{BEFORE}\n")


TREES: dict[str, Callable[[Path], None]] = {
    "debian": debian,
    "suse": suse,
    "rhel9": rhel9,
    "fedora_cloud": fedora_cloud,
    "rhel8": rhel8,
    "systemd_boot": systemd_boot,
}


def build(name: str, root: Path) -> Path:
    """Make the tree ``name`` below ``root``."""
    put(root, "/proc/sys/kernel/osrelease", f"{NEW}\n")
    put(root, "/proc/sys/kernel/random/boot_id", "11111111-1111-1111-1111-111111111111\n")
    (root / "var/lib").mkdir(parents=True)
    TREES[name](root)
    return root


def put(root: Path, path: str, text: str, mode: int = 0o644) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def grubenv(*lines: str) -> str:
    text = "# GRUB Environment Block\n" + "".join(f"{line}\n" for line in lines)
    assert len(text) <= 1024
    return text.ljust(1024, "#")


def _entries(root: Path, options: str, extra: str = "") -> None:
    put(root, "/boot/grub2/grub.cfg", "### BEGIN /etc/grub.d/10_linux ###\ninsmod blscfg\nblscfg\n")
    for version in (OLD, NEW, RT, f"0-rescue-{ID}"):
        put(
            root,
            f"/boot/loader/entries/{ID}-{version}.conf",
            f"title Rocky Linux ({version}) 9.5 (Blue Onyx)\nversion {version}\nlinux /vmlinuz-{version}\n"
            f"initrd /initramfs-{version}.img $tuned_initrd\noptions {options}\n{extra}grub_class rocky\n",
        )


def _generated(root: Path, name: str, program: str, folder: str) -> None:
    flags = "" if os.getuid() == 0 else "--map-root-user"
    put(root, f"/usr/sbin/{name}", _MKCONFIG.format(flags=flags, program=program), 0o755)
    put(root, "/grub-probe", _GRUB_PROBE, 0o755)
    put(root, "/etc/default/grub", f"GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX='console=ttyS0 {BEFORE}'\n")
    for script in ("00_header", "10_linux"):
        (root / "etc/grub.d").mkdir(parents=True, exist_ok=True)
        shutil.copy(f"/etc/grub.d/{script}", root / "etc/grub.d")
    for version in (OLD, NEW):
        put(root, f"/boot/vmlinuz-{version}", "kernel")
        put(root, f"/boot/initrd.img-{version}", "initrd")
    (root / "boot" / folder).mkdir()


def _generate(root: Path, name: str, folder: str) -> None:
    done = subprocess.run(
        [str(root / "usr/sbin" / name), "-o", f"/boot/{folder}/grub.cfg"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (root / "boot" / folder / "grub.cfg").chmod(0o444)
