"""The boot layer on machines that boot in different ways: the trees of :mod:`.boot_trees`, and real tools on them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evenkeel.probe import journal, write
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps import boot
from evenkeel.probe.steps.boot import entryfiles, environment
from evenkeel.probe.steps.boot.arguments import missing
from tests.probe import boot_trees, tree
from tests.probe.boot_trees import ID, NEW, OLD, put
from tests.probe.test_write import die_at, in_child, undo_all

PLAN = "0" * 64
ARGUMENTS: list[dict[str, Any]] = [
    {"key": "isolcpus", "value": "managed_irq,2-3", "after": None},
    {"key": "nohz_full", "value": "2-3", "after": None},
    {"key": "nosmt", "value": None, "after": None},
    {"key": "rcu_nocb_poll", "value": "", "after": None},
    {"key": "hugepages", "value": "0:64", "after": "hugepagesz=2M"},
]
OURS = "isolcpus=managed_irq,2-3 nohz_full=2-3 rcu_nocb_poll hugepagesz=2M hugepages=0:64"
STEP = {"kind": "boot", "arguments": ARGUMENTS}
ALL = sorted(boot_trees.TREES)
FILES_ONLY = ["fedora_cloud", "rhel8", "rhel9", "systemd_boot"]
#: The words of the trees that are not ours, in their order.
OTHERS = 'root=/dev/mapper/rl-root ro crashkernel=1G-4G:192M resume=UUID=7 rhgb "dyndbg=file isolcpus=x +p" quiet'

Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name: boot_trees.build(name, tmp_path / name)


def take(root: Path, arguments: list[dict[str, Any]] = ARGUMENTS) -> dict[str, Any]:
    return write.apply_step({"kind": "boot", "arguments": arguments}, PLAN, "boot", root=str(root))


def undo(root: Path) -> None:
    undo_all(root)
    journal.release(str(root))


def state(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(boot.snapshot(STEP, str(root)))
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_kernel_gets_ours_once_and_keeps_every_other_word_and_the_rescue_entry_none(
    name: str, make: Make
) -> None:
    root = make(name)
    before = tree.picture(root)
    was = state(root)
    assert take(root)["outcome"] == "done"
    now = state(root)
    assert len(now["entries"]) == len(was["entries"]) >= 2
    for entry in now["entries"]:
        assert missing(ARGUMENTS, entry["arguments"]) == []
        assert OTHERS in entry["arguments"]
        assert "isolcpus=5" not in entry["arguments"]
        assert "nohz-full" not in entry["arguments"]
    assert now["rescue"]
    for entry in now["rescue"]:
        line = entry["arguments"].replace('"dyndbg=file isolcpus=x +p"', "")
        assert not any(key in line for key in ("isolcpus", "nohz", "rcu_nocb", "hugepages"))
        assert entry["arguments"].endswith("evenkeel.rescue")
        assert OTHERS in entry["arguments"]
    picture = tree.picture(root)
    assert take(root)["outcome"] == "unchanged"
    assert tree.picture(root) == picture
    undo(root)
    assert tree.picture(root) == before


@pytest.mark.parametrize("name", ALL)
def test_killed_anywhere_and_rolled_back_every_byte_is_as_before(name: str, make: Make, tmp_path: Path) -> None:
    """Half of the rollbacks are killed too.  The file layouts at every call, those that run grub-mkconfig at some."""
    root = make(name)
    before = tree.picture(root)
    shutil.copytree(root, template := tmp_path / "template", symlinks=True)
    dice = random.Random(3)
    kills = changed = 0
    points = (
        list(range(0, 1000, 2 if name == "rhel9" else 4))
        if name in FILES_ONLY
        else [*sorted(dice.sample(range(2, 36), 7)), 1000]
    )
    for point in points:
        shutil.rmtree(root)
        shutil.copytree(template, root, symlinks=True)

        def killed(root: Path = root, point: int = point) -> None:
            die_at(point)
            take(root)

        ended = in_child(killed)
        assert ended in (0, -signal.SIGKILL)
        changed += tree.picture(root) != before
        if dice.random() < 0.5:

            def killed_again(root: Path = root) -> None:
                die_at(dice.randrange(25))
                undo_all(root)

            in_child(killed_again)
        assert in_child(lambda root=root: undo_all(root)) == 0  # type: ignore[misc]
        assert tree.picture(root) == before, f"killed at call {point}"
        kills += ended != 0
        if ended == 0:
            break
    assert changed > 3
    assert kills >= (6 if name in FILES_ONLY else 5)


# -- kernels that come and go -----------------------------------------------------------------------------------------


def kernel_install(root: Path, command: str, version: str) -> None:
    """The real kernel-install with its real plugin, on the tree."""
    image = root / "linux"
    image.write_text("kernel")
    environment = {
        **{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "KERNEL_INSTALL_CONF_ROOT": str(root / "etc/kernel")},
        **{"BOOT_ROOT": str(root / "efi"), "MACHINE_ID": ID, "ENTRY_TOKEN": ID, "layout": "bls"},
        "KERNEL_INSTALL_PLUGINS": "/usr/lib/kernel/install.d/90-loaderentry.install",
    }
    arguments = [str(image)] if command == "add" else []
    subprocess.run(["kernel-install", command, version, *arguments], env=environment, check=True)
    image.unlink()


def test_a_kernel_that_is_installed_before_the_reboot_has_ours_and_loses_them_with_the_rest(make: Make) -> None:
    """rhboot/grubby#55: arguments written to the entries alone are lost with the next kernel."""
    root = make("systemd_boot")
    put(root, "/efi/loader/entries.srel", "type1\n")
    version = "6.12.48-rt"
    kernel_install(root, "add", version)  # as a control: without us, it does not have them
    entry = root / f"efi/loader/entries/{ID}-{version}.conf"
    assert missing(ARGUMENTS, entryfiles.options(entry.read_text(), {}))
    kernel_install(root, "remove", version)
    assert not entry.exists()

    take(root)
    kernel_install(root, "add", version)
    kernel_install(root, "remove", OLD)
    assert missing(ARGUMENTS, entryfiles.options(entry.read_text(), {})) == []
    assert take(root)["outcome"] == "unchanged"
    undo(root)
    left = sorted(path.name for path in (root / "efi/loader/entries").iterdir())
    assert left == sorted([f"{ID}-{NEW}.conf", f"{ID}-{version}.conf", "memtest.conf"])
    for path in (root / "efi/loader/entries").glob(f"{ID}*"):
        assert OURS.split()[0] not in path.read_text()
    assert (root / "etc/kernel/cmdline").read_text() == f"{boot_trees.BEFORE}\n"


