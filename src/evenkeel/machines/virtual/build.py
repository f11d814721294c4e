"""Make the disk of virtual hosts: Debian packages in, one bootable raw disk out.

No container engine, no loop device, no mount that outlives the program that made it: the file system is made from
a folder (`mke2fs -d`), GRUB's boot sectors are written by hand.  Needs root, because a Debian system is made of
files that belong to root.  This file is part of the recipe: a change here makes another image.  Where images are
kept, and that only one is built at a time, is :mod:`.image`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

from evenkeel.errors import NotAsWanted
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual import apt
from evenkeel.machines.virtual.places import RECIPE
from evenkeel.machines.virtual.run import contained, read_list, run, tool

MIB = 1024**2
#: What a host sees; a sparse file, about 0.8 GiB of it are used.
DISK_BYTES = 6144 * MIB
#: Where the root file system starts: the usual first MiB, which holds GRUB's core image.
ROOT_OFFSET = MIB
_SECTOR = 512
#: Called with (seconds done, what).
OnStep = Callable[[int, str], None]


def build(work: Path, on_progress: OnProgress) -> None:
    """Make ``work/out``.  The weights of the steps are seconds on two cores."""
    total = 95
    root, out, stage = work / "root", work / "out", work / "stage"
    out.mkdir()
    # mmdebstrap drops privileges for nothing in root mode, but the root folder itself must be passable for all.
    work.chmod(0o755)

    on_progress(1, total, "image: making keys")
    _make_keys(out)
    _stage(stage, out)
    _debootstrap(root, stage, work, lambda done, what: on_progress(2 + done, total, f"image: {what}"))

    on_progress(72, total, "image: configuring services and boot loader")
    root_uuid = str(uuid.uuid4())
    _configure(root, root_uuid)
    on_progress(78, total, "image: packing the small guest")
    _guest_kit(root)
    shutil.copyfile(_newest_kernel(root, rt=False), out / "vmlinuz")
    (out / "packages.json").write_text(json.dumps(_installed(root), indent=1, sort_keys=True))
    on_progress(82, total, "image: writing the disk")
    _write_disk(root, out / "disk.raw", root_uuid)
    on_progress(total, total, "image: done")


# -- keys and files --------------------------------------------------------------------------------------------


def _make_keys(out: Path) -> None:
    for name in ("id_ed25519", "host_key"):
        run(
            [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "evenkeel virtual host", "-f", str(out / name)],
            what="make an ssh key",
        )


def _stage(stage: Path, out: Path) -> None:
    """The files that the recipe puts into the root, with root as owner, before any package is configured."""
    shutil.copytree(RECIPE / "rootfs", stage)
    ssh = stage / "etc/ssh"
    shutil.move(out / "host_key", ssh / "ssh_host_ed25519_key")
    shutil.copyfile(out / "host_key.pub", ssh / "ssh_host_ed25519_key.pub")
    keys = stage / "root/.ssh"
    keys.mkdir(parents=True)
    shutil.copyfile(out / "id_ed25519.pub", keys / "authorized_keys")
    for path in [stage, *stage.rglob("*")]:
        os.chown(path, 0, 0)
        executable = path.is_dir() or bool(path.stat().st_mode & stat.S_IXUSR)
        path.chmod(0o755 if executable else 0o644)
    (ssh / "ssh_host_ed25519_key").chmod(0o600)
    keys.chmod(0o700)
    (keys.parent).chmod(0o700)


#: Parts of an initrd that finds its root on one virtio disk by itself: udev in it was a tenth of the boot.
_NOT_IN_INITRD = (
    *(f"hooks/{name}" for name in ("dmsetup", "keymap", "thermal", "udev")),
    *(f"scripts/{when}/udev" for when in ("init-top", "init-bottom")),
)


def _debootstrap(root: Path, stage: Path, work: Path, on_step: OnStep) -> None:
    steps = {
        "downloading package lists": 1,
        "downloading packages": 3,
        "extracting archives": 6,
        "installing essential packages": 12,
        "installing remaining packages": 20,
        "cleaning": 66,
    }
    sources = work / "sources.list"
    sources.write_text("".join(line + "\n" for line in apt.lines(apt.sources())))

    def follow(line: str) -> None:
        for text, done in steps.items():
            if text in line:
                on_step(done, line.removeprefix("I: ").rstrip("."))

    excluded = [f"{name}/*" for name in ("man", "doc", "locale", "info", "lintian")]
    excluded += [f"initramfs-tools/{name}" for name in _NOT_IN_INITRD]
    run(
        contained(
            [
                tool("mmdebstrap"),
                "--mode=root",
                "--format=directory",
                "--variant=minbase",
                "--components=main",
                "--skip=check/qemu",
                '--aptopt=Acquire::Languages "none"',
                '--aptopt=APT::Install-Recommends "false"',
                '--aptopt=Acquire::Retries "3"',
                *(f"--dpkgopt=path-exclude=/usr/share/{name}" for name in excluded),
                f"--setup-hook=sync-in {shlex.quote(str(stage))} /",
                "--include=" + ",".join(read_list(RECIPE / "image-packages.txt")),
                apt.RELEASE,
                str(root),
                str(sources),
            ]
        ),
        what="install Debian into the image",
        on_line=follow,
        env={"TMPDIR": str(work), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    )


# -- configuration inside the root ----------------------------------------------------------------------------

#: Timers and services that would wake up in the middle of somebody's measurement, or wait for what is not there.
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "systemd-tmpfiles-clean.timer",
    "systemd-pstore.service",
    "nvmefc-boot-connections.service",
    "nvmf-autoconnect.service",
    "libvirt-guests.service",
    "systemd-networkd-wait-online.service",
    # Nobody logs in but by ssh, and that without PAM; together they were a tenth of the boot.
    "systemd-logind.service",
    "systemd-user-sessions.service",
    "modprobe@drm.service",
    "modprobe@dm_mod.service",
    "modprobe@loop.service",
    "modprobe@efi_pstore.service",
    "proc-sys-fs-binfmt_misc.automount",
    "getty@tty1.service",
)
#: Menu entries that a virtual host never has; their scripts were half of an update-grub in emulation.
_NOT_IN_MENU = ("05_debian_theme", "20_linux_xen", "30_os-prober", "30_uefi-firmware")
_ENABLED = (
    "systemd-networkd.service",
    "ssh.service",
    "libvirtd.service",
    "irqbalance.service",
    "evenkeel-name.service",
    "serial-getty@ttyS0.service",
)


def _in_root(root: Path, *argv: str, what: str) -> str:
    return run(
        contained([tool("chroot"), str(root), *argv]),
        what=what,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )


def _configure(root: Path, root_uuid: str) -> None:
    etc = root / "etc"
    (etc / "fstab").write_text(f"UUID={root_uuid} / ext4 noatime,errors=remount-ro 0 0\n")
    # Empty, not absent: each host then makes its own id at its first boot, without systemd's first-boot questions.
    (etc / "machine-id").write_text("")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (etc / "hostname").unlink(missing_ok=True)
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "resolv.conf").write_text("nameserver 10.0.2.3\n")
    for name in ("rsa", "ecdsa"):
        for suffix in ("", ".pub"):
            (etc / f"ssh/ssh_host_{name}_key{suffix}").unlink(missing_ok=True)
    _in_root(root, "systemctl", "mask", *_MASKED, what="mask services in the image")
    _in_root(root, "systemctl", "enable", *_ENABLED, what="enable services in the image")
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    _grub_config(root, root_uuid)


def _grub_config(root: Path, root_uuid: str) -> None:
    """Run the image's own update-grub, while a stand-in answers what grub-probe would find on the finished disk."""
    for name in _NOT_IN_MENU:
        (root / "etc/grub.d" / name).chmod(0o644)  # grub-mkconfig runs what is executable
    boot = root / "boot/grub"
    (boot / "i386-pc").mkdir(parents=True)
    for file in (root / "usr/lib/grub/i386-pc").iterdir():
        if file.suffix in (".mod", ".lst", ".img"):
            shutil.copyfile(file, boot / "i386-pc" / file.name)
    (boot / "device.map").write_text("(hd0) /dev/vda\n")
    probe, real = root / "usr/sbin/grub-probe", root / "usr/sbin/grub-probe.real"
    probe.rename(real)
    by_uuid = root / "dev/disk/by-uuid"
    try:
        probe.write_text(_GRUB_PROBE.replace("@UUID@", root_uuid))
        probe.chmod(0o755)
        by_uuid.mkdir(parents=True)  # 10_linux writes root=UUID= only when it sees the link
        (by_uuid / root_uuid).touch()
        _in_root(root, "update-grub", what="make the image's boot menu")
        _in_root(
            root,
            "grub-mkimage",
            "-O",
            "i386-pc",
            "-o",
            "/boot/grub/i386-pc/core.img",
            "-p",
            "(hd0,msdos1)/boot/grub",
            "biosdisk",
            "part_msdos",
            "ext2",
            "serial",
            "terminal",
            "normal",
            what="make GRUB's core image",
        )
    finally:
        real.rename(probe)
        shutil.rmtree(root / "dev/disk", ignore_errors=True)
    text = (boot / "grub.cfg").read_text()
    if root_uuid not in text or "-rt-amd64" not in text:
        raise NotAsWanted("the image's boot menu does not name its root or its PREEMPT_RT kernel")