@pytest.mark.parametrize(("name", "program"), [("debian", "update-grub"), ("suse", "grub2-mkconfig")])
def test_the_menu_that_a_kernel_package_makes_has_ours_for_all_and_rescue_for_all(
    name: str, program: str, make: Make
) -> None:
    """The hooks of a kernel package do no more than this: the image is there, or gone, and the menu is made anew."""
    root = make(name)
    [menu] = (root / "boot").glob("grub*/grub.cfg")

    def install(version: str, gone: str) -> None:
        put(root, f"/boot/vmlinuz-{version}", "kernel")
        (root / f"boot/vmlinuz-{gone}").unlink()
        command = [str(root / "usr/sbin" / program), "-o", f"/{menu.relative_to(root)}"]
        subprocess.run(command, cwd=root, check=True, capture_output=True)

    install("6.98.0", OLD)  # as a control: without us, no entry has ours
    assert all(missing(ARGUMENTS, entry["arguments"]) for entry in state(root)["entries"])
    take(root)
    install("6.99.0", "6.98.0")
    now = state(root)
    assert (
        {entry["kernel"] for entry in now["entries"]} == {entry["kernel"] for entry in now["rescue"]} == {NEW, "6.99.0"}
    )
    assert all(missing(ARGUMENTS, entry["arguments"]) == [] for entry in now["entries"])
    assert all("isolcpus=managed_irq" not in entry["arguments"] for entry in now["rescue"])
    assert take(root)["outcome"] == "unchanged"
    undo(root)
    after = state(root)
    assert {entry["kernel"] for entry in after["entries"]} == {NEW, "6.99.0"}
    assert "isolcpus=managed_irq" not in menu.read_text()
    assert after["rescue"] == []


def test_where_new_kernels_would_take_the_running_command_line_they_get_one_of_their_own(make: Make) -> None:
    root = make("fedora_cloud")
    take(root)
    line = (root / "etc/kernel/cmdline").read_text()
    assert missing(ARGUMENTS, line) == []
    assert "evenkeel" not in line
    undo(root)
    assert not (root / "etc/kernel").exists()


def test_an_entry_that_somebody_wrote_without_ours_is_drift_and_is_repaired(make: Make) -> None:
    root = make("rhel9")
    take(root)
    put(
        root,
        f"/boot/loader/entries/{ID}-6.1.conf",
        "title x\nversion 6.1\nlinux /vmlinuz-6.1\noptions root=/dev/a ro\n",
    )
    assert write.apply_step(STEP, PLAN, dry_run=True, root=str(root))["outcome"] == "would_change"
    assert take(root)["outcome"] == "done"
    undo(root)
    text = (root / f"boot/loader/entries/{ID}-6.1.conf").read_text()
    assert text == "title x\nversion 6.1\nlinux /vmlinuz-6.1\noptions root=/dev/a ro\n"


@pytest.mark.parametrize("name", FILES_ONLY)
def test_the_rescue_entry_of_a_kernel_that_was_removed_is_made_for_another(name: str, make: Make) -> None:
    root = make(name)
    take(root)
    [rescue] = root.rglob("*evenkeel-rescue.conf")
    assert NEW in rescue.read_text()
    for entry in root.rglob(f"{ID}-{NEW}.conf"):
        entry.unlink()
    assert take(root)["outcome"] == "done"
    assert NEW not in rescue.read_text()
    assert take(root)["outcome"] == "unchanged"
    undo(root)
    assert list(root.rglob("*evenkeel*.conf")) == []
    assert all(entry["arguments"].endswith(("hugepages=9", "splash")) for entry in state(root)["entries"])


def test_a_file_keeps_its_selinux_label(make: Make) -> None:
    root = make("rhel9")
    file, label = root / "etc/default/grub", b"system_u:object_r:bootloader_etc_t:s0\0"
    os.setxattr(file, "security.selinux", label)
    take(root)
    assert "BEGIN evenkeel" in file.read_text()
    assert os.getxattr(file, "security.selinux") == label
    undo(root)
    assert os.getxattr(file, "security.selinux") == label


@pytest.mark.parametrize("name", FILES_ONLY)
def test_what_somebody_else_changed_since_stays_and_only_ours_goes(name: str, make: Make) -> None:
    root = make(name)
    take(root)
    changed = 0
    for path in ["etc/kernel/cmdline", "boot/efi/EFI/redhat/grubenv", f"boot/loader/entries/{ID}-{OLD}.conf"]:
        file = root / path
        if file.exists() and " rhgb" in file.read_text():
            file.write_text(file.read_text().replace(" rhgb", " xxxx"))
            changed += 1
    for file in (root / "efi/loader/entries").glob(f"{ID}-{OLD}*"):
        file.write_text(file.read_text().replace(" rhgb", " xxxx"))
        file.rename(file.with_name(f"{ID}-{OLD}+2-1.conf"))  # as systemd-boot counts its tries
        changed += 1
    assert changed
    undo(root)
    for entry in state(root)["entries"]:
        words = entry["arguments"].replace('"dyndbg=file isolcpus=x +p"', "").split()
        assert not set(OURS.split()) & set(words)
        assert [word for word in words if word.startswith(("isolcpus", "nohz"))] == [
            "nohz-full=1",
            "isolcpus=5",
            "isolcpus=7",
        ]
    assert any("xxxx" in entry["arguments"] for entry in state(root)["entries"]) or name == "fedora_cloud"