_GRUB_PROBE = """#!/bin/sh
for word; do case $word in --target=*) target=${word#--target=};; esac; done
while [ $# -gt 0 ]; do case $1 in -t|--target) target=$2; shift;; esac; shift; done
case $target in
device) echo /dev/vda1;; disk) echo /dev/vda;; fs_uuid) echo @UUID@;; fs) echo ext2;; partmap) echo msdos;;
drive|compatibility_hint) echo hd0,msdos1;; hints_string) echo "--hint-bios=hd0,msdos1";; fs_label|abstraction) ;;
*) exit 1;;
esac
"""


def _newest_kernel(root: Path, *, rt: bool) -> Path:
    kernels = [file for file in (root / "boot").glob("vmlinuz-*") if ("-rt-" in file.name) == rt]
    if not kernels:
        raise NotAsWanted(f"no {'PREEMPT_RT' if rt else 'standard'} kernel was installed in the image")
    return max(kernels, key=lambda file: [int(part) for part in re.findall(r"\d+", file.name)])


def _installed(root: Path) -> dict[str, str]:
    """Package name to version, as dpkg in the image knows them."""
    packages: dict[str, str] = {}
    name = ""
    for line in (root / "var/lib/dpkg/status").read_text(errors="replace").splitlines():
        if line.startswith("Package: "):
            name = line[9:]
        elif line.startswith("Version: "):
            packages[name] = line[9:]
    return packages


# -- the small guest -------------------------------------------------------------------------------------------

_GUEST_PROGRAMS = ("usr/sbin/qemu-ga", "usr/bin/cyclictest", "usr/bin/hackbench", "usr/bin/chrt", "usr/bin/taskset")
_GUEST_MODULES = ("virtio_net", "virtio_blk", "virtio-rng")


def _guest_kit(root: Path) -> None:
    """``/var/lib/evenkeel/guest``: kernel and initrd of a guest that boots in seconds and obeys its agent."""
    kit = root / "var/lib/evenkeel/guest"
    kit.mkdir(parents=True)
    kernel = _newest_kernel(root, rt=True)
    _unpack_kernel(kernel, kit / "vmlinux")
    version = kernel.name.removeprefix("vmlinuz-")
    files: dict[str, tuple[int, bytes]] = {}
    for folder in (
        "bin",
        "sbin",
        "usr",
        "usr/bin",
        "usr/sbin",
        "lib",
        "lib64",
        "lib/x86_64-linux-gnu",
        "usr/lib",
        "proc",
        "sys",
        "dev",
        "root",
        "tmp",
        "run",
        "etc",
        "modules",
    ):
        files[folder] = (stat.S_IFDIR | 0o755, b"")
    files["usr/lib/x86_64-linux-gnu"] = (stat.S_IFLNK | 0o777, b"/lib/x86_64-linux-gnu")
    files["var"] = (stat.S_IFDIR | 0o755, b"")
    files["var/run"] = (stat.S_IFLNK | 0o777, b"/run")
    files["init"] = (stat.S_IFREG | 0o755, (RECIPE / "guest/init").read_bytes())
    files["bin/busybox"] = (stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes())
    for program in _GUEST_PROGRAMS:
        files[program] = (stat.S_IFREG | 0o755, (root / program).read_bytes())
        for library in re.findall(r"(/\S+) \(0x", _in_root(root, "ldd", "/" + program, what="list libraries")):
            place = library.removeprefix("/usr").lstrip("/")
            files[place] = (stat.S_IFREG | 0o755, _resolve(root, library).read_bytes())
    order = []
    for module in _module_order(root / "lib/modules" / version, _GUEST_MODULES):
        name = module.name.removesuffix(".xz")
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, _decompress(module))
        order.append(name)
    files["modules/order"] = (stat.S_IFREG | 0o644, "".join(name + "\n" for name in order).encode())
    (kit / "initrd.img").write_bytes(_cpio(files))