def test_grub_writes_its_block_while_booting_and_the_undo_leaves_that(make: Make) -> None:
    root = make("rhel8")
    block = root / "boot/grub2/grubenv"
    take(root)
    subprocess.run(["grub-editenv", str(block.resolve()), "set", "boot_success=1"], check=True)
    undo(root)
    told = subprocess.run(["grub-editenv", str(block.resolve()), "list"], check=True, capture_output=True, text=True)
    assert "boot_success=1" in told.stdout.splitlines()
    assert f"kernelopts={boot_trees.BEFORE}".split() == [
        word for line in told.stdout.splitlines() if line.startswith("kernelopts") for word in line.split()
    ]
    assert len(block.read_bytes()) == 1024


# -- what real tools read out of it -----------------------------------------------------------------------------------


def test_grub_editenv_reads_the_block_that_we_wrote(make: Make) -> None:
    root = make("rhel8")
    take(root)
    block = root / "boot/grub2/grubenv"
    assert block.is_symlink()
    told = subprocess.run(["grub-editenv", str(block.resolve()), "list"], check=True, capture_output=True, text=True)
    listed = dict(line.split("=", 1) for line in told.stdout.splitlines())
    assert listed["kernelopts"].endswith(f"quiet {OURS}")
    assert listed["saved_entry"] == f"{ID}-{NEW}"


@pytest.mark.parametrize("value", ["a\\b", "a b=c", ""])
def test_the_block_is_read_and_written_as_grub_editenv_does(value: str, tmp_path: Path) -> None:
    file = tmp_path / "grubenv"
    subprocess.run(["grub-editenv", str(file), "create"], check=True)
    subprocess.run(["grub-editenv", str(file), "set", f"x={value}", "y=1"], check=True)
    real = file.read_bytes()
    assert environment.variables(real) == {"x": value, "y": "1"}
    subprocess.run(["grub-editenv", str(file), "set", "x=new"], check=True)
    assert environment.with_variable(file.read_bytes(), "x", value, "grubenv") == real