def _unpack_kernel(packed: Path, to: Path) -> None:
    """Write the ELF file that a bzImage unpacks when it starts: QEMU enters it directly, by its PVH note.

    Where it lies: Documentation/arch/x86/boot.rst, ``payload_offset`` and ``payload_length`` (protocol 2.08), counted
    from the protected-mode code; the last four bytes are the size of what is packed, for the kernel's own unpacker.
    """
    data = packed.read_bytes()
    code = ((data[0x1F1] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[code + offset : code + offset + length]
    if payload[:4] != b"\x28\xb5\x2f\xfd":
        raise NotAsWanted(f"{packed.name} is not packed with zstd, as Debian's kernels are; the recipe must learn how")
    part = to.with_name(to.name + ".zst")
    part.write_bytes(payload[:-4])
    run([tool("zstd"), "-q", "-d", "--rm", str(part), "-o", str(to)], what="unpack the kernel of the small guest")


def _resolve(root: Path, path: str) -> Path:
    """Follow the links of ``path`` as the system in ``root`` would."""
    place = root / path.lstrip("/")
    for _ in range(20):
        parent = Path(os.path.realpath(place.parent))
        if not parent.is_relative_to(root):  # an absolute link out of a folder of the root
            parent = root / parent.relative_to("/")
        place = parent / place.name
        if not place.is_symlink():
            return place
        target = place.readlink()
        place = root / str(target).lstrip("/") if target.is_absolute() else parent / target
    raise NotAsWanted(f"{path} in the image is a loop of links")


def _module_order(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of the modules and of all that they need, dependencies first (modules.dep lists them last)."""
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, rest = line.partition(":")
        needs[module] = rest.split()
    order: list[Path] = []
    for name in names:
        found = [m for m in needs if Path(m).name.split(".ko")[0].replace("_", "-") == name.replace("_", "-")]
        for module in [*reversed(needs[found[0]]), found[0]] if found else ():
            if folder / module not in order:
                order.append(folder / module)
    return order


def _decompress(module: Path) -> bytes:
    import lzma

    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def _cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts: list[bytes] = []

    def add(number: int, name: str, mode: int, data: bytes) -> None:
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts.append(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    for number, (name, (mode, data)) in enumerate(files.items(), start=1):
        add(number, name, mode, data)
    # /dev/console before devtmpfs: without it the first process has no output. Character device 5:1.
    encoded = b"dev/console\0"
    fields = (len(files) + 1, stat.S_IFCHR | 0o600, 0, 0, 1, 0, 0, 0, 0, 5, 1, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    parts.append(head + b"\0" * (-len(head) % 4))
    add(0, "TRAILER!!!", 0, b"")
    return b"".join(parts)


# -- the disk --------------------------------------------------------------------------------------------------


def _write_disk(root: Path, disk: Path, root_uuid: str) -> None:
    """A disk with an MBR, GRUB behind it, and one ext4 partition made from the folder ``root``."""
    with disk.open("wb") as handle:
        handle.truncate(DISK_BYTES)
    size_kib = (DISK_BYTES - ROOT_OFFSET) // 1024
    # GRUB 2.06 cannot read a file system with the checksum seed or the orphan file of newer mke2fs defaults.
    run(
        [
            tool("mke2fs"),
            "-q",
            "-t",
            "ext4",
            "-F",
            "-L",
            "evenkeel",
            "-U",
            root_uuid,
            "-m",
            "0",
            "-O",
            "^metadata_csum_seed,^orphan_file",
            "-J",
            "size=16",
            "-E",
            f"offset={ROOT_OFFSET},lazy_itable_init=1",
            "-d",
            str(root),
            str(disk),
            f"{size_kib}k",
        ],
        what="write the image's file system",
    )
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    core = (root / "boot/grub/i386-pc/core.img").read_bytes()
    if len(core) > ROOT_OFFSET - _SECTOR:
        raise NotAsWanted(f"GRUB's core image has {len(core)} bytes; {ROOT_OFFSET - _SECTOR} fit before the partition")
    sectors = (DISK_BYTES - ROOT_OFFSET) // _SECTOR
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", ROOT_OFFSET // _SECTOR, sectors)
    with disk.open("r+b") as handle:
        handle.write(boot[:440] + b"EVK1" + b"\0\0" + entry + bytes(48) + b"\x55\xaa")
        handle.write(core)