@pytest.fixture(scope="session")
def bootctl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real one.  Unpacked, never installed: its package makes systemd-boot the boot loader of the machine."""
    found = shutil.which("bootctl")
    if found:
        return found
    folder = tmp_path_factory.mktemp("bootctl")
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "systemd-boot"]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "-q", "update"], check=True)
        subprocess.run(download, cwd=folder, check=True)
    [package] = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return str(folder / "usr/bin/bootctl")


def test_bootctl_reads_our_entries_and_the_rescue_entry_comes_after_every_kernel(make: Make, bootctl: str) -> None:
    root = make("systemd_boot")
    take(root)
    script = (
        f"cd {root}; cp -r efi copy; mount -t tmpfs none efi; cp -r copy/. efi; "
        f"SYSTEMD_RELAX_ESP_CHECKS=1 exec {bootctl} list --json=short --esp-path=$PWD/efi"
    )
    flags = [] if os.getuid() == 0 else ["--map-root-user"]
    told = subprocess.run(
        ["unshare", *flags, "--mount", "--propagation", "private", "sh", "-euc", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    listed = [entry for entry in _listed(told.stdout) if entry.get("linux")]
    names = [entry["id"] for entry in listed]
    assert names == [f"{ID}-{NEW}.conf", f"{ID}-{OLD}.conf", f"{ID}-0-evenkeel-rescue.conf"]
    assert all(" ".join(entry["options"].split()).endswith(OURS) for entry in listed[:2])
    assert listed[2]["options"].endswith("evenkeel.rescue")


def _listed(said: str) -> list[dict[str, Any]]:
    """252 prints one object an entry, newer versions one list."""
    found: list[Any] = [json.loads(line) for line in said.splitlines() if line.strip()]
    return [entry for item in found for entry in (item if isinstance(item, list) else [item])]


def test_arguments_that_tuned_put_into_grubs_block_are_taken_over_and_come_back(make: Make) -> None:
    root = make("rhel8")
    block = (root / "boot/grub2/grubenv").resolve()
    tuned = "skew_tick=1 isolcpus=managed_irq,domain,4-7 nohz=on"
    subprocess.run(["grub-editenv", str(block), "set", f"tuned_params={tuned}"], check=True)
    before = tree.picture(root)
    assert any("domain,4-7" in entry["arguments"] for entry in state(root)["entries"])
    take(root)
    assert environment.variables(block.read_bytes())["tuned_params"] == "skew_tick=1 nohz=on"
    assert all(missing(ARGUMENTS, entry["arguments"]) == [] for entry in state(root)["entries"])
    undo(root)
    assert tree.picture(root) == before
    take(root)
    subprocess.run(["grub-editenv", str(block), "set", "boot_success=1"], check=True)
    undo(root)
    assert (
        environment.variables(block.read_bytes())["tuned_params"]
        == "skew_tick=1 nohz=on isolcpus=managed_irq,domain,4-7"
    )


def test_arguments_that_tuned_puts_into_the_menu_are_seen_before_it_is_replaced(make: Make) -> None:
    root = make("debian")
    put(root, "/etc/grub.d/00_tuned", "#!/bin/sh\necho 'set tuned_params=\"isolcpus=4-7\"'\n", 0o755)
    line = 'GRUB_CMDLINE_LINUX_DEFAULT="${GRUB_CMDLINE_LINUX_DEFAULT} \\$tuned_params"\n'
    put(root, "/etc/default/grub.d/60-tuned.cfg", line)
    before = tree.picture(root)
    with pytest.raises(StepFailed, match=r"lacks isolcpus=managed_irq,2-3; .* TuneD \(tuned-adm off\)"):
        take(root)
    undo(root)
    assert tree.picture(root) == before


# -- refused before anything is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_line_that_the_kernel_would_cut_off_is_refused_before_anything_is_written(name: str, make: Make) -> None:
    root = make(name)
    before = tree.picture(root)
    scattered = ",".join(str(cpu) for cpu in range(0, 2000, 2))
    for arguments in (ARGUMENTS[:1], [{"key": "isolcpus", "value": scattered, "after": None}]):
        too_long = arguments[0]["value"] == scattered
        step = {"kind": "boot", "arguments": arguments}
        if not too_long:
            assert write.apply_step(step, PLAN, dry_run=True, root=str(root))["outcome"] == "would_change"
            continue
        with pytest.raises(StepFailed, match=r"the kernel takes 2047.*the longest words are isolcpus=0,2,4,6"):
            write.apply_step(step, PLAN, root=str(root))
    assert tree.picture(root) == before
    assert not (root / "var/lib/evenkeel/journal.jsonl").exists()


def test_a_line_that_does_not_fit_into_grubs_block_is_refused_although_the_kernel_would_take_it(make: Make) -> None:
    root = make("rhel8")
    before = tree.picture(root)
    value = ",".join(str(cpu) for cpu in range(0, 560, 2))
    with pytest.raises(StepFailed, match="GRUB keeps it in a block of 1024 bytes"):
        take(root, [{"key": "isolcpus", "value": value, "after": None}])
    assert tree.picture(root) == before
    fits = make("rhel9")
    assert take(fits, [{"key": "isolcpus", "value": value, "after": None}])["outcome"] == "done"


def test_what_cannot_be_set_is_refused_by_name(make: Make) -> None:
    root = make("systemd_boot")
    put(root, "/efi/EFI/Linux/debian.efi", "MZ")
    with pytest.raises(StepFailed, match="is a unified kernel image"):
        take(root)
    (root / "efi/EFI/Linux/debian.efi").unlink()
    entry = root / f"efi/loader/entries/{ID}-{OLD}.conf"
    entry.write_text("".join(line for line in entry.read_text().splitlines(True) if not line.startswith("options")))
    with pytest.raises(StepFailed, match="has no options"):
        take(root)
    shutil.rmtree(root / "efi/loader/entries")
    with pytest.raises(StepFailed, match="no entry for a Linux kernel; is the partition mounted"):
        take(root)
    assert not (root / "var/lib/evenkeel").exists()
    assert boot.menu(str(root / "nothing")) == {"layout": None, "default": None, "entries": []}


@pytest.mark.parametrize(("info", "layout"), [("systemd-boot 252.39", "systemd-boot"), (None, "GRUB as on Debian")])
def test_where_both_are_installed_the_one_that_started_the_machine_counts(
    info: str | None, layout: str, make: Make
) -> None:
    root = make("debian")
    boot_trees.systemd_boot(root)
    if info:
        put(root, "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "")
        file = root / "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        file.write_bytes(b"\x06\0\0\0" + f"{info}\0".encode("utf-16-le"))
    assert boot.menu(str(root))["layout"] == layout


# -- the menu that grub-mkconfig writes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["debian", "suse"])
def test_a_grub_mkconfig_that_fails_or_writes_no_kernel_leaves_the_old_menu(name: str, make: Make) -> None:
    root = make(name)
    before = tree.picture(root)
    script = root / "etc/grub.d/10_linux"
    real = script.read_text()
    for broken, said in (("#!/bin/sh\nexit 3\n", "failed"), ("#!/bin/sh\n", "no entry for a Linux kernel")):
        script.write_text(broken)
        with pytest.raises(StepFailed, match=said):
            take(root)
        script.write_text(real)
        menus = {path: item for path, item in tree.picture(root).items() if path.startswith("/boot/")}
        assert menus == {path: item for path, item in before.items() if path.startswith("/boot/")}
        undo(root)
        assert tree.picture(root) == before


@pytest.mark.parametrize("name", ["debian", "suse"])
def test_the_menu_is_replaced_and_never_written_over(name: str, make: Make) -> None:
    """grub-mkconfig writes over it: whoever reads it in that moment, GRUB after a power cut too, sees a part."""
    root = make(name)
    [menu] = (root / "boot").glob("grub*/grub.cfg")
    old = menu.read_text()
    with menu.open() as reader:
        take(root)
        assert reader.read() == old
    with menu.open() as reader:
        new = menu.read_text()
        undo(root)
        assert reader.read() == new != old


def test_a_file_sourced_after_ours_is_noticed_before_the_menu_is_replaced(make: Make) -> None:
    root = make("debian")
    put(root, "/etc/default/grub.d/zzz-later.cfg", 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX nohz_full=7"\n')
    before = tree.picture(root)
    with pytest.raises(StepFailed, match=r"lacks nohz_full=2-3; does a file sourced after"):
        take(root)
    assert tree.picture(root)["/boot/grub/grub.cfg"] == before["/boot/grub/grub.cfg"]
    undo(root)
    assert tree.picture(root) == before


def test_the_old_menu_comes_back_byte_for_byte_only_while_it_does_the_same(make: Make) -> None:
    """Generated in another language it does; with another timeout it does not, and then the new one is right."""
    root = make("debian")
    menu = root / "boot/grub/grub.cfg"
    menu.chmod(0o644)
    menu.write_text(menu.read_text().replace("menuentry 'GNU/Linux'", "menuentry 'GNU/Linux, auf Deutsch'"))
    before = tree.picture(root)
    take(root)
    assert "auf Deutsch" not in menu.read_text()
    undo(root)
    assert tree.picture(root) == before
    take(root)
    put(root, "/etc/default/grub", (root / "etc/default/grub").read_text().replace("TIMEOUT=5", "TIMEOUT=9"))
    undo(root)
    assert "timeout=9" in menu.read_text()
    assert "auf Deutsch" not in menu.read_text()


def test_a_snapshot_of_an_older_journal_is_still_undone(make: Make) -> None:
    root = make("debian")
    before = tree.picture(root)
    found = state(root)
    old = {"file": found["files"]["/etc/default/grub.d/zz-evenkeel.cfg"], "entries": [], "sha256": found["generated"]}
    take(root)
    boot.undo(STEP, json.dumps(old), str(root))
    after = tree.picture(root)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} <= {"/boot/grub/grub.cfg"}
    assert "evenkeel" not in (root / "boot/grub/grub.cfg").read_text()
